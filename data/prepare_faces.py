"""Crops the faces of a clip list once, so that training decodes 96 x 96 pixels and looks for no face.

--format clips writes small videos with their sound, and their list. --format shards writes WebDataset shards, tar files of
some hundred clips each, for a cluster's file system. After an interruption run it again: what is finished is kept.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.tools.face_shards import (
    SAMPLE_RATE,
    CropSettings,
    ShardReport,
    digest_of,
    finished,
    load_clip,
    make_shard,
    masked_runs,
)
from data.tools.listing import report_skipped
from utils.console import EXIT_FAILED, Parser, run
from utils.faces.detectors import FACE_METHODS, settle_method
from utils.media.clip_writer import write_clip
from utils.util import atomic_write, clear_unfinished, load_json_file, write_json
from utils.worker_pool import WHY_LOST, run_jobs


def output_path(entry: dict, output_dir: Path, settings: CropSettings) -> Path:
    """Where a clip's crops go: its own name, made unique by the crop settings and its path as seen from `output_dir`.

    So two machines whose data is laid out alike give the same names, and share manifests of test mixtures. The detector counts
    and not the option that chose it: --face_crop haar gives the names of a machine where auto came to haar.
    """
    source = Path(entry["video"])
    paths = [os.path.relpath(path, output_dir) for path in (source, entry.get("audio")) if path]
    key = "|".join([*paths, f"{settings.face_size}|{settings.fps:g}|auto|{settings.detector}"])
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return output_dir / source.parent.name / f"{source.stem}_{digest}.mp4"


def _is_done(target: Path) -> bool:
    return target.is_file() and target.with_suffix(".json").is_file()


def prepare_clip(entry: dict, target: Path, settings: CropSettings) -> tuple[dict, float]:
    """Write one clip's crops with its sound; returns (its list entry, share of frames with a face).

    A clip that was written before is not written again. The mask travels in the entry and, for restarts, beside the
    clip. MediaError or FileNotFoundError when the video or the sound cannot be read.
    """
    note = target.with_suffix(".json")
    if _is_done(target):
        n_frames, runs = load_json_file(note)
    else:
        samples, crops, mask = load_clip(entry, settings)
        runs, n_frames = masked_runs(mask), len(mask)
        with atomic_write(target) as temporary:
            write_clip(temporary, crops, samples, SAMPLE_RATE, settings.fps)
        write_json(note, [n_frames, runs])
    kept = {"speaker": entry["speaker"]} if "speaker" in entry else {}
    prepared = {"video": str(target), **kept, **({"mask": runs} if runs else {})}
    return prepared, 1.0 - sum(end - first for first, end in runs) / max(1, n_frames)


def _clip_job(task: tuple[dict, Path, CropSettings]) -> tuple[dict | None, float, str | None]:
    """prepare_clip in a worker: (entry, face share, None) or (None, 0, why it failed)."""
    try:
        return *prepare_clip(*task), None
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # no fault of the clip's, and the next one would meet it, too
        return None, 0.0, f"{error}"


def write_clips(entries: Sequence[dict], args: argparse.Namespace, settings: CropSettings) -> ShardReport:
    """Write every clip's crops as a video, and the list of them."""
    output_dir = Path(args.output_dir).absolute()  # links are not followed: names depend on the paths as they are given
    tasks = [(entry, output_path(entry, output_dir, settings), settings) for entry in entries]
    for folder in {output_dir, Path(args.output_list).resolve().parent, *(target.parent for _, target, _ in tasks)}:
        clear_unfinished(folder)
    left = sum(not _is_done(target) for _, target, _ in tasks)
    results = run_jobs(_clip_job, tasks, min(args.workers, left), lost=lambda task: (None, 0.0, WHY_LOST))
    results = list(tqdm(results, total=len(tasks), desc="faces", unit="clip", disable=None))
    write_json(args.output_list, [entry for entry, _, _ in results if entry is not None])
    skipped = [(task[0]["video"], why) for task, (_, _, why) in zip(tasks, results, strict=True) if why]
    shares = [share for entry, share, _ in results if entry is not None]
    return ShardReport(len(shares), shares, skipped)


