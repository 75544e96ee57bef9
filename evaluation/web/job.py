"""Work in a process of its own: it can be stopped, paused and bounded whatever it does, and its memory goes with it.

Decoders are C code that cannot be interrupted from within, and a small file can ask them for hours of work. The processes
are forks of a server process that has only imported what is needed: a fork of a process with torch's threads in it would
hang, and a fresh interpreter needs seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

from evaluation.web.recording import Complaint
from utils.worker_pool import one_blas_thread

NICENESS = 3  # Live streams come first, for they cannot wait.
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
# What the work needs, and what that imports only where it is used. The process server passes over what is not installed.
PRELOADED = [f"{__package__}.enhance", "numba", "matplotlib.figure", "matplotlib.backends.backend_agg", "pystoi", "pesq"]
TOO_MUCH_MEMORY = "This recording needs more memory than one visitor may have here."

_context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
_context.set_forkserver_preload(PRELOADED)


class Progress(NamedTuple):
    """How far the work is: a share from 0 to 1, and what is being done."""

    share: float
    what: str


class Failure(NamedTuple):
    """The work ended by an error that is not the visitor's; `why` is for the log."""

    why: str


class Job:
    """`function(*args, progress)` in a process of its own; it is an iterator, what it gives is received here, in order.

    Nothing happens before `go`. memory_bytes bounds what the process may take in addition to what it begins with; None: no
    bound. Use it in a `with` block: at its end the process is gone.
    """

    def __init__(self, function: Callable[..., Iterator], *args: object, memory_bytes: int | None = None) -> None:
        self._receiver, self._sender = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_work, args=(self._sender, function, args, memory_bytes), daemon=True, name="recording"
        )
        self._started = self._pausing = False

    def go(self) -> None:
        """Begin, or go on after `rest`."""
        if not self._started:
            with one_blas_thread():  # the first job starts the process that all of them are forks of
                self._process.start()
            self._started = True
            self._sender.close()
        elif self._pausing:
            self._signal("SIGCONT")
        self._pausing = False

    def rest(self) -> None:
        """Do nothing until `go`; where the system cannot pause a process it works on."""
        if self._started and not self._pausing:
            self._signal("SIGSTOP")
            self._pausing = True

    def receive(self, timeout_sec: float) -> object | None:
        """What comes next, None if it takes longer; a Complaint or a Failure is the last. EOFError at the end."""
        if not self._receiver.poll(timeout_sec):
            return None
        try:
            return self._receiver.recv()
        except EOFError:
            self._process.join(5)
            if self._process.exitcode == 0:
                raise
            return Failure(f"the process ended with exit code {self._process.exitcode}")

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, getattr(signal, name))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._process.kill()
            self._process.join()
        else:
            self._sender.close()
        self._receiver.close()


def _work(pipe: Connection, function: Callable[..., Iterator], args: tuple, memory_bytes: int | None) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the server ends this one.
    with contextlib.suppress(AttributeError, OSError):  # Linux only: die with the server, also where it is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(AttributeError, OSError):
        os.nice(NICENESS)
    _bound_memory(memory_bytes)
    try:
        for given in function(*args, lambda share, what: pipe.send(Progress(share, what))):
            pipe.send(given)
    except Complaint as error:
        pipe.send(error)
    except MemoryError:
        pipe.send(Complaint(TOO_MUCH_MEMORY))
    except Exception:  # whatever it was, the server logs it and tells the visitor that enhancing failed
        pipe.send(Failure(traceback.format_exc()))


def _bound_memory(memory_bytes: int | None) -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # not Linux
        return
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes,) * 2)


def start_job_server() -> None:
    """Import now what the jobs need, so that the first visitor does not wait for it."""
    with Job(_nothing) as job, contextlib.suppress(EOFError):
        job.go()
        while True:
            job.receive(1.0)


def _nothing(progress: Callable[[float, str], object]) -> Iterator:
    return iter(())
