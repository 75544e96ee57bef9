"""Tests degraded videos. Its first line answers: is a bad video ever worse than none, and by how much?

    python -m evaluation.visual_degradation --checkpoint_file best.pth --test_json clips.json --noise_json noise.json

The same mixtures are enhanced with the video clean, black, dim, frozen, with a patch over the mouth, blurred, at low
resolution, noisy, with 10 to 90 % of its frames dropped, early or late by up to 400 ms, with another speaker's video, and
with none. Mean alpha and the ROC-AUC of alpha against corruption tell whether the model notices. It writes report.txt,
scores.csv, summary.csv, table.tex and visual.png. After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.reporting.figures import require_matplotlib, visual_figure
from evaluation.reporting.tables import by_sample, complete, gain_number, latex_escape, mean, write_text
from evaluation.testset.conditions import CLEAN, CONDITIONS, NONE, OTHER_FACE, check_condition
from evaluation.testset.manifest import Manifest
from evaluation.testset.runs import add_run_options, command_line, score_run
from evaluation.testset.score_rows import AUDIO_ONLY, COLUMNS, report_failures
from models.inference.enhancer import Enhancer
from utils.console import EXIT_FAILED, Parser, run
from utils.scores.metrics import METRICS, TABLE
from utils.scores.stats import compare_paired, holm, interval_method, mean_by, roc_auc
from utils.util import write_csv

SIGNIFICANT = 0.05
SUMMARY_COLUMNS = (
    "condition", "metric", "n", "n_clips", "n_failed", "audio_only", "audio_visual", "difference", "low", "high", "p_wilcoxon",
    "p_wilcoxon_holm", "mean_alpha", "alpha_auc",
)  # fmt: skip


def compare_conditions(rows: Sequence[Mapping], conditions: Sequence[str]) -> list[dict]:
    """One entry per condition and metric (SUMMARY_COLUMNS): audio-visual minus audio-only, over mixtures that all rows have.

    A condition that failed on every mixture has n = 0, and the others keep all of theirs. p is that of the Wilcoxon test
    over clips, whose mixtures are averaged first; p_wilcoxon_holm is corrected for all entries but those of "none".
    """
    samples = list(by_sample(rows).values())
    alphas = {name: alpha_of([sample[name] for sample in samples]) for name in conditions}
    found = []
    for metric in METRICS:
        usable = [name for name in conditions if not all(math.isnan(sample[name][metric]) for sample in samples)]
        kept = complete([{row: sample[row] for row in (AUDIO_ONLY, *usable)} for sample in samples], metric)
        for name in conditions:
            compared = kept if name in usable else []
            ours, base = ([sample[row][metric] for sample in compared] for row in (name, AUDIO_ONLY))
            clips = [sample[AUDIO_ONLY]["clip"] for sample in compared]
            result = compare_paired(ours, base, groups=clips)
            by_clip = list(mean_by(clips, np.subtract(ours, base)).values())
            held = [sample[name]["mean_alpha"] for sample in samples if sample[name].get("mean_alpha") is not None]
            found.append({
                "condition": name, "metric": metric, "n": result.n, "n_clips": len(by_clip),
                "n_failed": len(samples) - result.n, "audio_only": mean(base), "audio_visual": mean(ours),
                "difference": result.mean, "low": result.low, "high": result.high,
                "p_wilcoxon": compare_paired(by_clip, [0.0] * len(by_clip)).p_wilcoxon,
                "mean_alpha": mean(held), "alpha_auc": separation(alphas[name], alphas.get(CLEAN)),
            })  # fmt: skip
    corrected = holm({str(i): e["p_wilcoxon"] for i, e in enumerate(found) if e["condition"] != NONE})
    for index, entry in enumerate(found):
        entry["p_wilcoxon_holm"] = corrected.get(str(index), math.nan)
    return sorted(found, key=lambda entry: conditions.index(entry["condition"]))


def alpha_of(rows: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Alpha of every frame in which the mask says that a face is seen, and whether that frame is corrupt."""
    kept = [np.array([row["alpha"], row["corrupt"], row["seen"]], float) for row in rows if row.get("alpha")]
    frames = np.concatenate(kept, axis=1) if kept else np.zeros((3, 0))
    return frames[0, frames[2] > 0], frames[1, frames[2] > 0] > 0


