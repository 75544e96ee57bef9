"""Decoding through FFmpeg (PyAV): damaged packets and odd timestamps in, a regular picture grid out."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np

HOLD_SEC = 0.2  # a picture older than this says nothing about the mouth now
JITTER_SEC = 0.002  # clocks of 1 ms (Matroska) and phones place a 40 ms frame a little late
GAP_SEC = 0.02  # sound missing for longer than this is filled with zeros, so that what follows stays in time
OVERLAP_SEC = 1.0  # sound that begins before the last ended, by up to this, is cut; clocks set back further are not believed
PREROLL_SEC = 1.0  # decoded before a seek target: decoders settle, key frames are rarely exact
LONGEST_SIDE = 960  # pixels kept of a picture before faces are looked for
MOST_DEMUX_ERRORS = 64

# From PyAV 17 on a conversion spreads over every core unless told not to; each loader worker has one to use.
_ONE_THREAD = {"threads": 1} if tuple(map(int, av.__version__.split(".")[:2])) >= (17, 0) else {}

_log = logging.getLogger(__name__)


class MediaError(ValueError):
    """A media file that cannot be used; the message is one line that names it."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file's header says, and what trying it found; see `probe_media`."""

    duration_sec: float | None
    has_audio: bool
    has_video: bool
    width: int = 0
    height: int = 0
    fps: float = 0.0
    damaged_packets: int = 0


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def open_media(path: str | os.PathLike, options: dict[str, str] | None = None) -> av.container.InputContainer:
    """Open a file with FFmpeg's `options`; FileNotFoundError, or MediaError in one line that names it."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    if os.path.isdir(path):
        raise MediaError(f"{path} is a folder, not a media file")
    if os.path.getsize(path) == 0:
        raise MediaError(f"{path} is an empty file (0 bytes)")
    try:
        return av.open(os.fspath(path), options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path} cannot be opened as sound or video: {_reason(error)}") from None


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """First moving picture that there is a decoder for; a cover image attached to music is none."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def audio_stream(container: av.container.InputContainer) -> av.audio.stream.AudioStream | None:
    return container.streams.audio[0] if container.streams.audio else None


class Decoder:
    """Frames of one stream, going on after damaged packets, which are counted in `damaged`."""

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream) -> None:
        self._container, self._stream, self.damaged = container, stream, 0

    def packets(self) -> Iterator[av.packet.Packet]:
        """The stream's packets as they are, the empty one at the end too."""
        packets = self._container.demux(self._stream)
        errors = 0
        while errors < MOST_DEMUX_ERRORS:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except IndexError:  # a packet of a stream that the header does not know, as damage and broadcasts have them
                packets = self._container.demux(self._stream)
                continue
            except (av.FFmpegError, OSError):
                errors += 1
                self.damaged += 1
                packets = self._container.demux(self._stream)
                continue
            yield packet

    def __iter__(self) -> Iterator[av.frame.Frame]:
        for packet in self.packets():
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError, ValueError):
                self.damaged += 1
                continue
            yield from frames


