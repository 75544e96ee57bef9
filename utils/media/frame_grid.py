"""Frames of a video file on a regular grid, by timestamp, upright, in the time of its sound."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator

import av
import numpy as np

from utils.media.decode import (
    ONE_THREAD,
    PREROLL_SEC,
    Decoder,
    MediaError,
    named_errors,
    open_media,
    sound_start_sec,
    video_stream,
)

HOLD_SEC = 0.2  # a frame older than this says nothing about the mouth now
JITTER_SEC = 0.002  # clocks of 1 ms (Matroska) and phones place a 40 ms frame a little late
MOST_UNSEEN_SEC = 60.0  # without a frame, where nobody said how much is wanted: a later timestamp is taken for a wrong one
LONGEST_SIDE = 960  # pixels kept of a frame before faces are looked for
MOST_PIXELS = 4096 * 4096  # of a frame, unless the video begins larger: a small file may grow after its header was checked

_log = logging.getLogger(__name__)


class _FrameConverter:
    """Turns decoded frames into upright RGB arrays no larger than LONGEST_SIDE, square pixels, one size throughout."""

    def __init__(self, stream: av.video.stream.VideoStream) -> None:
        self._reformatter = av.video.reformatter.VideoReformatter()
        aspect = float(stream.sample_aspect_ratio or 1)
        self.aspect = aspect if 0.2 < aspect < 5 else 1.0
        self._size: tuple[int, int] | None = None
        self._last: tuple[av.video.frame.VideoFrame, np.ndarray] | None = None

    def __call__(self, frame: av.video.frame.VideoFrame) -> np.ndarray:
        """frame -> uint8 [H, W, 3]."""
        if self._last is not None and self._last[0] is frame:
            return self._last[1]
        if self._size is None:
            scale = min(1.0, LONGEST_SIDE / max(frame.width * self.aspect, frame.height))
            self._size = max(1, round(frame.width * self.aspect * scale)), max(1, round(frame.height * scale))
        width, height = self._size
        shrinks = (width, height) != (frame.width, frame.height)
        rgb = self._reformatter.reformat(
            frame, width, height, format="rgb24", interpolation="AREA" if shrinks else "BILINEAR", **ONE_THREAD
        ).to_ndarray()
        turns = self.turns(frame)
        rgb_upright = np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
        self._last = (frame, rgb_upright)
        return rgb_upright

    @staticmethod
    def turns(frame: av.video.frame.VideoFrame) -> int:
        """Quarter turns against the clock that bring the frame upright."""
        return round((getattr(frame, "rotation", 0) or 0) / 90) % 4


def video_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of the upright frame in square pixels, as it is shown; MediaError when there is none."""
    with open_media(path) as container, named_errors(path):
        stream = video_stream(container)
        frame = None if stream is None else next(iter(Decoder(container, stream)), None)
        if frame is None:
            raise MediaError(f"{path} has no video that can be decoded")
        converter = _FrameConverter(stream)
        width, height = round(frame.width * converter.aspect), frame.height
        return (height, width) if converter.turns(frame) % 2 else (width, height)


def _timed_frames(
    path: str | os.PathLike, start_sec: float, converters: list[_FrameConverter], late_sec: float
) -> Iterator[tuple[float, av.video.frame.VideoFrame, float]]:
    """(seconds since time zero, frame, seconds it lasts), rising, from the frame shown at start_sec or earlier.

    Time zero is where the sound begins (else the first frame), and for a video that is late by late_sec so much later.
    """
    zero_sec = sound_start_sec(path)
    for seeking in (True, False):
        with open_media(path) as container:
            stream = video_stream(container)
            if stream is None:
                unknown = " that can be decoded" if container.streams.video else ""
                raise MediaError(f"{path} has no video{unknown}")
            stream.thread_type = "AUTO" if stream.width * stream.height > 640 * 480 else "SLICE"
            # A damaged header may state a frame every few hours; none is believed to last longer than a gap may be.
            period = min(1.0 / float(stream.average_rate or stream.base_rate or 25), MOST_UNSEEN_SEC)
            base = zero_sec
            if base is None and stream.start_time is not None:
                base = float(stream.start_time * stream.time_base)
            base = None if base is None else base + late_sec
            if seeking and start_sec > 5.0 and base is not None:
                try:
                    container.seek(int((base + start_sec - PREROLL_SEC) * av.time_base))
                except (av.FFmpegError, OSError):
                    continue
            elif seeking:
                continue
            converters[:] = [_FrameConverter(stream)]
            last, most_pixels = -math.inf, 0
            decoder = Decoder(container, stream)
            for frame in decoder:
                most_pixels = most_pixels or max(MOST_PIXELS, frame.width * frame.height)
                if frame.width * frame.height > most_pixels:
                    raise MediaError(f"{path} grows to {frame.width} x {frame.height} pixels, it should keep its size")
                if frame.time is not None:
                    base = frame.time + late_sec if base is None else base
                    at = frame.time - base
                else:
                    at = last + period if math.isfinite(last) else -late_sec
                if seeking and last == -math.inf and at > start_sec:
                    break  # the seek landed too late; read from the beginning instead
                if at <= last:
                    continue
                last = at
                yield at, frame, period
            else:
                if decoder.damaged:
                    _log.info("%s: %d damaged video packets skipped", path, decoder.damaged)
                if last > -math.inf or not seeking:
                    return


def grid_frames(
    path: str | os.PathLike, start_sec: float = 0.0, duration_sec: float | None = None, fps: float = 25.0,
    late_sec: float = 0.0,
) -> Iterator[np.ndarray | None]:
    """Give frames on a regular grid: entry k is the newest frame at start_sec + k / fps, None where there is none.

    Time zero is where the file's sound begins (else its first frame). A video that is late by late_sec, so that lips
    move after their sound, is shown so much earlier. A frame up to JITTER_SEC late still counts; a frame is shown for
    HOLD_SEC at most, so gaps, a late beginning and an early end are None. Yields uint8 [H, W, 3]. MediaError for a video that
    cannot be read.
    """
    with named_errors(path):
        yield from _grid_frames(path, start_sec, duration_sec, fps, late_sec)


def _grid_frames(
    path: str | os.PathLike, start_sec: float, duration_sec: float | None, fps: float, late_sec: float
) -> Iterator[np.ndarray | None]:
    wanted = None if duration_sec is None else math.ceil(duration_sec * fps - 1e-6)
    converters: list[_FrameConverter] = []
    shown: tuple[float, av.video.frame.VideoFrame] | None = None
    tick, end_sec = 0, start_sec

    def frame_at(at_sec: float) -> np.ndarray | None:
        return converters[0](shown[1]) if shown is not None and at_sec - shown[0] <= HOLD_SEC + JITTER_SEC else None

    for at, frame, period in _timed_frames(path, start_sec, converters, late_sec):
        if wanted is None and at - end_sec > MOST_UNSEEN_SEC:
            _log.warning("%s: a frame %.0f s after the one before it is left out, and what follows", path, at - end_sec)
            break
        while (wanted is None or tick < wanted) and start_sec + tick / fps < at - JITTER_SEC:
            yield frame_at(start_sec + tick / fps)
            tick += 1
        if wanted is not None and tick >= wanted:
            return
        shown, end_sec = (at, frame), at + period
    if shown is None:
        raise MediaError(f"{path} has no video that can be decoded")
    if wanted is None:
        wanted = math.ceil((end_sec - start_sec - JITTER_SEC) * fps - 1e-6)
    for tick in range(tick, wanted):  # noqa: B020 - goes on from where the loop above stopped
        yield frame_at(start_sec + tick / fps)
