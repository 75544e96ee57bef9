"""Draws an enhancement: the noisy, enhanced and clean spectrograms, their difference, the trust in the video, the gate.

    python -m evaluation.spectrogram_viz --noisy_audio noisy.wav --clean_audio clean.wav --video face.mp4 --output clip.png

Without --clean_audio the difference is that to the noisy sound. Without --noisy_audio the video's own sound is enhanced.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.reporting.figures import require_matplotlib
from evaluation.reporting.spectrograms import spectrogram_figure
from models.inference.enhancer import Enhancer
from utils.config import load_config
from utils.console import Parser, run
from utils.media.sound import load_audio
from utils.scores.metrics import aligned

FORMATS = (".png", ".pdf", ".svg")


def visualize(args: argparse.Namespace) -> int:
    """Enhance and draw."""
    require_matplotlib()
    if args.output.suffix.lower() not in FORMATS:
        raise ValueError(f"--output: {args.output} should end in {', '.join(FORMATS)}")
    source = args.noisy_audio or args.video
    if source is None:
        raise ValueError("give --noisy_audio, or a --video with the noisy sound in it")
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, load_config(args.config) if args.config else None)
    rate = enhancer.sample_rate
    noisy, clean = load_audio(source, rate), None
    if args.clean_audio is not None:
        clean, noisy = (wave.astype(np.float32) for wave in aligned(load_audio(args.clean_audio, rate), noisy, rate, True))
    video = mask = None
    if args.video is not None and enhancer.uses_video:
        video, mask = enhancer.load_video(args.video, len(noisy) / rate)
    result = enhancer.enhance(noisy, rate, video, mask, return_details=True)
    for note in result.notes:
        print(f"note: {note}")
    way = "audio only" if result.alpha is None else "audio-visual"
    sounds = {"noisy": noisy, f"enhanced, {way}": result.wav} | ({} if clean is None else {"clean": clean})
    spectrogram_figure(args.output, source.stem, sounds, result, enhancer.cfg["stft_cfg"], not args.no_diff)
    print(f"written to {args.output}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("spectrogram_viz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="recipe, for checkpoints without a configuration")
    parser.add_argument("--checkpoint_file", default="ckpts/LiteAVSE_small.pth")
    parser.add_argument("--noisy_audio", type=Path)
    parser.add_argument("--clean_audio", type=Path)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/spectrogram.png"), help=", ".join(FORMATS))
    parser.add_argument("--no_diff", action="store_true", help="leave the difference out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("spectrogram_viz.py", lambda: visualize(args))


if __name__ == "__main__":
    raise SystemExit(main())