def sound_start_sec(path: str | os.PathLike) -> float | None:
    """Time of the first decoded sound sample on the container's clock; None without sound."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    status = os.stat(path)
    return _sound_start_sec(os.fspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _sound_start_sec(path: str, mtime_ns: int, size: int) -> float | None:
    """sound_start_sec of a file as it was at `mtime_ns`: opening it once more costs as much as a window of crops."""
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None or stream.codec_context is None:
            return None
        for frame in Decoder(container, stream):
            return frame.time if frame.time is not None else 0.0
    return None


def probe_media(path: str | os.PathLike, full: bool = False) -> MediaInfo:
    """Header facts plus proof that the first frame of each stream decodes (`full`: that everything does).

    A stream whose first frame does not decode counts as absent. MediaError when the file cannot be opened.
    """
    found: dict[str, bool] = {}
    damaged = 0
    with open_media(path) as container:
        duration = container.duration / av.time_base if container.duration else None
        video = video_stream(container)
        shape = (video.width, video.height, float(video.average_rate or 0)) if video is not None else (0, 0, 0.0)
    for kind, pick in (("audio", audio_stream), ("video", video_stream)):
        with open_media(path) as container:
            stream = pick(container)
            found[kind] = False
            if stream is None or stream.codec_context is None:
                continue
            decoder = Decoder(container, stream)
            for _ in decoder:
                found[kind] = True
                if not full:
                    break
            damaged += decoder.damaged
    return MediaInfo(duration, found["audio"], found["video"], *shape, damaged_packets=damaged)


def _frame_samples(frame: av.audio.frame.AudioFrame) -> np.ndarray:
    """Decoded audio frame of any sample format -> float32 mono [n] in [-1, 1]."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    # data [ch, n]
    if data.dtype == np.uint8:
        return ((data.astype(np.float32) - 128.0) / 128.0).mean(axis=0)
    scale = 1.0 / -float(np.iinfo(data.dtype).min) if np.issubdtype(data.dtype, np.integer) else 1.0
    return (data.astype(np.float64) * scale).mean(axis=0).astype(np.float32)


def decode_sound(path: str | os.PathLike, start_sec: float, stop_sec: float | None) -> tuple[np.ndarray, int, int]:
    """Sound of a container, placed by timestamp: (mono [n], its rate, index of its first sample since sound start)."""
    pieces = list(decode_sound_pieces(path, start_sec, stop_sec))
    return np.concatenate([samples for samples, _, _ in pieces]), *pieces[0][1:]


def _said_end(
    container: av.container.InputContainer, stream: av.audio.stream.AudioStream, zero_sec: float, rate: int
) -> int | None:
    """Index after the last sample as MP4 headers say it; what an encoder padded its last frame with comes after."""
    if not container.format.name.startswith("mov") or not stream.duration or stream.start_time is None:
        return None
    return round((float((stream.start_time + stream.duration) * stream.time_base) - zero_sec) * rate)


def decode_sound_pieces(
    path: str | os.PathLike, start_sec: float = 0.0, stop_sec: float | None = None
) -> Iterator[tuple[np.ndarray, int, int]]:
    """What `decode_sound` joins, frame by frame: (mono [n], rate, index of its first sample), without gaps between."""
    zero_sec = sound_start_sec(path)
    if zero_sec is None:
        raise MediaError(f"{path} has no sound that can be decoded")
    with open_media(path) as container:
        stream = audio_stream(container)
        if start_sec > 10.0:
            try:
                container.seek(int((zero_sec + start_sec - PREROLL_SEC) * av.time_base))
            except (av.FFmpegError, OSError):
                _log.info("%s cannot be sought in; read from its beginning", path)
        rate, position = 0, None
        padding: tuple[np.ndarray, int, int] | None = None
        decoder = Decoder(container, stream)
        for frame in decoder:
            rate = rate or frame.sample_rate
            if padding is not None:  # no padding after all: the header was wrong
                yield padding
                padding = None
            if frame.sample_rate != rate:
                decoder.damaged += 1
                continue
            at = (position or 0) if frame.time is None else round((frame.time - zero_sec) * rate)
            if position is None:
                position = at
            missing = at - position
            if GAP_SEC * rate < missing < 60 * rate:
                yield np.zeros(missing, np.float32), rate, position
                position = at
            samples = _frame_samples(frame)
            if GAP_SEC * rate < -missing < OVERLAP_SEC * rate:  # recordings joined by their packets
                samples = samples[-missing:]
            end = _said_end(container, stream, zero_sec, rate)
            if end is not None and position < end < position + len(samples):
                padding = samples[end - position :], rate, end
                samples = samples[: end - position]
            yield samples, rate, position
            position += len(samples) + (len(padding[0]) if padding else 0)
            if stop_sec is not None and position > stop_sec * rate:
                break
        if decoder.damaged:
            _log.info("%s: %d damaged sound packets skipped", path, decoder.damaged)
    if position is None:
        raise MediaError(f"{path} has no sound at {start_sec:g} s or later")