def separation(
    degraded: tuple[np.ndarray, np.ndarray], clean: tuple[np.ndarray, np.ndarray] | None
) -> float:
    """ROC-AUC of low alpha as the sign of a corrupt frame, against the same mixtures' frames with the clean video.

    1: alpha tells them apart, 0.5: it does not; NaN where no frame is corrupt.
    """
    if clean is None:
        return math.nan
    bad, good = degraded[0][degraded[1]], clean[0][~clean[1]]
    return roc_auc(-np.concatenate([bad, good]), np.arange(len(bad) + len(good)) < len(bad))


def _told(entry: Mapping) -> str:
    metric = TABLE[entry["metric"]]
    difference, low, high = (gain_number(entry[key], entry["metric"]) for key in ("difference", "low", "high"))
    return f"{metric.label} {difference}{' ' + metric.unit if metric.unit else ''} [{low}, {high}]"


def answer(summary: Sequence[Mapping]) -> str:
    """Is audio-visual ever worse than audio-only, and by how much? In one line."""
    compared = [entry for entry in summary if entry["n"] and entry["condition"] != NONE]
    if not compared:
        return "No answer: no mixture could be scored both with and without video."
    conditions = {entry["condition"] for entry in compared}
    below = {entry["condition"] for entry in compared if entry["difference"] < 0}
    surely = {e["condition"] for e in compared if e["difference"] < 0 and e["p_wilcoxon_holm"] < SIGNIFICANT}
    least = [min((e for e in compared if e["metric"] == m), key=lambda e: e["difference"], default=None) for m in METRICS]
    worst, total = "; ".join(f"{_told(e)} with {e['condition']}" for e in least if e is not None), len(conditions)
    if not below:
        return f"No: with none of {total} videos is audio-visual worse than audio-only in any metric; least gains: {worst}."
    if not surely:
        clips = max(entry["n_clips"] for entry in compared)
        # The smallest p of a Wilcoxon test is that of differences which are all of one sign.
        few = f" ({clips} clips are too few for it)" if 2 * 0.5**clips * len(compared) >= SIGNIFICANT else ""
        return (
            f"Not beyond chance: with {len(below)} of {total} videos audio-visual is worse than audio-only in the mean of some "
            f"metric, but with none after correction for {len(compared)} comparisons{few}; worst: {worst}."
        )
    return (
        f"Yes: with {len(surely)} of {total} videos audio-visual is worse than audio-only in some metric (Wilcoxon p below "
        f"{SIGNIFICANT} after Holm's correction for {len(compared)} comparisons), and in the mean with {len(below)}; "
        f"worst: {worst}."
    )


def use_of_the_right_face(rows: Sequence[Mapping]) -> str:
    """Whether the gain comes from the lips, in one line: the speaker's own video against another speaker's."""
    samples = [rows for rows in by_sample(rows).values() if CLEAN in rows and OTHER_FACE in rows]
    if not samples:
        return "Not tested whether the right face matters: it needs the conditions clean and other_face."
    told = []
    for metric in METRICS:
        ours, other = ([sample[row][metric] for sample in samples] for row in (CLEAN, OTHER_FACE))
        result = compare_paired(ours, other, groups=[sample[CLEAN]["clip"] for sample in samples])
        told.append(_told({"metric": metric, "difference": result.mean, "low": result.low, "high": result.high}))
    return f"The speaker's own face against another's: {'; '.join(told)}."


