"""The claim the whole project rests on: with two voices of one kind, the face tells which of them is to be kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import train_lite
from data import make_synthetic
from dataloaders.dataloader_av import AVDataset
from evaluation.validation import Validation
from models.inference.enhancer import Enhancer
from utils.config import load_config

RECIPE = {
    "env_setting": {"num_workers": 1, "seed": 3, "checkpoint_interval": 100, "validation_interval": 100_000},
    "training_cfg": {
        "training_epochs": 1000, "max_steps": 150, "batch_size": 4, "segment_size": 20480, "learning_rate": 0.002,
        "warmup_steps": 20, "lr_decay": 0.95, "snr_range": [0, 0], "video_dropout": 0.25, "visual_degradation": False,
        "valid_snrs_db": [0],
        # Confidence has to be among them: while the encoder is untrained the video is noise, and an alpha that is left
        # to itself shuts it out for good.
        "loss": {"magnitude": 0.9, "phase": 0.1, "complex": 0.2, "si_sdr": 0.1, "consistancy": 0.0, "confidence": 0.1},
    },
    "model_cfg": {
        "hid_feature": 16, "num_tfmamba": 1, "d_state": 8, "expand": 2, "causal": True, "phase_residual": True,
    },
    "visual_cfg": {"visual_dim": 128},
    "lite_cfg": {"visual_encoder_type": "custom3d"},
}  # fmt: skip


def _corpus(folder: Path) -> dict[str, str]:
    assert make_synthetic.main(["--output_dir", str(folder), "--speakers", "8", "--clips_per_speaker", "20"]) == 0
    lists = {f"{split}_data_json": str(folder / f"synth_{split}.json") for split in ("train", "valid", "test")}
    voices = {split: str(folder / f"voices_{split}.json") for split in ("train", "valid")}
    return lists | {
        "train_noise_json": voices["train"], "valid_noise_json": voices["valid"], "test_noise_json": voices["valid"],
    }


@pytest.mark.slow
def test_the_video_is_worth_three_decibels_against_a_competing_voice(tmp_path):
    """Held-out people, held-out voices, 0 dB: SI-SDR with the video and with it withheld, same weights."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"data_cfg": _corpus(tmp_path / "corpus")}))
    cfg = load_config(tmp_path / "recipe.yaml")
    trainer = train_lite.build_trainer(cfg, tmp_path / "run", torch.device("cpu"))
    assert trainer.run() == "finished"
    data = cfg["data_cfg"]
    held_out = AVDataset(data["test_data_json"], data["test_noise_json"], cfg, "test")
    enhancer = Enhancer(trainer.generator.eval(), cfg, torch.device("cpu"))
    score = Validation(held_out)
    seen, withheld = score(enhancer), score(enhancer, use_video=False)
    print(f"SI-SDR with the video {seen['si_sdr']:.2f} dB, withheld {withheld['si_sdr']:.2f} dB ({seen['n']} clips)")
    assert seen["si_sdr_improvement"] > 2
    assert seen["si_sdr"] >= withheld["si_sdr"] + 3
