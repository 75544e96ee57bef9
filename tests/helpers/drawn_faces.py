"""A detector that follows a script, and drawn faces."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from utils.faces.cropper import FaceBox


class Script:
    """A detector that reads what it finds from the first pixel of the picture: its number in the clip."""

    def __init__(self, found: dict[int, Sequence[FaceBox]]) -> None:
        self.found, self.asked = found, []

    def __call__(self, picture: np.ndarray) -> Sequence[FaceBox]:
        number = int(picture[0, 0, 0])
        self.asked.append(number)
        return self.found.get(number, [])


def numbered(count: int, first: int = 0, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """frames uint8 [count, H, W, 3], each pixel telling its column, the first one the frame's number."""
    frames = np.zeros((count, *size, 3), np.uint8)
    frames[..., 1] = np.arange(size[1])
    frames[:, 0, 0, 0] = np.arange(first, first + count)
    return frames


def columns(crops: np.ndarray) -> np.ndarray:
    """Centre column of the source that each crop shows."""
    return crops[:, :, :, 1].mean(axis=(1, 2)) + 0.5


def drawn_face(x: int, y: int, radius: int) -> np.ndarray:
    """A cartoon good enough for the cascade, uint8 [200, 280, 3]."""
    picture = np.full((200, 280, 3), (70, 110, 160), np.uint8)
    wide = int(0.8 * radius)
    cv2.ellipse(picture, (x, y), (wide, radius), 0, 0, 360, (215, 175, 150), -1)
    cv2.ellipse(picture, (x, y - int(0.75 * radius)), (wide, int(0.45 * radius)), 0, 180, 360, (50, 35, 25), -1)
    for side in (-1, 1):
        eye = (x + int(side * 0.35 * radius), y - int(0.15 * radius))
        brow = (eye[0], eye[1] - int(0.17 * radius))
        cv2.ellipse(picture, brow, (int(0.2 * radius), int(0.05 * radius)), 0, 0, 360, (60, 40, 30), -1)
        cv2.ellipse(picture, eye, (int(0.18 * radius), int(0.09 * radius)), 0, 0, 360, (120, 90, 80), -1)
        cv2.circle(picture, eye, int(0.08 * radius), (20, 20, 20), -1)
    nose, mouth = (x, y + int(0.2 * radius)), (x, y + int(0.5 * radius))
    cv2.ellipse(picture, nose, (int(0.1 * radius), int(0.06 * radius)), 0, 0, 360, (160, 110, 95), -1)
    cv2.ellipse(picture, mouth, (int(0.3 * radius), int(0.06 * radius) + 4), 0, 0, 360, (150, 60, 60), -1)
    return cv2.GaussianBlur(picture, (0, 0), 1.2)
