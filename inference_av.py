"""Enhance recordings of a talking person: sound, or sound and video, in; the sound, or the video with it, out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import LOOKED_AT_SEC, Look, enhance_file
from models.inference.files.jobs import OUTPUT_FORMATS, Job, folder_jobs, single_job
from models.inference.files.options import add_face_arguments, check_detector, face_options, with_crops
from models.inference.files.run_jobs import add_file_options, introduce, run_jobs
from models.inference.files.stream_file import stream_file
from models.inference.results import EnhanceResult
from utils import console
from utils.config import load_config
from utils.distributed import Group, alone_or_together

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent / "ckpts" / "LiteAVSE_small.pth"


def add_input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input_audio", type=Path, help="sound to enhance (.wav .flac .mp3 .ogg or a video's own sound)")
    parser.add_argument("--input_video", type=Path, help="the speaker's video; alone, its own sound is enhanced")
    parser.add_argument("--input_folder", type=Path, help="enhance all in this folder, sound and video paired by name")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="sound: a .wav or .flac file; the video with that sound: .mp4 .mov .m4v "
                        ".mkv .webm; or a folder (default: results), always so with --input_folder")
    parser.add_argument("--output_format", choices=OUTPUT_FORMATS, default="wav", help="of <name>_enhanced in a folder; video: "
                        "as the input video's container, .mkv where that cannot be written (default: wav)")
    add_file_options(parser)
    parser.add_argument("--plot", action="store_true", help="draw each recording's first minute beside its output, as .png")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint_file", type=Path, default=DEFAULT_CHECKPOINT, help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--config", type=Path, help="only for checkpoints that carry no configuration")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--stream", action="store_true", help="chunk by chunk on one thread, as live; prints latency and speed")
    parser.add_argument("--chunk_ms", type=float, default=25.0, help="of --stream (default: 25)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(prog="inference_av.py", description=__doc__)
    add_input_options(parser)
    add_output_options(parser)
    add_model_options(parser)
    add_face_arguments(parser)
    args = parser.parse_args(argv)
    args.faces = face_options(parser, args)
    single = args.input_audio is not None or args.input_video is not None
    if single == (args.input_folder is not None):
        parser.error("give either --input_folder, or --input_audio and/or --input_video")
    if not 0 < args.chunk_ms <= 60_000:
        parser.error(f"--chunk_ms is {args.chunk_ms:g}, it should be some milliseconds, e.g. 25")
    if args.plot and args.stream:
        parser.error("--plot needs the whole recording: leave out --stream")
    return args


def build_jobs(args: argparse.Namespace) -> list[Job]:
    if args.input_folder is not None:
        return folder_jobs(args.input_folder, args.output or Path("results"), output_format=args.output_format)
    return [single_job(args.input_audio, args.input_video, args.output, args.output_format)]


def drawing_of(enhancer: Enhancer) -> Look:
    from evaluation.reporting.figures import require_matplotlib  # enhancing needs neither it nor what scores
    from evaluation.reporting.spectrograms import draw_recording

    require_matplotlib()

    def draw(job: Job, noisy: np.ndarray, result: EnhanceResult) -> None:
        title = job.label if result.duration_sec < LOOKED_AT_SEC else f"{job.label}, the first {LOOKED_AT_SEC} s"
        draw_recording(job.output.with_suffix(".png"), title, noisy, result, enhancer.cfg["stft_cfg"])

    return draw


def enhance_all(args: argparse.Namespace, group: Group, device: torch.device) -> int:
    def prepare() -> tuple[list[Job], Enhancer, partial]:
        jobs = with_crops(build_jobs(args), args.save_crop)
        check_detector(args.faces)
        config = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, device, config, args.faces)
        given = {"keep_sample_rate": args.keep_sample_rate, "attenuation_limit_db": args.attenuation_limit_db}
        if not args.stream:
            return jobs, enhancer, partial(enhance_file, **given, look=drawing_of(enhancer) if args.plot else None)
        if not enhancer.model.causal:
            raise ValueError(f"--stream: {args.checkpoint_file} is not causal (model_cfg.causal: false); leave --stream out")
        return jobs, enhancer, partial(stream_file, **given, chunk_ms=args.chunk_ms)

    jobs, enhancer, work = group.together(prepare)
    introduce(enhancer, args.keep_sample_rate, group)
    table_folder = (args.output or Path("results")) if args.input_folder is not None else None
    return run_jobs(enhancer, jobs, work, table_folder, args.skip_existing, group)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return console.run("inference_av.py", lambda: alone_or_together(args.device, partial(enhance_all, args)))


if __name__ == "__main__":
    raise SystemExit(main())
