"""Decoding through FFmpeg (PyAV): files with damaged packets and odd timestamps in, frames and sound in time out."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np

GAP_SEC = 0.02  # sound missing for longer than this is filled with zeros, so that what follows stays in time
OVERLAP_SEC = 1.0  # sound that begins before the last ended, by up to this, is cut; clocks set back further are not believed
PREROLL_SEC = 1.0  # decoded before a seek target: decoders settle, key frames are rarely exact
MOST_DEMUX_ERRORS = 64
# What is opened, by FFmpeg's names: formats that hold their content themselves. FFmpeg knows others (playlists, lists of files
# to join, numbered pictures) that name further files and addresses, and would open those for whoever wrote the list.
FORMATS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "h264", "hevc", "m4v", "asf", "flv", "mxf", "nut", "dv", "ivf",
    "wav", "w64", "flac", "mp3", "ogg", "aac", "loas", "ac3", "eac3", "dts", "aiff", "caf", "au", "amr", "ape", "wv", "tta",
)  # fmt: skip
SELF_CONTAINED = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}

# From PyAV 17 on a conversion spreads over every core unless told not to; each loader worker has one to use.
ONE_THREAD = {"threads": 1} if tuple(map(int, av.__version__.split(".")[:2])) >= (17, 0) else {}

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
    """Open a file of FORMATS with FFmpeg's `options`; FileNotFoundError, or MediaError in one line that names it."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    if os.path.isdir(path):
        raise MediaError(f"{path} is a folder, not a media file")
    if os.path.getsize(path) == 0:
        raise MediaError(f"{path} is an empty file (0 bytes)")
    try:
        return av.open(os.fspath(path), options={**(options or {}), **SELF_CONTAINED}, metadata_errors="ignore")
    except av.ArgumentError:  # what FFmpeg says of a format that it may not open
        raise MediaError(f"{path} cannot be opened as sound or video: damaged, or a format that is not read here") from None
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


def probe_media(path: str | os.PathLike, full: bool = False, most_pixels: int | None = None) -> MediaInfo:
    """Header facts plus proof that the first frame of each stream decodes (`full`: that everything does).

    A stream whose first frame does not decode counts as absent, and so does a picture of more than `most_pixels`, which is
    not decoded. MediaError when the file cannot be opened.
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
            if kind == "video" and most_pixels is not None and shape[0] * shape[1] > most_pixels:
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
