"""Crops the face from a live camera, frame by frame, without later frames; the box moves smoothly between detections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from utils.faces.cropper import cut_square
from utils.faces.detectors import Detector, FaceBox, load_detector, settle_method

LOOK_EVERY = 5  # frames
LOST_SEC = 0.4  # a face unseen for longer than this is gone
EASE = 0.3  # share of a new look in the box: a detector jumps, and a box that jumps looks like a mouth that moves


def best_detector() -> Detector:
    """The best detector there is on this machine; where there is none, the middle of the frame is taken for the face."""
    return load_detector(settle_method("auto")) or _middle


def _middle(frame: np.ndarray) -> list[FaceBox]:
    height, width = frame.shape[:2]
    return [FaceBox(width / 2, height / 2, min(height, width))]


class LiveCropper:
    """Crops the face that was there before, else the largest one; looks for it in every LOOK_EVERY-th frame."""

    def __init__(self, face_size: int = 96, detector: Detector | None = None) -> None:
        self._size = face_size
        self._detect = detector or best_detector()
        self._box: FaceBox | None = None
        self._seen_sec = -np.inf
        self._until_look = 0
        self.n_faces = 0  # in the last frame that was searched

    def __call__(self, frame: np.ndarray, at_sec: float) -> tuple[np.ndarray, bool]:
        """frame uint8 [H, W, 3], shown from at_sec on -> (crop uint8 [S, S, 3], black without a face; is there one)."""
        if self._until_look <= 0 or self._box is None:
            self._look(frame, at_sec)
            self._until_look = LOOK_EVERY
        self._until_look -= 1
        if self._box is None:
            return np.zeros((self._size, self._size, 3), np.uint8), False
        return cut_square(frame, self._box, self._size), True

    def _look(self, frame: np.ndarray, at_sec: float) -> None:
        found = self._detect(frame)
        self.n_faces = len(found)
        known = [box for box in found if self._box is not None and self._box.near(box)]
        if known:
            new, old = max(known, key=lambda box: box.side), self._box
            self._box = replace(
                old, x=old.x + EASE * (new.x - old.x), y=old.y + EASE * (new.y - old.y),
                side=old.side + EASE * (new.side - old.side),
            )  # fmt: skip
        elif at_sec - self._seen_sec > LOST_SEC:
            self._box = max(found, key=lambda box: box.side, default=None)
        if known or self._box in found:
            self._seen_sec = at_sec
