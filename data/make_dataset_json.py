"""Lists VoiceBank-DEMAND as distributed (48 kHz) or resampled: pairs for training, validation and test.

Validation speakers are held out of the training set; the test set is for testing alone.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from utils.console import Parser, run
from utils.media.formats import AUDIO_EXTENSIONS
from utils.util import write_json

KINDS = ("clean", "noisy")
VALID_SPEAKERS = ("p226", "p287")  # one man and one woman of the 28, as usually held out
# clean_trainset_28spk_wav, noisy_testset_wav, and the same with _16k behind
_FOLDER = re.compile(r"^(clean|noisy)_(train|test)set(?:_(\d+)spk)?_wav(?:_\w+)?$")


def find_folders(prefix: Path) -> dict[tuple[str, str], Path]:
    """{("clean", "train"): folder, ...}; ValueError when one is missing, or there are several to choose from."""
    found: dict[tuple[str, str], list[Path]] = {}
    for folder, folders, names in os.walk(prefix, followlinks=True):
        folders.sort()
        match = _FOLDER.match(Path(folder).name)
        # An archive unpacked into a folder of its own name leaves one inside the other: the one with the sounds counts.
        if match and any(Path(name).suffix.lower() in AUDIO_EXTENSIONS for name in names):
            found.setdefault((match[1], match[2]), []).append(Path(folder))
    chosen = {}
    for part, example in (("train", "trainset_28spk_wav"), ("test", "testset_wav")):
        for kind in KINDS:
            folders = found.get((kind, part), [])
            if not folders:
                raise ValueError(f"--prefix_path: no folder such as {kind}_{example} with sound files under {prefix}")
            if len(folders) > 1:
                several = ", ".join(str(folder) for folder in folders)
                raise ValueError(f"--prefix_path: several {kind} {part} sets under {prefix}: {several}; give one copy's folder")
            chosen[kind, part] = folders[0]
    return chosen


def paired_files(clean: Path, noisy: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """{name: (clean, noisy) file}, and names that only one of the two folders holds; ValueError when no pair is left."""
    by_kind = [
        {path.stem: path.resolve() for path in sorted(folder.iterdir())
         if path.suffix.lower() in AUDIO_EXTENSIONS and not path.name.startswith(".")}
        for folder in (clean, noisy)
    ]  # fmt: skip
    both = sorted(by_kind[0].keys() & by_kind[1].keys())
    if not both:
        raise ValueError(f"{clean} and {noisy} share no file names: these are not a clean and a noisy set")
    return {stem: (by_kind[0][stem], by_kind[1][stem]) for stem in both}, sorted(by_kind[0].keys() ^ by_kind[1].keys())


def speaker_of(stem: str) -> str:
    """Speaker of a recording, such as p226 of p226_001."""
    return stem.split("_")[0]


def hold_out(train: dict[str, tuple[Path, Path]], speakers: Sequence[str]) -> tuple[dict, dict]:
    """(training, validation) pairs; ValueError for a speaker who is not there, or when nobody is left to train on."""
    present = sorted({speaker_of(stem) for stem in train})
    absent = [speaker for speaker in speakers if speaker not in present]
    if absent:
        raise ValueError(f"--valid_speakers: {', '.join(absent)} not in the training set; it has {', '.join(present)}")
    if set(speakers) == set(present):
        raise ValueError("--valid_speakers: these are all speakers of the training set; leave some to train on")
    valid = {stem: pair for stem, pair in train.items() if speaker_of(stem) in speakers}
    return {stem: pair for stem, pair in train.items() if stem not in valid}, valid


def make_lists(args: argparse.Namespace) -> int:
    """Pair the recordings and write a list per split and kind."""
    prefix, output_dir = Path(args.prefix_path), Path(args.output_dir)
    if not prefix.is_dir():
        raise ValueError(f"--prefix_path: {prefix} is not a folder")
    folders = find_folders(prefix)
    train, train_alone = paired_files(folders["clean", "train"], folders["noisy", "train"])
    test, test_alone = paired_files(folders["clean", "test"], folders["noisy", "test"])
    train, valid = hold_out(train, args.valid_speakers)
    for split, pairs in (("train", train), ("valid", valid), ("test", test)):
        for place, kind in enumerate(KINDS):
            write_json(output_dir / f"{split}_{kind}.json", [str(pair[place]) for pair in pairs.values()])
        print(f"{output_dir / split}_*.json: {len(pairs)} pairs of {len({speaker_of(s) for s in pairs})} speakers")
    for stem in train_alone + test_alone:
        print(f"  {stem}: only in one of the clean and noisy folders; left out")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser("make_dataset_json.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix_path", required=True, help="folder with clean_trainset_28spk_wav and the others")
    parser.add_argument("--output_dir", default="data", help="for train_clean.json, train_noisy.json, valid_*, test_*")
    parser.add_argument("--valid_speakers", nargs="+", default=list(VALID_SPEAKERS), help="held out of the training set")
    args = parser.parse_args(argv)
    return run("make_dataset_json", lambda: make_lists(args))


if __name__ == "__main__":
    raise SystemExit(main())
