"""Sound and pictures from files: any container, rate and channel count in, 16 kHz mono and 25 fps face crops out."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from utils.decode import (
    MediaError,
    MediaInfo,
    audio_stream,
    decode_sound,
    decode_sound_pieces,
    grid_frames,
    open_media,
    probe_media,
    video_stream,
)
from utils.faces import FaceCropper

__all__ = [
    "AUDIO_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "MediaError",
    "MediaInfo",
    "crop_stretches",
    "grid_frames",
    "has_audio",
    "has_video",
    "load_audio",
    "load_video_frames",
    "media_duration_sec",
    "own_rate_pieces",
    "probe_media",
    "resample",
    "resampled_pieces",
    "sound_pieces",
    "to_mono",
    "write_clip",
]

AUDIO_EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
VIDEO_EXTENSIONS = (
    ".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".ts", ".mts", ".3gp", ".wmv", ".flv",
)  # fmt: skip

CHUNK_FRAMES = 250  # pictures held in memory at once, fewer when they would fill more than CHUNK_BYTES
CHUNK_BYTES, LEAST_CHUNK_FRAMES = 128 << 20, 50  # two seconds are needed to tell a head that is lost from one that blinks
CLIP_CRF = 12  # H.264 quality of written crops: no visible loss at 96 x 96


def has_audio(path: str | os.PathLike) -> bool:
    """Whether the file holds a sound stream (by its header); False when it cannot be opened."""
    try:
        with open_media(path) as container:
            return audio_stream(container) is not None
    except (MediaError, FileNotFoundError):
        return False


def has_video(path: str | os.PathLike) -> bool:
    """Whether the file holds a moving picture (by its header); False when it cannot be opened."""
    try:
        with open_media(path) as container:
            return video_stream(container) is not None
    except (MediaError, FileNotFoundError):
        return False


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


def load_video_frames(
    video_path: str | os.PathLike, start_sec: float = 0.0, duration_sec: float | None = None, face_size: int = 96,
    fps: float = 25.0, face_crop: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Face crops of a video on the `fps` grid by timestamp -> (uint8 [V, S, S, 3] RGB, mask bool [V]).

    V = ceil(duration_sec * fps), or what the video holds. Where there is no picture or no face, the crop is black and
    the mask False. A video of face_size x face_size is taken to be crops already (face_crop "auto"). Time zero is where
    the file's own sound begins. MediaError when nothing can be decoded.
    """
    stretches = list(crop_stretches(video_path, start_sec, duration_sec, face_size, fps, face_crop))
    if not stretches:
        raise MediaError(f"{video_path} has no picture at {start_sec:g} s or later")
    return np.concatenate([crops for crops, _ in stretches]), np.concatenate([mask for _, mask in stretches])


def crop_stretches(
    video_path: str | os.PathLike, start_sec: float = 0.0, duration_sec: float | None = None, face_size: int = 96,
    fps: float = 25.0, face_crop: str = "auto",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`load_video_frames` piece by piece, in bounded memory: what it joins, in stretches of CHUNK_FRAMES or less.

    The box around the face is smoothed inside a stretch, so a crop knows of pictures up to a stretch ahead (10 s at 25
    frames/s, fewer for large pictures), and of nothing after that.
    """
    cropper: FaceCropper | None = None
    stretch: np.ndarray | None = None  # made once: hundreds of pictures come and go, and would leave holes in the heap
    usable: list[bool] = []  # per frame of the stretch so far
    for picture in grid_frames(video_path, start_sec, duration_sec, fps):
        if picture is not None and stretch is None:
            ready = face_crop == "auto" and picture.shape[:2] == (face_size, face_size)
            cropper = FaceCropper(face_size, "none" if ready else face_crop, fps)
            longest = min(CHUNK_FRAMES, max(LEAST_CHUNK_FRAMES, CHUNK_BYTES // picture.nbytes))
            stretch = np.zeros((max(longest, len(usable) + 1), *picture.shape), np.uint8)
        usable.append(picture is not None and picture.shape == stretch.shape[1:])
        if stretch is not None:
            stretch[len(usable) - 1] = picture if usable[-1] else 0
        if len(usable) >= (CHUNK_FRAMES if stretch is None else len(stretch)):
            yield _crop_stretch(stretch, np.array(usable), cropper, face_size)
            usable = []
    if usable:
        yield _crop_stretch(stretch, np.array(usable), cropper, face_size)


def _crop_stretch(
    stretch: np.ndarray | None, usable: np.ndarray, cropper: FaceCropper | None, face_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [n, H, W, 3], bool [v]: which of the first v are there -> (crops [v, S, S, 3], mask [v])."""
    if cropper is None or not usable.any():
        return np.zeros((len(usable), face_size, face_size, 3), np.uint8), np.zeros(len(usable), bool)
    crop, mask = cropper(stretch[: len(usable)])
    mask &= usable
    crop[~mask] = 0
    return crop, mask


def write_clip(
    path: str | os.PathLike, frames: np.ndarray, samples: np.ndarray, sample_rate: int = 16000, fps: float = 25.0,
    crf: int = CLIP_CRF,
) -> None:
    """Write pictures uint8 [V, H, W, 3] (even H, W) and sound float [L] as H.264 and FLAC in one .mp4 or .mkv.

    Sound begins at 0, frame k is shown at k / fps; a key frame every second lets windows be sought. `crf` is H.264's
    quality, a larger one for a smaller file. MediaError when the file cannot be written.
    """
    try:
        _write_clip(os.fspath(path), frames, samples, sample_rate, fps, crf)
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be written: {error}") from None


def _write_clip(path: str, frames: np.ndarray, samples: np.ndarray, sample_rate: int, fps: float, crf: int) -> None:
    """write_clip, FFmpeg's errors passing through."""
    rate = Fraction(fps).limit_denominator(1001)
    pcm = np.clip(np.round(np.asarray(samples, np.float64) * 32768.0), -32768, 32767).astype(np.int16)
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        # No B frames: decoding order is showing order, and the first picture is at 0 in every container.
        video.options = {"crf": str(crf), "preset": "medium", "bf": "0", "g": str(max(1, round(fps))), "threads": "1"}
        audio = container.add_stream("flac", rate=sample_rate)
        audio.layout = "mono"
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        block = audio.codec_context.frame_size or 4096
        for first in range(0, len(pcm), block):
            frame = av.AudioFrame.from_ndarray(pcm[None, first : first + block], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, first, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
