"""Long recordings and models that are not causal: overlapping chunks with cross-fades."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.inference.crop_stream import CropStream
from models.inference.results import Whole

CHUNK_SEC, FADE_SEC = 10, 1  # memory grows with the chunk; the model hardly remembers a sound for longer than a second

# (samples [n], crops and mask or None) -> what the model makes of them
RunWhole = Callable[[np.ndarray, tuple[np.ndarray, np.ndarray] | None], Whole]


def enhance_overlapped(
    samples: np.ndarray, crop_stream: CropStream | None, sample_rate: int, fps: float, hop_size: int, run: RunWhole,
    progress: Callable[[float], object] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Enhance samples [n] in chunks of 10 s that overlap by 1 s -> (enhanced [n], alpha [T], gain of the upper band [T]).

    alpha is 0 where no face is seen.

    Each overlap is a raised-cosine cross-fade whose two weights add up to 1. The samples already have the model's level, by
    one gain for the whole recording, so that all chunks are equally loud. A chunk begins with the video frame whose time is
    nearest to its own; the two times are equal where FADE_SEC * fps is a whole number. `progress` is called with the share
    that is done.
    """
    size, fade = CHUNK_SEC * sample_rate, FADE_SEC * sample_rate
    out = np.zeros(len(samples), np.float32)
    alpha = np.zeros(1 + len(samples) // hop_size, np.float32)
    upper = np.ones_like(alpha)
    rising = (0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)).astype(np.float32)
    held = _Window(crop_stream)
    first = 0
    while True:
        stop = first + size
        if len(samples) - stop < fade:
            stop = len(samples)  # so that no chunk consists of a cross-fade alone
        face = held.between(round(first / sample_rate * fps), int(np.ceil(stop / sample_rate * fps - 1e-6)))
        made = run(samples[first:stop], face)
        chunk = made.wav
        if first:
            chunk[:fade] *= rising
        if stop < len(samples):
            chunk[-fade:] *= rising[::-1]
        out[first:stop] += chunk
        frame, skip = first // hop_size, fade // hop_size // 2 if first else 0  # both change in the middle of the overlap
        for track, part in ((alpha, made.alpha), (upper, made.upper)):
            if part is not None:
                place = track[frame + skip : frame + len(part)]
                place[:] = part[skip : skip + len(place)]
        if progress is not None:
            progress(stop / len(samples))
        if stop == len(samples):
            return out, alpha, upper
        first = stop - fade


class _Window:
    """The crops of one chunk; those before it are freed."""

    def __init__(self, crop_stream: CropStream | None) -> None:
        self.crop_stream, self.first = crop_stream, 0
        self.held: tuple[np.ndarray, np.ndarray] | None = None

    def between(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Crops and mask of video frames first .. stop - 1, fewer if the video ends; None if none of them shows a face."""
        if self.crop_stream is None:
            return None
        parts = [] if self.held is None else [self.held]
        parts += [(crops, mask) for _, crops, mask in self.crop_stream.until(stop - 1)]
        if not parts:
            return None
        crops, mask = (np.concatenate(part)[first - self.first :] for part in zip(*parts, strict=True))
        self.held, self.first = (crops, mask), first
        crops, mask = crops[: stop - first], mask[: stop - first]
        return (crops, mask) if mask.any() else None
