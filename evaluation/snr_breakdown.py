"""Scores by SNR and kind of noise: the noisy input, and the enhanced sound without the video and with it.

    python -m evaluation.snr_breakdown --checkpoint_file ckpts/LiteAVSE_small.pth --test_json clips.json --noise_json noise.json

It writes scores.csv (a line per mixture and row), summary.csv (means with 95 % intervals), table.tex, figures, and
manifest.json, on which other models can be scored with --manifest. After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from evaluation.reporting.figures import require_matplotlib, snr_figure
from evaluation.reporting.tables import SUMMARY_COLUMNS, Grid, latex_table, summarize_rows, text_table, write_text
from evaluation.testset.manifest import Manifest
from evaluation.testset.runs import add_others_option, add_rating_options, add_run_options, command_line, score_run
from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL, COLUMNS, NOISY, metrics_of, report_failures
from models.inference.enhancer import Enhancer
from utils.console import EXIT_FAILED, Parser, run
from utils.scores.metrics import METRICS
from utils.util import write_csv


def rows_for(enhancer: Enhancer, testset: Manifest) -> list[str]:
    """The rows that this model can have on this test set."""
    if not enhancer.uses_video:
        print("this model uses no video: rows noisy and audio_only")
    elif not any(sample.video for sample in testset.samples):
        print("the test set has no video: rows noisy and audio_only")
    else:
        return [NOISY, AUDIO_ONLY, AUDIO_VISUAL]
    return [NOISY, AUDIO_ONLY]


def break_down(args: argparse.Namespace, command: str) -> int:
    """Score, write tables and figures; EXIT_FAILED when something could not be scored or mixed."""
    require_matplotlib()  # before the work, not after it
    done = score_run(args, rows_for, command)
    output = args.output_dir
    metrics = metrics_of(done.rows)
    write_csv(output / "scores.csv", done.rows, [*COLUMNS, *metrics[len(METRICS) :]])
    summary = summarize_rows(done.rows, metrics=metrics)
    write_csv(output / "summary.csv", summary, SUMMARY_COLUMNS)
    kinds = Grid(summary).kinds
    write_text(output / "table.tex", "\n".join(latex_table(summary, kind, done.testset.note) for kind in kinds))
    snr_figure(summary, output / "snr.png", kinds)
    print(text_table(summary, kinds[0]))
    print(f"written to {output}: scores.csv, summary.csv, table.tex, snr.png and .pdf, manifest.json, run.json")
    n_failed = report_failures(done.rows)
    print(f"{n_failed} of {len(done.rows)} rows not scored; {len(done.testset.left_out)} things left out of the test set")
    return EXIT_FAILED if n_failed or done.testset.left_out else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("snr_breakdown.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser, "results/snr_breakdown")
    add_rating_options(parser)
    add_others_option(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("snr_breakdown.py", lambda: break_down(args, command_line("evaluation.snr_breakdown", argv)))


if __name__ == "__main__":
    raise SystemExit(main())
