"""Enhance a folder of recordings by sound alone, with SEMamba checkpoints (its authors' or ours), on any device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import Job, folder_jobs
from models.inference.files.run_jobs import add_file_options, introduce, run_jobs
from models.pcs400 import SAMPLE_RATE_HZ as PCS_RATE_HZ
from models.pcs400 import cal_pcs
from utils import console
from utils.config import load_config
from utils.distributed import Group, alone_or_together


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(prog="inference.py", description=__doc__)
    parser.add_argument("--input_folder", type=Path, required=True, help="folder of noisy sound files")
    parser.add_argument("--output_folder", type=Path, default=Path("results"), help="outputs keep their names")
    parser.add_argument("--config", type=Path, help="recipe of a checkpoint that carries none (default: SEMamba's own)")
    parser.add_argument("--checkpoint_file", type=Path, required=True, help="g_XXXXXXXX.pth")
    parser.add_argument("--post_processing_PCS", type=console.flag, nargs="?", const=True, default=False,
                        metavar="True|False", help="perceptual contrast stretching of the output")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_file_options(parser)
    return parser.parse_args(argv)


def enhance_all(args: argparse.Namespace, group: Group, device: torch.device) -> int:
    def prepare() -> tuple[list[Job], Enhancer]:
        jobs = folder_jobs(args.input_folder, args.output_folder, use_video=False, suffix="")
        config = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, device, config)
        if args.post_processing_PCS and enhancer.sample_rate != PCS_RATE_HZ:
            raise ValueError(
                f"--post_processing_PCS is made for {PCS_RATE_HZ} Hz, {args.checkpoint_file} is for {enhancer.sample_rate} Hz; "
                "leave it out"
            )
        return jobs, enhancer

    jobs, enhancer = group.together(prepare)
    introduce(enhancer, args.keep_sample_rate, group)
    work = partial(
        enhance_file, post_process=cal_pcs if args.post_processing_PCS else None, keep_sample_rate=args.keep_sample_rate,
        attenuation_limit_db=args.attenuation_limit_db,
    )
    return run_jobs(enhancer, jobs, work, args.output_folder, args.skip_existing, group)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return console.run("inference.py", lambda: alone_or_together(args.device, partial(enhance_all, args)))


if __name__ == "__main__":
    raise SystemExit(main())
