"""Makes a checkpoint give clean speech back as loud as it was.

    python -m evaluation.match_level --checkpoint_file exp/small/best.pth --output ckpts/LiteAVSE_small.pth

What noise makes uncertain a model learns to turn down, and a small one turns down clean speech with it, by some dB at all
frequencies alike. The gain that it gives to clean speech is measured, without a video, and what makes up for it is written
into the checkpoint as `level_db` of its meta, which every program that loads it applies. The weights stay as they are, and so
do PESQ, STOI and SI-SDR, for which a constant gain is nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.inference.enhancer import Enhancer
from models.pretrained import LARGEST_LEVEL_DB, LEVEL_KEY, level_db
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.console import Parser, run
from utils.media.sound import load_audio

SAMPLES = Path(__file__).resolve().parents[1] / "samples"


def clean_gain_db(enhancer: Enhancer, sounds: Sequence[np.ndarray]) -> float:
    """The mean gain in dB that clean speech [n] at the model's rate gets: of each, its share in what is made of it."""
    gains = []
    for clean in sounds:
        made = enhancer.enhance(clean, enhancer.sample_rate).wav
        gains.append(20 * np.log10(max(float(made @ clean), 1e-9) / max(float(clean @ clean), 1e-9)))
    return float(np.mean(gains))


def match(args: argparse.Namespace) -> int:
    paths = args.clean or sorted(SAMPLES.glob("*_clean.flac"))
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device)
    sounds = [load_audio(path, enhancer.sample_rate) for path in paths]
    print(enhancer.describe())
    gain_db = clean_gain_db(enhancer, sounds)
    checkpoint = load_checkpoint(args.checkpoint_file)
    before = level_db(checkpoint, args.checkpoint_file)
    wanted = round(before - gain_db, 2)
    count = f"{len(sounds)} recordings" if len(sounds) > 1 else "1 recording"
    print(f"clean speech ({count}) gets {gain_db:+.2f} dB; {LEVEL_KEY} is {before:g}, and should be {wanted:g}")
    if args.output is None:
        return 0
    if abs(wanted) > LARGEST_LEVEL_DB:
        raise ValueError(f"{args.checkpoint_file} changes clean speech by {gain_db:.1f} dB: it is no trained model")
    save_checkpoint(args.output, checkpoint | {"meta": {**checkpoint.get("meta", {}), LEVEL_KEY: wanted}})
    print(f"written to {args.output}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("match_level.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_file", type=Path, required=True, help="one of our own, g_*.pth or best.pth")
    parser.add_argument("--clean", type=Path, nargs="+", help="recordings of clean speech (default: those in samples/)")
    parser.add_argument("--output", type=Path, help="the checkpoint with its level; may be the same file (default: none)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    return run("match_level.py", lambda: match(args))


if __name__ == "__main__":
    raise SystemExit(main())
