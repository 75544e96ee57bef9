"""Tests whether one system is better than another on the same samples: paired tests over two CSVs of scores.

    python -m evaluation.statistical_test --ours_csv results/snr_breakdown/scores.csv --baseline_csv results/semamba/scores.csv

The CSVs need sample_id and at least one of pesq, stoi, estoi, si_sdr. Every other column is optional, and blanks around a cell
do not count. If a CSV has several rows for a sample, as evaluation.snr_breakdown writes them, --ours_row and --baseline_row
choose one. If the column `clip` names one clip for several mixtures, their differences are averaged first, because mixtures
of one clip are not independent.
It prints the paired t-test, the Wilcoxon signed-rank test (both with Holm's correction over the metrics), Cohen's d for paired
samples, and the 95 % interval of the mean difference: by bootstrap, or Student's t below 10, over speakers if they have
several clips.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from utils.console import EXIT_FAILED, Parser, run
from utils.scores.metrics import METRICS, TABLE
from utils.scores.stats import PairedComparison, compare_paired, holm, interval_method, mean_by
from utils.util import write_csv

SIGNIFICANT = 0.05
SUMMARY_COLUMNS = (
    "metric", "n", "n_failed", "ours", "baseline", "mean", "low", "high", "cohens_d", "t", "p_t", "p_t_holm", "p_wilcoxon",
    "p_wilcoxon_holm",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Scores of one system."""

    path: Path
    metrics: tuple[str, ...]
    rows: dict[str, dict[str, str]]  # by sample_id


