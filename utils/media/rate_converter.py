"""Band-limited change of the sampling rate of a sound that comes in pieces."""

from __future__ import annotations

import numpy as np
import soxr


class RateConverter:
    """Mono float32 pieces at from_rate in, pieces at to_rate out (soxr HQ): round(L * to_rate / from_rate) samples in all."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._ratio = to_rate, from_rate
        self._stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
        self._heard = self._given = 0

    def add(self, samples: np.ndarray) -> np.ndarray:
        """Take samples [n]; give those that are ready."""
        self._heard += len(samples)
        ready = self._stream.resample_chunk(np.ascontiguousarray(samples, dtype=np.float32))
        self._given += len(ready)
        return ready

    def end(self) -> np.ndarray:
        """Give the rest."""
        to_rate, from_rate = self._ratio
        last = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        missing = round(self._heard * to_rate / from_rate) - self._given
        return np.pad(last, (0, max(0, missing - len(last))))[: max(0, missing)]
