"""Scripts started as a user starts them on two processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from helpers.paths import ROOT


def torchrun(*arguments: str, timeout_sec: int = 100) -> subprocess.CompletedProcess:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=timeout_sec)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the processes that it started, too
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
