"""What enhancing a recording gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from utils.faces.cropper import FaceReport


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How enhancing a recording went."""

    duration_sec: float
    seconds: float  # wall time it took
    alpha: np.ndarray | None = None  # float32 [T], trust in the picture per STFT frame; None when no picture was used
    masked_share: float = 1.0  # share of the sound's video frames that show no face or do not exist
    faces: FaceReport | None = None  # what looking for the face in a video file came to
    notes: tuple[str, ...] = ()  # one line each: what was asked for and could not be done

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of sound."""
        return self.seconds / self.duration_sec

    @property
    def mean_alpha(self) -> float | None:
        """Mean trust in the picture over the whole clip (0 where there was none); None when no picture was used."""
        return None if self.alpha is None else float(self.alpha.mean())


@dataclass(frozen=True, kw_only=True)
class EnhanceResult(Outcome):
    """What `Enhancer.enhance` gives back: the enhanced sound, and what it was made with."""

    wav: np.ndarray  # float32 [L], as many samples as the input, at its rate and level
    sample_rate: int  # Hz, the input's
    gate: np.ndarray | None = None  # float32 [T, F'], where the picture helps; only with return_details=True


class AlphaTrack:
    """Alpha [T] of a sound of n_samples, filled step by step.

    One array from the start: small ones that are kept between a model's large ones leave holes in the heap (measured:
    11 MB more for each minute of sound).
    """

    def __init__(self, stft_cfg: Mapping, n_samples: int) -> None:
        self.values = np.zeros(1 + max(n_samples, stft_cfg["n_fft"]) // stft_cfg["hop_size"], np.float32)
        self._filled = 0

    def append(self, steps: Iterable[np.ndarray]) -> None:
        """Add alpha [t] of further steps."""
        for step in steps:
            self.values[self._filled : self._filled + len(step)] = step
            self._filled += len(step)
