"""Lists the GRID corpus as downloaded: one entry per clip, split by speaker into train, validation and test."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.media import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, MediaError, probe_media
from utils.util import write_json

SPLITS = ("train", "valid", "test")
DEFAULT_SPEAKERS = {  # the usual split; s21 was published without video
    "train": [f"s{n}" for n in range(1, 29)],
    "valid": ["s29", "s30", "s31"],
    "test": ["s32", "s33", "s34"],
}
# s1, s01, s1_processed, s1.mpg_vcd and the like, as the corpus's archives unpack
_SPEAKER = re.compile(r"^s0*(\d{1,2})(?:[_.\-].*)?$", re.IGNORECASE)


def speaker_of(path: Path, root: Path) -> str | None:
    """Speaker, such as "s7", that a file under `root` belongs to: the nearest folder above that is named like one."""
    for folder in reversed(path.relative_to(root).parts[:-1]):
        match = _SPEAKER.match(folder)
        if match:
            return f"s{int(match[1])}"
    match = _SPEAKER.match(root.name)
    return f"s{int(match[1])}" if match else None


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if not name.startswith("."):  # macOS archives carry ._name.mpg
                yield Path(folder) / name


def find_clips(root: Path, exclude: Sequence[str] = ()) -> tuple[dict[str, list[dict[str, str]]], set[str]]:
    """All clips under `root` by speaker, and the speakers that have sound but no video.

    An entry is {"video": path} or {"video": path, "audio": path} where a separate sound file of the same speaker and
    stem exists (it has not been through MP2 and is preferred). Where a clip exists in several sizes, the largest file
    is taken. `exclude` are globs matched against the file name and the path below `root`.
    """
    videos: dict[tuple[str, str], Path] = {}
    sounds: dict[tuple[str, str], Path] = {}
    for path in _walk(root):
        suffix = path.suffix.lower()
        speaker = speaker_of(path, root)
        if speaker is None or suffix not in AUDIO_EXTENSIONS + VIDEO_EXTENSIONS:
            continue
        below = path.relative_to(root).as_posix()
        if any(fnmatch.fnmatch(path.name, glob) or fnmatch.fnmatch(below, glob) for glob in exclude):
            continue
        table = videos if suffix in VIDEO_EXTENSIONS else sounds
        key = (speaker, path.stem.lower())
        if key not in table or path.stat().st_size > table[key].stat().st_size:
            table[key] = path
    clips: dict[str, list[dict[str, str]]] = {}
    for (speaker, stem), video in sorted(videos.items()):
        entry = {"video": str(video.resolve())}
        if (speaker, stem) in sounds:
            entry["audio"] = str(sounds[speaker, stem].resolve())
        clips.setdefault(speaker, []).append(entry)
    return clips, {speaker for speaker, _ in sounds} - set(clips)


def clip_problem(entry: dict[str, str], full: bool = False) -> str | None:
    """Why a clip cannot be used, in a few words; None when its picture and its sound decode.

    `full` decodes everything and refuses clips with damaged packets; otherwise the first frame of each must decode.
    """
    try:
        video = probe_media(entry["video"], full)
        sound = probe_media(entry["audio"], full) if "audio" in entry else video
    except (MediaError, OSError) as error:
        return str(error).removeprefix(entry["video"]).strip()
    if not video.has_video:
        return "no picture that can be decoded"
    if not sound.has_audio:
        return "no sound that can be decoded"
    damaged = video.damaged_packets + (sound.damaged_packets if sound is not video else 0)
    return f"{damaged} damaged packets" if full and damaged else None


def _speaker_lists(args: argparse.Namespace) -> dict[str, list[str]]:
    """Speakers of each split; naming any of them replaces the default split as a whole."""
    given = {name: getattr(args, f"{name}_speakers") for name in SPLITS}
    named = any(value is not None for value in given.values())
    speakers = {split: names or [] for split, names in given.items()} if named else DEFAULT_SPEAKERS
    wanted: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for split, names in speakers.items():
        wanted[split] = []
        for name in names:
            match = _SPEAKER.match(name if name.lower().startswith("s") else f"s{name}")
            if not match:
                raise ValueError(f"--{split}_speakers: {name!r} is no GRID speaker; they are s1 to s34")
            speaker = f"s{int(match[1])}"
            if owner.setdefault(speaker, split) != split:
                raise ValueError(f"speaker {speaker} is in both {owner[speaker]} and {split}; name it in one split only")
            wanted[split].append(speaker)
    return wanted


def _usable(clips: list[dict[str, str]], full: bool, workers: int) -> tuple[list[dict[str, str]], list[str]]:
    """Split clips into those that decode and sentences about those that do not."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        problems = list(pool.map(lambda entry: clip_problem(entry, full), clips))
    good = [entry for entry, problem in zip(clips, problems, strict=True) if problem is None]
    bad = [f"{entry['video']}: {problem}" for entry, problem in zip(clips, problems, strict=True) if problem]
    return good, bad


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid_root", required=True, help="folder with s1, s2, ... (any nesting) as downloaded")
    parser.add_argument("--output_dir", required=True, help="where grid_train.json, grid_valid.json, grid_test.json go")
    for split, usual in zip(SPLITS, ("s1-s28", "s29-s31", "s32-s34"), strict=True):
        parser.add_argument(f"--{split}_speakers", nargs="*", metavar="sN", help=f"instead of {usual}")
    parser.add_argument("--exclude", nargs="*", default=[], help="globs of clips to leave out, e.g. 's1/bbaf*'")
    parser.add_argument("--probe", action="store_true", help="decode every clip to its end and leave out damaged ones")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)
    root = Path(args.grid_root)
    try:
        if not root.is_dir():
            raise ValueError(f"--grid_root: {root} is not a folder")
        speakers = _speaker_lists(args)
        clips, silent = find_clips(root, args.exclude)
        if not clips:
            raise ValueError(f"--grid_root: no video in speaker folders (s1, s2, ...) under {root}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for speaker in sorted(silent, key=lambda name: int(name[1:])):
        print(f"{speaker}: sound but no video; left out")
    skipped: list[str] = []
    for split, names in speakers.items():
        good, bad = _usable([entry for name in names for entry in clips.get(name, [])], args.probe, args.workers)
        skipped += bad
        target = Path(args.output_dir) / f"grid_{split}.json"
        write_json(target, sorted(good, key=lambda entry: entry["video"]))
        present = sum(name in clips for name in names)
        why = "no clip of " + ", ".join(names) if names else "no speakers named"
        note = "" if good else f" (empty: {why})"
        print(f"{target}: {len(good)} clips of {present} speakers{note}")
    if skipped:
        print(f"{len(skipped)} clips skipped:")
        print("\n".join(f"  {line}" for line in skipped))
    return 0


if __name__ == "__main__":
    sys.exit(main())
