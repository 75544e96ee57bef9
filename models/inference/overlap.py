"""Long recordings through a model that wants whole ones: overlapping chunks, cross-faded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.inference.crop_stream import Pictures

CHUNK_SEC, FADE_SEC = 10, 1  # memory grows with the chunk; a second is longer than any phoneme's echo in the model

# (samples [n], crops and mask or None) -> (enhanced [n], alpha [t] or None)
RunWhole = Callable[[np.ndarray, tuple[np.ndarray, np.ndarray] | None], tuple[np.ndarray, np.ndarray | None]]


def enhance_overlapped(
    samples: np.ndarray, pictures: Pictures | None, sample_rate: int, fps: float, hop_size: int, run: RunWhole
) -> tuple[np.ndarray, np.ndarray]:
    """Enhance samples [n] in chunks of 10 s that overlap by 1 s -> (enhanced [n], alpha [T], 0 where there is no picture).

    Each overlap is a raised-cosine cross-fade whose two weights add up to 1. The samples are at the model's level
    already, by one gain for the whole recording, so no chunk is louder than its neighbour. A chunk's pictures are those
    whose grid time is nearest to its own: exact where FADE_SEC * fps is a whole number.
    """
    size, fade = CHUNK_SEC * sample_rate, FADE_SEC * sample_rate
    out = np.zeros(len(samples), np.float32)
    alpha = np.zeros(1 + len(samples) // hop_size, np.float32)
    rising = (0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)).astype(np.float32)
    held = _Window(pictures)
    first = 0
    while True:
        stop = first + size
        if len(samples) - stop < fade:
            stop = len(samples)  # no chunk that would be all cross-fade
        picture = held.between(round(first / sample_rate * fps), int(np.ceil(stop / sample_rate * fps - 1e-6)))
        chunk, chunk_alpha = run(samples[first:stop], picture)
        if first:
            chunk[:fade] *= rising
        if stop < len(samples):
            chunk[-fade:] *= rising[::-1]
        out[first:stop] += chunk
        if chunk_alpha is not None:
            frame, skip = first // hop_size, fade // hop_size // 2 if first else 0  # each chunk speaks for its own half
            place = alpha[frame + skip : frame + len(chunk_alpha)]
            place[:] = chunk_alpha[skip : skip + len(place)]
        if stop == len(samples):
            return out, alpha
        first = stop - fade


class _Window:
    """The pictures around one chunk, earlier ones let go."""

    def __init__(self, pictures: Pictures | None) -> None:
        self.pictures, self.first = pictures, 0
        self.held: tuple[np.ndarray, np.ndarray] | None = None

    def between(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Crops and mask of grid times first .. stop - 1, fewer where the video ends; None where no face is seen."""
        if self.pictures is None:
            return None
        parts = [] if self.held is None else [self.held]
        parts += [(crops, mask) for _, crops, mask in self.pictures.until(stop - 1)]
        if not parts:
            return None
        crops, mask = (np.concatenate(part)[first - self.first :] for part in zip(*parts, strict=True))
        self.held, self.first = (crops, mask), first
        crops, mask = crops[: stop - first], mask[: stop - first]
        return (crops, mask) if mask.any() else None
