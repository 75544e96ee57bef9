"""Face crops and sound of many clips in one file: WebDataset shards with an index, written whole, read in large runs.

A clip is KEY.mp4 (its crops, H.264 as in `write_clip`, frame k shown at k / fps), KEY.flac (its sound from the same
moment on) and KEY.json (frames without a face, quality of the track, where it came from). H.264, not JPEG: 25 crops
decode as fast, from a fifth of the bytes. Beside NAME.tar lies NAME.json, written last: which clips are
where in it, and how they were made.
"""

from __future__ import annotations

import glob
import io
import json
import os
import reprlib
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

from utils.media.channels import mix_down
from utils.media.clip_writer import write_clip
from utils.media.decode import ONE_THREAD, MediaError
from utils.media.frame_grid import HOLD_SEC
from utils.media.sound import to_pcm16
from utils.util import atomic_write, write_json

CROPS, SOUND, NOTE = "mp4", "flac", "json"  # the members of a clip


@dataclass(frozen=True)
class Shard:
    """One shard: its file, how its clips were made, and where each lies: (key, first byte, bytes)."""

    path: Path
    face_size: int
    fps: float
    sample_rate: int
    clips: list[tuple[str, int, int]]


# Writing ------------------------------------------------------------------------------------------------------------


def encode_clip(crops: np.ndarray, samples: np.ndarray, sample_rate: int, fps: float, note: Mapping) -> dict[str, bytes]:
    """A clip's members by suffix: crops uint8 [V, S, S, 3], sound float [L], `note` with n_frames and n_samples added."""
    encoded, sound = io.BytesIO(), io.BytesIO()
    write_clip(encoded, crops, None, sample_rate, fps)
    pcm = to_pcm16(samples)
    soundfile.write(sound, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    text = json.dumps({"n_frames": len(crops), "n_samples": len(pcm), **note}, ensure_ascii=False)
    return {CROPS: encoded.getvalue(), SOUND: sound.getvalue(), NOTE: text.encode()}


def write_shard(path: Path, clips: Sequence[tuple[str, Mapping[str, bytes]]], about: Mapping) -> None:
    """Write (key, members) of clips as one shard, then its index: `about` (face_size, fps, sample_rate and more) and places.

    Neither is ever seen half written; a shard is finished when its index is there.
    """
    from webdataset import TarWriter  # a second to import, and most runs need no shards

    index_path(path).unlink(missing_ok=True)
    places = []
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0.0) as writer:
            for key, members in clips:
                first = writer.tarstream.offset
                writer.write({"__key__": key, **members})
                places.append((key, first, writer.tarstream.offset - first))
        file.flush()
        os.fsync(file.fileno())
    write_json(index_path(path), {**about, "clips": places})


def index_path(path: Path) -> Path:
    return path.with_suffix(".json")


# Finding and reading ------------------------------------------------------------------------------------------------


def names_shards(source: str | os.PathLike) -> bool:
    """Whether a recipe's value means shards (a folder, a .tar, a pattern of them), not the JSON list of single clips."""
    return os.path.isdir(source) or os.fspath(source).endswith(".tar")


def find_shards(source: str | os.PathLike, key: str) -> list[Shard]:
    """The shards of a folder, or of a pattern: name-*.tar, name-{000000..000011}.tar, several joined by "::".

    ValueError or FileNotFoundError names the recipe's `key`, what is wrong, and the remedy.
    """
    from webdataset.shardlists import expand_urls

    patterns = [os.path.join(glob.escape(os.fspath(source)), "*.tar")] if os.path.isdir(source) else None
    patterns = patterns or expand_urls(os.fspath(source))
    paths = [Path(path) for pattern in patterns for path in (sorted(glob.glob(pattern)) or [pattern])]
    gone = next((path for path in paths if not path.is_file()), None)
    if gone is not None:
        what = f"folder {source} holds no shards (*.tar)" if os.path.isdir(source) else f"shard {gone} does not exist"
        raise FileNotFoundError(f"{key}: {what}; data/prepare_faces.py --format shards makes them")
    shards = [read_index(path, key) for path in paths]
    made = {(shard.face_size, shard.fps, shard.sample_rate): shard.path for shard in shards}
    if len(made) > 1:
        one, other, *_ = made.values()
        raise ValueError(f"{key}: {one} and {other} were made with other settings; name shards of one kind")
    if not any(shard.clips for shard in shards):
        raise ValueError(f"{key}: the shards of {source} hold no clips")
    return shards


