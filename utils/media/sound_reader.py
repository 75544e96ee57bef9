"""The one reader of sound: it counts the samples that it really read, and gives nothing that was not decoded.

soundfile reads files whose header states the length and whose samples have a fixed size, and FLAC; FFmpeg (PyAV) reads all
others, and goes on wherever soundfile fails or comes short.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import re
from collections.abc import Iterator

import numpy as np
import soundfile

from utils.media.channels import MEASURED_SEC, louder_channel, mix_down
from utils.media.container_sound import PIECE_SEC, ContainerSound, checked_rate, early_end, frame_channels
from utils.media.decode import Decoder, MediaError, check_file, find_sound, library_name, named_errors, open_media
from utils.media.formats import PLAIN_CODINGS, PLAIN_CONTAINERS, PLAIN_MARKS, SEQUENTIAL_CODINGS

PIECE_VALUES = 1 << 21  # samples times channels that are read at a time, at most
UNKNOWN_LENGTH = 1 << 48  # samples; libsndfile gives a number above this where a header states none
SHORT_CHUNK = re.compile(r"\(should be \d+\)")  # in libsndfile's log, of a file that is shorter than its header says


def open_plain(path: str | os.PathLike) -> soundfile.SoundFile | None:
    """Open a file of which soundfile knows what it holds; None for all others, which are FFmpeg's."""
    try:
        with open(path, "rb") as content:
            if not content.read(4).startswith(PLAIN_MARKS):
                return None
        file = soundfile.SoundFile(library_name(path) or os.fsencode(path))
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, RuntimeError, MemoryError):
        return None
    plain = file.format in PLAIN_CONTAINERS and file.subtype in PLAIN_CODINGS
    flac = file.format == "FLAC" and not _joined_flac(path)
    if file.format in PLAIN_CONTAINERS and file.subtype in SEQUENTIAL_CODINGS:
        return file
    if (plain or flac) and 0 < file.frames < UNKNOWN_LENGTH and file.seekable():
        return file
    # A header that states no samples is right where there are none; FFmpeg reads what lies behind one that was never finished.
    file.close()
    return None


def _joined_flac(path: str | os.PathLike) -> bool:
    """Whether a second FLAC file was appended, which soundfile does not read."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"fLaC", content.find(b"fLaC") + 4) >= 0


def _plain_blocks(file: soundfile.SoundFile, first: int, stop: int) -> Iterator[np.ndarray]:
    """Samples first..stop as float32 [n, ch] while they can be read; the last block may be short."""
    size = max(1, min(PIECE_SEC * file.samplerate, PIECE_VALUES // file.channels))
    try:
        if file.subtype in SEQUENTIAL_CODINGS:
            skipped = sum(len(file.read(min(size, first - k), dtype="float32")) for k in range(0, first, size))
            if skipped < first:
                return
        elif first:
            file.seek(first)
        while first < stop:
            wanted = min(size, stop - first)
            data = file.read(wanted, dtype="float32", always_2d=True)  # as many rows as were read
            if len(data):
                yield data
            first += len(data)
            if len(data) < wanted:
                return
    except (soundfile.SoundFileError, RuntimeError):
        return


class SoundSource:
    """The sound of one file as mono pieces at the rate of its first sample.

    start_sec, stop_sec: the part that is wanted. `first` is the index of the first sample that is given, at start_sec or
    before; where the file can be entered anywhere, a whole number of periods of the conversion to `target_rate`. `notes` gets
    a line for whatever was not as it should be; it is complete once all pieces are taken. FileNotFoundError, or MediaError for
    a file without sound.
    """

    def __init__(
        self, path: str | os.PathLike, start_sec: float = 0.0, stop_sec: float | None = None, target_rate: int = 1
    ) -> None:
        self._status = check_file(path)
        self.path, self.notes = path, []
        self.first = self.rate = 0
        with named_errors(path):
            self._pieces = self._read(start_sec, stop_sec, target_rate)
            self._ahead = next(self._pieces, None)
        if self._ahead is None and self.first == 0:
            raise MediaError(f"{path} holds no samples")

    def pieces(self) -> Iterator[np.ndarray]:
        """Give the sound once, as float32 [n]; MediaError where it cannot be read, or holds NaN or infinity."""
        with named_errors(self.path):
            while self._ahead is not None:
                piece, self._ahead = self._ahead, None
                if not np.isfinite(piece).all():
                    raise MediaError(
                        f"{self.path} holds samples that are NaN or infinite; write it again as 16-bit or finite float"
                    )
                yield piece
                self._ahead = next(self._pieces, None)

    def _read(self, start_sec: float, stop_sec: float | None, target_rate: int) -> Iterator[np.ndarray]:
        file = open_plain(self.path)
        if file is None:
            sound = ContainerSound(self.path, self._mix, self.notes)
            for piece in sound.pieces(start_sec, stop_sec):
                self.rate, self.first = sound.rate, sound.first
                yield piece
            return
        with file:
            self.rate = rate = checked_rate(self.path, file.samplerate)
            period = rate // math.gcd(rate, target_rate)
            position = min(file.frames, int(max(0.0, start_sec - 0.1) * rate) // period * period)
            self.first = position
            stop = file.frames if stop_sec is None else min(file.frames, int(stop_sec * rate) + 1)
            for data in _plain_blocks(file, position, stop):
                position += len(data)
                yield self._mix(data)
            if position >= stop or file.subtype in SEQUENTIAL_CODINGS:
                if position < stop or (stop_sec is None and SHORT_CHUNK.search(file.extra_info)):
                    self.notes.append(early_end(position / rate))
                return
        yield from self._go_on(position, stop)

    def _go_on(self, position: int, stop: int) -> Iterator[np.ndarray]:
        """Let FFmpeg give samples position..stop, which soundfile could not read."""
        begun, notes = position > self.first, []
        sound, behind = ContainerSound(self.path, self._mix, notes), 0
        try:
            for piece in sound.pieces(0.0, stop / self.rate):
                begin, behind = behind, behind + len(piece)
                piece = piece[max(0, position - begin) : max(0, stop - begin)]
                if len(piece):
                    position += len(piece)
                    yield piece
        except MediaError:
            if not begun:
                raise
        self.notes.extend(notes)
        if position < stop:
            self.notes.append(early_end(position / self.rate))

    def _mix(self, data: np.ndarray) -> np.ndarray:
        """Decoded channels [n, ch] -> mono float32 [n]."""
        channels = data.shape[1]
        if channels == 1:
            return mix_down(data)
        channel = _louder_channel(os.fspath(self.path), self._status.st_mtime_ns, self._status.st_size, channels)
        if channel is not None:
            note = f"its {channels} channels cancel each other: channel {channel + 1}, the loudest, is heard alone"
            if note not in self.notes:
                self.notes.append(note)
        return mix_down(data, channel)


@functools.lru_cache(maxsize=4096)
def _louder_channel(path: str, mtime_ns: int, size: int, channels: int) -> int | None:
    """`louder_channel` of what a file, as it was at `mtime_ns`, holds with so many channels, by its first audible part."""
    file = open_plain(path)
    if file is not None:
        with file:
            if file.channels == channels:
                return louder_channel(_plain_blocks(file, 0, file.frames), round(MEASURED_SEC * file.samplerate))
    track = find_sound(path)
    if track is None:
        return None
    with open_media(path) as container:
        frames = Decoder(container, container.streams[track.index])
        rate = container.streams[track.index].rate or 48000
        blocks = (frame_channels(frame) for frame in frames if frame.layout.nb_channels == channels and frame.samples)
        return louder_channel(blocks, round(MEASURED_SEC * rate))
