"""Sound from files: any container, rate and channel count in, mono float32 at the rate that is asked for out."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from utils.media.decode import (
    MediaError,
    decode_sound,
    decode_sound_pieces,
    open_media,
)

AUDIO_EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
VIDEO_EXTENSIONS = (
    ".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".ts", ".mts", ".3gp", ".wmv", ".flv",
)  # fmt: skip


def media_duration_sec(path: str | os.PathLike) -> float | None:
    """Length in seconds by the header; None when it does not say."""
    if Path(path).suffix.lower() in AUDIO_EXTENSIONS:
        try:
            return soundfile.info(os.fspath(path)).duration
        except (soundfile.SoundFileError, OSError):
            pass  # a format that only FFmpeg reads
    with open_media(path) as container:
        return container.duration / av.time_base if container.duration else None


def to_mono(samples: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean over channels of [L], [L, ch] or [ch, L] -> float32 [L]; without `axis` the shorter one is the channels."""
    samples = np.asarray(samples)
    if samples.ndim == 1:
        return samples.astype(np.float32, copy=False)
    if samples.ndim != 2:
        raise ValueError(f"sound should have the shape [samples] or [samples, channels], not {list(samples.shape)}")
    if axis is None:
        axis = 0 if samples.shape[0] < samples.shape[1] else 1
    return samples.mean(axis=axis, dtype=np.float64).astype(np.float32)


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


def _read_soundfile(path: str | os.PathLike, first: int, stop: int | None) -> tuple[np.ndarray, int]:
    """Samples first..stop of a sound file -> (mono float32 [n], rate); soundfile's errors pass through."""
    with soundfile.SoundFile(os.fspath(path)) as file:
        first = min(first, file.frames)
        if first:
            file.seek(first)
        data = file.read(-1 if stop is None else max(0, stop - first), dtype="float32", always_2d=True)
        return data.mean(axis=1, dtype=np.float64).astype(np.float32), file.samplerate


def load_audio(
    path: str | os.PathLike, sample_rate: int = 16000, start_sec: float = 0.0, duration_sec: float | None = None
) -> np.ndarray:
    """Sound of an audio or video file as float32 [L] mono at `sample_rate`, full scale 1.

    The window begins at sample round(start_sec * sample_rate) and holds round(duration_sec * sample_rate) samples,
    fewer where the file ends sooner. FileNotFoundError, or MediaError for what is no sound, is empty or is not finite.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    try:
        source_rate = soundfile.info(os.fspath(path)).samplerate if _is_audio_name(path) else 0
    except (soundfile.SoundFileError, OSError):
        source_rate = 0
    skip = round(start_sec * sample_rate)
    stop_sec = None if duration_sec is None else start_sec + duration_sec + 0.1  # resampling looks a little ahead
    if source_rate:
        # Whole resampling periods before the window, so that the window falls on the same samples as in a full read.
        period = source_rate // math.gcd(source_rate, sample_rate)
        first = int(max(0.0, start_sec - 0.1) * source_rate) // period * period
        samples, rate = _read_soundfile(path, first, None if stop_sec is None else int(stop_sec * source_rate) + 1)
    else:
        samples, rate, first = decode_sound(path, start_sec, stop_sec)
    if len(samples) == 0 and first == 0:
        raise MediaError(f"{path} holds no samples")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path} holds samples that are NaN or infinite; write it again as 16-bit or finite float")
    offset = skip - round(first * sample_rate / rate)
    out = resample(samples, rate, sample_rate)
    out = np.pad(out, (-offset, 0)) if offset < 0 else out[offset:]
    if duration_sec is not None:
        out = out[: round(duration_sec * sample_rate)]
    if len(out) == 0:
        raise MediaError(f"{path} ends before {start_sec:g} s, where the wanted window begins")
    return out


def resampled_pieces(pieces: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """What `resample` makes of the whole, as float32 pieces [n] in bounded memory."""
    if from_rate == to_rate:
        yield from (np.ascontiguousarray(piece, dtype=np.float32) for piece in pieces)
        return
    resampler = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    heard = given = 0
    for piece in pieces:
        heard += len(piece)
        piece = resampler.resample_chunk(np.ascontiguousarray(piece, dtype=np.float32))
        given += len(piece)
        yield piece
    last, wanted = resampler.resample_chunk(np.zeros(0, np.float32), last=True), round(heard * to_rate / from_rate)
    yield np.pad(last, (0, max(0, wanted - given - len(last))))[: wanted - given]


def sound_pieces(path: str | os.PathLike, sample_rate: int = 16000) -> Iterator[np.ndarray]:
    """The sound that `load_audio` gives of a whole file, as float32 pieces [n] of a few seconds, in bounded memory.

    FileNotFoundError, or MediaError for what is no sound, is empty, or (once that piece is reached) is not finite.
    """
    source_rate, pieces = own_rate_pieces(path)
    yield from resampled_pieces(pieces, source_rate, sample_rate)


def own_rate_pieces(path: str | os.PathLike) -> tuple[int, Iterator[np.ndarray]]:
    """(rate in Hz, mono float32 pieces [n]) of a file's sound as it is; errors as `sound_pieces` has them."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    source = _source_pieces(path)
    first, rate = next(source, (None, 0))
    if first is None:
        raise MediaError(f"{path} holds no samples")

    def pieces() -> Iterator[np.ndarray]:
        for piece in itertools.chain((first,), (piece for piece, _ in source)):
            if not np.isfinite(piece).all():
                raise MediaError(f"{path} holds samples that are NaN or infinite; write it again as 16-bit or finite float")
            yield piece

    return rate, pieces()


def _source_pieces(path: str | os.PathLike) -> Iterator[tuple[np.ndarray, int]]:
    """(mono float32 [n], rate) of a file from its beginning, a few seconds at a time."""
    try:
        file = soundfile.SoundFile(os.fspath(path)) if _is_audio_name(path) else None
    except (soundfile.SoundFileError, OSError):
        file = None  # a format that only FFmpeg reads
    if file is not None:
        with file:
            for block in file.blocks(4 * file.samplerate, dtype="float32", always_2d=True):
                yield block.mean(axis=1, dtype=np.float64).astype(np.float32), file.samplerate
        return
    waiting, n_waiting = [], 0
    for samples, rate, _ in decode_sound_pieces(path):
        waiting.append(samples)
        n_waiting += len(samples)
        if n_waiting >= 4 * rate:
            yield np.concatenate(waiting), rate
            waiting, n_waiting = [], 0
    if waiting:
        yield np.concatenate(waiting), rate


def _is_audio_name(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() not in VIDEO_EXTENSIONS
