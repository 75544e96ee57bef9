"""Augmentation of face crops in training: other placements of the face, and degraded crops with labels.

The confidence estimator learns from the labels which crops are of no use.
"""

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
# Degradations that need another stretch of video than the clip's own; the dataset fetches it (AVDataset).
SHIFT, OTHER = "shift", "other"
FETCHED = (SHIFT, OTHER)
SHIFT_SEC = (0.16, 0.6)  # either way
WHOLE_CLIP_SHARE = 0.5  # the others are degraded over a random stretch
SHORTEST_SHARE = 0.2  # of the clip, for such a stretch

# Ranges of CropJitter, either way: as far as detectors differ from each other and from drawn crops, and some more.
JITTER_SHIFT = 0.10  # of the crop's side
JITTER_DRIFT = 0.05  # of the crop's side, in the course of the window
JITTER_LOG_SCALE = 0.18
JITTER_TURN_DEG = 6.0
JITTER_CONTRAST = 0.2
JITTER_LIGHT = 0.1  # of full scale
JITTER_TINT = 0.06  # of a colour's strength


class CropJitter:
    """Moves, scales, turns, mirrors and lights the crops at random, in the same way for a whole window.

    Crops of another detector or another camera sit a little elsewhere; a model that only ever saw one placement takes them
    for another mouth. What the mouth does is unchanged, so a jittered frame is not a corrupted one.
    """

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """frames uint8 [V, S, S, 3] -> jittered copy; edges are repeated where the crop leaves the frame."""
        size = frames.shape[1]
        shift, drift = rng.uniform(-JITTER_SHIFT, JITTER_SHIFT, 2) * size, rng.uniform(-JITTER_DRIFT, JITTER_DRIFT, 2) * size
        scale = float(np.exp(rng.uniform(-JITTER_LOG_SCALE, JITTER_LOG_SCALE)))
        turn_deg = float(rng.uniform(-JITTER_TURN_DEG, JITTER_TURN_DEG))
        mirrored = rng.random() < 0.5
        gain = (1 + rng.uniform(-JITTER_CONTRAST, JITTER_CONTRAST)) * (1 + rng.uniform(-JITTER_TINT, JITTER_TINT, 3))
        light = 255 * rng.uniform(-JITTER_LIGHT, JITTER_LIGHT)
        levels = np.clip((np.arange(256)[:, None] - 128) * gain + 128 + light, 0, 255).astype(np.uint8)  # [256, 3]
        middle = (size - 1) / 2
        placement = cv2.getRotationMatrix2D((middle, middle), turn_deg, scale)
        out = np.empty_like(frames)
        for index, frame in enumerate(frames):
            placed = placement.copy()
            placed[:, 2] += shift + drift * (index / max(1, len(frames) - 1) - 0.5)
            moved = cv2.warpAffine(frame, placed, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            out[index] = moved[:, ::-1] if mirrored else moved
        return np.stack([levels[out[..., colour], colour] for colour in range(3)], axis=-1)


class VisualDegradation:
    """Degrades a clip of face crops in one randomly chosen way, over all of it or a random stretch.

    `shares` maps none, black, drop, noise, blur, dim, freeze, patch to relative frequencies; those left out never
    happen. Also shift (the clip's own video 160 to 600 ms early or late) and other (another person's face): those two
    are whole clips, and whoever draws them with `draw` fetches the frames. ValueError for unknown names, negative
    shares or shares that sum to nothing.
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        shares = dict(DEFAULT_SHARES if shares is None else shares)
        known = [*DEFAULT_SHARES, *FETCHED]
        unknown = sorted(set(shares) - set(known))
        if unknown:
            raise ValueError(f"degradation {unknown[0]!r} is not known; there are {', '.join(known)}")
        total = sum(shares.values())
        if min(shares.values(), default=0) < 0 or total <= 0:
            raise ValueError(f"degradation shares must be 0 or more and not all 0, not {shares}")
        self._names = list(shares)
        self._shares = np.array([shares[name] / total for name in self._names])

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """frames uint8 [V, S, S, 3] -> (degraded copy, corruption float32 [V]: 1 on every degraded frame)."""
        return self.apply(self.draw(rng), frames, rng)

    def draw(self, rng: np.random.Generator) -> str:
        """The name of the degradation that a clip gets."""
        return self._names[int(rng.choice(len(self._names), p=self._shares))]

    def apply(
        self, kind: str, frames: np.ndarray, rng: np.random.Generator, whole_clip: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The degradation called `kind` of frames uint8 [V, S, S, 3], on request never only a stretch; as __call__."""
        count = len(frames)
        label = np.zeros(count, np.float32)
        if kind in FETCHED:
            raise ValueError(f"degradation {kind!r} needs other frames than these; a dataset with training_cfg.scene has them")
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
        """The first frame of the stretch is repeated; it is not corrupt itself."""
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
