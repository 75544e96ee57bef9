"""Who is worked on and who waits: a few visitors at a time, in turns, so that nobody waits for the end of another's work."""

from __future__ import annotations

import itertools
import threading
import time

from evaluation.web.recording import Complaint

SLICE_SEC = 3.0  # A visitor who has been worked on for so long rests while somebody waits who has had less.


class Turn:
    """One visitor's recording in the line. `address` names the visitor, who may have several recordings in it."""

    def __init__(self, address: str, ticket: int) -> None:
        self.address, self.ticket = address, ticket
        self.since_sec: float | None = None  # when the work on it began or went on; None: it waits


class Line:
    """The turns of all visitors, for any number of threads.

    at_a_time recordings are worked on at the same time. Next comes a recording of the visitor who has the fewest under way,
    and among those the one that has waited longest. `most` recordings may be in the line, `most_each` of one visitor.
    """

    def __init__(self, at_a_time: int = 2, most: int = 16, most_each: int = 3, slice_sec: float = SLICE_SEC) -> None:
        self.at_a_time, self.most, self.most_each, self.slice_sec = at_a_time, most, most_each, slice_sec
        self._turns: list[Turn] = []
        self._tickets = itertools.count()
        self._lock = threading.Lock()

    def enter(self, address: str) -> Turn:
        """Take a place at the end of the line; Complaint where it is full. `leave` must follow."""
        with self._lock:
            if sum(turn.address == address for turn in self._turns) >= self.most_each:
                raise Complaint(f"You have {self.most_each} recordings under way already; wait for one of them, or stop it.")
            if len(self._turns) >= self.most:
                raise Complaint("Many visitors are here at the moment; please try again a little later.")
            turn = Turn(address, next(self._tickets))
            self._turns.append(turn)
            return turn

    def leave(self, turn: Turn) -> None:
        """Give the place up, whether the work is done or not."""
        with self._lock:
            self._turns.remove(turn)

    def may_work(self, turn: Turn) -> bool:
        """Whether it is this recording's turn now; to be asked again and again, ten times a second or so."""
        now = time.monotonic()
        with self._lock:
            if turn.since_sec is not None and now - turn.since_sec >= self.slice_sec and self._is_wanted(turn):
                turn.since_sec, turn.ticket = None, next(self._tickets)
            while sum(other.since_sec is not None for other in self._turns) < self.at_a_time:
                waiting = [other for other in self._turns if other.since_sec is None]
                if not waiting:
                    break
                min(waiting, key=lambda other: (self._under_way(other.address), other.ticket)).since_sec = now
            return turn.since_sec is not None

    def before(self, turn: Turn) -> int:
        """How many recordings came before this one and are not done."""
        with self._lock:
            return sum(other.ticket < turn.ticket for other in self._turns)

    def _under_way(self, address: str) -> int:
        return sum(other.address == address and other.since_sec is not None for other in self._turns)

    def _is_wanted(self, turn: Turn) -> bool:
        """Whether somebody who waits would have the turn if this recording gave it up."""
        left = self._under_way(turn.address) - 1
        return any(
            self._under_way(other.address) - (other.address == turn.address) <= left
            for other in self._turns if other.since_sec is None
        )  # fmt: skip
