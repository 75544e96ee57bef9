"""Scripts started as a user starts them on two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from helpers.paths import ROOT
from utils.distributed import free_port


def torchrun(*arguments: str, timeout_sec: int = 100) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [*launcher, *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=timeout_sec)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the processes that it started, too
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