def write_shards(entries: Sequence[dict], args: argparse.Namespace, settings: CropSettings) -> ShardReport:
    """Write every clip's crops and sound into shards NAME-000000.tar, ..., NAME being the list's own."""
    output_dir, name, size = Path(args.output_dir).resolve(), Path(args.list).stem, args.clips_per_shard
    slices = [(entries[first : first + size], first) for first in range(0, len(entries), size)]
    tasks = [(part, first, output_dir / f"{name}-{first // size:06d}.tar", settings) for part, first in slices]
    names = {task[2].name for task in tasks}
    stale = [path.name for path in sorted(output_dir.glob(f"{name}-[0-9]*.tar")) if path.name not in names]
    if stale:
        raise ValueError(
            f"--output_dir: {output_dir} holds {stale[0]}, which this list and --clips_per_shard {size} do not make; "
            "remove the old shards, or choose another folder"
        )
    clear_unfinished(output_dir)
    kept = [finished(target, digest_of(part, settings)) for part, _, target, _ in tasks]
    todo = [task for task, report in zip(tasks, kept, strict=True) if report is None]
    reports = [report for report in kept if report is not None]

    def lost(task: tuple) -> ShardReport:
        return ShardReport(0, [], [(entry["video"], WHY_LOST) for entry in task[0]])

    with tqdm(total=len(entries), desc="faces", unit="clip", disable=None) as bar:
        bar.update(len(entries) - sum(len(task[0]) for task in todo))
        for report in run_jobs(make_shard, todo, min(args.workers, len(todo)), lost):
            reports.append(report)
            bar.update(report.n_clips + len(report.skipped))
    shares = [share for report in reports for share in report.face_shares]
    return ShardReport(sum(r.n_clips for r in reports), shares, [pair for r in reports for pair in r.skipped])


def _checked_entries(path: str) -> list[dict]:
    """Entries of a list, their files looked for beside the list first."""
    entries = []
    for number, entry in enumerate(load_json_file(path, "--list")):
        if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
            raise ValueError(f'--list: entry {number} of {path} should be {{"video": path}}, not {entry!r}')
        found = {key: Path(path).parent / entry[key] for key in ("video", "audio") if isinstance(entry.get(key), str)}
        entries.append({**entry, **{key: str(value) for key, value in found.items() if value.exists()}})
    return entries


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("prepare_faces.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", required=True, help="list of clips, from make_grid_json.py and the like")
    parser.add_argument("--output_dir", required=True, help="folder for the small videos or the shards")
    parser.add_argument("--format", choices=("clips", "shards"), default="clips")
    parser.add_argument("--output_list", help="for clips: the same list, of the small videos")
    parser.add_argument("--clips_per_shard", type=int, default=256)
    parser.add_argument("--face_size", type=int, default=96)
    parser.add_argument("--video_fps", type=float, default=25.0)
    parser.add_argument("--face_crop", choices=FACE_METHODS, default="auto")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 1 when clips failed."""
    args = _parse(argv)

    def work() -> int:
        entries = _checked_entries(args.list)
        if args.face_size < 16 or args.face_size % 2:
            raise ValueError(f"--face_size {args.face_size} should be an even number of pixels, 16 or more")
        if args.clips_per_shard < 1:
            raise ValueError(f"--clips_per_shard {args.clips_per_shard} should be 1 or more")
        if args.format == "clips" and not args.output_list:
            raise ValueError("--output_list: say where the list of the small videos goes")
        settled = settle_method(args.face_crop)
        print(f"face detector: {settled.method}" + (f" ({settled.fallback})" if settled.fallback else ""), flush=True)
        settings = CropSettings(args.face_size, args.video_fps, args.face_crop, settled.method)
        write = write_clips if args.format == "clips" else write_shards
        report = write(entries, args, settings)
        share = float(np.mean(report.face_shares)) if report.face_shares else 0.0
        without = sum(one == 0.0 for one in report.face_shares)
        written = args.output_list if args.format == "clips" else args.output_dir
        print(
            f"{written}: {report.n_clips} clips, face ({settled.method}) in {100 * share:.1f} % of frames, "
            f"{without} clips without any"
        )
        report_skipped(report.skipped, Path(args.output_dir) / f"{Path(args.list).stem}_skipped.csv")
        return EXIT_FAILED if report.skipped else 0

    return run("prepare_faces", work)


if __name__ == "__main__":
    sys.exit(main())
