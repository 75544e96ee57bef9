"""Makes a report on a checkpoint in Markdown and HTML: all tables, all figures, and the commands that made them.

    python -m evaluation.report --checkpoint_file best.pth --test_json clips.json --noise_json noise.json

It opens with the scores at the SNR nearest to 0 dB and one figure. Then come all SNRs and kinds of noise, paired tests, every
degradation of the video (on the same mixtures, at that SNR unless --visual_snr_db names others), a mixture of each kind to
listen to, size and speed. Figures are written for print, too (.pdf). After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from evaluation import complexity_analysis, snr_breakdown, statistical_test, visual_degradation
from evaluation import report_sections as sections
from evaluation.reporting.document import Document
from evaluation.testset.manifest import Manifest, read_manifest, write_manifest
from evaluation.testset.runs import RATINGS, add_others_option, add_rating_options, add_run_options, command_line, read_others
from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL, NOISY
from models.inference.enhancer import Enhancer
from utils.config import load_config
from utils.console import EXIT_FAILED, Parser, run
from utils.util import atomic_write, git_revision, read_csv

ROOT = Path(__file__).resolve().parents[1]
SEMAMBA = ROOT / "recipes" / "SEMamba_advanced" / "SEMamba_advanced.yaml"
MIXTURE_OPTIONS = (
    "config", "manifest", "test_json", "noise_json", "masker_json", "kinds", "snr_db", "clips", "rir_json", "room_share",
    "visual", "max_sec", "seed",
)  # fmt: skip


class Stopped(Exception):
    """A step could not be done at all. The argument is its exit code."""


class Steps:
    """Runs other scripts of this package; keeps their commands and their highest exit code."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.exit_code = 0

    def __call__(self, main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> str:
        """Returns what the script printed, and prints it. Stopped when its exit code is neither 0 nor EXIT_FAILED."""
        argv = [_from_here(word) for word in argv]
        self.commands.append(command_line(main.__module__, argv))
        print(f"\n{self.commands[-1]}", flush=True)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = main(argv)
        print(said.getvalue(), flush=True)
        if code not in (0, EXIT_FAILED):
            raise Stopped(code)
        self.exit_code = max(self.exit_code, code)
        return said.getvalue()


def _from_here(word: str) -> str:
    """A path below the working directory becomes relative, so that a report names no folder of its author's machine."""
    if not os.path.isabs(word) and not os.path.exists(word):
        return word
    path = os.path.relpath(word)
    return word if path.startswith("..") else path


def _given(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The options that were given, as words of a command line."""
    words: list[str] = []
    for name in names:
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name}", *(f"{each:g}" if isinstance(each, float) else str(each) for each in (
                value if isinstance(value, list) else [value]
            ))]  # fmt: skip
    return words


def visual_manifest(held: Manifest, snrs_db: Sequence[float] | None, path: Path) -> None:
    """Writes the part of a test set whose video is degraded."""
    present = sorted({sample.snr_db for sample in held.samples}, key=abs)
    wanted = present[:1] if snrs_db is None else snrs_db
    samples = [sample for sample in held.samples if sample.snr_db in wanted]
    if not samples:
        raise ValueError(f"--visual_snr_db: the test set has {', '.join(f'{snr:g}' for snr in sorted(present))} dB only")
    note = f"of {held.note}: the {len(samples)} at {', '.join(f'{snr:g}' for snr in wanted)} dB"
    write_manifest(path, samples, held.max_sec, note, {})


def measure(steps: Steps, enhancer: Enhancer, args: argparse.Namespace) -> str:
    """Measures the checkpoint's model, and the recipes that it is compared with; returns how it was done, in a sentence."""
    cfg = {key: dict(section) for key, section in enhancer.cfg.items()}
    if type(enhancer.model).__name__ == "SEMamba":
        cfg = {key: section for key, section in cfg.items() if key not in ("visual_cfg", "lite_cfg")}
    recipe = args.output_dir / f"{Path(args.checkpoint_file).stem}.yaml"
    with atomic_write(recipe) as temporary:
        temporary.write_text(yaml.safe_dump(cfg, sort_keys=False), encoding="utf-8")
    others = [str(SEMAMBA)] if args.compare_with is None else args.compare_with
    words = ["--config", str(recipe), *others, "--output_csv", str(args.output_dir / "complexity.csv"), "--device", args.device]
    words += ["--n_runs", str(args.n_runs), "--duration_sec", f"{args.duration_sec:g}"]
    return next(line for line in steps(complexity_analysis.main, words).splitlines() if line.startswith("RTF: "))


def make_report(args: argparse.Namespace, command: str) -> int:
    """Run every step and write report.md and report.html; EXIT_FAILED when something could not be scored."""
    steps, output = Steps(), args.output_dir
    config = load_config(args.config) if args.config else None
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, config)
    document = Document(f"Evaluation of {Path(args.checkpoint_file).name}")
    model = ["--checkpoint_file", str(args.checkpoint_file), "--device", args.device]
    workers = ["--workers", str(args.workers)]
    words = [*model, *workers, *_given(args, (*MIXTURE_OPTIONS, *RATINGS, "others")), "--output_dir", str(output / "snr")]
    printed = steps(snr_breakdown.main, words).splitlines()
    held = read_manifest(args.manifest or output / "snr" / "manifest.json")
    scores = output / "snr" / "scores.csv"
    rows = {row["row"] for row in read_csv(scores)}
    sees = AUDIO_VISUAL in rows
    if sees:
        visual_manifest(held, args.visual_snr_db, output / "visual_manifest.json")
        words = [*model, *workers, *_given(args, ("config",)), "--manifest", str(output / "visual_manifest.json")]
        words += ["--output_dir", str(output / "visual"), "--conditions", *args.conditions]
        answers = steps(visual_degradation.main, words).splitlines()[:2]
    sections.add_headline(document, output / "snr")
    if sees:
        document.text(f"Is audio-visual with a bad video ever worse than audio-only? {answers[0]}")
        document.text(answers[1])
    document.text(f"{enhancer.describe()}; revision {git_revision()}")
    document.text(held.note + (f"; left out: {len(held.left_out)}" if held.left_out else "") + f". {printed[-1]}")
    sections.add_snr_tables(document, output / "snr")
    document.heading("Paired tests")
    pairs = [(AUDIO_VISUAL, AUDIO_ONLY), (AUDIO_VISUAL, NOISY), (AUDIO_ONLY, NOISY)]
    pairs += [(AUDIO_VISUAL if sees else AUDIO_ONLY, name) for name in read_others(args.others)]
    for ours, baseline in pairs:
        if {ours, baseline} <= rows:
            words = ["--ours_csv", str(scores), "--baseline_csv", str(scores), "--ours_row", ours, "--baseline_row", baseline]
            csv_path = output / f"test_{ours}_{baseline}.csv"
            said = steps(statistical_test.main, [*words, "--output_csv", str(csv_path)]).splitlines()[1:3]
            note = ". ".join(line for line in said if not line.startswith(" "))  # the table begins with a blank
            sections.add_tests(document, ours, baseline, csv_path, note)
    if sees:
        document.heading("Degraded video")
        sections.add_degradations(document, output / "visual")
    document.heading("Examples")
    sections.add_examples(document, enhancer, held, output / "examples")
    document.heading("Size and speed")
    sections.add_sizes(document, output / "complexity.csv", measure(steps, enhancer, args))
    document.heading("Commands")
    document.listing("\n".join([command, "", "which ran", "", *steps.commands]))
    document.write(output, "report")
    print(f"written to {output}: report.md, report.html")
    return steps.exit_code


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser, "results/report")
    add_rating_options(parser)
    add_others_option(parser)
    parser.add_argument("--visual_snr_db", type=float, nargs="+", help="SNRs with a degraded video (default: nearest to 0)")
    parser.add_argument(
        "--conditions", nargs="+", default=list(visual_degradation.CONDITIONS), choices=list(visual_degradation.CONDITIONS),
        metavar="NAME", help="conditions of the video (default: all)",
    )
    parser.add_argument("--compare_with", nargs="*", help="recipes in the table of sizes (default: SEMamba's)")
    parser.add_argument("--n_runs", type=int, default=3, help="timed runs, after a warm-up")
    parser.add_argument("--duration_sec", type=float, default=4.0, help="length of the timed sound")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def work() -> int:
        try:
            return make_report(args, command_line("evaluation.report", argv))
        except Stopped as stopped:
            print("report.py: stopped by the step above; the same command goes on from there", file=sys.stderr)
            return stopped.args[0]

    return run("report.py", work)


if __name__ == "__main__":
    raise SystemExit(main())
