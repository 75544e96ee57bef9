"""Face crops as input of a model: checks, and a stream that reads them from their source only as far as the sound is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from utils.faces.cropper import FaceReport


def check_crops(crops: np.ndarray, size: int) -> np.ndarray:
    """Return face crops as an array [V, S, S, 3], uint8 or floats in [0, 1]; ValueError names what is wrong with others."""
    crops = np.asarray(crops)
    if crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
        raise ValueError(f"video should be face crops [frames, {size}, {size}, 3], not {list(crops.shape)}")
    if crops.dtype != np.uint8:
        if not np.issubdtype(crops.dtype, np.floating):
            raise ValueError(f"video is {crops.dtype}; give uint8, or floats in [0, 1]")
        if crops.size and not (crops.min() >= 0 and crops.max() <= 1):
            raise ValueError("video holds values outside [0, 1] or NaN; give uint8, or floats in [0, 1]")
    return crops


def check_mask(mask: np.ndarray | None, n_frames: int) -> np.ndarray:
    """Return the mask as bool [V], all True if it is None; ValueError for another length."""
    mask = np.ones(n_frames, bool) if mask is None else np.asarray(mask).astype(bool)
    if mask.shape != (n_frames,):
        raise ValueError(f"video_mask has the shape {list(mask.shape)}, it should be [{n_frames}], one per frame")
    return mask


class CropStream:
    """Consecutive stretches (crops [v, S, S, 3], mask bool [v]) on the model's frame grid, read one by one.

    `wanted` is the number of frames that belong to the sound; later ones are dropped. The first stretch is read at once, so
    that a source that cannot be read raises its error here, and each other one when `until` needs it. `report` is what the
    source fills in while it looks for the face.
    """

    def __init__(
        self, stretches: Iterable[tuple[np.ndarray, np.ndarray]], wanted: int, source: str = "the video",
        report: FaceReport | None = None,
    ) -> None:
        self._stretches = iter(stretches)
        self.source = source  # its name for messages
        self.report = report
        self.on_crops: Callable[[np.ndarray], object] | None = None  # called with the crops [v, S, S, 3] of each stretch
        self.wanted = wanted
        self.pulled = 0  # frames given out so far
        self.seen = 0  # how many of them show a face
        self._ahead = next(self._stretches, None)

    def until(self, tick: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (index of its first frame, crops, mask) of each further stretch that begins at or before frame `tick`."""
        while self._ahead is not None and self.pulled <= min(tick, self.wanted - 1):
            crops, mask = (part[: self.wanted - self.pulled] for part in self._ahead)
            first = self.pulled
            self.pulled += len(crops)
            self.seen += int(mask.sum())
            if self.on_crops is not None:
                self.on_crops(crops)
            yield first, crops, mask
            self._ahead = next(self._stretches, None)

    def rest(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return all further crops and their mask in one piece, or None if there are none."""
        parts = [(crops, mask) for _, crops, mask in self.until(self.wanted)]
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        crops, masks = zip(*parts, strict=True)
        return np.concatenate(crops), np.concatenate(masks)

    @property
    def masked_share(self) -> float:
        """Share of the sound's video frames that show no face or do not exist."""
        return 1.0 - self.seen / self.wanted
