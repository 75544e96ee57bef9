"""Scripts started as a user starts them on two processes, and work that needs no process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from helpers.paths import LONGEST_SEC, ROOT
from utils.distributed import free_port


class InThisProcess(ThreadPoolExecutor):
    """In the place of a ProcessPoolExecutor: its processes would import torch again, for seconds."""

    def __init__(self, max_workers: int, mp_context: object = None) -> None:
        super().__init__(max_workers)
        self._threads_before = torch.get_num_threads()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch.set_num_threads(self._threads_before)


def mind_signals() -> None:
    """For a process about to start: it heeds SIGINT and SIGHUP, which whoever runs the tests in the background ignores."""
    for each in (signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def torchrun(*arguments: str, timeout_sec: int = LONGEST_SEC) -> subprocess.CompletedProcess:
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
