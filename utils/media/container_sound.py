"""Sound decoded by FFmpeg (PyAV) and placed by its timestamps: gaps are filled, overlaps cut, other rates converted."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import av
import numpy as np

from utils.media.decode import MOST_GAP_SEC, PREROLL_SEC, Decoder, EndsBefore, MediaError, find_sound, named_errors, open_media
from utils.media.formats import CLOCKED_FORMATS, UNSTATED_LENGTHS
from utils.media.rate_converter import RateConverter

GAP_SEC = 0.02  # sound missing for longer than this is filled with zeros, so that what follows stays in time
OVERLAP_SEC = 1.0  # sound that begins before the last ended, by up to this, is cut; clocks set back further are not believed
EARLY_SEC = 0.1  # sound that ends this much before its header says so ends early
SOUGHT_AFTER_SEC = 10.0  # windows that begin later are sought
LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000  # Hz; a header that states another rate is damaged
PADDING_SEC = 0.15  # an encoder adds no more to fill its last frames
PIECE_SEC = 4  # of sound that are given at a time


def checked_rate(path: str | os.PathLike, rate: int) -> int:
    """Return the sampling rate in Hz; MediaError where no recording can have it."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise MediaError(f"{path} says that it has {rate} samples/s; {LOWEST_RATE} to {HIGHEST_RATE} are read")
    return rate


def frame_channels(frame: av.audio.frame.AudioFrame) -> np.ndarray:
    """Convert a decoded audio frame of any sample format to float32 [n, ch], full scale 1."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    # data [ch, n]
    if data.dtype == np.uint8:
        return ((data.astype(np.float32) - 128.0) / 128.0).T
    scale = 1.0 / -float(np.iinfo(data.dtype).min) if np.issubdtype(data.dtype, np.integer) else 1.0
    with np.errstate(over="ignore"):  # what overflows is refused as infinite later
        return (data.astype(np.float64) * scale).astype(np.float32).T


def early_end(counted_sec: float) -> str:
    """Say that a recording ends before its header says so."""
    return f"ends early at {counted_sec:.2f} s"


class ContainerSound:
    """A file's sound as mono pieces at the rate of its first frame.

    mix: makes mono [n] of decoded channels [n, ch]. notes: gets a line for whatever was not as it should be. `rate` and
    `first`, the index of the first sample since the sound begins, are known with the first piece.
    """

    def __init__(self, path: str | os.PathLike, mix: Callable[[np.ndarray], np.ndarray], notes: list[str]) -> None:
        self._path, self._mix, self._notes = path, mix, notes
        self.rate = self.first = 0
        # A run is what follows without a gap at one rate. Its first sample's index, its samples so far, and their rate:
        self._run_first, self._heard, self._own_rate = 0, 0, 0
        self._converter: RateConverter | None = None
        self._padding = np.zeros(0, np.float32)  # of an encoder's last frames, given only where more sound follows
        self._ends_as_said = True  # nothing has shown that the header's end is wrong
        self._filled_sec = self._closed_sec = 0.0  # by gaps that were filled, and that were not believed

    @property
    def _position(self) -> int:
        """Index of the sample after the last, at `rate`."""
        return self._run_first + (round(self._heard * self.rate / self._own_rate) if self._own_rate else 0)

    def pieces(self, start_sec: float = 0.0, stop_sec: float | None = None) -> Iterator[np.ndarray]:
        """Give float32 pieces [n] without gaps between, from start_sec or before to stop_sec or behind; MediaError."""
        waiting, n_waiting = [], 0
        for samples in self._placed(start_sec, stop_sec):
            waiting.append(samples)
            n_waiting += len(samples)
            if n_waiting >= PIECE_SEC * self.rate:
                yield np.concatenate(waiting)
                waiting, n_waiting = [], 0
        if n_waiting:
            yield np.concatenate(waiting)

    def _placed(self, start_sec: float, stop_sec: float | None) -> Iterator[np.ndarray]:
        track = find_sound(self._path)
        if track is None:
            with open_media(self._path) as container:
                kind = "holds no samples that" if container.streams.audio else "has no sound that"
            raise MediaError(f"{self._path} {kind} can be decoded")
        self._zero_sec = track.start_sec
        if track.note is not None:
            self._notes.append(track.note)
        with open_media(self._path) as container, named_errors(self._path):
            self._container, self._stream = container, container.streams[track.index]
            self._clocked = format_name(container) in CLOCKED_FORMATS
            if start_sec > SOUGHT_AFTER_SEC and (self._clocked or format_name(container) == "mp3"):
                container.seek(max(0, int((track.start_sec + start_sec - PREROLL_SEC) * av.time_base)))
            decoder, damaged = Decoder(container, self._stream), 0
            for frame in decoder:
                if not frame.samples:
                    continue
                yield from self._place(frame)
                damaged = decoder.damaged  # what is damaged behind the last frame makes an early end
                if stop_sec is not None and self._position > stop_sec * self.rate:
                    break
            yield from self._end_run()
            if not self.rate:
                raise EndsBefore(f"{self._path} has no sound at {start_sec:g} s or later")
            if damaged:
                self._notes.append(f"left out of the sound: {damaged} damaged place{'s' * (damaged > 1)}")
            if start_sec == 0.0 and stop_sec is None:
                counted_sec = (self._position - len(self._padding)) / self.rate
                said_sec = _said_sec(self._path, container, self._stream)
                if said_sec is not None and counted_sec < said_sec - EARLY_SEC:
                    self._notes.append(early_end(counted_sec))

    def _place(self, frame: av.audio.frame.AudioFrame) -> Iterator[np.ndarray]:
        """Put a frame where its timestamp says, or behind the last where that cannot be."""
        samples, own_rate = self._mix(frame_channels(frame)), frame.sample_rate
        begins = not self.rate
        if begins:
            self.rate = checked_rate(self._path, own_rate)
        elif not LOWEST_RATE <= own_rate <= HIGHEST_RATE:
            return
        at = clock = self._position
        if frame.time is not None:
            at, clock = (round((frame.time - self._zero_sec - shift) * self.rate) for shift in (self._closed_sec, 0.0))
        if begins:
            self.first = self._run_first = at
        missing = at - self._position
        if missing > GAP_SEC * self.rate:
            yield from self._given_padding()
            yield from self._end_run()
            yield from self._fill(missing)
        elif self._clocked and missing < -GAP_SEC * self.rate:
            if at - self.first < GAP_SEC * self.rate:  # the clock begins anew: a second recording was appended
                self._closed_sec += missing / self.rate
            elif -missing < OVERLAP_SEC * self.rate:  # recordings joined by their packets
                samples = samples[round(-missing * own_rate / self.rate) :]
        yield from self._append(samples, own_rate, clock)

    def _fill(self, missing: int) -> Iterator[np.ndarray]:
        """Give silence for `missing` samples, where the container lasts that long and a user can wait for it."""
        missing_sec, position_sec = missing / self.rate, self._position / self.rate
        container = self._container
        ends_sec = None
        if container.duration:
            ends_sec = (container.duration + (container.start_time or 0)) / av.time_base - self._zero_sec
        believed = ends_sec is None or position_sec + missing_sec <= ends_sec + 1.0
        if not believed or self._filled_sec + missing_sec > MOST_GAP_SEC:
            self._closed_sec += missing_sec
            self._notes.append(
                f"a gap of {missing_sec:.0f} s at {position_sec:.2f} s is left out: it is taken for a wrong timestamp"
            )
            return
        self._filled_sec += missing_sec
        self._run_first, self._heard = self._position + missing, 0
        for begin in range(0, missing, PIECE_SEC * self.rate):
            yield np.zeros(min(PIECE_SEC * self.rate, missing - begin), np.float32)

    def _append(self, samples: np.ndarray, own_rate: int, clock: int) -> Iterator[np.ndarray]:
        """Give samples, but for those behind the end that the header states, as long as they may be an encoder's padding."""
        if own_rate != self._own_rate:
            yield from self._given_padding()
            yield from self._end_run()
            self._own_rate = own_rate
            self._converter = None if own_rate == self.rate else RateConverter(own_rate, self.rate)
        self._heard += len(samples)
        if self._converter is not None:
            samples = self._converter.add(samples)
        else:
            end = _said_end(self._container, self._stream, self._zero_sec, self.rate) if self._ends_as_said else None
            begin = len(samples) if end is None else min(max(0, end - clock), len(samples))
            padding = np.concatenate((self._padding, samples[begin:])) if begin == 0 else samples[begin:]
            if begin > 0 or len(padding) > PADDING_SEC * self.rate:  # what was held back was no padding after all
                yield from self._given_padding()
            if len(padding) <= PADDING_SEC * self.rate:
                self._padding, samples = padding, samples[:begin]
            else:
                self._ends_as_said = False
        if len(samples):
            yield samples

    def _given_padding(self) -> Iterator[np.ndarray]:
        """Give what was held back as padding, because more sound follows."""
        if len(self._padding):
            yield self._padding
            self._padding = self._padding[:0]

    def _end_run(self) -> Iterator[np.ndarray]:
        self._run_first, self._heard, self._own_rate = self._position, 0, 0
        if self._converter is not None:
            yield self._converter.end()
            self._converter = None


