"""The mean of checkpoints: of running averages where a run keeps them, and of nothing that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation import average_checkpoints
from helpers.tiny import only_line, save_tiny_checkpoint
from helpers.training import train, write_recipe
from models.inference.enhancer import Enhancer
from utils.checkpoint import load_checkpoint


def test_running_averages_take_the_place_of_the_weights(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=4", "training_cfg.train_only=[mask_decoder]") == 0
    paths = [tmp_path / "run" / f"g_{step:08d}.pth" for step in (2, 4)]
    assert average_checkpoints.main([*map(str, paths), "--output", str(tmp_path / "mean.pth")]) == 0
    mean, held = load_checkpoint(tmp_path / "mean.pth"), [load_checkpoint(path)["generator"] for path in paths]
    averages = [load_checkpoint(path.with_name(path.name.replace("g_", "do_")))["average"] for path in paths]
    trained = average_checkpoints.trained_names(paths[0])
    assert trained and all(name.startswith("mask_decoder.") for name in trained)
    for name, value in mean["generator"].items():
        if name in trained:
            first, second = (average[trained.index(name)] for average in averages)
            torch.testing.assert_close(value, (first + second) / 2)
        else:
            torch.testing.assert_close(value, held[0][name])
    assert any(not torch.equal(mean["generator"][name], held[1][name]) for name in trained)
    assert mean["meta"] == {"mean_of": [path.name for path in paths]}
    Enhancer.from_checkpoint(tmp_path / "mean.pth")


def test_a_taught_encoder_that_was_kept_has_no_running_average(tmp_path: Path) -> None:
    run = tmp_path / "run"
    kept = ["visual_cfg.visual_dim=128", "visual_cfg.encoder_weights=ckpts/visual_encoder.pth"]
    kept.append("lite_cfg.visual_encoder_type=distilled")
    assert train(write_recipe(tmp_path), tmp_path, "run", "training_cfg.max_steps=2", *kept) == 0
    assert average_checkpoints.main([str(run / "g_00000002.pth"), "--output", str(tmp_path / "mean.pth")]) == 0
    mean, average = load_checkpoint(tmp_path / "mean.pth")["generator"], load_checkpoint(run / "do_00000002.pth")["average"]
    names = average_checkpoints.trained_names(run / "g_00000002.pth")
    assert names and not any(name.startswith("visual_encoder.") for name in names)
    assert all(torch.equal(mean[name], value) for name, value in zip(names, average, strict=True))


def test_checkpoints_of_other_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [save_tiny_checkpoint(tmp_path / "a.pth"), save_tiny_checkpoint(tmp_path / "b.pth", model_cfg={"hid_feature": 16})]
    assert average_checkpoints.main([*map(str, paths), "--output", str(tmp_path / "mean.pth")]) == 2
    assert "b.pth" in only_line(capsys.readouterr().err) and not (tmp_path / "mean.pth").exists()