def read_index(path: Path, key: str) -> Shard:
    """What the index beside a shard says; ValueError names the recipe's `key` when there is none that fits the shard."""
    try:
        held = json.loads(index_path(path).read_text(encoding="utf-8"))
        clips = [(str(name), int(first), int(size)) for name, first, size in held["clips"]]
        shard = Shard(path, int(held["face_size"]), float(held["fps"]), int(held["sample_rate"]), clips)
        if not (0 < shard.face_size <= 4096 and 0 < shard.fps <= 1000 and 0 < shard.sample_rate <= 1_000_000):
            raise ValueError("face_size, fps or sample_rate is out of range")
        if any(first < 0 or size <= 0 for _, first, size in clips):
            raise ValueError("a clip lies nowhere")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{key}: {path} has no index {index_path(path).name} beside it; data/prepare_faces.py --format shards writes both"
        ) from None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{key}: {index_path(path)} is no index of a shard: {reprlib.repr(error)}") from None
    if clips and path.stat().st_size < max(first + size for _, first, size in clips):
        raise ValueError(f"{key}: {path} is shorter than its index says; copy it again, or write it again")
    return shard


def read_clips(path: Path, first: int, size: int) -> dict[str, dict[str, bytes]]:
    """The clips in `size` bytes of a shard from `first` on, whole clips, in one read: {key: {suffix: content}}.

    MediaError when they are not what a shard holds.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with open(path, "rb") as file:
        file.seek(first)
        content = file.read(size)
    try:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": io.BytesIO(content)}])))
    except (tarfile.TarError, ValueError, OSError, LookupError, TypeError, RuntimeError, MemoryError) as error:
        raise MediaError(f"{path} is damaged near byte {first}: {error}") from None
    return {sample["__key__"]: sample for sample in samples}


def decode_samples(flac: bytes, first: int = 0, stop: int | None = None) -> np.ndarray:
    """Samples first..stop of a clip's sound -> float32 [n]. MediaError when it does not decode."""
    try:
        return mix_down(soundfile.read(io.BytesIO(flac), start=first, stop=stop, dtype="float32", always_2d=True)[0])
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise MediaError(f"its sound does not decode: {error}") from None


def decode_crops(mp4: bytes, first: int, count: int, n_frames: int, fps: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops first..first + count of a clip's n_frames -> (uint8 [count, S, S, 3], bool [count]: which are there).

    The last one is shown for HOLD_SEC more, as `load_video_frames` does. MediaError when they do not decode.
    """
    frames, there = np.zeros((count, size, size, 3), np.uint8), np.zeros(count, bool)
    wanted = np.minimum(np.arange(first, first + count), n_frames - 1)
    there[:] = np.arange(first, first + count) <= n_frames - 1 + HOLD_SEC * fps + 1e-6
    if not there.any():
        return frames, there
    begin, end = int(wanted[0]), int(wanted[there][-1])
    found = np.zeros(count, bool)
    to_rgb = av.video.reformatter.VideoReformatter()
    try:
        with av.open(io.BytesIO(mp4), format="mp4") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            if begin > 0:
                container.seek(int(begin / fps * av.time_base))
            for frame in container.decode(stream):
                at = round(frame.time * fps)
                if at >= begin:
                    places = (wanted == at) & there
                    frames[places] = to_rgb.reformat(
                        frame, size, size, format="rgb24", interpolation="BILINEAR", **ONE_THREAD
                    ).to_ndarray()
                    found |= places
                if at >= end:
                    break
    except (av.FFmpegError, OSError, ValueError, LookupError, TypeError, RuntimeError, MemoryError) as error:
        raise MediaError(f"its crops do not decode: {error}") from None
    frames[~found] = 0
    return frames, there & found
