"""The plan's own recipe trains as it is; SEMamba's weights may start it, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_lite
from helpers.plan_recipe import PLAN_RECIPE
from helpers.tiny import save_tiny_checkpoint
from helpers.training import log_lines, write_recipe
from models.generator import LiteAVSEMamba
from models.pretrained import load_generator, start_from
from utils.checkpoint import latest_pair, load_checkpoint
from utils.config import complete_config, load_config
from utils.util import load_json_file, write_json

# What makes a step of it short, and spares it the download of the backbone's weights; its weights and keys stay.
SMALL = (
    "model_cfg.hid_feature=8", "model_cfg.num_tfmamba=1", "model_cfg.d_state=4", "model_cfg.expand=2",
    "training_cfg.segment_size=4000", "training_cfg.valid_clips=1", "env_setting.num_workers=0",
)
QUICK = ("visual_cfg.backbone_weights=none", "training_cfg.max_steps=2", "env_setting.stdout_interval=1")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plan's recipe and lists where it looks for them."""
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LiteAVSE.yaml").write_text(PLAN_RECIPE, encoding="utf-8")
    for split in ("train", "valid", "test"):
        write_json(tmp_path / "data" / f"grid_{split}.json", load_json_file(tmp_path / "clips.json"))
    write_json(tmp_path / "data" / "noise_demand.json", load_json_file(tmp_path / "noise.json"))
    return tmp_path / "LiteAVSE.yaml"


def start(plan: Path, *overrides: str) -> int:
    return train_lite.main(["--config", str(plan), "--exp_name", "plan", "--device", "cpu", "--override", *QUICK, *overrides])


def test_it_trains_as_it_is(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(plan, *SMALL) == 0
    said = capsys.readouterr().out
    assert "visual_channels: 1 is taken as 3" in said and "; causal; " in said
    weights = load_config(plan)["training_cfg"]["loss"]
    lines = log_lines(plan.parent / "exp" / "plan")
    assert len(lines) == 2 and set(lines[0]) >= {"magnitude", "phase", "complex", "consistancy", "si_sdr"}
    for line in lines:
        by_hand = sum(weights[name] * line[name] for name in weights if weights[name])
        assert line["total"] == pytest.approx(by_hand, rel=1e-5) and abs(line["si_sdr"]) > 1  # in dB, not bels


@pytest.mark.slow
def test_it_trains_at_its_own_size(plan: Path) -> None:
    assert start(plan, "env_setting.num_workers=0", "training_cfg.valid_clips=1") == 0
    held = load_checkpoint(latest_pair(plan.parent / "exp" / "plan")[0])
    assert held["config"]["model_cfg"]["causal"] and held["config"]["model_cfg"]["hid_feature"] == 64


def test_lines_and_tensorboard_have_intervals_of_their_own(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intervals = ("env_setting.stdout_interval=1", "env_setting.summary_interval=2", "env_setting.validation_interval=2")
    assert start(plan, *SMALL, *intervals) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len([line for line in said if "magnitude" in line and "si_sdr" in line and "epoch 0" in line]) == 2
    board = EventAccumulator(str(plan.parent / "exp" / "plan" / "logs"))
    board.Reload()
    tags = board.Tags()["scalars"]
    for tag in ("Training/Generator Loss", "Training/Magnitude Loss", "Training/Phase Loss", "Training/Complex Loss",
                "Training/Consistancy Loss", "Training/SI-SDR Loss", "Training/learning_rate", "Validation/PESQ Score",
                "Validation/Magnitude Loss", "Validation/Phase Loss", "Validation/Complex Loss"):  # fmt: skip
        assert tag in tags
        assert [event.step for event in board.Scalars(tag)] == [2]
    shown = "Validation clip 0/"
    assert set(board.Tags()["audio"]) == {f"{shown}{name}" for name in ("noisy", "enhanced", "clean")}
    assert board.Tags()["images"] == [f"{shown}spectrograms, alpha, gate"]
    assert board.Images(f"{shown}spectrograms, alpha, gate")[0].width > 400
    assert "Recipe/text_summary" in board.Tags()["tensors"] and "_hparams_/experiment" in board.summary_metadata
    (validation,) = log_lines(plan.parent / "exp" / "plan", "validation")
    weights = load_config(plan)["training_cfg"]["loss"]
    by_hand = sum(weights[name] * validation[f"loss_{name}"] for name in weights if weights[name])
    assert validation["loss"] == pytest.approx(by_hand, rel=1e-4)


def test_what_is_causal_where_the_recipe_does_not_say() -> None:
    for mapping, causal in (
        ({}, False), ({"model_cfg": {"expand": 2}}, False), ({"visual_cfg": {"visual_channels": 1}}, True),
        ({"lite_cfg": {}, "model_cfg": None}, True), ({"lite_cfg": {}, "model_cfg": {"causal": False}}, False),
        ({"lite_cfg": {}, "model_cfg": {"norm": "instance"}}, False),
    ):  # fmt: skip
        cfg = complete_config(mapping)
        assert cfg["model_cfg"]["causal"] is causal
        assert complete_config(cfg) == cfg


def test_semambas_weights_may_start_it(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_tiny_checkpoint(plan.parent / "g_00000009.pth", "SEMamba")
    settings = (*SMALL, f"training_cfg.init_checkpoint={path}", "training_cfg.init_parts=fitting")
    cfg = load_config(plan, [*QUICK, *settings])
    trainer = train_lite.build_trainer(cfg, plan.parent / "new", torch.device("cpu"))
    said, given = capsys.readouterr().out, load_checkpoint(path)["generator"]
    own = trainer.generator.state_dict()
    fitting = [key for key in given if key in own and own[key].shape == given[key].shape]
    assert len(fitting) > len(own) // 4 and f"starts from {len(fitting)} of {len(own)} weights" in said
    assert all(torch.equal(own[key], given[key]) for key in fitting)
    assert "model_cfg.causal was False, here True" in said and "model_cfg.norm was instance, here channel" in said
    assert all(part in said for part in ("visual_encoder", "vce", "fsvg"))
    strictly = load_config(plan, [*QUICK, *settings, "training_cfg.init_parts=all"])
    with pytest.raises(ValueError, match="norm|causal"):
        train_lite.build_trainer(strictly, plan.parent / "new", torch.device("cpu"))


def test_a_deeper_model_starts_where_a_shallower_one_ended(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_tiny_checkpoint(plan.parent / "g_00000003.pth")
    shallow, cfg = load_generator(path)
    deep = LiteAVSEMamba(cfg | {"model_cfg": cfg["model_cfg"] | {"num_tfmamba": 3}}).eval()
    said = start_from(deep, cfg, path, "fitting")
    assert "TSMamba" in said
    mag, pha = torch.rand(1, 201, 12), torch.rand(1, 201, 12)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(deep(mag, pha), shallow(mag, pha), strict=True))
    deep.train()
    deep(mag, pha)[0].sum().backward()
    assert deep.TSMamba[2].flinear.weight.grad.any()  # it is not a block that can never learn
