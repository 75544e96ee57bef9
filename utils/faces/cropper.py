"""Finds the speaker's face in a video and crops a square around it, in the same way for training and for use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.faces.detectors import (
    FACE_METHODS,
    Detector,
    FaceBox,
    FaceMethod,
    HaarDetector,
    YuNetDetector,
    load_detector,
    settle_method,
)
from utils.faces.lip_sync import TALKING_LEAD, OffsetEstimate, SoundTrack, mouth_fit, talking
from utils.faces.tracks import DETECT_EVERY, Track, joined, link, most_at_once, size, steady_boxes

__all__ = [
    "FACE_METHODS", "FaceBox", "FaceCropper", "FaceOptions", "FaceReport", "HaarDetector", "YuNetDetector", "crop_faces",
    "cut_square",
]  # fmt: skip

LEAST_TALK_LOOKS = 5  # a head seen in fewer looks (1 s) is not judged by its mouth
LARGE = 0.6  # of the largest track's size: a head that may be the speaker's even if its mouth does not clearly say so

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceOptions:
    """Options of face cropping: the detector, the face to follow, and how late the video is.

    method: one of FACE_METHODS, None for the recipe's. model: YuNet's file. face: N, the N-th face from the left (from 1),
    or (x, y), the face at that point, as shares of width and height where both are 1 or less, else in pixels of the
    upright frame; None: the one that talks, else the largest and longest. av_offset_ms: positive where the video is
    late, so that lips move after their sound; "auto" measures it. ValueError for a value that is not allowed.
    """

    method: str | None = None
    model: str | None = None
    face: int | tuple[float, float] | None = None
    av_offset_ms: float | str = 0.0

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in FACE_METHODS:
            raise ValueError(f"face_crop {self.method!r} is not known; use one of {', '.join(FACE_METHODS)}")
        if isinstance(self.face, tuple):
            if len(self.face) != 2 or not all(0 <= value < 1e5 for value in self.face):
                raise ValueError(f"face {self.face!r} should be two numbers, x and y from the top left, e.g. 0.3,0.5")
        elif self.face is not None and self.face < 1:
            raise ValueError(f"face {self.face} should be 1 (the leftmost) or more")
        if self.av_offset_ms != "auto" and not (not isinstance(self.av_offset_ms, str) and abs(self.av_offset_ms) <= 10_000):
            raise ValueError(f"av_offset_ms {self.av_offset_ms!r} should be milliseconds, 10 s at most, or auto")

    @classmethod
    def of(cls, given: str | FaceOptions) -> FaceOptions:
        """`given` itself, or the options that a method alone makes."""
        return given if isinstance(given, FaceOptions) else cls(method=given)


@dataclass
class FaceReport:
    """What a FaceCropper found in a video. It fills the report while it works."""

    detector: str = ""  # what found the faces; "" before there was a frame
    looked: bool = False  # whether `detector` is a face detector, and not a fixed place in the frame
    found: int = 0  # most faces at one time
    fallback: str | None = None  # one line: why `detector` is not the first choice
    choices: list[str] = field(default_factory=list)  # one line for each choice among several heads, also where none fitted
    offset_ms: float = 0.0  # correction of the video's time; positive where the video was late
    estimate: OffsetEstimate | None = None  # with av_offset_ms "auto"

    def summary(self) -> str:
        """How many faces there are and what found them, for a line about a file."""
        faces = {0: "no face", 1: "1 face"}.get(self.found, f"{self.found} faces")
        offset = f", video {_lateness(self.offset_ms)}" if self.offset_ms else ""
        return (f"{faces} ({self.detector})" if self.looked else self.detector) + offset

    def notes(self) -> list[str]:
        """One line each of what a user should know beyond `detector` and `found`."""
        notes = self.choices[:3] + ([f"... and {len(self.choices) - 3} choices more"] if len(self.choices) > 3 else [])
        if self.estimate is not None:
            said = f"the video seems {_lateness(1e3 * self.estimate.offset_sec)}"
            done = "taken back" if self.estimate.sure else "not sure enough, left as it is"
            notes.append(f"av_offset auto: {said} (confidence {self.estimate.confidence:.1f}; from 1 on it is sure): {done}")
        return notes


def _lateness(milliseconds: float) -> str:
    return f"{abs(milliseconds):.0f} ms {'late' if milliseconds >= 0 else 'early'}"


def cut_square(frame: np.ndarray, box: FaceBox, size: int) -> np.ndarray:
    """Square of the frame uint8 [H, W, 3] around `box`, black beyond its edges -> uint8 [size, size, 3]."""
    side = max(2, round(box.side))
    left, top = round(box.x - side / 2), round(box.y - side / 2)
    height, width = frame.shape[:2]
    inner = frame[max(0, top) : max(0, min(height, top + side)), max(0, left) : max(0, min(width, left + side))]
    if inner.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    if inner.shape[:2] != (side, side):
        y, x = max(0, -top), max(0, -left)
        inner = cv2.copyMakeBorder(
            inner, y, side - y - inner.shape[0], x, side - x - inner.shape[1], cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    return cv2.resize(inner, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def _cut(frames: np.ndarray, boxes: Sequence[FaceBox | None], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [V, H, W, 3], a box or None each -> (crops uint8 [V, S, S, 3], mask bool [V]), black where None."""
    crops = np.zeros((len(frames), size, size, 3), np.uint8)
    for index, box in enumerate(boxes):
        if box is not None:
            crops[index] = cut_square(frames[index], box, size)
    return crops, np.array([box is not None for box in boxes], bool)


