"""Short trainings of a tiny model: the recipe, the run and what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

import train_lite
from helpers.tiny import face_crops, voice
from utils.checkpoint import latest_pair, load_checkpoint
from utils.config import load_config
from utils.media.clip_writer import write_clip
from utils.training.trainer import Trainer
from utils.util import write_json

RECIPE = {
    "env_setting": {
        "num_workers": 0, "seed": 7, "stdout_interval": 1, "checkpoint_interval": 2, "validation_interval": 1000,
        "shown_clips": 0,
    },
    "training_cfg": {
        "batch_size": 2, "segment_size": 4000, "max_steps": 5, "ema_decay": 0.9, "valid_clips": 1, "video_dropout": 0.2,
        "loss": {"si_sdr": 0.03, "confidence": 0.05},
    },
    "model_cfg": {"hid_feature": 8, "num_tfmamba": 1, "d_state": 4, "expand": 2, "causal": True, "phase_residual": True},
    "visual_cfg": {"visual_dim": 32},
    "lite_cfg": {"visual_encoder_type": "custom3d"},
}  # fmt: skip


def write_recipe(folder: Path) -> Path:
    """A recipe over four talking clips and two noises, all in `folder`."""
    for i in range(4):
        write_clip(folder / f"clip{i}.mp4", face_crops(30, seed=i), voice(1.2, seed=i))
    for i in range(2):
        soundfile.write(folder / f"noise{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(32000), 16000)
    write_json(folder / "clips.json", [{"video": str(folder / f"clip{i}.mp4")} for i in range(4)])
    write_json(folder / "noise.json", [str(folder / f"noise{i}.wav") for i in range(2)])
    lists = {f"{split}_data_json": str(folder / "clips.json") for split in ("train", "valid")}
    lists |= {f"{split}_noise_json": str(folder / "noise.json") for split in ("train", "valid")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"data_cfg": lists}), encoding="utf-8")
    return folder / "recipe.yaml"


def train(recipe: Path, folder: Path, name: str, *overrides: str) -> int:
    return train_lite.main(
        ["--config", str(recipe), "--exp_folder", str(folder), "--exp_name", name, "--device", "cpu", "--override", *overrides]
    )


def trainer_of(recipe: Path, folder: Path, *overrides: str) -> Trainer:
    cfg = load_config(recipe, overrides)
    return train_lite.build_trainer(cfg, folder, torch.device("cpu"))


def log_lines(folder: Path, kind: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if k != "step_sec"} for line in lines]
    return [line for line in timeless if line["kind"] == kind]


def last_pair(folder: Path) -> tuple[dict, dict]:
    weights, rest, _ = latest_pair(folder)
    return load_checkpoint(weights)["generator"], load_checkpoint(rest)