def format_name(container: av.container.InputContainer) -> str:
    """Return FFmpeg's first name for the container's format."""
    return container.format.name.partition(",")[0]


def _said_end(
    container: av.container.InputContainer, stream: av.audio.stream.AudioStream, zero_sec: float, rate: int
) -> int | None:
    """Index after the last sample as MP4 headers and Ogg's last page state it; what an encoder padded it with comes after."""
    if not stream.duration or stream.start_time is None:
        return None
    if format_name(container) == "ogg":
        return round(float(stream.duration * stream.time_base) * rate)
    if format_name(container) != "mov":
        return None
    return round((float((stream.start_time + stream.duration) * stream.time_base) - zero_sec) * rate)


def _said_sec(
    path: str | os.PathLike, container: av.container.InputContainer, stream: av.audio.stream.AudioStream
) -> float | None:
    """Length of the sound as the header states it; None where FFmpeg's figure is an estimate."""
    name = format_name(container)
    if name in UNSTATED_LENGTHS or (name == "mp3" and not _counts_frames(path)):
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska: when the track ends, as 00:01:15.976000000
    try:
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - float((stream.start_time or 0) * stream.time_base)
    except ValueError:
        alone = len(container.streams) == 1 and container.duration
        return container.duration / av.time_base if alone else None


def _counts_frames(path: str | os.PathLike) -> bool:
    """Whether an MP3 file begins with a frame that counts the others; without it the length is a guess by the bit rate."""
    with open(path, "rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3" and len(head) == 10:
            a, b, c, d = struct.unpack("4B", head[6:])
            file.seek(10 + (a << 21 | b << 14 | c << 7 | d))
        else:
            file.seek(0)
        first = file.read(4096)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))
