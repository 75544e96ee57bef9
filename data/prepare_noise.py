"""Lists noise recordings: walks folders, merges them, splits them by recording into train, validation and test.

Files that are channels of one recording (DEMAND's DKITCHEN/ch01.wav to ch16.wav, CHiME's CAF.CH1.wav) stay together.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.console import Parser, run
from utils.media.formats import AUDIO_EXTENSIONS
from utils.util import write_json

SPLITS = ("train", "valid", "test")
FEWEST = 3  # recordings that can be shared out
CHANNEL = re.compile(r"(^|[._-])ch\d+$", re.IGNORECASE)


def find_noises(folders: Sequence[str | os.PathLike], exclude: Sequence[str] = ()) -> dict[Path, list[Path]]:
    """Sound files under `folders`, by the folder that holds them; each real file once, sorted.

    `exclude` are globs matched against the file name and the path below its root. ValueError for a root that is no
    folder or when nothing is found.
    """
    found: dict[Path, bool] = {}
    for folder in folders:
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"--noise_dirs: {root} is not a folder")
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() not in AUDIO_EXTENSIONS or not path.is_file():
                continue
            names = path.name, path.relative_to(root).as_posix()
            wanted = not any(fnmatch.fnmatch(name, glob) for name in names for glob in exclude)
            real = path.resolve()
            # A file that is left out under one of its names is left out.
            found[real] = wanted and found.get(real, True)
    by_folder: dict[Path, list[Path]] = {}
    for real in sorted(real for real, wanted in found.items() if wanted):
        by_folder.setdefault(real.parent, []).append(real)
    if not by_folder:
        suffixes = " ".join(AUDIO_EXTENSIONS)
        raise ValueError(f"no noise found under {', '.join(map(str, folders))} (looked for {suffixes})")
    return by_folder


def recordings(paths: Sequence[Path]) -> list[list[Path]]:
    """Files of one folder by recording, sorted: those whose names differ in their channel alone are one."""
    held: dict[tuple[str, bool], list[Path]] = {}
    for path in sorted(paths):
        channel = CHANNEL.search(path.stem)
        held.setdefault((path.stem[: channel.start()] if channel else path.name, bool(channel)), []).append(path)
    return list(held.values())


def split_noises(
    by_folder: dict[Path, list[Path]], valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Path]]:
    """Share the recordings of every folder out to train, valid and test, so that each split hears every kind of noise.

    Folders of fewer than three recordings cannot be shared out by themselves: theirs are shared out together. The draw
    depends on the seed and the file names of the folder, or of those folders; adding a larger folder moves no other file.
    ValueError for fractions that cannot be, and when a split that is asked for gets nothing.
    """
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        raise ValueError(
            f"--valid_fraction {valid_fraction} and --test_fraction {test_fraction} must be 0 or more, together under 1"
        )
    splits: dict[str, list[Path]] = {name: [] for name in SPLITS}
    pools: dict[str, list[list[Path]]] = {}
    for number, folder in enumerate(sorted(by_folder)):
        units = recordings(by_folder[folder])
        name = f"{number}/{folder.name}" if len(units) >= FEWEST else ""
        pools.setdefault(name, []).extend(units)
    for name, units in pools.items():
        order = np.random.default_rng([seed, *name.rpartition("/")[2].encode()]).permutation(len(units))
        n_valid = n_test = 0
        if len(units) >= FEWEST:
            n_valid = _share(len(units), valid_fraction)
            n_test = _share(len(units) - n_valid, test_fraction / (1 - valid_fraction))
        for rank, index in enumerate(order):
            split = "valid" if rank < n_valid else "test" if rank < n_valid + n_test else "train"
            splits[split] += units[index]
    for split, asked_for in (("train", True), ("valid", valid_fraction > 0), ("test", test_fraction > 0)):
        if asked_for and not splits[split]:
            fractions = f"--valid_fraction {valid_fraction:g} and --test_fraction {test_fraction:g}"
            count = sum(map(len, pools.values()))
            raise ValueError(f"{fractions} leave none of {count} recordings for {split}; give more recordings, or ask for less")
    return {name: sorted(paths) for name, paths in splits.items()}


def _share(count: int, fraction: float) -> int:
    """Recordings out of `count` for a fraction: at least one where any are asked for."""
    return max(1, round(count * fraction)) if fraction else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser("prepare_noise.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise_dirs", nargs="+", required=True, help="folders walked to the bottom")
    parser.add_argument("--output_dir", default="data", help="for noise_train.json, noise_valid.json, noise_test.json")
    parser.add_argument("--valid_fraction", "--val_ratio", type=float, default=0.1, help="to validate on")
    parser.add_argument("--test_fraction", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--exclude", nargs="*", default=[], help="globs of files to leave out, e.g. 'talkers/*'")
    args = parser.parse_args(argv)

    def work() -> int:
        by_folder = find_noises(args.noise_dirs, args.exclude)
        splits = split_noises(by_folder, args.valid_fraction, args.test_fraction, args.seed)
        for name, paths in splits.items():
            target = Path(args.output_dir) / f"noise_{name}.json"
            write_json(target, [str(path) for path in paths])
            print(f"{target}: {len(paths)} files" + ("" if paths else " (empty)"))
        return 0

    return run("prepare_noise", work)


if __name__ == "__main__":
    raise SystemExit(main())
