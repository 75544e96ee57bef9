"""Lists the GRID corpus as downloaded: one entry per clip, split by speaker into train, validation and test."""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

import soundfile

from data.tools.listing import SPLITS, ClipChecker, Entry, Skipped, add_checking, hold_out, report_skipped, walk_files
from utils.console import Parser, run
from utils.media.formats import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from utils.media.sound import load_audio
from utils.util import atomic_write, write_json

EXTRACTED_RATE_HZ = 16000

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


def find_clips(
    root: Path, exclude: Sequence[str] = (), workers: int = 8
) -> tuple[dict[str, list[Entry]], set[str]]:
    """All clips under `root` by speaker, and the speakers that have sound but no video.

    An entry is {"video": path, "speaker": name}, and "audio": path where a separate sound file of the same speaker and
    stem exists (it has not been through MP2 and is preferred). Where a clip exists in several sizes, the largest file
    is taken. `exclude` are globs matched against the file name and the path below `root`.
    """
    videos: dict[tuple[str, str], Path] = {}
    sounds: dict[tuple[str, str], Path] = {}
    for below in walk_files(root, AUDIO_EXTENSIONS + VIDEO_EXTENSIONS, workers):
        path = root / below
        suffix, speaker = path.suffix.lower(), speaker_of(path, root)
        if speaker is None:
            continue
        if any(fnmatch.fnmatch(path.name, glob) or fnmatch.fnmatch(below, glob) for glob in exclude):
            continue
        table = videos if suffix in VIDEO_EXTENSIONS else sounds
        key = (speaker, path.stem.lower())
        if key not in table or path.stat().st_size > table[key].stat().st_size:
            table[key] = path
    clips: dict[str, list[Entry]] = {}
    for (speaker, stem), video in sorted(videos.items()):
        entry = {"video": str(video.resolve()), "speaker": speaker}
        if (speaker, stem) in sounds:
            entry["audio"] = str(sounds[speaker, stem].resolve())
        clips.setdefault(speaker, []).append(entry)
    return clips, {speaker for speaker, _ in sounds} - set(clips)


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


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("make_grid_json.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid_root", required=True, help="folder with s1, s2, ... (any nesting) as downloaded")
    parser.add_argument("--output_dir", default="data", help="where grid_train.json, grid_valid.json, grid_test.json go")
    for split, usual in zip(SPLITS, ("s1-s28", "s29-s31", "s32-s34"), strict=True):
        parser.add_argument(f"--{split}_speakers", nargs="*", metavar="sN", help=f"instead of {usual}")
    parser.add_argument("--val_ratio", type=float, help="validate on this share of the speakers found, not on s29-s31")
    parser.add_argument("--seed", type=int, default=1234, help="draws the speakers of --val_ratio")
    parser.add_argument("--extract_audio", action="store_true",
                        help="write each clip's sound as a 16 kHz WAV to OUTPUT_DIR/grid_audio, and list that")
    parser.add_argument("--exclude", nargs="*", default=[], help="globs of clips to leave out, e.g. 's1/bbaf*'")
    add_checking(parser)
    parser.add_argument("--probe", action="store_const", const="full", dest="check", help="the same as --check full")
    return parser.parse_args(argv)


def _hold_out_share(
    args: argparse.Namespace, speakers: dict[str, list[str]], clips: dict[str, list[Entry]]
) -> dict[str, list[str]]:
    """`speakers` with --val_ratio of those of train and valid that have clips in valid, the others in train."""
    if args.valid_speakers is not None:
        raise ValueError("--val_ratio and --valid_speakers both say whom to validate on; give one of them")
    usable = [name for split in ("train", "valid") for name in speakers[split] if name in clips]
    held = hold_out(set(usable), args.val_ratio, args.seed, "--val_ratio") if usable else set()
    return speakers | {"train": [n for n in usable if n not in held], "valid": [n for n in usable if n in held]}


def _with_own_sound(entry: Entry, folder: Path) -> Entry:
    """The entry with its video's sound in a file of its own, which is written unless the entry has one already."""
    if "audio" in entry:
        return entry
    target = folder / entry["speaker"] / f"{Path(entry['video']).stem}.wav"
    if not target.is_file():
        with atomic_write(target) as temporary:
            soundfile.write(temporary, load_audio(entry["video"], EXTRACTED_RATE_HZ), EXTRACTED_RATE_HZ, subtype="PCM_16")
    return {**entry, "audio": str(target.resolve())}


def make_lists(args: argparse.Namespace) -> int:
    """Find the clips, try them, write a list per split."""
    root = Path(args.grid_root)
    if not root.is_dir():
        raise ValueError(f"--grid_root: {root} is not a folder")
    speakers = _speaker_lists(args)
    clips, silent = find_clips(root, args.exclude, args.workers)
    if not clips:
        raise ValueError(f"--grid_root: no video in speaker folders (s1, s2, ...) under {root}")
    if args.val_ratio is not None:
        speakers = _hold_out_share(args, speakers, clips)
    for speaker in sorted(silent, key=lambda name: int(name[1:])):
        print(f"{speaker}: sound but no video; left out")
    skipped: list[Skipped] = []
    output_dir = Path(args.output_dir)
    checker = ClipChecker(args.check, args.workers, output_dir / "grid_checked.jsonl")
    for split, names in speakers.items():
        good, bad = checker.split([entry for name in names for entry in clips.get(name, [])])
        skipped += bad
        target = output_dir / f"grid_{split}.json"
        if args.extract_audio:
            good = [_with_own_sound(entry, output_dir / "grid_audio") for entry in good]
        write_json(target, sorted(good, key=lambda entry: entry["video"]))
        present = sum(name in clips for name in names)
        why = "no clip of " + ", ".join(names) if names else "no speakers named"
        note = "" if good else f" (empty: {why})"
        print(f"{target}: {len(good)} clips of {present} speakers{note}")
    report_skipped(skipped, output_dir / "grid_skipped.csv")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)
    return run("make_grid_json", lambda: make_lists(args))


if __name__ == "__main__":
    raise SystemExit(main())
