"""Scores a folder of enhanced recordings, made by any program, against the folder of clean ones.

    python -m evaluation.score_folder --clean_folder clean --enhanced_folder enhanced --output_csv results/scores.csv

It writes PESQ-WB, STOI, ESTOI, SI-SDR, CSIG, CBAK and COVL of each file to a CSV and prints their means with 95 % confidence
intervals. DNSMOS is added if its models are given. Recordings are paired by name and resampled to 16 kHz.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.console import EXIT_FAILED, Parser, one_line, run
from utils.media.formats import AUDIO_EXTENSIONS
from utils.media.sound import load_audio
from utils.scores.dnsmos import DNSMOS
from utils.scores.metrics import ALL_METRICS, PESQ_RATE_HZ, TABLE, mean_score, number, score_many
from utils.scores.stats import interval_method, mean_interval
from utils.util import write_csv

COMPOSITE_NOTE = "CSIG, CBAK, COVL: Hu & Loizou 2008, with wide-band PESQ (MOS-LQO, as the pesq package gives it) in them"
Pair = tuple[Path, Path]


def sounds_by_stem(folder: Path, option: str) -> dict[str, Path]:
    """Sound files of `folder`, not of its subfolders, by name without suffix; ValueError, FileNotFoundError for none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{option}: {folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_EXTENSIONS or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(f"{option}: {found[path.stem].name} and {path.name} in {folder} are two files of one name")
        found[path.stem] = path
    if not found:
        raise ValueError(f"{option}: no sound files in {folder} (subfolders are not searched)")
    return found


def find_pairs(clean_folder: Path, enhanced_folder: Path, suffix: str = "", allow_missing: bool = False) -> list[Pair]:
    """(clean, enhanced) files of one name; `suffix` is what enhanced names have after it, such as "_enhanced".

    ValueError when an enhanced file has no clean one or, unless `allow_missing`, a clean file has no enhanced one: the
    mean over a part of a test set is not its score.
    """
    clean = sounds_by_stem(clean_folder, "--clean_folder")
    enhanced = sounds_by_stem(enhanced_folder, "--enhanced_folder")
    short = [stem for stem in enhanced if not stem.endswith(suffix)]
    if short:
        raise ValueError(f"--suffix {suffix}: {len(short)} enhanced files do not end so (first: {enhanced[short[0]].name})")
    enhanced = {stem.removesuffix(suffix) if suffix else stem: path for stem, path in enhanced.items()}
    strange = sorted(set(enhanced) - set(clean))
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(enhanced)} files in {enhanced_folder} have no file of the same name in {clean_folder} "
            f"(first: {enhanced[strange[0]].name}); --suffix says what enhanced names end in"
        )
    missing = sorted(set(clean) - set(enhanced))
    if missing and not allow_missing:
        raise ValueError(
            f"{len(missing)} of {len(clean)} clean files have no enhanced one (first: {clean[missing[0]].name}); "
            "--allow_missing scores the others"
        )
    return [(clean[stem], enhanced[stem]) for stem in sorted(enhanced)]


class _Reader:
    """Reads the pairs one by one and rates them with DNSMOS; keeps their lengths and the reasons why some cannot be read."""

    def __init__(self, pairs: Sequence[Pair], dnsmos: DNSMOS | None) -> None:
        self._pairs, self._dnsmos = pairs, dnsmos
        self.problems: dict[int, str] = {}
        self.differences: list[int] = [0] * len(pairs)  # by how many samples the enhanced sound is longer
        self.ratings: list[dict[str, float]] = [{} for _ in pairs]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, paths in enumerate(self._pairs):
            try:
                clean, enhanced = (load_audio(path, PESQ_RATE_HZ) for path in paths)
            except (ValueError, OSError) as error:
                self.problems[index] = one_line(error)
                clean = enhanced = np.zeros(0, np.float32)
            self.differences[index] = len(enhanced) - len(clean)
            if self._dnsmos is not None:
                self.ratings[index] = self._dnsmos(enhanced)
            yield clean, enhanced


