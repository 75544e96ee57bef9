"""Enhance recordings of a talking person: sound, or sound and video, in; 16-bit wav at the model's rate out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from models.enhance_files import Job, folder_jobs, run_jobs, single_job
from models.enhancer import Enhancer
from models.face_arguments import add_face_arguments, check_detector, face_options, with_crops
from models.stream_files import stream_file
from utils import console
from utils.config import load_config

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent / "ckpts" / "LiteAVSE_small.pth"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(prog="inference_av.py", description=__doc__)
    parser.add_argument("--input_audio", type=Path, help="sound to enhance (.wav .flac .mp3 .ogg or a video's own sound)")
    parser.add_argument("--input_video", type=Path, help="the speaker's video; alone, its own sound is enhanced")
    parser.add_argument("--input_folder", type=Path, help="enhance all in this folder, sound and video paired by name")
    parser.add_argument("--output", type=Path, help="a .wav file (or a folder); with --input_folder a folder "
                        "(default: results/<name>_enhanced.wav)")
    parser.add_argument("--checkpoint_file", type=Path, default=DEFAULT_CHECKPOINT, help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--stream", action="store_true", help="chunk by chunk on one thread, as live; prints latency and speed")
    parser.add_argument("--chunk_ms", type=float, default=25.0, help="of --stream (default: 25)")
    parser.add_argument("--config", type=Path, help="only for checkpoints that carry no configuration")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_face_arguments(parser)
    args = parser.parse_args(argv)
    args.faces = face_options(parser, args)
    single = args.input_audio is not None or args.input_video is not None
    if single == (args.input_folder is not None):
        parser.error("give either --input_folder, or --input_audio and/or --input_video")
    if not 0 < args.chunk_ms <= 60_000:
        parser.error(f"--chunk_ms is {args.chunk_ms:g}, it should be some milliseconds, e.g. 25")
    return args


def build_jobs(args: argparse.Namespace) -> list[Job]:
    if args.input_folder is not None:
        return folder_jobs(args.input_folder, args.output or Path("results"))
    return [single_job(args.input_audio, args.input_video, args.output)]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)

    def body() -> int:
        jobs = with_crops(build_jobs(args), args.save_crop)
        check_detector(args.faces)
        config = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, config, args.faces)
        print(enhancer.describe(), flush=True)
        if not args.stream:
            return run_jobs(enhancer, jobs)
        if not enhancer.model.causal:
            raise ValueError(f"--stream: {args.checkpoint_file} is not causal (model_cfg.causal: false); leave --stream out")
        return run_jobs(enhancer, jobs, partial(stream_file, chunk_ms=args.chunk_ms))

    return console.run("inference_av.py", body)


if __name__ == "__main__":
    raise SystemExit(main())
