"""Lists VoxCeleb2 as distributed: dev (less a few speakers, held out to validate on) trains, test tests.

    python data/make_vox_json.py --vox2_root data/vox2 --output_dir data/lists/raw

Clips are dev/mp4/SPEAKER/VIDEO/NUMBER.mp4, or dev/SPEAKER/VIDEO/NUMBER.mp4; the sound is dev/aac/SPEAKER/VIDEO/NUMBER.m4a, or
beside the clip, where there is one, else in the mp4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.tools.listing import ClipChecker, Entry, Skipped, add_checking, hold_out, walk_files, write_lists
from utils.console import Parser, run
from utils.media.formats import AUDIO_EXTENSIONS

SOUND_FOLDERS = ("aac", "m4a", "wav")


def _folder(root: Path, part: str, names: Sequence[str]) -> Path | None:
    """Where a part keeps files of a kind: dev/mp4, or vox2_dev_mp4/dev/mp4 as some archives unpack; None: nowhere."""
    for name in names:
        for folder in (root / part / name, root / f"vox2_{part}_{name}" / part / name, root / f"vox2_{part}_{name}" / name):
            if folder.is_dir():
                return folder
    return None


def list_part(root: Path, part: str, workers: int) -> tuple[list[Entry], list[Skipped]]:
    """Entries {"video", "audio" where it is a file of its own, "speaker"} of "dev" or "test", and what is no clip of it."""
    videos, sounds = _folder(root, part, ("mp4",)), _folder(root, part, SOUND_FOLDERS)
    if videos is None:
        videos = root / part  # without a folder mp4
        if not videos.is_dir():
            return [], []
        sounds = sounds or videos
    names = walk_files(videos, (".mp4",), workers)
    heard = {name.rsplit(".", 1)[0]: name for name in walk_files(sounds, AUDIO_EXTENSIONS, workers)} if sounds else {}
    entries, skipped = [], []
    for name in names:
        if name.count("/") != 2:
            skipped.append((f"{videos}/{name}", "not where VoxCeleb2 keeps clips (SPEAKER/VIDEO/NUMBER.mp4)"))
            continue
        entry = {"video": f"{videos}/{name}", "speaker": name.split("/")[0]}
        sound = heard.pop(name.rsplit(".", 1)[0], None)
        entries.append(entry if sound is None else {**entry, "audio": f"{sounds}/{sound}"})
    skipped += [(f"{sounds}/{name}", "sound without a video") for name in heard.values()]
    return entries, skipped


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("make_vox_json.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vox2_root", required=True, help="folder with dev and test")
    parser.add_argument("--output_dir", required=True, help="where vox_train.json, vox_valid.json, vox_test.json go")
    parser.add_argument("--valid_share", type=float, default=0.025, help="share of dev's speakers held out to validate on")
    parser.add_argument("--seed", type=int, default=1234, help="draws the speakers that are held out")
    add_checking(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)

    def work() -> int:
        root = Path(args.vox2_root).resolve()
        (dev, skipped), (test, others) = (list_part(root, part, args.workers) for part in ("dev", "test"))
        if not dev and not test:
            raise ValueError(f"--vox2_root: no clip under {root}/dev or {root}/test ([mp4/]SPEAKER/VIDEO/NUMBER.mp4)")
        held = hold_out({entry["speaker"] for entry in dev}, args.valid_share, args.seed) if dev else set()
        lists = {
            "train": [entry for entry in dev if entry["speaker"] not in held],
            "valid": [entry for entry in dev if entry["speaker"] in held],
            "test": test,
        }
        output_dir = Path(args.output_dir)
        checker = ClipChecker(args.check, args.workers, output_dir / "vox_checked.jsonl")
        write_lists(lists, output_dir, "vox", checker, skipped + others)
        return 0

    return run("make_vox_json", work)


if __name__ == "__main__":
    sys.exit(main())
