"""Enhance a folder of recordings by sound alone, with SEMamba checkpoints (its authors' or ours), on any device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import DEFAULT_OUTPUT, Job, find_jobs, folder_jobs
from models.inference.files.options import add_input_arguments
from models.inference.files.plan import announce
from models.inference.files.run_jobs import add_file_options, introduce, run_jobs
from models.pcs400 import SAMPLE_RATE_HZ as PCS_RATE_HZ
from models.pcs400 import cal_pcs
from utils import console
from utils.config import load_config
from utils.distributed import Group, alone_or_together


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(prog="inference.py", description=__doc__)
    add_input_arguments(parser)
    parser.add_argument("--input_folder", type=Path, help="the same as a folder by position")
    parser.add_argument("-o", "--output_folder", type=Path, default=DEFAULT_OUTPUT, help="the outputs keep the inputs' names "
                        "(default: results); for a single file it may be a .wav or .flac file")
    parser.add_argument("--config", type=Path, help="recipe of a checkpoint that carries none (default: SEMamba's own)")
    parser.add_argument("--checkpoint_file", type=Path, required=True, help="g_XXXXXXXX.pth")
    parser.add_argument("--post_processing_PCS", type=console.flag, nargs="?", const=True, default=False,
                        metavar="True|False", help="perceptual contrast stretching of the output")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_file_options(parser)
    args = parser.parse_args(argv)
    if (args.input_folder is not None) == bool(args.inputs):
        parser.error("give files and folders by position, or --input_folder")
    return args


def build_jobs(args: argparse.Namespace) -> list[Job]:
    options = {"use_video": False, "suffix": "", "recursive": args.recursive}
    if args.input_folder is not None:
        return folder_jobs(args.input_folder, args.output_folder, **options)
    return find_jobs(args.inputs, args.output_folder, **options)


def enhance_all(args: argparse.Namespace, group: Group, device: torch.device) -> int:
    jobs = group.together(partial(build_jobs, args))
    progress = announce(jobs, group, args.skip_existing, False, args.dry_run)
    if args.dry_run:
        return 0

    def prepare() -> Enhancer:
        config = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, device, config)
        if args.post_processing_PCS and enhancer.sample_rate != PCS_RATE_HZ:
            raise ValueError(
                f"--post_processing_PCS is made for {PCS_RATE_HZ} Hz, {args.checkpoint_file} is for {enhancer.sample_rate} Hz; "
                "leave it out"
            )
        return enhancer

    enhancer = group.together(prepare)
    introduce(enhancer, args.keep_sample_rate, args.band, group)
    work = partial(
        enhance_file, post_process=cal_pcs if args.post_processing_PCS else None, keep_sample_rate=args.keep_sample_rate,
        attenuation_limit_db=args.attenuation_limit_db, band=args.band, progress=progress.reach,
    )
    in_folder = args.input_folder is not None or max(len(args.inputs), len(jobs)) > 1 or args.inputs[0].is_dir()
    return run_jobs(enhancer, jobs, work, args.output_folder if in_folder else None, args.skip_existing, group, progress)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return console.run("inference.py", lambda: alone_or_together(args.device, partial(enhance_all, args)))


if __name__ == "__main__":
    raise SystemExit(main())
