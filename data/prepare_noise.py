"""Lists noise recordings: walks folders, merges them, splits them by file into train, validation and test."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.media import AUDIO_EXTENSIONS
from utils.util import write_json

SPLITS = ("train", "valid", "test")


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


def split_noises(
    by_folder: dict[Path, list[Path]], valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Path]]:
    """Share the files of every folder out to train, valid and test, so that each split hears every kind of noise.

    The draw depends on the seed and the file names of that folder only: adding a folder moves no other file.
    """
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        raise ValueError(
            f"--valid_fraction {valid_fraction} and --test_fraction {test_fraction} must be 0 or more, together under 1"
        )
    splits: dict[str, list[Path]] = {name: [] for name in SPLITS}
    for folder in sorted(by_folder):
        paths = sorted(by_folder[folder])
        order = np.random.default_rng([seed, *folder.name.encode()]).permutation(len(paths))
        n_valid = _share(len(paths), valid_fraction)
        n_test = _share(len(paths) - n_valid, test_fraction / (1 - valid_fraction))
        for rank, index in enumerate(order):
            name = "valid" if rank < n_valid else "test" if rank < n_valid + n_test else "train"
            splits[name].append(paths[index])
    return {name: sorted(paths) for name, paths in splits.items()}


def _share(count: int, fraction: float) -> int:
    """Files out of `count` for a fraction: at least one where a folder of several is to be shared at all."""
    if fraction == 0 or count < 3:
        return 0
    return max(1, round(count * fraction))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise_dirs", nargs="+", required=True, help="folders walked to the bottom")
    parser.add_argument("--output_dir", required=True, help="for noise_train.json, noise_valid.json, noise_test.json")
    parser.add_argument("--valid_fraction", type=float, default=0.1)
    parser.add_argument("--test_fraction", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--exclude", nargs="*", default=[], help="globs of files to leave out, e.g. 'talkers/*'")
    args = parser.parse_args(argv)
    try:
        by_folder = find_noises(args.noise_dirs, args.exclude)
        splits = split_noises(by_folder, args.valid_fraction, args.test_fraction, args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, paths in splits.items():
        target = Path(args.output_dir) / f"noise_{name}.json"
        write_json(target, [str(path) for path in paths])
        print(f"{target}: {len(paths)} files" + ("" if paths else " (empty)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
