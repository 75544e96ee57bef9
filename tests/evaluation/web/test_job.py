"""Work on a recording: in a process that can be ended at any moment, and in turns between visitors."""

from __future__ import annotations

import os
import time

import pytest

from evaluation.web.job import TOO_MUCH_MEMORY, Failure, Job, Progress
from evaluation.web.line import Line, Turn
from evaluation.web.recording import Complaint
from helpers.jobs import complain, count, crash, fail, fill_memory, never_end, tick


def everything(job: Job) -> list:
    """What a job gives until it ends."""
    given = []
    job.go()
    try:
        while not (given and isinstance(given[-1], (Complaint, Failure))):
            held = job.receive(60.0)
            assert held is not None, "nothing came"
            given.append(held)
    except EOFError:
        pass
    return given


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_gives_what_its_function_gives_in_order() -> None:
    with Job(count, 3) as job:
        assert everything(job) == [Progress(0.0, "counting"), 0, Progress(1 / 3, "counting"), 1, Progress(2 / 3, "counting"), 2]


@pytest.mark.parametrize(("function", "told"), [(complain, "no good."), (fail, "a bug"), (crash, "exit code -6")])
def test_whatever_goes_wrong_is_told_and_ends_the_job_alone(function, told: str) -> None:
    with Job(function) as job:
        first, last = everything(job)
    assert first == 1 and told in (last.why if isinstance(last, Failure) else str(last))


def test_a_job_that_says_nothing_and_never_ends_can_be_ended() -> None:
    with Job(never_end) as job:
        job.go()
        pid = job.receive(60.0)
        assert job.receive(0.2) is None and lives(pid)
    for _ in range(100):  # whose parent, the fork server, must take notice first
        if not lives(pid):
            break
        time.sleep(0.05)
    assert not lives(pid)


def test_memory_is_bounded() -> None:
    with Job(fill_memory, memory_bytes=2**30) as job:
        (told,) = everything(job)
    assert str(told) == TOO_MUCH_MEMORY


def test_a_job_that_rests_does_nothing() -> None:
    with Job(tick) as job:
        job.go()
        assert job.receive(60.0) == 0
        job.rest()
        while job.receive(0.5) is not None:  # what was on its way
            pass
        assert job.receive(0.5) is None
        job.go()
        assert job.receive(60.0) is not None


def working(line: Line, turns: list[Turn]) -> list[bool]:
    return [line.may_work(turn) for turn in turns]


def test_the_first_ones_are_worked_on_and_the_next_when_they_leave() -> None:
    line = Line(at_a_time=2)
    turns = [line.enter(address) for address in "abc"]
    assert working(line, turns) == [True, True, False]
    assert line.before(turns[2]) == 2
    line.leave(turns[0])
    assert working(line, turns[1:]) == [True, True]


def test_nobody_has_all_places_while_others_wait() -> None:
    line = Line(at_a_time=2, slice_sec=0.0)
    mine = [line.enter("me") for _ in range(3)]
    working(line, mine)
    assert sum(turn.since_sec is not None for turn in mine) == 2
    other = line.enter("another")
    working(line, [*mine, other])
    assert line.may_work(other)
    for _ in range(10):  # and keeps the place, though those who have one already wait
        working(line, [*mine, other])
        assert line.may_work(other)


def test_where_all_wait_alike_they_take_turns() -> None:
    line = Line(at_a_time=1, slice_sec=0.0)
    turns = [line.enter(address) for address in "abc"]
    line.may_work(turns[0])
    order = ""
    for _ in range(9):
        (current,) = (turn for turn in turns if turn.since_sec is not None)
        order += current.address
        line.may_work(current)
    assert order == "abcabcabc"


def test_a_slice_is_not_cut_short() -> None:
    line = Line(at_a_time=1, slice_sec=60.0)
    first, second = line.enter("a"), line.enter("b")
    for _ in range(5):
        assert working(line, [first, second]) == [True, False]


def test_the_line_has_an_end() -> None:
    line = Line(most=4, most_each=3)
    for _ in range(3):
        line.enter("a")
    with pytest.raises(Complaint, match="You have 3 recordings under way"):
        line.enter("a")
    line.enter("b")
    with pytest.raises(Complaint, match="Many visitors"):
        line.enter("c")
