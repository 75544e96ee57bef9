"""Crops the faces of a clip list once: small videos with their sound, so that training decodes 96 x 96 pixels."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.faces import FACE_METHODS
from utils.media import load_audio, load_video_frames, write_clip
from utils.util import atomic_write, load_json_file, write_json

SAMPLE_RATE = 16000


def masked_runs(mask: np.ndarray) -> list[list[int]]:
    """Stretches of a mask bool [V] that are False, as [first, end) pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], np.asarray(mask, bool), [True])).astype(np.int8)))
    return [[int(first), int(end)] for first, end in zip(edges[::2], edges[1::2], strict=True)]


def output_path(entry: dict, output_dir: Path, settings: str) -> Path:
    """Where a clip's crops go: its own name, made unique by its full path and the crop settings."""
    source = Path(entry["video"])
    key = f"{os.path.abspath(source)}|{entry.get('audio', '')}|{settings}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return output_dir / source.parent.name / f"{source.stem}_{digest}.mp4"


def _is_done(target: Path) -> bool:
    return target.is_file() and target.with_suffix(".json").is_file()


def prepare_clip(entry: dict, target: Path, face_size: int, fps: float, method: str) -> tuple[dict, float]:
    """Write one clip's crops with its sound; returns (its list entry, share of frames with a face).

    A clip that was written before is not written again. The mask travels in the entry and, for restarts, beside the
    clip. MediaError or FileNotFoundError when picture or sound cannot be read.
    """
    note = target.with_suffix(".json")
    if _is_done(target):
        n_frames, runs = load_json_file(note)
    else:
        samples = load_audio(entry.get("audio") or entry["video"], SAMPLE_RATE)
        crops, mask = load_video_frames(entry["video"], face_size=face_size, fps=fps, face_crop=method)
        runs, n_frames = masked_runs(mask), len(mask)
        with atomic_write(target) as temporary:
            write_clip(temporary, crops, samples, SAMPLE_RATE, fps)
        write_json(note, [n_frames, runs])
    prepared = {"video": str(target), **({"mask": runs} if runs else {})}
    return prepared, 1.0 - sum(end - first for first, end in runs) / max(1, n_frames)


def _job(task: tuple[dict, Path, int, float, str]) -> tuple[dict | None, float, str | None]:
    """prepare_clip in a worker: (entry, face share, None) or (None, 0, why it failed)."""
    entry, target, face_size, fps, method = task
    try:
        return *prepare_clip(entry, target, face_size, fps, method), None
    except (ValueError, OSError) as error:
        return None, 0.0, f"{error}"


def _run(tasks: list[tuple], workers: int) -> list[tuple[dict | None, float, str | None]]:
    """_job of every task, in order, in several processes when there are several clips left to crop."""
    bar = {"total": len(tasks), "desc": "faces", "unit": "clip", "disable": None}
    left = sum(not _is_done(target) for _, target, *_ in tasks)
    if min(workers, left) < 2:
        return list(tqdm(map(_job, tasks), **bar))
    # spawn: a forked child can inherit a locked decoder thread
    with ProcessPoolExecutor(min(workers, left), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(tqdm(pool.map(_job, tasks), **bar))


def _checked_entries(path: str) -> list[dict]:
    entries = load_json_file(path, "--list")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
            raise ValueError(f'--list: entry {number} of {path} should be {{"video": path}}, not {entry!r}')
    return entries


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", required=True, help="list of clips, from make_grid_json.py and the like")
    parser.add_argument("--output_dir", required=True, help="folder for the small videos")
    parser.add_argument("--output_list", required=True, help="the same list, of the small videos")
    parser.add_argument("--face_size", type=int, default=96)
    parser.add_argument("--video_fps", type=float, default=25.0)
    parser.add_argument("--face_crop", choices=FACE_METHODS, default="auto")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 1 when clips failed."""
    args = _parse(argv)
    try:
        entries = _checked_entries(args.list)
        if args.face_size < 16 or args.face_size % 2:
            raise ValueError(f"--face_size {args.face_size} should be an even number of pixels, 16 or more")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    output_dir = Path(args.output_dir).resolve()
    settings = f"{args.face_size}|{args.video_fps:g}|{args.face_crop}"
    tasks = [
        (entry, output_path(entry, output_dir, settings), args.face_size, args.video_fps, args.face_crop)
        for entry in entries
    ]
    results = _run(tasks, args.workers)
    done = [(entry, share) for entry, share, _ in results if entry is not None]
    failed = [f"{task[0]['video']}: {why}" for task, (_, _, why) in zip(tasks, results, strict=True) if why]
    write_json(args.output_list, [entry for entry, _ in done])
    mean = float(np.mean([share for _, share in done])) if done else 0.0
    without = sum(share == 0.0 for _, share in done)
    print(f"{args.output_list}: {len(done)} clips, face in {100 * mean:.1f} % of frames, {without} clips without any")
    if failed:
        print(f"{len(failed)} clips failed:\n" + "\n".join(f"  {line}" for line in failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
