"""Picture degradation with labels, so that the confidence estimator learns what a useless picture looks like."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

# Shares of clips; they are normalised to sum to 1.
DEFAULT_SHARES: dict[str, float] = {
    "none": 0.60,
    "black": 0.08,
    "drop": 0.10,
    "noise": 0.10,
    "blur": 0.07,
    "dim": 0.05,
    "freeze": 0.05,
    "patch": 0.05,
}
WHOLE_CLIP_SHARE = 0.5  # the others are degraded over a random stretch
SHORTEST_SHARE = 0.2  # of the clip, for such a stretch


class VisualDegradation:
    """Degrades a clip of face crops in one randomly chosen way, over all of it or a random stretch.

    `shares` maps none, black, drop, noise, blur, dim, freeze, patch to relative frequencies; those left out never
    happen. ValueError for unknown names, negative shares or shares that sum to nothing.
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        shares = dict(DEFAULT_SHARES if shares is None else shares)
        unknown = sorted(set(shares) - set(DEFAULT_SHARES))
        if unknown:
            raise ValueError(f"degradation {unknown[0]!r} is not known; there are {', '.join(DEFAULT_SHARES)}")
        total = sum(shares.values())
        if min(shares.values(), default=0) < 0 or total <= 0:
            raise ValueError(f"degradation shares must be 0 or more and not all 0, not {shares}")
        self._names = list(shares)
        self._shares = np.array([shares[name] / total for name in self._names])

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """frames uint8 [V, S, S, 3] -> (degraded copy, corruption float32 [V]: 1 on every degraded frame)."""
        kind = self._names[int(rng.choice(len(self._names), p=self._shares))]
        return self.apply(kind, frames, rng)

    def apply(
        self, kind: str, frames: np.ndarray, rng: np.random.Generator, whole_clip: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The degradation called `kind` of frames uint8 [V, S, S, 3], on request never only a stretch; as __call__."""
        count = len(frames)
        label = np.zeros(count, np.float32)
        if kind == "none" or count == 0:
            return frames.copy(), label
        first, end = 0, count
        if rng.random() >= WHOLE_CLIP_SHARE and not whole_clip:
            length = max(1, round(count * rng.uniform(SHORTEST_SHARE, 1.0)))
            first = int(rng.integers(count - length + 1))
            end = first + length
        out = frames.copy()
        hit = getattr(self, f"_{kind}")(out, first, end, rng)
        label[hit] = 1.0
        return out, label

    @staticmethod
    def _black(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        frames[first:end] = 0
        return np.arange(first, end)

    @staticmethod
    def _drop(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        """Single frames are lost: shown black, or the last one that arrived is shown again."""
        lost = first + np.flatnonzero(rng.random(end - first) < rng.uniform(0.2, 0.7))
        if not len(lost):
            lost = np.array([int(rng.integers(first, end))])
        repeat = rng.random() < 0.5
        for index in lost:
            frames[index] = frames[index - 1] if repeat and index > 0 else 0
        return lost

    @staticmethod
    def _noise(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        shape = frames[first:end].shape
        sigma = float(rng.uniform(25, 90))  # grey levels
        noisy = frames[first:end] + sigma * rng.standard_normal(shape, dtype=np.float32)
        frames[first:end] = np.clip(noisy, 0, 255).astype(np.uint8)
        return np.arange(first, end)

    @staticmethod
    def _blur(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        sigma = float(rng.uniform(2.5, 7.0)) * frames.shape[1] / 96  # pixels: the lips are gone, the face is not
        for index in range(first, end):
            frames[index] = cv2.GaussianBlur(frames[index], (0, 0), sigma)
        return np.arange(first, end)

    @staticmethod
    def _dim(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        factor = float(rng.uniform(0.02, 0.2))
        frames[first:end] = (frames[first:end] * np.float32(factor)).astype(np.uint8)
        return np.arange(first, end)

    @staticmethod
    def _freeze(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        """The picture stands still on the stretch's first frame, which itself is in time."""
        frames[first:end] = frames[first]
        return np.arange(first + 1, end)

    @staticmethod
    def _patch(frames: np.ndarray, first: int, end: int, rng: np.random.Generator) -> np.ndarray:
        """A hand or a microphone: one flat or grainy rectangle over the lower face, where the mouth is."""
        size = frames.shape[1]
        height, width = (max(2, int(size * rng.uniform(0.3, 0.6))) for _ in range(2))
        middle_y, middle_x = size * rng.uniform(0.6, 0.85), size * rng.uniform(0.4, 0.6)
        top = int(np.clip(middle_y - height / 2, 0, size - height))
        left = int(np.clip(middle_x - width / 2, 0, size - width))
        colour = rng.integers(0, 256, 3).astype(np.float32)
        patch = colour + rng.uniform(0, 40) * rng.standard_normal((height, width, 3), dtype=np.float32)
        frames[first:end, top : top + height, left : left + width] = np.clip(patch, 0, 255).astype(np.uint8)
        return np.arange(first, end)
