"""Makes the file that `data_cfg.train_dubbing_bank` names: what is needed to give a face to a voice that was never filmed.

    python -m evaluation.make_dubbing_bank --config recipes/LiteAVSE/LiteAVSE_small.yaml --list data/lists/av_train.json --output data/dubbing_bank.npz

For each filmed clip the recipe's visual encoder gives features, of a face placed and lit a little differently each time. Ridge
regression finds the part of them that a linear map of the sound's band energies explains, over all clips; the rest is stored clip
by clip. `dataloaders.dubbing` adds the map of another voice's energies to it.
"""  # noqa: E501 (a command is one line)

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.augment_video import CropJitter
from dataloaders.clip_dataset import as_video
from dataloaders.clip_sources import open_clips
from dataloaders.dubbing import context_energies
from dataloaders.scene import speaker_of
from models.distilled_encoder import load_encoder_weights
from models.generator import VISUAL_ENCODERS
from utils.config import load_config
from utils.console import Parser, run

RIDGE = 1e-2  # of the energies' mean variance
LEAST_TAKES = 12  # of each speaker, where there are as many clips or not: a clip is taken again, placed differently
MOST_SEC = 10.0  # of a clip


class Take(NamedTuple):
    """A filmed clip: features [V, D], energies [V, E] of its sound, and who it is."""

    features: np.ndarray
    energies: np.ndarray
    speaker: str


def ridge_map(energies: Sequence[np.ndarray], features: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The map [E, D] from energies [V, E] to features [V, D], each clip less its own means; `weights` are the clips'."""
    x = np.concatenate([e - e.mean(0) for e in energies]).astype(np.float64)
    y = np.concatenate([f - f.mean(0) for f in features]).astype(np.float64)
    w = np.concatenate([np.full(len(e), weight) for e, weight in zip(energies, weights, strict=True)])
    power = (x * w[:, None]).T @ x
    return np.linalg.solve(power + RIDGE * w.sum() * x.var() * np.eye(len(power)), (x * w[:, None]).T @ y)


def film(cfg: dict, source: str) -> list[Take]:
    """Each clip of a list, seen by the recipe's visual encoder; those with frames without a face are left out."""
    if cfg["visual_cfg"]["encoder_weights"] is None:
        raise ValueError("visual_cfg.encoder_weights: name the weights of the encoder whose features are wanted")
    encoder = VISUAL_ENCODERS[cfg["lite_cfg"]["visual_encoder_type"]](cfg).eval()
    load_encoder_weights(encoder, cfg["visual_cfg"]["encoder_weights"])
    rate, fps = cfg["stft_cfg"]["sampling_rate"], cfg["visual_cfg"]["video_fps"]
    clips = [clip for clip in open_clips(source, "--list", cfg) if clip.has_video]
    counts, rng, jitter = Counter(map(speaker_of, clips)), np.random.default_rng(cfg["env_setting"]["seed"]), CropJitter()
    takes: list[Take] = []
    for clip in clips:
        sound = clip.sound(0.0, MOST_SEC)
        count = int(len(sound) / rate * fps)
        frames, mask = clip.frames(0, count)
        if not count or not mask.all():
            continue
        energies = context_energies(sound, count, fps, rate)
        for _ in range(-(-LEAST_TAKES // counts[speaker_of(clip)])):
            video = as_video(jitter(frames, rng))[None].float() / 255.0  # [1, 3, V, S, S]
            with torch.no_grad():
                features = encoder.encode_frames(video)[0][0].T.numpy()
            takes.append(Take(features, energies, speaker_of(clip)))
    if not takes:
        raise ValueError(f"--list: {source} names no clip with a face in every frame")
    return takes


def make_bank(takes: Sequence[Take]) -> tuple[dict[str, np.ndarray], float]:
    """The arrays that `dataloaders.dubbing.Dubber` reads, and the share of the features' variance that sound explains."""
    counts = Counter(take.speaker for take in takes)
    energies, features = [take.energies for take in takes], [take.features for take in takes]
    found = ridge_map(energies, features, [counts[take.speaker] ** -0.5 for take in takes])
    moving = [f - f.mean(0) for f in features]
    rest = [f - (e - e.mean(0)) @ found for f, e in zip(moving, energies, strict=True)]
    explained = 1 - sum(np.square(r).sum() for r in rest) / sum(np.square(f).sum() for f in moving)
    return {
        "map": found.astype(np.float32), "mean": np.stack([f.mean(0) for f in features]).astype(np.float32),
        "residual": np.concatenate(rest).astype(np.float16), "length": np.array([len(r) for r in rest]),
        "speaker": np.array([take.speaker for take in takes]),
    }, float(explained)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser("make_dubbing_bank.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/LiteAVSE/LiteAVSE_small.yaml", help="recipe (YAML) with the encoder")
    parser.add_argument("--list", required=True, help="clips with faces: a list, or shards")
    parser.add_argument("--output", required=True, help="where the file (.npz) goes")
    parser.add_argument("--override", nargs="*", action="extend", default=[], metavar="section.key=value")
    args = parser.parse_args(argv)

    def work() -> int:
        takes = film(load_config(args.config, args.override), args.list)
        bank, explained = make_bank(takes)
        output = Path(args.output).with_suffix(".npz")
        output.parent.mkdir(parents=True, exist_ok=True)
        np.savez(output, **bank)
        who = f"{len(takes)} takes of {len(set(bank['speaker']))} speakers"
        print(f"{output}: {who}; sound explains {explained:.0%} of the features")
        return 0

    return run("make_dubbing_bank", work)


if __name__ == "__main__":
    sys.exit(main())
