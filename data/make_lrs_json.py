"""Lists LRS2 as distributed (mvlrs_v1/main and pretrain, by its official split files), or LRS3 (trainval, pretrain, test).

    python data/make_lrs_json.py --lrs2_root data/lrs2 --output_dir data/lists/raw

The sound is in each mp4. LRS3 has no validation set: a share of trainval's speakers is held out, of pretrain too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from data.tools.listing import ClipChecker, Entry, Skipped, add_checking, hold_out, walk_files, write_lists
from utils.console import Parser, run

# Split: its files, each with the folder that its lines are about. Pretrain's pieces of sentences are for training.
LRS2_FILES = {
    "train": (("pretrain", "pretrain.txt"), ("main", "train.txt")),
    "valid": (("main", "val.txt"),),
    "test": (("main", "test.txt"),),
}
Lists = dict[str, list[Entry]]


def _base(root: Path, names: Sequence[str], parts: Collection[str], option: str) -> Path:
    """The folder, `root` or one of these names in it, that holds one of the corpus's parts; ValueError when none does."""
    for folder in (root, *(root / name for name in names)):
        if any((folder / part).is_dir() for part in parts):
            return folder.resolve()
    raise ValueError(f"{option}: no folder {' or '.join(sorted(parts))} in {root}, nor in {' or '.join(names)} below it")


def read_split(path: Path) -> list[tuple[str, str]]:
    """("id/number", tag or "") of each line of an official split file; ValueError names a line that is none.

    A line may also be a path, whose last two parts are meant: main/id/number.mp4.
    """
    clips = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        clip = words[0]
        if clip.lower().endswith(".mp4"):
            clip = "/".join(clip[: -len(".mp4")].split("/")[-2:])
        if len(words) > 2 or clip.count("/") != 1:
            raise ValueError(f"{path}, line {number}: {line!r} is not `id/number` or a path of an .mp4, with an optional tag")
        clips[clip] = words[1] if len(words) == 2 else ""
    return list(clips.items())


def list_lrs2(root: Path, workers: int) -> tuple[Lists, list[Skipped]]:
    """Entries of each split by the official files, and what these name that is not there.

    An entry is {"video", "speaker"}, the speaker being the clip's folder (LRS2 names none), and "tag" where the file has
    one (NF, MV).
    """
    base = _base(root, ("mvlrs_v1",), ("main", "pretrain"), "--lrs2_root")
    present = {part: set(walk_files(base / part, (".mp4",), workers)) if (base / part).is_dir() else set()
               for part in ("main", "pretrain")}  # fmt: skip
    lists: Lists = {split: [] for split in LRS2_FILES}
    skipped: list[Skipped] = []
    named: dict[str, set[str]] = {"main": set(), "pretrain": set()}
    read_any = False
    for split, files in LRS2_FILES.items():
        for part, name in files:
            path = next((folder / name for folder in (base, root) if (folder / name).is_file()), None)
            if path is None:
                print(f"{name} is not in {base} or {root}: nothing listed by it")
                continue
            read_any = True
            for clip, tag in read_split(path):
                video = base / part / f"{clip}.mp4"
                named[part].add(f"{clip}.mp4")
                if f"{clip}.mp4" not in present[part]:
                    skipped.append((str(video), f"named in {name}, but not there"))
                    continue
                entry = {"video": str(video), "speaker": clip.split("/")[0]}
                lists[split].append({**entry, "tag": tag} if tag else entry)
    if not read_any:
        raise ValueError(f"--lrs2_root: none of LRS2's split files (pretrain.txt, train.txt, val.txt, test.txt) is in {base}")
    for part, names in named.items():
        others = len(present[part] - names)
        if others:
            print(f"{base / part}: {others} clips that no split file names; left out")
    return lists, skipped


def list_lrs3(root: Path, valid_share: float, seed: int, workers: int) -> tuple[Lists, list[Skipped]]:
    """Entries of each split of LRS3; validation is a share of the speakers of trainval, whom train then lacks."""
    base = _base(root, ("lrs3", "lrs3_v0.4"), ("trainval", "pretrain", "test"), "--lrs3_root")
    parts: dict[str, list[Entry]] = {}
    for part in ("pretrain", "trainval", "test"):
        names = walk_files(base / part, (".mp4",), workers) if (base / part).is_dir() else []
        parts[part] = [{"video": f"{base / part}/{name}", "speaker": name.split("/")[0]} for name in names]
    lists: Lists = {"train": [], "valid": [], "test": parts["test"]}
    held = hold_out({entry["speaker"] for entry in parts["trainval"]}, valid_share, seed) if parts["trainval"] else set()
    lists["train"] = [entry for part in ("pretrain", "trainval") for entry in parts[part] if entry["speaker"] not in held]
    lists["valid"] = [entry for entry in parts["trainval"] if entry["speaker"] in held]
    return lists, []


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("make_lrs_json.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpus = parser.add_mutually_exclusive_group(required=True)
    corpus.add_argument("--lrs2_root", help="folder with mvlrs_v1, or mvlrs_v1 itself")
    corpus.add_argument("--lrs3_root", help="folder with trainval, pretrain and test")
    parser.add_argument("--output_dir", required=True, help="where lrs_train.json, lrs_valid.json, lrs_test.json go")
    parser.add_argument("--valid_share", type=float, default=0.025, help="LRS3: share of speakers held out to validate on")
    parser.add_argument("--seed", type=int, default=1234, help="LRS3: draws the speakers that are held out")
    add_checking(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)

    def work() -> int:
        if args.lrs2_root:
            lists, skipped = list_lrs2(Path(args.lrs2_root), args.workers)
        else:
            lists, skipped = list_lrs3(Path(args.lrs3_root), args.valid_share, args.seed, args.workers)
        output_dir = Path(args.output_dir)
        write_lists(lists, output_dir, "lrs", ClipChecker(args.check, args.workers, output_dir / "lrs_checked.jsonl"), skipped)
        return 0

    return run("make_lrs_json", work)


if __name__ == "__main__":
    sys.exit(main())
