"""Short trainings of a tiny SEMamba with its discriminator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml

import train
from helpers.tiny import voice, wav_file
from utils.config import load_config
from utils.training.trainer import Trainer
from utils.util import write_json

RECIPE = {
    "env_setting": {
        "num_gpus": 0, "num_workers": 0, "seed": 7, "stdout_interval": 1, "checkpoint_interval": 2, "validation_interval": 1000,
        "shown_clips": 0,
    },
    "training_cfg": {
        "batch_size": 2, "segment_size": 8000, "max_steps": 4, "valid_clips": 1,
        "loss": {"metric": 0.05, "magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.2, "consistancy": 0.1},
    },
    "model_cfg": {"hid_feature": 8, "num_tfmamba": 1, "d_state": 4, "expand": 2},
}  # fmt: skip


def write_semamba_recipe(folder: Path) -> Path:
    """A recipe over four pairs, all in `folder`."""
    for i in range(4):
        clean = voice(1.0, seed=i)
        wav_file(folder / "clean" / f"p{i}.wav", clean)
        wav_file(folder / "noisy" / f"p{i}.wav", clean + 0.03 * np.random.default_rng(i).standard_normal(len(clean)))
    lists = {}
    for kind in ("clean", "noisy"):
        write_json(folder / f"{kind}.json", [f"{kind}/p{i}.wav" for i in range(4)])
        lists |= {f"{split}_{kind}_json": str(folder / f"{kind}.json") for split in ("train", "valid")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"data_cfg": lists}), encoding="utf-8")
    return folder / "recipe.yaml"


def run(recipe: Path, folder: Path, name: str, *overrides: str) -> int:
    return train.main(["--config", str(recipe), "--exp_folder", str(folder), "--exp_name", name, "--override", *overrides])


def trainer_of(recipe: Path, folder: Path, *overrides: str) -> Trainer:
    return train.build_trainer(load_config(recipe, overrides), folder, torch.device("cpu"))