class FaceCropper:
    """Crops one speaker's face out of consecutive stretches of frames, remembering the head between stretches.

    `method` as in `crop_faces`, or options; a `detector` of your own takes the place of the one that would be loaded.
    `sound` is the recording's: among several heads the one that talks is then followed. What was done goes into `report`.
    """

    def __init__(
        self, face_size: int = 96, method: str | FaceOptions = "auto", fps: float = 25.0, detector: Detector | None = None,
        *, sound: SoundTrack | None = None, report: FaceReport | None = None,
    ) -> None:
        options = FaceOptions.of(method)
        method = options.method or "auto"
        given = detector is not None and method in ("auto", "yunet", "haar")
        settled = FaceMethod("given") if given else settle_method(method, options.model)
        self._size, self._method, self._fps = face_size, settled.method, fps
        self._detect = detector if given else load_detector(settled)
        self._face, self._sound = options.face, sound
        self._known: FaceBox | None = None
        self._settled = False  # whether the head was chosen by more than its size
        self._at_sec = 0.0  # when this stretch begins
        self.report = report if report is not None else FaceReport()
        named = {"center": "middle of the frame", "none": "whole frame"}
        self.report.looked = self._detect is not None
        self.report.detector = named.get(settled.method) or getattr(self._detect, "name", "detector given")
        self.report.fallback = settled.fallback

    def __call__(self, frames: np.ndarray, at_sec: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """frames uint8 [V, H, W, 3] -> (crops uint8 [V, S, S, 3], mask bool [V]); crops are black where masked.

        The first frame is shown at at_sec of the sound.
        """
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames should be uint8 [V, H, W, 3], not {frames.dtype} {list(frames.shape)}")
        count, height, width = frames.shape[:3]
        self._at_sec = at_sec
        if self._method == "none":
            return self._whole(frames), np.ones(count, bool)
        if self._method == "center":
            boxes: Sequence[FaceBox | None] = [FaceBox(width / 2, height / 2, min(height, width))] * count
        else:
            boxes = self._face_boxes(frames)
        return _cut(frames, boxes, self._size)

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
        tracks = link([self._detect(frames[index]) for index in at])
        self.report.found = max(self.report.found, most_at_once(tracks))
        chosen = self._choose(tracks, at, frames) if tracks else None
        if chosen is None:
            return [None] * count
        boxes = steady_boxes(joined(chosen, tracks), at, count, self._fps)
        side = next(box.side for box in boxes if box is not None)
        if self._known is not None and 0.8 < side / self._known.side < 1.25:
            side = 0.5 * (side + self._known.side)
        boxes = [FaceBox(box.x, box.y, side) if box is not None else None for box in boxes]
        self._known = next(box for box in reversed(boxes) if box is not None)
        return boxes

    def _choose(self, tracks: Sequence[Track], at: Sequence[int], frames: np.ndarray) -> Track | None:
        """The head to follow through this stretch: the one followed so far, else as asked, by its talking, or by size."""
        steady = sorted([track for track in tracks if len(track) >= min(2, len(at))] or tracks, key=_column)
        same = [track for track in steady if self._known is not None and self._known.near(track[min(track)])]
        if same and self._settled:
            return max(same, key=size)
        if self._face is not None:
            return self._asked_for(steady, frames)
        scores = self._talk_scores(steady, at, frames) if len(steady) > 1 else []
        lead = (scores[0][0] - scores[1][0]) * min(scores[0][1], scores[1][1]) ** 0.5 if len(scores) > 1 else 0.0
        self._settled = lead >= TALKING_LEAD
        if self._settled:
            best, why = scores[0][2], "its mouth moves with the sound"
        elif same:
            return max(same, key=size)
        else:
            largest = max(size(track) for track in steady)
            talker = next((track for _, _, track in scores if size(track) > LARGE * largest), None)
            best = talker or max(steady, key=size)
            why = "the largest and longest seen" if talker is None else "its mouth fits the sound best, if not clearly"
        if len(steady) > 1:
            fits = ", ".join(f"{score:.2f}" for score, _, _ in scores)
            self._say(steady, best, frames, why + (f" (fits from best to worst: {fits})" if fits else ""))
        return best

    def _asked_for(self, steady: Sequence[Track], frames: np.ndarray) -> Track | None:
        """The N-th track from the left, or the one at a point; None, and a line in the report, when there is none."""
        if isinstance(self._face, tuple):
            height, width = frames.shape[1:3]
            point = FaceBox(self._face[0] * width, self._face[1] * height, 1.0)
            best = min(steady, key=lambda track: min(box.away(point) for box in track.values()))
            place = f"{self._face[0]:.2f},{self._face[1]:.2f}"
            if min(box.away(point) for box in best.values()) > 1.0:
                self.report.choices.append(f"{self._when()}no face at {place} as asked for: none is shown")
                return None
            why = f"the face asked for at {place}"
        else:
            assert self._face is not None
            if len(steady) < self._face:
                self.report.choices.append(
                    f"{self._when()}face {self._face} from the left was asked for, but there are {len(steady)}: none is shown"
                )
                return None
            best, why = steady[self._face - 1], "as asked for"
        self._settled = True
        self._say(steady, best, frames, why)
        return best

    def _talk_scores(self, steady: Sequence[Track], at: Sequence[int], frames: np.ndarray) -> list[tuple[float, float, Track]]:
        """(how well its mouth fits the sound, seconds of it, track) of those seen long enough, the best first."""
        scores = []
        for track in steady if self._sound is not None else ():
            if len(track) < LEAST_TALK_LOOKS:
                continue
            crops, mask = _cut(frames, steady_boxes(track, at, len(frames), self._fps), self._size)
            fits, seconds = mouth_fit(crops, mask, self._at_sec, self._fps, self._sound)
            scores.append((talking(fits), seconds, track))
        return sorted(scores, key=lambda entry: -entry[0])

    def _say(self, steady: Sequence[Track], best: Track, frames: np.ndarray, why: str) -> None:
        height, width = frames.shape[1:3]
        box = best[min(best)]
        place = f"{box.x / width:.2f},{box.y / height:.2f}"
        number = next(index for index, track in enumerate(steady, 1) if track is best)
        self.report.choices.append(f"{self._when()}face {number} of {len(steady)} from the left, at {place}: {why}")

    def _when(self) -> str:
        return f"from {self._at_sec:.0f} s on, " if self._at_sec else ""


def _column(track: Track) -> float:
    return float(np.mean([box.x for box in track.values()]))


def crop_faces(
    frames: np.ndarray, face_size: int = 96, method: str = "auto", fps: float = 25.0
) -> tuple[np.ndarray, np.ndarray]:
    """Face crops of a clip: frames uint8 [V, H, W, 3] RGB -> (crops uint8 [V, S, S, 3], mask bool [V]).

    Methods "yunet" and "haar" detect faces ("auto" takes the better one that works here), follow one head, smooth its
    place and cut a square with a fixed margin. Frames without the face are black and masked False. "center" takes the
    middle square of each frame, "none" the whole frame.
    """
    return FaceCropper(face_size, method, fps)(frames)
