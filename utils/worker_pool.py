"""A pool of worker processes which survives the death of a worker: only the item that it worked on is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

ATTEMPTS = 2  # for each item: a system that is short of memory may kill a process which is not the cause
GRACE_SEC = 10.0  # for a worker to clear up when the pool is closed; one that is deep in C code hears nothing, and is killed
AHEAD_PER_WORKER = 4  # items that have been read and are not finished; the rest of a long list is not in memory
WHY_LOST = "its process crashed or was killed twice; if the memory is too small, use fewer workers"

# numpy's OpenBLAS makes a thread for each core in every process. With two workers on two cores these waited for each other:
# PESQ, STOI and SI-SDR of a clip took 0.84 s in the place of 0.30 s.
BLAS_THREADS = "OPENBLAS_NUM_THREADS"

Job = Callable[[Any], Any]
_starting = threading.Lock()


def _serve(pipe: Connection, job: Job) -> None:
    """What a worker does: it answers each item with (result, None, "") or (None, error, traceback)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides what it means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # `finally` blocks remove half-written files
    while True:
        try:
            item = pipe.recv()
        except EOFError:  # the pool is closed, or its process has ended
            return
        try:
            pipe.send((job(item), None, ""))
        except Exception as error:
            pipe.send((None, error, traceback.format_exc()))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """For processes that start in it: they read their environment when they import numpy. A number that is set there stays."""
    with _starting:
        ours = BLAS_THREADS not in os.environ
        os.environ.setdefault(BLAS_THREADS, "1")
        try:
            yield
        finally:
            if ours:
                del os.environ[BLAS_THREADS]


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


def _start(job: Job) -> _Worker:
    """A spawned process: a fork of a process that has torch's threads in it hangs."""
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, job), daemon=True)
    with one_blas_thread():
        process.start()
    other_end.close()  # only the process holds it now, so the pipe ends when the process does
    return _Worker(process, pipe)


class WorkerPool(contextlib.AbstractContextManager):
    """Processes that do `job(item)`. Use the pool in a `with` block, or `close` it. Any thread may call it.

    job: it is sent to each process once, at the start, so it may keep there what it makes for the first item.
    lost: it gives the result of an item that killed its process ATTEMPTS times; WHY_LOST says so in words.

    An exception in `job` is raised where the result is asked for; the processes live on.
    """

    def __init__(self, job: Job, workers: int, lost: Callable[[Any], Any]) -> None:
        self._job, self._lost, self._n_workers = job, lost, max(1, workers)
        self._threads = ThreadPoolExecutor(self._n_workers)  # each thread waits for one process
        self._idle: list[_Worker] = []
        self._alive: set[_Worker] = set()
        self._lock, self._closed = threading.Lock(), False

    def submit(self, item: object) -> Future:
        """Begin with an item; the future holds its result."""
        return self._threads.submit(self._do, item)

    def map(self, items: Iterable[object]) -> Iterator[Any]:
        """The results in the order of the items, which are read only as fast as they are worked on."""
        todo = iter(items)
        waiting = deque(self.submit(item) for item in islice(todo, AHEAD_PER_WORKER * self._n_workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(self.submit(item) for item in islice(todo, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes, even in the middle of an item."""
        with self._lock:
            self._closed = True
            alive = list(self._alive)
            for worker in alive:
                worker.process.terminate()
        end = time.monotonic() + GRACE_SEC
        for worker in alive:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()  # nothing happens to one that has ended
        self._threads.shutdown(cancel_futures=True)
        for worker in self._alive:
            worker.process.join()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> _Worker:
        """An idle worker, or a new one."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool of processes is closed")
            worker = self._idle.pop() if self._idle else _start(self._job)
            self._alive.add(worker)
            return worker

    def _do(self, item: object) -> Any:
        for _ in range(ATTEMPTS):
            worker = self._take()
            try:
                worker.pipe.send(item)
                result, error, where = worker.pipe.recv()
            except (EOFError, OSError):  # it has died
                with self._lock:
                    self._alive.discard(worker)
                worker.process.join()
                continue
            self._idle.append(worker)
            if error is not None:
                raise error from RuntimeError(f"in a worker process:\n{where}")
            return result
        return self._lost(item)


def run_jobs(job: Job, items: Iterable[object], workers: int, lost: Callable[[Any], Any]) -> Iterator[Any]:
    """job(item) of each item, in order: in a WorkerPool that ends with the last one, or in this process for one worker."""
    with WorkerPool(job, workers, lost) if workers > 1 else contextlib.nullcontext() as pool:
        yield from pool.map(items) if pool else map(job, items)