def _share(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _interval_over(summary: Sequence[Mapping]) -> str:
    """How the intervals were made, and over how many clips."""
    clips = max(entry["n_clips"] for entry in summary)
    return f"{interval_method(clips)} over {clips} clips"


def text_table(summary: Sequence[Mapping], conditions: Sequence[str]) -> str:
    """Differences by condition, with mean alpha and its AUC."""
    lines = [f"audio-visual minus audio-only; * the 95 % interval ({_interval_over(summary)}) lies below 0, + above"]
    head = "".join(f"{TABLE[metric].label:>10}" for metric in METRICS)
    lines.append(f"{'video':<14}{head}{'alpha':>8}{'AUC':>7}{'n':>6}")
    for name in conditions:
        entries = [entry for entry in summary if entry["condition"] == name]
        cells = []
        for entry in entries:
            mark = "*" if entry["high"] < 0 else "+" if entry["low"] > 0 else " "
            cells.append(f"{gain_number(entry['difference'], entry['metric']) + mark:>10}")
        alpha, auc = (_share(entries[0][key], 3) for key in ("mean_alpha", "alpha_auc"))
        lines.append(f"{name:<14}{''.join(cells)}{alpha:>8}{auc:>7}{min(entry['n'] for entry in entries):>6}")
    tests = sum(entry["n"] > 0 for entry in summary)
    lines.append(
        f"{tests} comparisons: by chance alone about {0.025 * tests:.0f} intervals would lie below 0. The marks are not "
        "corrected for that, the answer is."
    )
    return "\n".join(lines)


def latex_table(summary: Sequence[Mapping], conditions: Sequence[str], note: str) -> str:
    """Differences with their intervals by condition; needs booktabs."""
    head = " & ".join(rf"$\Delta$ {TABLE[metric].label}" for metric in METRICS)
    caption = f"Audio-visual minus audio-only with a degraded video, 95 % intervals by {_interval_over(summary)}. {note}."
    lines = [
        r"\begin{table*}[t]", r"\centering", r"\footnotesize", rf"\caption{{{latex_escape(caption)}}}",
        r"\label{tab:visual}", r"\begin{tabular}{lrrrrrr}", r"\toprule",
        rf"Video & {head} & $\bar\alpha$ & AUC \\", r"\midrule",
    ]  # fmt: skip
    for name in conditions:
        entries = [entry for entry in summary if entry["condition"] == name]
        cells = [
            f"{gain_number(e['difference'], e['metric'])} "
            rf"{{\tiny[{gain_number(e['low'], e['metric'])}, {gain_number(e['high'], e['metric'])}]}}" for e in entries
        ]  # fmt: skip
        cells += [_share(entries[0][key], 2) for key in ("mean_alpha", "alpha_auc")]
        lines.append(" & ".join([latex_escape(name), *(cell.replace("-", "$-$") for cell in cells)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def study(args: argparse.Namespace, command: str) -> int:
    """Score, answer, write tables and the figure; EXIT_FAILED when something could not be scored or mixed."""
    require_matplotlib()
    for name in args.conditions:
        check_condition(name)

    def rows_for(enhancer: Enhancer, testset: Manifest) -> list[str]:
        if not enhancer.uses_video:
            raise ValueError(f"{args.checkpoint_file} uses no video: there is nothing to degrade")
        return [AUDIO_ONLY, *args.conditions]

    with contextlib.redirect_stdout(sys.stderr):  # the answer comes first
        done = score_run(args, rows_for, command)
    summary = compare_conditions(done.rows, args.conditions)
    lines = [
        answer(summary), use_of_the_right_face(done.rows), f"{done.enhancer.describe()}; {done.testset.note}",
        text_table(summary, args.conditions),
    ]  # fmt: skip
    print("\n".join(lines))
    output = args.output_dir
    write_text(output / "report.txt", "\n".join([*lines, command, ""]))
    write_csv(output / "scores.csv", done.rows, COLUMNS)
    write_csv(output / "summary.csv", summary, SUMMARY_COLUMNS)
    write_text(output / "table.tex", latex_table(summary, args.conditions, done.testset.note))
    visual_figure(summary, output / "visual.png")
    print(f"written to {output}: report.txt, scores.csv, summary.csv, table.tex, visual.png and .pdf, manifest.json, run.json")
    n_failed = report_failures(done.rows)
    print(f"{n_failed} of {len(done.rows)} rows not scored; {len(done.testset.left_out)} things left out of the test set")
    return EXIT_FAILED if n_failed or done.testset.left_out else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("visual_degradation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser, "results/visual_degradation", snrs_db=[0.0])
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), metavar="NAME", help=", ".join(CONDITIONS))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("visual_degradation.py", lambda: study(args, command_line("evaluation.visual_degradation", argv)))


if __name__ == "__main__":
    raise SystemExit(main())
