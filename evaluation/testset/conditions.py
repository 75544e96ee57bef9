"""The conditions of the video under which audio-visual enhancement is tested, such as black, blurred, late or missing."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import cv2
import numpy as np

from dataloaders.augment_video import VisualDegradation

CLEAN, NONE, OTHER_FACE, LOW_RESOLUTION = "clean", "none", "other_face", "lowres"
AS_IN_TRAINING = ("black", "dim", "freeze", "patch", "blur", "noise")  # of dataloaders.augment_video, over the whole clip
DROPPED_PERCENT = tuple(range(10, 100, 10))
SHIFTS_MS = (-400, -200, -120, -80, -40, 40, 80, 120, 200, 400)  # positive: the video comes late
CONDITIONS = (
    CLEAN, *AS_IN_TRAINING, LOW_RESOLUTION, *(f"drop_{share}" for share in DROPPED_PERCENT),
    *(f"shift_{shift:+d}ms" for shift in SHIFTS_MS), OTHER_FACE, NONE,
)  # fmt: skip
LOW_SIZE = 12  # pixels of a side; the lips cover two or three


class DegradedCrops(NamedTuple):
    """Face crops, and which of them are corrupt."""

    crops: np.ndarray  # uint8 [V, S, S, 3]
    mask: np.ndarray  # bool [V], True where a face is seen
    corruption: np.ndarray  # bool [V], True where the frame does not show what it should


def check_condition(name: str) -> None:
    """ValueError unless `name` is one of CONDITIONS."""
    if name not in CONDITIONS:
        raise ValueError(f"condition {name!r} of the video is not known; there are {', '.join(CONDITIONS)}")


def _low_resolution(crops: np.ndarray) -> np.ndarray:
    size = crops.shape[1:3]
    small = [cv2.resize(crop, (LOW_SIZE, LOW_SIZE), interpolation=cv2.INTER_AREA) for crop in crops]
    return np.stack([cv2.resize(crop, size[::-1], interpolation=cv2.INTER_LINEAR) for crop in small])


def _drop(crops: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Loses this share of the frames; the frame before is shown instead, as in a player. The first is never lost."""
    lost = np.zeros(len(crops), bool)
    lost[1 + rng.permutation(len(crops) - 1)[: round(share * len(crops))]] = True
    shown = np.maximum.accumulate(np.where(lost, 0, np.arange(len(crops))))
    return crops[shown], lost


def degrade(
    name: str, crops: np.ndarray, mask: np.ndarray, fps: float, seed: int,
    other: tuple[np.ndarray, np.ndarray] | None = None,
) -> DegradedCrops | None:
    """Crops uint8 [V, S, S, 3] and mask [V] under the condition `name`; None when the video is withheld.

    The mask stays as it is, as if a face were still found: the test is whether the model itself sees that the crops are of
    no use. `other`: crops and mask of another speaker, which are cut or repeated to the same number of frames. The same
    seed gives the same pixels. ValueError for an unknown name, or where `other` is needed and missing.
    """
    check_condition(name)
    if name == NONE:
        return None
    count, rng = len(crops), np.random.default_rng([seed, zlib.crc32(name.encode())])
    wrong = np.ones(count, bool)
    if name == CLEAN or count == 0:
        wrong[:] = False
    elif name in AS_IN_TRAINING:
        crops, label = VisualDegradation().apply(name, crops, rng, whole_clip=True)
        wrong = label > 0
    elif name == LOW_RESOLUTION:
        crops = _low_resolution(crops)
    elif name.startswith("drop_"):
        crops, wrong = _drop(crops, int(name.removeprefix("drop_")) / 100, rng)
    elif name.startswith("shift_"):
        frames = round(int(name.removeprefix("shift_").removesuffix("ms")) / 1000 * fps)
        shown = np.clip(np.arange(count) - frames, 0, count - 1)
        crops, mask = crops[shown], mask[shown]
    else:
        if other is None or not len(other[0]):
            raise ValueError("there is no other speaker's face in the test set")
        shown = np.arange(count) % len(other[0])
        crops, mask = other[0][shown], other[1][shown]
    return DegradedCrops(crops, mask, wrong | ~mask)
