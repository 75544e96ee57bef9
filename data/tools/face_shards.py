"""Face crops as WebDataset shards: what a job of prepare_faces.py does for each slice of a list."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.faces.lip_sync import SoundTrack
from utils.faces.video_crops import load_video_frames
from utils.media.shards import encode_clip, index_path, write_shard
from utils.media.sound import load_audio

SAMPLE_RATE = 16000
LONGEST_NAME = 48  # characters of a clip's path that are kept in its key: tar headers hold 100


@dataclass(frozen=True)
class CropSettings:
    """How crops are made; `detector` is what `face_crop` means on this machine."""

    face_size: int
    fps: float
    face_crop: str
    detector: str  # what face_crop came to on this machine: crops of another one are other crops


@dataclass(frozen=True)
class ShardReport:
    """What is in a finished shard, and what is not: (path, why)."""

    n_clips: int
    face_shares: list[float]
    skipped: list[tuple[str, str]]


def masked_runs(mask: np.ndarray) -> list[list[int]]:
    """Stretches of a mask bool [V] that are False, as [first, end) pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], np.asarray(mask, bool), [True])).astype(np.int8)))
    return [[int(first), int(end)] for first, end in zip(edges[::2], edges[1::2], strict=True)]


def jitter_px(crops: np.ndarray, mask: np.ndarray) -> float:
    """How much a track shakes: RMS shift in pixels between neighbouring crops uint8 [V, S, S, 3] that show a face.

    By phase correlation of the upper half, where no mouth moves; 0 where no two neighbours show one.
    """
    size = crops.shape[1]
    window = cv2.createHanningWindow((size, size // 2), cv2.CV_32F)
    upper = [cv2.cvtColor(crop[: size // 2], cv2.COLOR_RGB2GRAY).astype(np.float32) for crop in crops]
    pairs = [k for k in range(1, len(crops)) if mask[k] and mask[k - 1]]
    shifts = [cv2.phaseCorrelate(upper[k - 1], upper[k], window)[0] for k in pairs]
    return float(np.sqrt(np.mean(np.square(shifts).sum(axis=1)))) if shifts else 0.0


def load_clip(entry: dict, settings: CropSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(samples float32 [L], crops uint8 [V, S, S, 3], mask bool [V]) of a list's entry; ValueError or OSError as they come."""
    samples = load_audio(entry.get("audio") or entry["video"], SAMPLE_RATE)
    crops, mask = load_video_frames(
        entry["video"], face_size=settings.face_size, fps=settings.fps, face_crop=settings.face_crop,
        sound=SoundTrack(lambda first, stop: samples[first:stop], SAMPLE_RATE),
    )
    return samples, crops, mask


def clip_key(number: int, entry: dict) -> str:
    """Name of a clip inside shards: its place in the list and the end of its path, in characters that every tar takes."""
    path = Path(entry["video"]).with_suffix("")
    return f"{number:08d}_" + re.sub(r"[^\w-]", "_", "_".join(path.parts[-3:]), flags=re.ASCII)[-LONGEST_NAME:]


def digest_of(entries: Sequence[dict], settings: CropSettings) -> str:
    """What a shard is made of; another digest means that it must be made again."""
    return hashlib.sha256(json.dumps([list(entries), asdict(settings)], sort_keys=True).encode()).hexdigest()[:16]


def finished(target: Path, digest: str) -> ShardReport | None:
    """The report of a shard that is there and made of this very slice in this very way; None otherwise."""
    try:
        held = json.loads(index_path(target).read_text(encoding="utf-8"))
        if held["digest"] != digest or not target.is_file():
            return None
        return ShardReport(len(held["clips"]), held["face_shares"], [tuple(pair) for pair in held["skipped"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_shard(task: tuple[Sequence[dict], int, Path, CropSettings]) -> ShardReport:
    """Write the shard of (entries, number of the first in the list, path, settings); clips that cannot be read are left out.

    OSError or MediaError when it cannot be written: then nothing is left of it.
    """
    entries, first, target, settings = task
    clips, shares, skipped = [], [], []
    for number, entry in enumerate(entries, first):
        try:
            samples, crops, mask = load_clip(entry, settings)
        except (ValueError, OSError) as error:
            skipped.append((entry["video"], str(error)))
            continue
        shares.append(round(float(mask.mean()), 4))
        note = {
            "mask": masked_runs(mask), "face_share": shares[-1], "jitter_px": round(jitter_px(crops, mask), 3),
            **{key: entry[key] for key in ("speaker", "video", "audio") if key in entry},
        }  # fmt: skip
        clips.append((clip_key(number, entry), encode_clip(crops, samples, SAMPLE_RATE, settings.fps, note)))
    about = {
        **asdict(settings), "sample_rate": SAMPLE_RATE, "digest": digest_of(entries, settings), "face_shares": shares,
        "skipped": skipped,
    }  # fmt: skip
    write_shard(target, clips, about)
    return ShardReport(len(clips), shares, skipped)
