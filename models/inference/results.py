"""The results of enhancing a recording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.faces.cropper import FaceReport


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known about an enhanced recording, besides its sound."""

    duration_sec: float
    seconds: float  # wall time it took
    alpha: np.ndarray | None = None  # float32 [T], trust in the video per STFT frame; None when no video was used
    masked_share: float = 1.0  # share of the sound's video frames that show no face or do not exist
    faces: FaceReport | None = None  # which faces were found in the video file
    notes: tuple[str, ...] = ()  # one line for each thing that was asked for and could not be done

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of sound."""
        return self.seconds / self.duration_sec

    @property
    def mean_alpha(self) -> float | None:
        """Mean trust in the video over the whole clip (0 where no face was seen); None when no video was used."""
        return None if self.alpha is None else float(self.alpha.mean())


@dataclass(frozen=True, kw_only=True)
class EnhanceResult(Outcome):
    """The result of `Enhancer.enhance`: the enhanced sound and what is known about it."""

    wav: np.ndarray  # float32 [L], as many samples as the input, at its rate and level
    sample_rate: int  # Hz, the input's
    gate: np.ndarray | None = None  # float32 [T, F'], which frequencies the video helps; only with return_details=True


class Stretch(NamedTuple):
    """A further part of a recording, as the model gives it."""

    wav: np.ndarray  # float32 [m], enhanced, at the model's rate
    alpha: list[np.ndarray]  # [t] each, of further STFT frames
    gate: list[np.ndarray]  # [t, F'] each, if it is kept
    upper: np.ndarray  # float32 [t], gain of the band above the model's


class Whole(NamedTuple):
    """A recording, or a chunk of it, as the model gives it."""

    wav: np.ndarray  # float32 [n], enhanced, at the model's rate
    alpha: np.ndarray | None  # [T]; None without a face
    gate: np.ndarray | None  # [T, F']; None where it is not kept
    upper: np.ndarray  # float32 [T], gain of the band above the model's


class AlphaTrack:
    """Alpha [T] of a sound of n_samples, filled step by step.

    It is one array from the start. Many small arrays, kept among the large ones of the model, fragment the heap (measured:
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
