"""Where the speaker's face is, and the square crop around it: the same crops in training and in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FACE_METHODS = ("auto", "haar", "center", "none")

DETECT_EVERY = 5  # frames
DETECT_SIDE = 320  # pixels, longest side of the picture that is searched
BRIDGE_SEC = 0.4  # a face unseen for longer than this is gone
SMOOTH_DETECTIONS = 5  # running median over this many detections (1 s): heads drift, detectors jump
CROP_MARGIN = 1.05  # crop side over face box side: forehead to chin, the mouth as large as 96 pixels allow

# OpenCV's thread pool does not survive a fork, and a loader's worker would wait for it for ever. Pictures this small gain
# nothing from it, so no pool is ever made.
cv2.setNumThreads(1)


@dataclass(frozen=True)
class FaceBox:
    """A square face region in pixels of the searched picture: centre and side of the crop it stands for."""

    x: float
    y: float
    side: float

    def near(self, other: FaceBox) -> bool:
        """Whether both may be one head in neighbouring looks: centres within half a side, sizes within a half."""
        side = max(self.side, other.side)
        return abs(self.x - other.x) + abs(self.y - other.y) < 0.5 * side and min(self.side, other.side) > 0.6 * side


Detector = Callable[[np.ndarray], Sequence[FaceBox]]  # uint8 RGB picture [H, W, 3] -> boxes, any order


class HaarDetector:
    """OpenCV 4's bundled frontal-face cascade on a reduced grey picture."""

    def __init__(self) -> None:
        cascade = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
        if not hasattr(cv2, "CascadeClassifier") or not cascade.is_file():
            raise ValueError(
                f"OpenCV {cv2.__version__} has no Haar cascades (5.0 dropped them); "
                "pip install 'opencv-python-headless<5', or use face_crop: center"
            )
        self._cascade = cv2.CascadeClassifier(str(cascade))

    def __call__(self, picture: np.ndarray) -> list[FaceBox]:
        height, width = picture.shape[:2]
        scale = min(1.0, DETECT_SIDE / max(height, width))
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if scale < 1.0:
            reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
            grey = cv2.resize(grey, reduced, interpolation=cv2.INTER_AREA)
        smallest = max(24, round(0.12 * min(grey.shape)))
        if min(grey.shape) < smallest:
            return []
        found = self._cascade.detectMultiScale(cv2.equalizeHist(grey), 1.15, 4, minSize=(smallest, smallest))
        # Haar boxes end between lower lip and chin: the crop sits a little lower than the box.
        return [
            FaceBox((x + w / 2) / scale, (y + 0.58 * h) / scale, CROP_MARGIN * w / scale)
            for x, y, w, h in np.asarray(found).reshape(-1, 4)
        ]


