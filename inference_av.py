"""Enhance recordings of a talking person, from their sound alone or from sound and video; files and folders are given by
position. The enhanced sound is written, or the video with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import LOOKED_AT_SEC, Look, enhance_file
from models.inference.files.jobs import DEFAULT_OUTPUT, OUTPUT_FORMATS, Job, find_jobs, folder_jobs, single_job
from models.inference.files.options import (
    add_face_arguments,
    add_input_arguments,
    check_detector,
    face_options,
    with_crops,
)
from models.inference.files.plan import announce
from models.inference.files.run_jobs import add_file_options, introduce, run_jobs
from models.inference.files.stream_file import stream_file
from models.inference.results import EnhanceResult
from utils import console
from utils.config import load_config
from utils.distributed import Group, alone_or_together

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent / "ckpts" / "LiteAVSE_small.pth"


def add_input_options(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument("--input_audio", type=Path, help="the sound of one recording: a sound file, or a video")
    parser.add_argument("--input_video", type=Path, help="the speaker's video; without --input_audio its own sound is enhanced")
    parser.add_argument("--input_folder", type=Path, help="the same as a folder by position")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, help="a .wav or .flac file for the sound; a .mp4 .mov .m4v .mkv .webm "
                        "file for the video with that sound; or a folder (default: results), which several recordings need")
    parser.add_argument("--output_format", choices=OUTPUT_FORMATS, default="wav", help="format of <name>_enhanced in a folder; "
                        "video means the input video's container, or .mkv where that cannot be written (default: wav)")
    add_file_options(parser)
    parser.add_argument("--plot", action="store_true", help="draw each recording's first minute as a .png beside its output")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_file", type=Path, default=DEFAULT_CHECKPOINT, help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--config", type=Path, help="only for checkpoints that carry no configuration")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--stream", action="store_true", help="enhance chunk by chunk on one thread, as it would go live, "
                        "and print latency and speed")
    parser.add_argument("--chunk_ms", type=float, default=25.0, help="length of a chunk of --stream (default: 25)")


def parse(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = console.Parser(prog=program, description=__doc__)
    add_input_options(parser)
    add_output_options(parser)
    add_model_options(parser)
    add_face_arguments(parser)
    args = parser.parse_args(argv)
    args.faces = face_options(parser, args)
    single = args.input_audio is not None or args.input_video is not None
    if [single, args.input_folder is not None, bool(args.inputs)].count(True) != 1:
        parser.error("give files and folders by position, or --input_folder, or --input_audio and/or --input_video")
    if not 0 < args.chunk_ms <= 60_000:
        parser.error(f"--chunk_ms is {args.chunk_ms:g}, it should be some milliseconds, e.g. 25")
    if args.plot and args.stream:
        parser.error("--plot needs the whole recording: leave out --stream")
    return args


def build_jobs(args: argparse.Namespace) -> list[Job]:
    options = {"output_format": args.output_format, "recursive": args.recursive}
    if args.input_folder is not None:
        jobs = folder_jobs(args.input_folder, args.output or DEFAULT_OUTPUT, **options)
    elif args.inputs:
        jobs = find_jobs(args.inputs, args.output, **options)
    else:
        jobs = [single_job(args.input_audio, args.input_video, args.output, args.output_format)]
    return with_crops(jobs, args.save_crop)


def drawing_of(enhancer: Enhancer) -> Look:
    from evaluation.reporting.figures import require_matplotlib  # enhancing needs neither it nor what scores
    from evaluation.reporting.spectrograms import draw_recording

    require_matplotlib()

    def draw(job: Job, noisy: np.ndarray, result: EnhanceResult) -> None:
        title = job.label if result.duration_sec < LOOKED_AT_SEC else f"{job.label}, the first {LOOKED_AT_SEC} s"
        draw_recording(job.output.with_suffix(".png"), title, noisy, result, enhancer.cfg["stft_cfg"])

    return draw


def enhance_all(args: argparse.Namespace, group: Group, device: torch.device) -> int:
    jobs = group.together(partial(build_jobs, args))
    progress = announce(jobs, group, args.skip_existing, True, args.dry_run)
    if args.dry_run:
        return 0

    def prepare() -> tuple[Enhancer, partial]:
        check_detector(args.faces)
        config = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, device, config, args.faces)
        given = {"keep_sample_rate": args.keep_sample_rate, "attenuation_limit_db": args.attenuation_limit_db,
                 "band": args.band, "progress": progress.reach}
        if not args.stream:
            return enhancer, partial(enhance_file, **given, look=drawing_of(enhancer) if args.plot else None)
        if not enhancer.model.causal:
            raise ValueError(f"--stream: {args.checkpoint_file} is not causal (model_cfg.causal: false); leave --stream out")
        return enhancer, partial(stream_file, **given, chunk_ms=args.chunk_ms)

    enhancer, work = group.together(prepare)
    introduce(enhancer, args.keep_sample_rate, args.band, group)
    several = args.input_folder is not None or max(len(args.inputs), len(jobs)) > 1 or args.inputs and args.inputs[0].is_dir()
    table_folder = (args.output or DEFAULT_OUTPUT) if several else None
    return run_jobs(enhancer, jobs, work, table_folder, args.skip_existing, group, progress)


def main(argv: Sequence[str] | None = None, program: str = "inference_av.py") -> int:
    """Command line; returns the exit code. `program` is what messages call it."""
    args = parse(argv, program)
    return console.run(program, lambda: alone_or_together(args.device, partial(enhance_all, args)))


if __name__ == "__main__":
    raise SystemExit(main())
