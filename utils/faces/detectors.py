"""Face detectors with one interface. The same face gets the same crop from each of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.fetch import PublishedFile

FACE_METHODS = ("auto", "yunet", "haar", "center", "none")

HAAR_SIDE, YUNET_SIDE = 320, 640  # pixels, longest side of the frame that is searched
CROP_MARGIN = 1.05  # crop side over Haar's box side: forehead to chin, the mouth as large as 96 pixels allow
# YuNet's boxes are narrow and reach the chin, but a model must see the same crop whichever detector is at work. By this
# factor on the root of YuNet's box area, 50 GRID clips of five speakers get Haar's crop side on the mean; clips differ from
# Haar's by 3 % of the side (standard deviation) in size, 1.8 % in x and 1.0 % in y.
YUNET_MARGIN = 1.19
YUNET_SCORE = 0.6
YUNET_LEAST_SIDE = 16  # pixels; of less it makes boxes out of nothing

# OpenCV's thread pool does not survive a fork, and a loader's worker would wait for it for ever. Frames this small gain
# nothing from it, so no pool is ever made.
cv2.setNumThreads(1)


@dataclass(frozen=True)
class FaceBox:
    """A square face region in pixels of the searched frame: centre and side of the crop it stands for."""

    x: float
    y: float
    side: float

    def near(self, other: FaceBox) -> bool:
        """Whether both may be one head in neighbouring looks: centres within half a side, sizes within a half."""
        return self.away(other) < 0.5 and self.alike(other)

    def away(self, other: FaceBox) -> float:
        """Distance of the centres in sides of the larger one."""
        return (abs(self.x - other.x) + abs(self.y - other.y)) / max(self.side, other.side)

    def alike(self, other: FaceBox) -> bool:
        return min(self.side, other.side) > 0.6 * max(self.side, other.side)


Detector = Callable[[np.ndarray], Sequence[FaceBox]]  # uint8 RGB frame [H, W, 3] -> boxes, any order


def _reduced(frame: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """The frame with no side over `longest` pixels, and the scale that made it so."""
    height, width = frame.shape[:2]
    scale = min(1.0, longest / max(height, width))
    if scale == 1.0:
        return frame, scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA), scale


class HaarDetector:
    """OpenCV 4's bundled frontal-face cascade on a reduced grey frame."""

    name = "Haar cascade"

    def __init__(self) -> None:
        cascade = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
        if not hasattr(cv2, "CascadeClassifier") or not cascade.is_file():
            raise ValueError(
                f"OpenCV {cv2.__version__} has no Haar cascades (5.0 dropped them); "
                "pip install 'opencv-python-headless<5', or use face_crop: center"
            )
        self._cascade = cv2.CascadeClassifier(str(cascade))

    def __call__(self, frame: np.ndarray) -> list[FaceBox]:
        grey, scale = _reduced(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), HAAR_SIDE)
        smallest = max(24, round(0.12 * min(grey.shape)))
        if min(grey.shape) < smallest:
            return []
        found = self._cascade.detectMultiScale(cv2.equalizeHist(grey), 1.15, 4, minSize=(smallest, smallest))
        # Haar boxes end between lower lip and chin: the crop sits a little lower than the box.
        return [
            FaceBox((x + w / 2) / scale, (y + 0.58 * h) / scale, CROP_MARGIN * w / scale)
            for x, y, w, h in np.asarray(found).reshape(-1, 4)
        ]


class YuNetDetector:
    """YuNet (Wu et al., Machine Intelligence Research 2023) through OpenCV; ValueError when `model` is no such file."""

    name = "YuNet"

    def __init__(self, model: str | os.PathLike) -> None:
        if not Path(model).is_file():
            raise ValueError(f"face model {model} is not a file; give YuNet's .onnx, or use face_crop: haar")
        if not hasattr(cv2, "FaceDetectorYN"):
            raise ValueError(f"OpenCV {cv2.__version__} cannot run YuNet; pip install 'opencv-python-headless>=4.8,<5'")
        try:
            self._net = cv2.FaceDetectorYN.create(os.fspath(model), "", (64, 64), YUNET_SCORE)
            self(np.zeros((64, 64, 3), np.uint8))
        except cv2.error:
            raise ValueError(f"face model {model} is not a YuNet .onnx that OpenCV {cv2.__version__} can run") from None

    def __call__(self, frame: np.ndarray) -> list[FaceBox]:
        reduced, scale = _reduced(frame, YUNET_SIDE)
        if min(reduced.shape[:2]) < YUNET_LEAST_SIDE:
            return []
        self._net.setInputSize((reduced.shape[1], reduced.shape[0]))
        found = self._net.detect(cv2.cvtColor(reduced, cv2.COLOR_RGB2BGR))[1]
        if found is None:
            return []
        found = found[np.isfinite(found).all(axis=1)]
        # A row: box x, y, w, h, then right eye, left eye, nose, mouth corners (x, y each), score.
        features = found[:, 4:14].reshape(-1, 5, 2)[:, (0, 1, 3, 4)]
        centres = features.mean(axis=1) / scale  # half-way between eyes and mouth: where Haar's crops have their centre
        sides = YUNET_MARGIN * np.sqrt(np.maximum(found[:, 2] * found[:, 3], 1.0)) / scale
        return [FaceBox(float(x), float(y), float(side)) for (x, y), side in zip(centres, sides, strict=True)]


YUNET_FILE = PublishedFile(
    what="YuNet",
    url="https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    instead="name a copy in --face_model or LITEAVSE_FACE_MODEL",
    timeout_sec=5.0,
)


@dataclass(frozen=True)
class FaceMethod:
    """The detector that a method uses on this machine."""

    method: str  # "yunet", "haar", "center" or "none"
    model: str | None = None  # YuNet's file
    fallback: str | None = None  # one line: why it is not the first choice


@functools.lru_cache(maxsize=16)
def settle_method(method: str, model: str | None = None) -> FaceMethod:
    """Choose the detector for `method` (one of FACE_METHODS); the result is cached, so that a failed download is not repeated.

    "auto" is YuNet with the file `model`, $LITEAVSE_FACE_MODEL, the cached one or the published one; where it cannot be
    had it is Haar, else the middle of the frame, and `fallback` says so. ValueError for an unknown or unusable method.
    """
    if method not in FACE_METHODS:
        raise ValueError(f"face_crop {method!r} is not known; use one of {', '.join(FACE_METHODS)}")
    if method not in ("auto", "yunet"):
        if model is not None:
            raise ValueError(f"face model {model} is for YuNet, but face_crop is {method}")
        return FaceMethod(method)
    named = model or os.environ.get("LITEAVSE_FACE_MODEL")
    try:
        path = named or str(YUNET_FILE.get())
        YuNetDetector(path)
        return FaceMethod("yunet", path)
    except ValueError as error:
        if method == "yunet" or named:
            raise
        missing = str(error)
    try:
        HaarDetector()
        return FaceMethod("haar", None, f"faces are looked for with Haar cascades, YuNet is not to be had ({missing})")
    except ValueError as error:
        return FaceMethod("center", None, f"the middle of the frame is taken for the face ({missing}; {error})")


def load_detector(settled: FaceMethod) -> Detector | None:
    """A new detector, since one must not be shared between threads; None where the method needs none."""
    if settled.method == "yunet":
        assert settled.model is not None
        return YuNetDetector(settled.model)
    return HaarDetector() if settled.method == "haar" else None