class _Pictures:
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
            frame, width, height, format="rgb24", interpolation="AREA" if shrinks else "BILINEAR", **_ONE_THREAD
        ).to_ndarray()
        turns = self.turns(frame)
        picture = np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
        self._last = (frame, picture)
        return picture

    @staticmethod
    def turns(frame: av.video.frame.VideoFrame) -> int:
        """Quarter turns against the clock that bring the frame upright."""
        return round((getattr(frame, "rotation", 0) or 0) / 90) % 4


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of the upright picture in square pixels, as it is shown; MediaError when there is none."""
    with open_media(path) as container:
        stream = video_stream(container)
        frame = None if stream is None else next(iter(Decoder(container, stream)), None)
        if frame is None:
            raise MediaError(f"{path} has no picture that can be decoded")
        pictures = _Pictures(stream)
        width, height = round(frame.width * pictures.aspect), frame.height
        return (height, width) if pictures.turns(frame) % 2 else (width, height)


def _timed_frames(
    path: str | os.PathLike, start_sec: float, pictures: list[_Pictures], late_sec: float
) -> Iterator[tuple[float, av.video.frame.VideoFrame, float]]:
    """(seconds since time zero, frame, seconds it lasts), rising, from the frame shown at start_sec or earlier.

    Time zero is where the sound begins (else the first picture), and for a picture that is late by late_sec so much later.
    """
    zero_sec = sound_start_sec(path)
    for seeking in (True, False):
        with open_media(path) as container:
            stream = video_stream(container)
            if stream is None:
                unknown = " that can be decoded" if container.streams.video else ""
                raise MediaError(f"{path} has no picture{unknown}")
            stream.thread_type = "AUTO" if stream.width * stream.height > 640 * 480 else "SLICE"
            period = 1.0 / float(stream.average_rate or stream.base_rate or 25)
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
            pictures[:] = [_Pictures(stream)]
            last = -math.inf
            decoder = Decoder(container, stream)
            for frame in decoder:
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
                    _log.info("%s: %d damaged picture packets skipped", path, decoder.damaged)
                if last > -math.inf or not seeking:
                    return


def grid_frames(
    path: str | os.PathLike, start_sec: float = 0.0, duration_sec: float | None = None, fps: float = 25.0,
    late_sec: float = 0.0,
) -> Iterator[np.ndarray | None]:
    """Pictures on a regular grid: entry k is the newest frame at start_sec + k / fps, None where there is none.

    Time zero is where the file's sound begins (else its first picture). A picture that is late by late_sec, so that lips
    move after their sound, is shown so much earlier. A frame up to JITTER_SEC late still counts; a frame is shown for
    HOLD_SEC at most, so gaps, a late beginning and an early end are None. Yields uint8 [H, W, 3].
    """
    wanted = None if duration_sec is None else math.ceil(duration_sec * fps - 1e-6)
    pictures: list[_Pictures] = []
    shown: tuple[float, av.video.frame.VideoFrame] | None = None
    tick, end_sec = 0, start_sec

    def picture_at(at_sec: float) -> np.ndarray | None:
        return pictures[0](shown[1]) if shown is not None and at_sec - shown[0] <= HOLD_SEC + JITTER_SEC else None

    for at, frame, period in _timed_frames(path, start_sec, pictures, late_sec):
        while (wanted is None or tick < wanted) and start_sec + tick / fps < at - JITTER_SEC:
            yield picture_at(start_sec + tick / fps)
            tick += 1
        if wanted is not None and tick >= wanted:
            return
        shown, end_sec = (at, frame), at + period
    if shown is None:
        raise MediaError(f"{path} has no picture that can be decoded")
    if wanted is None:
        wanted = math.ceil((end_sec - start_sec - JITTER_SEC) * fps - 1e-6)
    for tick in range(tick, wanted):  # noqa: B020 - goes on from where the loop above stopped
        yield picture_at(start_sec + tick / fps)
