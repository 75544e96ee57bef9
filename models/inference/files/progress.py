"""How far a run has come: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tqdm import tqdm

from models.inference.files.jobs import Job

SECONDS_BETWEEN_LINES = 30.0
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s, {remaining} left{postfix}"


def minutes(seconds: float) -> str:
    """Return a length as 0.5 s, 0:17, 2:30 or 1:02:03."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02d}"


class Progress:
    """Counts the seconds of sound that are enhanced, over all recordings of a run, and shows speed and time left.

    lengths: seconds of sound by job, 0 where unknown. `begin` and `end` frame each recording; `reach` is called inside it.
    Where `out` is no terminal there is no bar but a line every 30 seconds. With `quiet` nothing is shown.
    """

    def __init__(
        self, lengths: Mapping[Job, float], quiet: bool = False, out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lengths, self._quiet, self._out, self._clock = dict(lengths), quiet, out or sys.stderr, clock
        self._bar: tqdm | None = None
        self._finished = 0.0  # seconds of sound of the recordings before this one
        self._now = 0.0  # seconds of sound of this one
        self._number, self._job = 0, None
        self._started = self._said = clock()

    @property
    def total_sec(self) -> float:
        """Seconds of sound of all recordings, as far as they are known."""
        return max(sum(self._lengths.values()), self._finished + self._now)

    def begin(self, job: Job) -> None:
        """A recording begins. The first one starts the clock: loading and compiling are not counted."""
        self._number, self._job, self._now = self._number + 1, job, 0.0
        if self._number == 1:
            self._started = self._said = self._clock()
            if not self._quiet and self._out.isatty():
                self._bar = tqdm(total=self.total_sec or None, bar_format=BAR, file=self._out, leave=False, dynamic_ncols=True)
        if self._bar is not None:
            self._bar.set_description_str(self._name())

    def reach(self, seconds: float) -> None:
        """The recording is enhanced up to `seconds` of its sound."""
        self._now = seconds
        done, total = self._finished + seconds, self.total_sec
        spent = max(self._clock() - self._started, 1e-9)
        speed = done / spent
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(f"{speed:.2f} x real time", refresh=False)
            self._bar.update(done - self._bar.n)
        elif not self._quiet and self._clock() - self._said >= SECONDS_BETWEEN_LINES and speed > 0:
            self._said = self._clock()
            left = minutes((total - done) / speed)
            self._say(f"{self._name()}: {minutes(done)} of {minutes(total)}, {speed:.2f} x real time, {left} left")

    def end(self) -> None:
        """The recording is done, or has failed."""
        length = self._lengths.get(self._job, 0.0) or self._now
        self._lengths[self._job] = length
        self.reach(length)
        self._finished, self._now = self._finished + length, 0.0

    def close(self) -> None:
        """The run is over: the bar goes away."""
        if self._bar is not None:
            self._bar.close()

    def _name(self) -> str:
        several = f"{self._number} of {len(self._lengths)}, " if len(self._lengths) > 1 else ""
        return f"{several}{self._job.audio.name}"

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)
