"""The web page under test: app.py as a user starts it, in a process of its own, with the folder for its temporary files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from helpers.paths import LONGEST_SEC, ROOT
from helpers.processes import mind_signals
from utils.distributed import free_port


def status_of(url: str) -> int:
    """HTTP status of a GET; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=LONGEST_SEC) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


class Server:
    """`python app.py` with a checkpoint, until `stop`; `folder` holds its log, and in tmp/ all its temporary files."""

    def __init__(self, checkpoint: Path, folder: Path, *options: str, temporary: Path | None = None) -> None:
        self.port, self.folder, self.temporary = free_port(), folder, temporary or folder / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(ROOT / "app.py"), "--checkpoint_file", str(checkpoint), "--port", str(self.port)]
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                command + list(options), cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=mind_signals,
            )
        self.url = f"http://127.0.0.1:{self.port}/"
        deadline = time.monotonic() + LONGEST_SEC
        while time.monotonic() < deadline:
            if status_of(self.url) == 200:
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"app.py did not serve: {self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it as a service manager does, or by another signal; gives the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            return self._process.wait(LONGEST_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(LONGEST_SEC)
