"""What a `Job` of the web page can be told to do in the tests; a process imports it by its name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from evaluation.web.recording import Complaint

Tell = Callable[[float, str], object]


def count(stop: int, tell: Tell) -> Iterator[int]:
    """The numbers up to `stop`, and how far it is."""
    for number in range(stop):
        tell(number / stop, "counting")
        yield number


def never_end(tell: Tell) -> Iterator[int]:
    """Work in which nothing is said and nothing can be interrupted, as in a decoder."""
    yield os.getpid()
    while True:
        sum(range(1000))


def tick(tell: Tell) -> Iterator[int]:
    """A number every 20 ms."""
    for number in range(10**6):
        yield number
        time.sleep(0.02)


def complain(tell: Tell) -> Iterator[int]:
    yield 1
    raise Complaint("no good.")


def fail(tell: Tell) -> Iterator[int]:
    yield 1
    raise RuntimeError("a bug")


def crash(tell: Tell) -> Iterator[int]:
    yield 1
    os.abort()


def fill_memory(tell: Tell) -> Iterator[int]:
    held = [np.ones(2**27, np.uint8) for _ in range(100)]
    yield len(held)