def score_pairs(pairs: Sequence[Pair], workers: int = 1, dnsmos: DNSMOS | None = None) -> tuple[list[dict], list[int]]:
    """Scores of each (clean, enhanced) pair of files and by how many samples the enhanced one is longer.

    A score is `utils.scores.metrics.score_clip`'s with all metrics, and "sample_id"; a file that cannot be read is NaN with its
    reason. Where the lengths differ by 0.1 s or less the longer sound's end is cut.
    """
    reader = _Reader(pairs, dnsmos)
    workers = min(workers, len(pairs))
    with tqdm(total=len(pairs), unit="file", disable=None) as bar:
        results = score_many(reader, workers, PESQ_RATE_HZ, ALL_METRICS, align=True, progress=lambda _: bar.update(1))
    for index, (result, paths) in enumerate(zip(results, pairs, strict=True)):
        result["sample_id"] = paths[0].stem
        if index in reader.problems:
            result["errors"] = dict.fromkeys(ALL_METRICS, reader.problems[index])
        result |= reader.ratings[index]
    return results, reader.differences


def length_note(results: Sequence[dict], differences: Sequence[int]) -> str | None:
    """A line that says how many lengths differ, and that longer ends are cut; None where no length differs."""
    cut = [
        difference for result, difference in zip(results, differences, strict=True)
        if difference and len(result["errors"]) < len(ALL_METRICS)
    ]  # fmt: skip
    if not cut:
        return None
    low, high = min(cut), max(cut)
    span = f"{low:+d}" if low == high else f"{low:+d} to {high:+d}"
    return f"{len(cut)} of {len(differences)} enhanced files differ in length by {span} samples: longer ends are cut"


def table(results: Sequence[dict], metrics: Sequence[str]) -> list[str]:
    """Lines of the summary: metric, mean, 95 % interval, clips scored, clips that failed."""
    lines = [f"{'':14s}{'mean':>9s}{'95 % interval':>21s}{'n':>7s}{'n_failed':>10s}"]
    for metric in metrics:
        values = [result[metric] for result in results]
        failed = sum(math.isnan(value) for value in values)
        low, high = (number(bound, metric) for bound in mean_interval(values))
        mean = number(mean_score(results, metric), metric)
        lines.append(f"{TABLE[metric].heading:14s}{mean:>9s}{f'{low} .. {high}':>21s}{len(values) - failed:7d}{failed:10d}")
    method = interval_method(len(results))
    lines.append(f"95 % interval: {method} over {len(results)} files; says nothing about other speakers")
    return lines


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("score_folder.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean_folder", type=Path, required=True)
    parser.add_argument("--enhanced_folder", type=Path, required=True)
    parser.add_argument("--output_csv", type=Path, default=Path("results/scores.csv"))
    parser.add_argument("--suffix", default="", help="what the enhanced files' names end in, e.g. _enhanced")
    parser.add_argument("--allow_missing", action="store_true", help="score the files that are there if others are missing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes that score")
    parser.add_argument("--dnsmos_p835", type=Path, help="sig_bak_ovr.onnx; needs onnxruntime")
    parser.add_argument("--dnsmos_p808", type=Path, help="model_v8.onnx; needs onnxruntime")
    return parser.parse_args(argv)


def score(args: argparse.Namespace) -> int:
    """Score, write the CSV, print the summary; EXIT_FAILED when a clip could not be scored."""
    pairs = find_pairs(args.clean_folder, args.enhanced_folder, args.suffix, args.allow_missing)
    dnsmos = DNSMOS(args.dnsmos_p835, args.dnsmos_p808) if args.dnsmos_p835 or args.dnsmos_p808 else None
    metrics = ALL_METRICS + (dnsmos.metrics if dnsmos else ())
    results, differences = score_pairs(pairs, args.workers, dnsmos)
    rows = [r | {"length_difference_samples": d} for r, d in zip(results, differences, strict=True)]
    write_csv(args.output_csv, rows, ["sample_id", *metrics, "length_difference_samples", "errors"])
    print(f"{args.enhanced_folder}: {len(results)} files against {args.clean_folder}; each one in {args.output_csv}")
    note = length_note(results, differences)
    if note:
        print(note)
    print("\n".join([*table(results, metrics), COMPOSITE_NOTE]))
    unscored = [result for result in results if result["errors"]]
    for result in unscored:
        print(f"{result['sample_id']}: {'; '.join(sorted(set(result['errors'].values())))}")
    return EXIT_FAILED if unscored else 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("score_folder.py", lambda: score(args))


if __name__ == "__main__":
    raise SystemExit(main())
