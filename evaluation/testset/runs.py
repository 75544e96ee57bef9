"""Shared by the scripts that score a checkpoint on a test set: the options, the test set, and the run itself."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.testset.draw import SNRS_DB, add_mixture_options, check_mixture_options, make_testset, options_of
from evaluation.testset.manifest import Manifest, json_sha256, read_manifest
from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL, NOISY, RowStore, Setup, file_sha256, score_rows
from models.inference.enhancer import Enhancer
from utils.config import load_config
from utils.scores.dnsmos import DNSMOS
from utils.util import git_revision, write_json

RATINGS = ("dnsmos_p835", "dnsmos_p808")


@dataclass(frozen=True)
class ScoredRun:
    """All rows of a run, with the test set and the model that they are of."""

    rows: list[dict]
    testset: Manifest
    enhancer: Enhancer


def add_run_options(parser: argparse.ArgumentParser, output_dir: str, snrs_db: Sequence[float] = SNRS_DB) -> None:
    parser.add_argument("--config", help="recipe: its test lists, and the model if the checkpoint has no configuration")
    parser.add_argument("--checkpoint_file", default="ckpts/LiteAVSE_small.pth")
    parser.add_argument("--manifest", help="test set of evaluation.make_testset, instead of the options for mixtures")
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes that enhance and score")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_mixture_options(parser, snrs_db)


def add_rating_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dnsmos_p835", type=Path, help="rate each sound by sig_bak_ovr.onnx, too; needs onnxruntime")
    parser.add_argument("--dnsmos_p808", type=Path, help="rate each sound by model_v8.onnx, too; needs onnxruntime")


def add_others_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--others", nargs="+", metavar="NAME=FOLDER",
        help="what other programs made of the mixtures (make_testset --sound_dir), a row each; files have the mixtures' names",
    )  # fmt: skip


def read_others(words: Sequence[str] | None) -> dict[str, str]:
    """{row: folder} of --others, if it was given; ValueError for a name that a row cannot have, and for what is no folder."""
    found: dict[str, str] = {}
    for word in words or ():
        name, _, folder = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) or not Path(folder).is_dir() or not folder:
            raise ValueError(f"--others {word}: should be NAME=FOLDER, with letters, digits, dots and hyphens in NAME")
        if name in found or name in (NOISY, AUDIO_ONLY, AUDIO_VISUAL):
            raise ValueError(f"--others {word}: there is a row {name} already")
        found[name] = folder
    return found


def folder_sha256(folder: str) -> str:
    """A hash of the names and contents of a folder's files."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return hashlib.sha256("\n".join(f"{path.name} {file_sha256(path)}" for path in files).encode()).hexdigest()


def command_line(module: str, argv: Sequence[str] | None) -> str:
    """The command as it is typed in a shell, to be written beside its results."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])


def score_run(args: argparse.Namespace, rows_of, command: str) -> ScoredRun:
    """Score the rows that `rows_of(enhancer, testset)` names. Rows that the output folder already has are kept."""
    config = load_config(args.config) if args.config else None
    if config:
        args.test_json = args.test_json or config["data_cfg"]["test_data_json"]
        args.noise_json = args.noise_json or config["data_cfg"]["test_noise_json"]
    if not args.manifest:
        check_mixture_options(args)
    if args.workers < 1:
        raise ValueError("--workers should be 1 or more")
    others = read_others(getattr(args, "others", None))
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, config)
    identity = {
        "checkpoint": file_sha256(args.checkpoint_file), "config": json_sha256(enhancer.cfg),
        "test set": read_manifest(args.manifest).sha256 if args.manifest else options_of(args),
    }
    models = tuple(None if path is None else str(path) for path in (getattr(args, key, None) for key in RATINGS))
    rated = {}
    if any(models):
        DNSMOS(*models)  # one that cannot be used is said before the work
        rated = {"DNSMOS models": " ".join(file_sha256(path) for path in models if path)}
    store = RowStore(args.output_dir, identity | rated)
    manifest = Path(args.manifest or args.output_dir / "manifest.json")
    if not manifest.is_file():
        make_testset(args, manifest)
    testset = read_manifest(manifest)
    write_json(args.output_dir / "run.json", {
        **identity, **rated, "command": command, "checkpoint_file": str(args.checkpoint_file), "revision": git_revision(),
        "model": enhancer.describe(), "manifest_sha256": testset.sha256, "note": testset.note,
    })  # fmt: skip
    rows = rows_of(enhancer, testset)
    print(f"{enhancer.describe()}\n{testset.note}", flush=True)
    threads = max(1, torch.get_num_threads() // args.workers)
    setup = Setup(str(args.checkpoint_file), config, str(enhancer.device), threads, testset.max_sec, models, others)
    scored = score_rows(testset.samples, rows, store, setup, args.workers, enhancer)
    for name, folder in others.items():
        # These depend on no checkpoint, and each has a store of its own, so that one can be added or made anew later.
        made = {"test set": testset.sha256, "sounds": folder_sha256(folder)} | rated
        own = RowStore(args.output_dir / "others" / name, made)
        scored += score_rows(testset.samples, [name], own, setup, args.workers, enhancer)
    return ScoredRun(scored, testset, enhancer)
