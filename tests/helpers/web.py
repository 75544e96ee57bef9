"""The web page under test: app.py as a user starts it, in a process of its own, with the folder for its temporary files."""

from __future__ import annotations

import contextlib
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


def _children(pid: int) -> list[int]:
    """Processes that a process started and that live."""
    try:
        return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    except OSError:  # it has just ended
        return []


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

    def pause_next_job(self) -> None:
        """Wait until a visitor's recording is worked on, and pause that process, for as long as it lives.

        When it has made itself nicer than the server it has told the server that it is there.
        """
        deadline, server_niceness = time.monotonic() + LONGEST_SEC, os.getpriority(os.PRIO_PROCESS, self.pid)
        while time.monotonic() < deadline:
            for pid in (job for forks in _children(self.pid) for job in _children(forks)):
                with contextlib.suppress(ProcessLookupError):
                    if os.getpriority(os.PRIO_PROCESS, pid) > server_niceness:
                        os.kill(pid, signal.SIGSTOP)
                        return
            time.sleep(0.01)
        raise RuntimeError("no recording is worked on")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it as a service manager does, or by another signal; gives the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            return self._process.wait(LONGEST_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(LONGEST_SEC)