def _best_track(looks: Sequence[Sequence[FaceBox]], known: FaceBox | None) -> list[FaceBox | None]:
    """The one head to follow: boxes linked from look to look, the largest and longest track wins, one box per look.

    Tracks of one head that was lost for a while are joined where the next begins near the end of the last. `known` is
    the head followed before; a track that continues it is preferred.
    """
    tracks: list[dict[int, FaceBox]] = []
    for index, boxes in enumerate(looks):
        free = list(range(len(tracks)))
        for box in sorted(boxes, key=lambda candidate: -candidate.side):
            match = next((i for i in free if tracks[i][max(tracks[i])].near(box)), None)
            if match is None:
                tracks.append({index: box})
            else:
                free.remove(match)
                tracks[match][index] = box
    if not tracks:
        return [None] * len(looks)

    def weight(track: dict[int, FaceBox]) -> float:
        total = sum(box.side for box in track.values())
        return 2.0 * total if known is not None and known.near(track[min(track)]) else total

    best = max(tracks, key=weight)
    # A head that walked on while unseen starts a new track; take those that share no look with the best one.
    for track in sorted(tracks, key=weight, reverse=True):
        if not set(track) & set(best) and len(track) > 1:
            best = {**best, **track}
    return [best.get(index) for index in range(len(looks))]


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median over `width` entries around each of values [n, d], edges repeated."""
    half = width // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0), axis=-1)


def cut_square(picture: np.ndarray, box: FaceBox, size: int) -> np.ndarray:
    """Square of the picture uint8 [H, W, 3] around `box`, black beyond its edges -> uint8 [size, size, 3]."""
    side = max(2, round(box.side))
    left, top = round(box.x - side / 2), round(box.y - side / 2)
    height, width = picture.shape[:2]
    inner = picture[max(0, top) : max(0, min(height, top + side)), max(0, left) : max(0, min(width, left + side))]
    if inner.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    if inner.shape[:2] != (side, side):
        y, x = max(0, -top), max(0, -left)
        inner = cv2.copyMakeBorder(
            inner, y, side - y - inner.shape[0], x, side - x - inner.shape[1], cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    return cv2.resize(inner, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


class FaceCropper:
    """Crops one speaker's face out of consecutive stretches of frames, remembering the head between stretches.

    `method` as in `crop_faces`; a `detector` of your own takes the place of the one that "auto" or "haar" would load.
    """

    def __init__(
        self, face_size: int = 96, method: str = "auto", fps: float = 25.0, detector: Detector | None = None
    ) -> None:
        if method not in FACE_METHODS:
            raise ValueError(f"face_crop {method!r} is not known; use one of {', '.join(FACE_METHODS)}")
        self._size, self._method, self._fps = face_size, method, fps
        self._known: FaceBox | None = None
        self._detect = detector if method not in ("auto", "haar") else detector or HaarDetector()

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """frames uint8 [V, H, W, 3] -> (crops uint8 [V, S, S, 3], mask bool [V]); crops are black where masked."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames should be uint8 [V, H, W, 3], not {frames.dtype} {list(frames.shape)}")
        count, height, width = frames.shape[:3]
        size = self._size
        crops = np.zeros((count, size, size, 3), np.uint8)
        if self._method == "none":
            return self._whole(frames), np.ones(count, bool)
        if self._method == "center":
            boxes: list[FaceBox | None] = [FaceBox(width / 2, height / 2, min(height, width))] * count
        else:
            boxes = self._face_boxes(frames)
        for index, box in enumerate(boxes):
            if box is not None:
                crops[index] = cut_square(frames[index], box, size)
        return crops, np.array([box is not None for box in boxes], bool)

    def _whole(self, frames: np.ndarray) -> np.ndarray:
        size = self._size
        if frames.shape[1:3] == (size, size):
            return frames.copy()
        shrink = min(frames.shape[1:3]) > size
        mode = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        return np.stack([cv2.resize(frame, (size, size), interpolation=mode) for frame in frames]) if len(frames) else (
            np.zeros((0, size, size, 3), np.uint8)
        )

    def _face_boxes(self, frames: np.ndarray) -> list[FaceBox | None]:
        """One box per frame, None where there is no face."""
        count = len(frames)
        if count == 0:
            return []
        at = sorted({*range(0, count, DETECT_EVERY), count - 1})
        assert self._detect is not None
        track = _best_track([self._detect(frames[index]) for index in at], self._known)
        seen = np.array([index for index, box in zip(at, track, strict=True) if box is not None])
        if not len(seen):
            return [None] * count
        found = np.array([(box.x, box.y, box.side) for box in track if box is not None])
        centre = _running_median(found[:, :2], SMOOTH_DETECTIONS)
        # One size for the stretch: a crop that breathes looks like a moving mouth.
        side = float(np.median(found[:, 2]))
        if self._known is not None and 0.8 < side / self._known.side < 1.25:
            side = 0.5 * (side + self._known.side)
        x, y = (np.interp(np.arange(count), seen, centre[:, axis]) for axis in (0, 1))
        self._known = FaceBox(float(x[-1]), float(y[-1]), side)
        present = self._present(count, seen)
        return [FaceBox(float(x[i]), float(y[i]), side) if present[i] else None for i in range(count)]

    def _present(self, count: int, seen: np.ndarray) -> np.ndarray:
        """bool [count]: within reach of a detection, where gaps of up to BRIDGE_SEC count as seen throughout."""
        frames = np.arange(count)
        present = np.abs(frames[:, None] - seen[None, :]).min(axis=1) <= DETECT_EVERY // 2
        bridge = BRIDGE_SEC * self._fps
        for before, after in zip(seen[:-1], seen[1:], strict=True):
            if after - before <= bridge + 1e-6:
                present[before:after] = True
        if seen[0] <= bridge / 2:
            present[: seen[0]] = True
        if count - 1 - seen[-1] <= bridge / 2:
            present[seen[-1] :] = True
        return present


def crop_faces(
    frames: np.ndarray, face_size: int = 96, method: str = "auto", fps: float = 25.0
) -> tuple[np.ndarray, np.ndarray]:
    """Face crops of a clip: frames uint8 [V, H, W, 3] RGB -> (crops uint8 [V, S, S, 3], mask bool [V]).

    "haar" (and "auto", the best detector there is): detection, one head followed, smoothed, one square with a fixed
    margin; frames without the face are black and masked False, never invented. "center": the middle square. "none":
    the whole picture, resized.
    """
    return FaceCropper(face_size, method, fps)(frames)
