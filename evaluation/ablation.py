"""Trains one variant of the small model and scores it, so that each part of the design is tested by leaving it out.

    python -m evaluation.ablation no_vce --override data_cfg.train_noise_json=noise.json ...

The variants stand in recipes/LiteAVSE/ablations_small.json. Training is that of train_lite.py, in EXP_FOLDER/NAME; after an
interruption the same command goes on. Scores are made on the mixtures of docs/results/ablations/manifest.json. It writes
scores.csv, losses.csv and about.json to RESULTS_DIR/NAME, from which `make tables` compares the variants that are there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation import snr_breakdown, visual_degradation
from evaluation.complexity_analysis import count_parameters, macs_per_second
from evaluation.testset.conditions import CLEAN, OTHER_FACE
from models.generator import LiteAVSEMamba
from utils.config import load_config
from utils.console import Parser, run
from utils.scores.metrics import METRICS
from utils.scores.stats import mean_by
from utils.util import read_csv, write_csv, write_json

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "recipes" / "LiteAVSE" / "ablations_small.json"
RESULTS = ROOT / "docs" / "results" / "ablations"
CONDITIONS = (CLEAN, OTHER_FACE, "shift_+400ms")
KEYS = ("row", "kind", "snr_db", "speaker")
SCORE_COLUMNS = (*KEYS, "n", *METRICS, "mean_alpha")
LOSS_COLUMNS = ("step", "total", "magnitude", "complex", "si_sdr", "silence", "confidence")


class Variant(NamedTuple):
    """One line of the table."""

    name: str
    says: str
    base: str  # recipe
    changes: Mapping[str, object]  # section.key -> value

    def overrides(self) -> list[str]:
        """The changes as train_lite.py takes them."""
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.changes.items()]


def read_variants() -> dict[str, Variant]:
    """All variants of the table by name."""
    groups = json.loads(TABLE.read_text(encoding="utf-8")).values()
    return {
        name: Variant(name, held["says"], group["base"], {**group["changes"], **held["changes"]})
        for group in groups for name, held in group["variants"].items()
    }  # fmt: skip


def run_script(words: Sequence[str]) -> int:
    """The exit code of a command, run at the top of the repository as a process of its own."""
    return subprocess.run(words, cwd=ROOT).returncode


def train(variant: Variant, folder: Path, overrides: Sequence[str], device: str) -> None:
    """Train to the end in `folder`; adds the CPU time to cpu_sec.json there. SystemExit where training fails or is stopped."""
    words = [sys.executable, "train_lite.py", "--config", variant.base, "--exp_folder", str(folder.parent.resolve())]
    words += ["--exp_name", variant.name, "--device", device, "--override", *variant.overrides(), *overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = run_script(words)
    after, spent = resource.getrusage(resource.RUSAGE_CHILDREN), folder / "cpu_sec.json"
    earlier_sec = json.loads(spent.read_text(encoding="utf-8")) if spent.is_file() else 0.0
    if folder.is_dir():
        write_json(spent, earlier_sec + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    if code:
        raise SystemExit(code)


def score(folder: Path, sees: bool, manifest: Path, device: str, workers: int) -> tuple[list[dict], dict[str, float]]:
    """Score the best checkpoint of `folder` on the mixtures: (rows as of scores.csv, by condition the ROC-AUC of alpha).

    A model of sound alone is scored beside the noisy mixtures, which are the same for every model. SystemExit where
    something could not be scored.
    """
    words = ["--checkpoint_file", str(folder / "best.pth"), "--manifest", str(manifest), "--device", device]
    words += ["--workers", str(workers), "--output_dir", str(folder / "scores")]
    code = visual_degradation.main([*words, "--conditions", *CONDITIONS]) if sees else snr_breakdown.main(words)
    if code:
        raise SystemExit(code)
    summary = read_csv(folder / "scores" / "summary.csv")
    auc = {line["condition"]: float(line["alpha_auc"]) for line in summary if line.get("alpha_auc")}
    return by_speaker(read_csv(folder / "scores" / "scores.csv")), auc


def by_speaker(rows: Sequence[Mapping[str, str]]) -> list[dict]:
    """Means over the mixtures of a speaker: a row for each condition, kind, SNR and speaker, in the order of `rows`.

    Scores that are missing make the mean NaN, so that nothing is compared with fewer mixtures than it seems.
    """
    keys = [tuple(row[key] for key in KEYS) for row in rows]
    columns = [*METRICS, "mean_alpha"]
    means = mean_by(keys, [[float(row[column] or "nan") for column in columns] for row in rows])
    return [
        {**dict(zip(KEYS, key, strict=True)), "n": keys.count(key),
         **{c: f"{value:.5g}" if value == value else "" for c, value in zip(columns, values, strict=True)}}
        for key, values in means.items()
    ]  # fmt: skip


def losses(log: Path) -> list[dict]:
    """The training losses of a log.jsonl: those of the batches that were logged."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def describe(variant: Variant, cfg: Mapping, folder: Path) -> dict:
    """What about.json says of the model, which is random here, and of what its training cost."""
    cfg = {**cfg, "visual_cfg": {**cfg["visual_cfg"], "backbone_weights": "none"}}
    model = LiteAVSEMamba(cfg).eval()  # as it is trained: a loaded checkpoint does not know which of its weights were frozen
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return {
        "says": variant.says, "base": variant.base, "changes": dict(variant.changes),
        "updates": cfg["training_cfg"]["max_steps"],
        "cpu_sec": round(json.loads((folder / "cpu_sec.json").read_text(encoding="utf-8"))),
        **count_parameters(model), **macs_per_second(model, cfg), "environment": environment,
    }  # fmt: skip


def ablate(args: argparse.Namespace) -> int:
    """Train, score, write; returns the exit code."""
    variants = read_variants()
    if args.name not in variants:
        raise ValueError(f"there is no variant {args.name}; {TABLE.name} has {', '.join(variants)}")
    variant, folder = variants[args.name], args.exp_folder / args.name
    cfg = load_config(ROOT / variant.base, [*variant.overrides(), *args.override])  # what is wrong is said before the work
    if not args.manifest.is_file():
        raise FileNotFoundError(f"--manifest: {args.manifest} does not exist; evaluation.make_testset makes one")
    if not (folder / "best.pth").is_file():  # it is written at the end, since no variant validates on the way
        train(variant, folder, args.override, args.device)
    rows, auc = score(folder, cfg["visual_cfg"]["use_visual"], args.manifest, args.device, args.workers)
    output = args.results_dir / args.name
    write_csv(output / "scores.csv", rows, SCORE_COLUMNS)
    write_csv(output / "losses.csv", losses(folder / "log.jsonl"), LOSS_COLUMNS)
    write_json(output / "about.json", {**describe(variant, cfg, folder), "alpha_auc": auc})
    print(f"written to {output}: scores.csv, losses.csv, about.json")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("ablation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a variant of recipes/LiteAVSE/ablations_small.json")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="further changes, such as lists of data")
    parser.add_argument("--exp_folder", type=Path, default=Path("exp/ablations"))
    parser.add_argument("--manifest", type=Path, default=RESULTS / "manifest.json", help="mixtures that are scored")
    parser.add_argument("--results_dir", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=1, help="number of processes that enhance and score")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parse_arguments(argv)
    return run("ablation.py", lambda: ablate(args))


if __name__ == "__main__":
    raise SystemExit(main())
