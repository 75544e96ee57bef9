"""Worker processes: order, exceptions, death, Ctrl-C, closing, and what they read ahead."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from helpers.paths import LONGEST_SEC
from utils import worker_pool
from utils.worker_pool import AHEAD_PER_WORKER, ATTEMPTS, WorkerPool, run_jobs

PARENT = os.getpid()


class Work:
    """Does what an item says, in a process that it remembers."""

    def __init__(self, notes: Path) -> None:
        self.notes, self.n_done = notes, 0

    def __call__(self, item: tuple[str, int]) -> tuple[int, int]:
        what, number = item
        with open(self.notes, "a") as file:
            file.write(f"{what} {number} {os.getpid()}\n")
        if what == "exit":
            os._exit(3)
        if what == "once" and self.notes.read_text().count(f"once {number}") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise KeyError(number)
        if what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if what == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.notes.with_suffix(".deaf").touch()
            time.sleep(600)
        if what == "forever":
            try:
                time.sleep(600)
            finally:
                self.notes.with_suffix(".clean").touch()
        if what == "slow":
            time.sleep(0.3)
        if what == "blas":
            return number, int(os.environ.get(worker_pool.BLAS_THREADS, 0))
        self.n_done += 1
        return number, self.n_done


def lost(item: tuple[str, int]) -> tuple[str, int]:
    return "lost", item[1]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes.txt"


def begun(notes: Path) -> list[list[str]]:
    return [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []


def wait_for(condition) -> None:
    end = time.monotonic() + LONGEST_SEC
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_results_keep_the_order_and_processes_keep_what_they_made(notes: Path) -> None:
    items = [("slow" if number == 0 else "do", number) for number in range(9)]
    results = list(run_jobs(Work(notes), items, 2, lost))
    assert [number for number, _ in results] == list(range(9))
    processes = {pid for _, _, pid in begun(notes)}
    assert len(processes) <= 2 and str(PARENT) not in processes
    assert sorted(count for _, count in results)[-1] >= 5  # nine items, two processes that count their own


@pytest.mark.parametrize("own", [None, "3"])
def test_a_process_has_one_blas_thread_unless_somebody_said_otherwise(
    notes: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv(worker_pool.BLAS_THREADS, raising=False)
    if own is not None:
        monkeypatch.setenv(worker_pool.BLAS_THREADS, own)
    with WorkerPool(Work(notes), 1, lost) as pool:
        assert pool.submit(("blas", 0)).result() == (0, int(own or 1))
    assert os.environ.get(worker_pool.BLAS_THREADS) == own


def test_one_worker_is_this_process(notes: Path) -> None:
    assert list(run_jobs(Work(notes), [("do", 5), ("do", 6)], 1, lost)) == [(5, 1), (6, 2)]
    assert {pid for _, _, pid in begun(notes)} == {str(PARENT)}


def test_an_item_that_kills_its_process_is_lost_alone(notes: Path) -> None:
    kinds = ("do", "exit", "do", "once", "do")
    with WorkerPool(Work(notes), 2, lost) as pool:
        results = list(pool.map((kind, number) for number, kind in enumerate(kinds)))
        assert [result[0] for result in results] == [0, "lost", 2, 3, 4] and results[1] == ("lost", 1)
        assert next(pool.map([("do", 7)]))[0] == 7  # the pool lives on
    tried = [(what, number) for what, number, _ in begun(notes)]
    assert tried.count(("exit", "1")) == ATTEMPTS and tried.count(("once", "3")) == 2
    assert tried.count(("do", "0")) == tried.count(("do", "4")) == 1  # what others did is not done again


def test_an_exception_reaches_the_caller_and_costs_no_process(notes: Path) -> None:
    with WorkerPool(Work(notes), 1, lost) as pool:
        results = pool.map([("do", 0), ("raise", 1), ("do", 2)])
        assert next(results) == (0, 1)
        with pytest.raises(KeyError) as caught:
            next(results)
        assert caught.value.args == (1,) and "test_worker_pool.py" in str(caught.value.__cause__)  # where it happened
        assert pool.submit(("do", 3)).result()[0] == 3
    assert len({pid for _, _, pid in begun(notes)}) == 1


def test_an_item_that_cannot_be_sent_is_an_exception(notes: Path) -> None:
    with WorkerPool(Work(notes), 1, lost) as pool, pytest.raises((TypeError, AttributeError)):
        pool.submit(("do", threading.Lock())).result()


def test_ctrl_c_in_a_worker_is_left_to_the_caller(notes: Path) -> None:
    with WorkerPool(Work(notes), 1, lost) as pool:
        assert list(pool.map([("interrupt", 0), ("do", 1)])) == [(0, 1), (1, 2)]


def test_ctrl_c_here_ends_work_that_would_last(notes: Path) -> None:
    """Within seconds, not the 600 of the item; `finally` blocks of the work are run."""

    def press() -> None:
        wait_for(lambda: begun(notes))
        os.kill(PARENT, signal.SIGINT)

    presser = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            presser.start()
            list(run_jobs(Work(notes), [("forever", number) for number in range(20)], 2, lost))
    finally:
        signal.signal(signal.SIGINT, before)
    presser.join()
    assert notes.with_suffix(".clean").exists()
    assert {what for what, _, _ in begun(notes)} == {"forever"} and len(begun(notes)) <= 2
    for _, _, pid in begun(notes):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_process_that_heeds_no_signal_is_killed(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C code that never returns is such a process: a signal's handler waits until it does."""
    monkeypatch.setattr(worker_pool, "GRACE_SEC", 0.1)
    with WorkerPool(Work(notes), 1, lost) as pool:
        pool.submit(("deaf", 0))
        wait_for(notes.with_suffix(".deaf").exists)
    ((_, _, pid),) = begun(notes)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_items_are_read_as_fast_as_they_are_worked_on(notes: Path) -> None:
    read = 0

    def items():
        nonlocal read
        for number in range(40):
            read += 1
            yield "do", number

    with WorkerPool(Work(notes), 2, lost) as pool:
        ahead = [read - n_done for n_done, _ in enumerate(pool.map(items()), 1)]
    assert max(ahead) <= 2 * AHEAD_PER_WORKER and len(ahead) == 40


def test_a_closed_pool_takes_nothing(notes: Path) -> None:
    pool = WorkerPool(Work(notes), 1, lost)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError):
        pool.submit(("do", 0))
