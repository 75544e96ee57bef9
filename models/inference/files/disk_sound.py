"""Sound of any length on disk instead of in memory, between decoding, enhancing and writing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np

PIECE_SAMPLES = 16000


class SpooledSound:
    """Samples float32 [n] in a temporary file, which is deleted at the end of the `with` block."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.n_samples = 0
        self.peak = 0.0  # largest magnitude

    def __enter__(self) -> SpooledSound:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, samples: np.ndarray) -> None:
        """Add samples [n] at the end."""
        if len(samples):
            self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(samples, dtype=np.float32).data)
            self.n_samples += len(samples)
            self.peak = max(self.peak, float(np.abs(samples).max()))

    def extend(self, pieces: Iterable[np.ndarray]) -> None:
        """Add pieces [n] one after the other."""
        for samples in pieces:
            self.append(samples)

    def pieces(self, size: int = PIECE_SAMPLES) -> Iterator[np.ndarray]:
        """Yield all samples from the beginning, `size` at a time."""
        for first in range(0, self.n_samples, size):
            yield self.between(first, first + size)

    def between(self, first: int, stop: int) -> np.ndarray:
        """Return samples first .. stop - 1, or fewer where the sound ends before."""
        self._file.seek(4 * first)
        return np.frombuffer(self._file.read(4 * max(0, min(stop, self.n_samples) - first)), np.float32)
