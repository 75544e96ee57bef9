"""Sound from files: any container, rate and channel count in, mono float32 at the rate that is asked for out."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator

import av
import numpy as np
import soxr

from utils.media.channels import louder_channel, mix_down
from utils.media.container_sound import format_name
from utils.media.decode import Decoder, EndsBefore, check_file, find_sound, named_errors, open_media
from utils.media.formats import HEADER_LENGTHS
from utils.media.rate_converter import RateConverter
from utils.media.sound_reader import SoundSource, open_plain

_log = logging.getLogger(__name__)


def media_duration_sec(path: str | os.PathLike) -> float | None:
    """Length of a file's sound in seconds, by its header, or by its packets where a header does not state it; None without.

    FileNotFoundError, or MediaError for what cannot be opened.
    """
    check_file(path)
    file = open_plain(path)
    if file is not None:
        with file:
            return file.frames / file.samplerate
    with open_media(path) as container, named_errors(path):
        if container.duration and format_name(container) in HEADER_LENGTHS:
            return container.duration / av.time_base
        track = find_sound(path)
        if track is None:
            return None
        stream = container.streams[track.index]
        return float(sum(packet.duration or 0 for packet in Decoder(container, stream).packets()) * stream.time_base)


def to_mono(samples: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean over channels of [L], [L, ch] or [ch, L] -> float32 [L]; without `axis` the shorter one is the channels.

    Where the mean would cancel the sound, the loudest channel alone is given; see utils/media/channels.py.
    """
    samples = np.asarray(samples)
    if samples.ndim == 1:
        return samples.astype(np.float32, copy=False)
    if samples.ndim != 2:
        raise ValueError(f"sound should have the shape [samples] or [samples, channels], not {list(samples.shape)}")
    if axis is None:
        axis = 0 if samples.shape[0] < samples.shape[1] else 1
    channels_last = samples.T if axis == 0 else samples
    return mix_down(channels_last, louder_channel([channels_last]))


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Floats of full scale 1 -> int16 of the same shape: rounded, and cut where they are louder than full scale."""
    return np.clip(np.round(np.asarray(samples, np.float64) * 32768.0), -32768, 32767).astype(np.int16)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling (soxr HQ) of [L] -> float32 [round(L * to_rate / from_rate)]."""
    if from_rate == to_rate:
        return np.ascontiguousarray(samples, dtype=np.float32)
    wanted = round(len(samples) * to_rate / from_rate)
    out = soxr.resample(np.ascontiguousarray(samples, dtype=np.float32), from_rate, to_rate, quality="HQ")
    if len(out) < wanted:
        out = np.pad(out, (0, wanted - len(out)))
    return out[:wanted]


def load_audio(
    path: str | os.PathLike, sample_rate: int = 16000, start_sec: float = 0.0, duration_sec: float | None = None,
    notes: list[str] | None = None,
) -> np.ndarray:
    """Sound of an audio or video file as float32 [L] mono at `sample_rate`, full scale 1.

    The window begins at sample round(start_sec * sample_rate) and holds round(duration_sec * sample_rate) samples,
    fewer where the file ends sooner. `notes` gets a line for whatever was not as it should be (default: they are logged, once
    for a file). FileNotFoundError, or MediaError for what is no sound, is empty or is not finite.
    """
    skip = round(start_sec * sample_rate)
    stop_sec = None if duration_sec is None else start_sec + duration_sec + 0.1  # resampling looks a little ahead
    source = SoundSource(path, start_sec, stop_sec, sample_rate)
    with named_errors(path):
        samples = np.concatenate(list(source.pieces()) or [np.zeros(0, np.float32)])
        _tell(path, source.notes, notes)
        offset = skip - round(source.first * sample_rate / source.rate)
        out = resample(samples, source.rate, sample_rate)
        out = np.pad(out, (-offset, 0)) if offset < 0 else out[offset:]
    if duration_sec is not None:
        out = out[: round(duration_sec * sample_rate)]
    if len(out) == 0:
        raise EndsBefore(f"{path} ends before {start_sec:g} s, where the wanted window begins")
    return out


def _tell(path: str | os.PathLike, found: list[str], notes: list[str] | None) -> None:
    if notes is not None:
        notes.extend(found)
        return
    for note in found:
        _log_once(f"{path}: {note}")


@functools.lru_cache(maxsize=4096)
def _log_once(line: str) -> None:
    _log.warning("%s", line)


def resampled_pieces(pieces: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """What `resample` makes of the whole, as float32 pieces [n] in bounded memory."""
    if from_rate == to_rate:
        yield from (np.ascontiguousarray(piece, dtype=np.float32) for piece in pieces)
        return
    converter = RateConverter(from_rate, to_rate)
    for piece in pieces:
        yield converter.add(piece)
    yield converter.end()


def sound_pieces(
    path: str | os.PathLike, sample_rate: int = 16000, notes: list[str] | None = None
) -> Iterator[np.ndarray]:
    """The sound that `load_audio` gives of a whole file, as float32 pieces [n] of a few seconds, in bounded memory.

    `notes` gets its lines with the last piece. FileNotFoundError, or MediaError for what is no sound, is empty, or (once that
    piece is reached) is not finite.
    """
    source_rate, pieces = own_rate_pieces(path, notes)
    yield from resampled_pieces(pieces, source_rate, sample_rate)


def own_rate_pieces(path: str | os.PathLike, notes: list[str] | None = None) -> tuple[int, Iterator[np.ndarray]]:
    """(rate in Hz, mono float32 pieces [n]) of a file's sound as it is; notes and errors as `sound_pieces` has them."""
    source = SoundSource(path)

    def pieces() -> Iterator[np.ndarray]:
        yield from source.pieces()
        _tell(path, source.notes, notes)

    return source.rate, pieces()
