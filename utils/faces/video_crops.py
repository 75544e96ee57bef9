"""A video as face crops on the frame grid, in the time of the sound it belongs to."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from utils.faces.cropper import FaceCropper, FaceOptions, FaceReport
from utils.faces.lip_sync import SoundTrack, estimate_offset, mouth_fit
from utils.media.decode import MediaError
from utils.media.frame_grid import grid_frames, video_size

CHUNK_FRAMES = 250  # frames held in memory at once, fewer when they would fill more than CHUNK_BYTES
CHUNK_BYTES, LEAST_CHUNK_FRAMES = 128 << 20, 50  # two seconds are needed to tell a head that is lost from one that blinks
MEASURE_SEC = 60.0  # of the beginning, by which an offset is measured

_log = logging.getLogger(__name__)


def load_video_frames(
    video_path: str | os.PathLike, start_sec: float = 0.0, duration_sec: float | None = None, face_size: int = 96,
    fps: float = 25.0, face_crop: str | FaceOptions = "auto", *, sound: SoundTrack | None = None,
    report: FaceReport | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Face crops of a video on the `fps` grid by timestamp -> (uint8 [V, S, S, 3] RGB, mask bool [V]).

    V = ceil(duration_sec * fps), or what the video holds. Where there is no frame or no face, the crop is black and
    the mask False. A video of face_size x face_size is taken to be crops already (face_crop "auto"). Time zero is where
    the file's own sound begins. `sound` is what the video belongs to: it chooses among faces and measures an offset;
    what was done goes into `report`. MediaError when nothing can be decoded.
    """
    stretches = list(
        crop_stretches(video_path, start_sec, duration_sec, face_size, fps, face_crop, sound=sound, report=report)
    )
    if not stretches:
        raise MediaError(f"{video_path} has no video at {start_sec:g} s or later")
    return np.concatenate([crops for crops, _ in stretches]), np.concatenate([mask for _, mask in stretches])


def crop_stretches(
    video_path: str | os.PathLike, start_sec: float = 0.0, duration_sec: float | None = None, face_size: int = 96,
    fps: float = 25.0, face_crop: str | FaceOptions = "auto", *, sound: SoundTrack | None = None,
    report: FaceReport | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`load_video_frames` piece by piece, in bounded memory: what it joins, in stretches of CHUNK_FRAMES or less.

    The box around the face is smoothed inside a stretch, so a crop knows of frames up to a stretch ahead (10 s at 25
    frames/s, fewer for large frames), and of nothing after that.
    """
    given, report = report, report if report is not None else FaceReport()
    options = _settle(FaceOptions.of(face_crop), video_path, start_sec, duration_sec, face_size, fps, sound, report)
    cropper: FaceCropper | None = None
    stretch: np.ndarray | None = None  # made once: hundreds of frames come and go, and would leave holes in the heap
    usable: list[bool] = []  # per frame of the stretch so far
    before = 0  # frames given so far
    for frame in grid_frames(video_path, start_sec, duration_sec, fps, report.offset_ms / 1e3):
        if frame is not None and stretch is None:
            ready = options.method in (None, "auto") and frame.shape[:2] == (face_size, face_size)
            looked_at = FaceOptions("none") if ready else options
            cropper = FaceCropper(face_size, looked_at, fps, sound=sound, report=report)
            if given is None and report.fallback:
                _warn_once(report.fallback)
            longest = min(CHUNK_FRAMES, max(LEAST_CHUNK_FRAMES, CHUNK_BYTES // frame.nbytes))
            stretch = np.zeros((max(longest, len(usable) + 1), *frame.shape), np.uint8)
        usable.append(frame is not None and frame.shape == stretch.shape[1:])
        if stretch is not None:
            stretch[len(usable) - 1] = frame if usable[-1] else 0
        if len(usable) >= (CHUNK_FRAMES if stretch is None else len(stretch)):
            yield _crop_stretch(stretch, np.array(usable), cropper, face_size, start_sec + before / fps)
            before, usable = before + len(usable), []
    if usable:
        yield _crop_stretch(stretch, np.array(usable), cropper, face_size, start_sec + before / fps)


def _crop_stretch(
    stretch: np.ndarray | None, usable: np.ndarray, cropper: FaceCropper | None, face_size: int, at_sec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [n, H, W, 3], bool [v]: which of the first v are there -> (crops [v, S, S, 3], mask [v])."""
    if cropper is None or not usable.any():
        return np.zeros((len(usable), face_size, face_size, 3), np.uint8), np.zeros(len(usable), bool)
    crop, mask = cropper(stretch[: len(usable)], at_sec)
    mask &= usable
    crop[~mask] = 0
    return crop, mask


def _settle(
    options: FaceOptions, path: str | os.PathLike, start_sec: float, duration_sec: float | None, face_size: int, fps: float,
    sound: SoundTrack | None, report: FaceReport,
) -> FaceOptions:
    """The options with a face's place as shares and the offset as a number, which `report` gets too."""
    if isinstance(options.face, tuple) and max(options.face) > 1.0:
        width, height = video_size(path)
        options = replace(options, face=(min(1.0, options.face[0] / width), min(1.0, options.face[1] / height)))
    if options.av_offset_ms == "auto":
        if sound is None:
            raise ValueError("av_offset_ms auto: an offset is measured against a sound, and there is none")
        options = replace(options, av_offset_ms=0.0)
        measured_sec = MEASURE_SEC if duration_sec is None else min(MEASURE_SEC, duration_sec)
        crops, mask = load_video_frames(
            path, start_sec, measured_sec, face_size, fps, options, sound=sound, report=FaceReport()
        )
        report.estimate = estimate_offset(*mouth_fit(crops, mask, start_sec, fps, sound))
        if report.estimate.sure:
            options = replace(options, av_offset_ms=1e3 * report.estimate.offset_sec)
    report.offset_ms = float(options.av_offset_ms)
    return options


@functools.lru_cache(maxsize=16)
def _warn_once(line: str) -> None:
    _log.warning("%s", line)