def read_scores(path: Path, row: str | None, option: str) -> Table:
    """Scores of a CSV, those of `row` where it has several rows; ValueError, one line, when the file cannot be used."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel puts a byte order mark in front
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, lines = [name.strip() for name in reader.fieldnames or ()], []
            reader.fieldnames = columns
            for line in reader:
                if None in line or None in line.values():
                    raise ValueError(f"--{option}_csv: line {reader.line_num} of {path} should have {len(columns)} cells")
                lines.append({name: cell.strip() for name, cell in line.items()})
    except FileNotFoundError:
        raise FileNotFoundError(f"--{option}_csv: {path} does not exist") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--{option}_csv: {path} is no CSV: {error}") from None
    metrics = tuple(metric for metric in METRICS if metric in columns)
    if "sample_id" not in columns or not metrics:
        raise ValueError(
            f"--{option}_csv: {path} needs the column sample_id and one of {', '.join(METRICS)}; it has {', '.join(columns)}"
        )
    if row is not None:
        held = sorted({line.get("row") or "" for line in lines})
        if row not in held or "row" not in columns:
            raise ValueError(f"--{option}_row: {path} has no row {row!r}; it has {', '.join(filter(None, held)) or 'none'}")
        lines = [line for line in lines if line["row"] == row]
    if not lines:
        raise ValueError(f"--{option}_csv: {path} holds no scores")
    twice = [name for name, count in Counter(line["sample_id"] for line in lines).items() if count > 1]
    if twice:
        rows = sorted({line.get("row") or "" for line in lines} - {""})
        choice = f"; choose one of its rows with --{option}_row: {', '.join(rows)}" if rows else ""
        raise ValueError(f"--{option}_csv: {path} holds {twice[0]} more than once{choice}")
    return Table(path, metrics, {line["sample_id"]: line for line in lines})


def check_same_samples(ours: Table, baseline: Table) -> None:
    """ValueError unless both hold the same samples and, where they say so, the same mixtures."""
    one, other = set(ours.rows), set(baseline.rows)
    if one != other:
        only = sorted(one ^ other)
        raise ValueError(
            f"the CSVs are not of the same samples: {len(one - other)} only in {ours.path}, {len(other - one)} only in "
            f"{baseline.path} (first: {only[0]}); score both systems on one manifest"
        )
    differ = [name for name in ours.rows if _differ(ours.rows[name].get("mixture"), baseline.rows[name].get("mixture"))]
    if differ:
        raise ValueError(
            f"{len(differ)} samples have the same name and another mixture in the two CSVs (first: {differ[0]}); score both "
            "systems on one manifest"
        )


def _differ(one: str | None, other: str | None) -> bool:
    return bool(one and other and one != other)


def _value(row: Mapping[str, str], metric: str, path: Path) -> float:
    text = row.get(metric) or ""
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        raise ValueError(f"{path}: {metric} of {row['sample_id']} is {text!r}, it should be a number or empty") from None
    return value if math.isfinite(value) else math.nan


@dataclass(frozen=True)
class Units:
    """What is compared: samples, or clips, each of which has the mean scores of its samples."""

    pairs: dict[str, list[tuple[float, float]]]  # by metric
    speakers: list[str] | None
    name: str  # "mixtures" or "clips"
    n_failed: dict[str, int]  # samples without a score, by metric


def units_of(ours: Table, baseline: Table) -> Units:
    """Pairs of scores by metric: one for each clip if a clip has several samples, else one for each sample."""
    # They are sorted, so that the order of the lines in the files does not change the bootstrap's random draws.
    lines = [baseline.rows[name] | ours.rows[name] for name in sorted(ours.rows)]
    clips = [line.get("clip") or line["sample_id"] for line in lines]
    repeated = len(set(clips)) < len(clips)
    keys = clips if repeated else [line["sample_id"] for line in lines]
    speaker_of = {key: line.get("speaker") or "" for key, line in zip(keys, lines, strict=True)}
    pairs, failed = {}, {}
    for metric in (metric for metric in ours.metrics if metric in baseline.metrics):
        scored = []
        for key, name in zip(keys, sorted(ours.rows), strict=True):
            pair = _value(ours.rows[name], metric, ours.path), _value(baseline.rows[name], metric, baseline.path)
            if not any(map(math.isnan, pair)):
                scored.append((key, pair))
        failed[metric] = len(keys) - len(scored)
        means = mean_by([key for key, _ in scored], [pair for _, pair in scored])
        pairs[metric] = [tuple(means.get(key, (math.nan, math.nan))) for key in speaker_of]
    speakers = list(speaker_of.values())
    return Units(pairs, speakers if all(speakers) else None, "clips" if repeated else "samples", failed)


def grouping(units: Units) -> tuple[list[str] | None, str]:
    """Groups for the interval (None: each unit is one), and a sentence that names them."""
    count = len(next(iter(units.pairs.values())))
    over = f"interval: {interval_method(count)} over {count} {units.name}"
    if units.speakers is None:
        return None, f"{over}; the CSV names no speakers"
    n_speakers = len(set(units.speakers))
    if n_speakers == len(units.speakers):
        return None, f"{over}, each of another speaker"
    if n_speakers == 1:
        return None, f"{over}. All are of ONE speaker: this says nothing about other speakers"
    return units.speakers, (
        f"{units.name} share speakers ({n_speakers} for {len(units.speakers)}): the interval is {interval_method(n_speakers)} "
        f"over {n_speakers} speakers; t and Wilcoxon take {units.name} as independent, so trust the interval first"
    )


def compare(units: Units, groups: list[str] | None, seed: int) -> list[dict]:
    """One entry per metric (SUMMARY_COLUMNS)."""
    found: dict[str, PairedComparison] = {}
    for metric, pairs in units.pairs.items():
        found[metric] = compare_paired([one for one, _ in pairs], [other for _, other in pairs], groups, seed)
    corrected = {name: holm({m: getattr(c, name) for m, c in found.items()}) for name in ("p_t", "p_wilcoxon")}
    entries = []
    for metric, comparison in found.items():
        scored = [pair for pair in units.pairs[metric] if not any(map(math.isnan, pair))]
        ours, baseline = np.mean(scored, axis=0).tolist() if scored else (math.nan, math.nan)
        entries.append({
            "metric": metric, **asdict(comparison), "n_failed": units.n_failed[metric], "ours": ours, "baseline": baseline,
            "p_t_holm": corrected["p_t"][metric], "p_wilcoxon_holm": corrected["p_wilcoxon"][metric],
        })  # fmt: skip
    return entries


def verdict(entry: Mapping) -> str:
    """The result of one metric in a word. Both corrected tests and the interval must agree."""
    agreed = max(entry["p_t_holm"], entry["p_wilcoxon_holm"]) < SIGNIFICANT
    if agreed and entry["low"] > 0:
        return "better"
    return "worse" if agreed and entry["high"] < 0 else "no difference shown"


def text_table(entries: Sequence[Mapping]) -> str:
    lines = [f"{'':13}{'ours':>9}{'baseline':>10}{'difference':>12}{'95 % interval':>21}{'d':>7}{'p t':>10}{'p Wilcoxon':>12}"
             f"{'n':>6}{'n_failed':>10}   (p after Holm)"]  # fmt: skip
    for e in entries:
        interval = f"{e['low']:+.4f} .. {e['high']:+.4f}"
        lines.append(
            f"{TABLE[e['metric']].heading:13}{e['ours']:9.4f}{e['baseline']:10.4f}{e['mean']:+12.4f}{interval:>21}{e['cohens_d']:7.2f}"
            f"{e['p_t_holm']:10.2g}{e['p_wilcoxon_holm']:12.2g}{e['n']:6d}{e['n_failed']:10d}   {verdict(e)}"
        )
    return "\n".join(lines)


def report(args: argparse.Namespace) -> int:
    """Compare and print; EXIT_FAILED when samples had to be left out."""
    ours = read_scores(args.ours_csv, args.ours_row, "ours")
    baseline = read_scores(args.baseline_csv, args.baseline_row, "baseline")
    check_same_samples(ours, baseline)
    units = units_of(ours, baseline)
    if not units.pairs:
        raise ValueError(f"{ours.path} and {baseline.path} have no metric in common")
    groups, told = grouping(units)
    entries = compare(units, groups, args.seed)
    print(f"{ours.path} {args.ours_row or ''} against {baseline.path} {args.baseline_row or ''}: {len(ours.rows)} samples")
    if units.name == "clips":
        print(f"each clip's mixtures are averaged first: {len(units.pairs[entries[0]['metric']])} clips are compared")
    print(f"{told}\n{text_table(entries)}")
    for metric, count in units.n_failed.items():
        if count:
            print(f"{metric}: {count} of {len(ours.rows)} samples have no score in one of the CSVs and are left out")
    if args.output_csv:
        # p values may be far below the six decimals of our CSVs.
        small = [{k: f"{v:.6g}" for k, v in e.items() if k.startswith("p_") and not math.isnan(v)} for e in entries]
        write_csv(args.output_csv, [e | s for e, s in zip(entries, small, strict=True)], SUMMARY_COLUMNS)
        print(f"written to {args.output_csv}")
    return EXIT_FAILED if any(units.n_failed.values()) else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("statistical_test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours_csv", type=Path, required=True)
    parser.add_argument("--baseline_csv", type=Path, required=True)
    parser.add_argument("--ours_row", help="which row to compare where --ours_csv has several per sample, e.g. audio_visual")
    parser.add_argument("--baseline_row", help="the same for --baseline_csv, e.g. audio_only; both CSVs may be the same file")
    parser.add_argument("--output_csv", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap that gives the intervals")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("statistical_test.py", lambda: report(args))


if __name__ == "__main__":
    raise SystemExit(main())
