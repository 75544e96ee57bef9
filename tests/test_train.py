"""train.py: SEMamba against its discriminator; what SEMamba's own script is known to do wrong is tried here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import inference
import train
import train_lite
from helpers.paths import GOLDEN
from helpers.semamba_training import run, trainer_of, write_semamba_recipe
from helpers.tiny import only_line, save_tiny_checkpoint, tiny_model, voice, wav_file
from models.discriminator import MetricDiscriminator
from models.loss import discriminator_losses
from models.pretrained import load_generator
from utils.checkpoint import latest_pair, load_checkpoint, save_checkpoint
from utils.config import load_config
from utils.util import write_json


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_semamba_recipe(tmp_path_factory.mktemp("corpus"))


def log_of(folder: Path, kind: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "step_sec"} for line in lines if line["kind"] == kind]


def test_both_players_learn_a_fixed_batch(recipe, tmp_path) -> None:
    trainer = trainer_of(recipe, tmp_path, "training_cfg.learning_rate=0.005", "training_cfg.segment_size=5600")
    batch = next(iter(trainer._batches()))
    values = []
    for _ in range(24):
        step, problem = trainer.train_step(batch)
        assert problem is None
        values.append(step)
    for name in ("total", "magnitude", "discriminator_total"):
        first, last = (np.mean([step[name] for step in part]) for part in (values[:5], values[-5:]))
        assert last < 0.75 * first, name
    assert {"metric", "phase", "complex", "time", "consistancy", "discriminator_clean", "discriminator_estimate"} <= set(step)


def test_the_generators_loss_moves_the_generator_alone(recipe, tmp_path) -> None:
    trainer = trainer_of(recipe, tmp_path)
    discriminator = trainer.adversary.module
    made = trainer.adversary.forward(next(iter(trainer._batches())))
    trainer.adversary.compute_losses(made)[0].backward()
    assert all(p.grad is None for p in trainer.parameters)
    assert all(p.grad is not None for p in discriminator.parameters())
    discriminator.zero_grad(set_to_none=True)
    total, terms = trainer.compute_losses(made)
    total.backward()
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
    assert all(p.grad is not None for p in trainer.parameters) and "metric" in terms


def test_resume_equals_uninterrupted_bit_for_bit(recipe, tmp_path) -> None:
    """Weights, both optimisers, dropout's random numbers, counters and log; stopped in the middle of an epoch."""
    assert run(recipe, tmp_path, "whole") == 0
    for last in (1, 3, 4):
        assert run(recipe, tmp_path, "parts", f"training_cfg.max_steps={last}") == 0
    whole, parts = ([load_checkpoint(path) for path in latest_pair(tmp_path / name)[:2]] for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[0]["generator"][key]) for key, value in whole[0]["generator"].items())
    assert all(torch.equal(value, parts[1]["discriminator"][key]) for key, value in whole[1]["discriminator"].items())
    for optimizer in ("optim_g", "optim_d"):
        for a, b in zip(whole[1][optimizer]["state"].values(), parts[1][optimizer]["state"].values(), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts") and len(log_of(tmp_path / "whole")) == 4


def test_the_best_score_outlives_a_restart(recipe, tmp_path) -> None:
    every_step = "env_setting.validation_interval=1"
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=2", every_step) == 0
    best = load_checkpoint(latest_pair(tmp_path / "run")[1])["best"]
    scores = [line["pesq"] for line in log_of(tmp_path / "run", "validation")]
    assert best["pesq"] == max(scores) and best["step"] == 1 + scores.index(max(scores))
    trainer = trainer_of(recipe, tmp_path / "run")
    assert trainer.best["step"] == -1 and trainer.resume() and trainer.best == best


def test_learning_rates_fall_by_epoch_for_both(recipe, tmp_path) -> None:
    trainer = trainer_of(recipe, tmp_path, "training_cfg.lr_decay=0.5")
    trainer.epoch = 3
    trainer.train_step(next(iter(trainer._batches())))
    rates = [group["lr"] for player in (trainer.player, trainer.rival) for group in player.optimizer.param_groups]
    assert rates == [5e-4 / 8] * 2


# PESQ that fails -----------------------------------------------------------------------------------------------------


def test_failed_scores_move_nothing() -> None:
    metric_r, metric_g = torch.tensor([[0.8], [0.6]]), torch.tensor([[0.5], [0.3]], requires_grad=True)
    scores, scored = torch.tensor([0.4, 0.0]), torch.tensor([True, False])
    total, terms = discriminator_losses(metric_r, metric_g, scores, scored)
    assert terms["clean"].item() == pytest.approx((0.04 + 0.16) / 2) and terms["estimate"].item() == pytest.approx(0.01)
    total.backward()
    assert metric_g.grad[0, 0] == pytest.approx(0.2) and metric_g.grad[1, 0] == 0
    total, terms = discriminator_losses(metric_r, metric_g, scores, torch.tensor([False, False]))
    assert terms["estimate"].item() == 0 and torch.isfinite(total)


def test_silence_is_trained_past_and_counted(recipe, tmp_path) -> None:
    for kind in ("clean", "noisy"):
        shutil.copytree(recipe.parent / kind, tmp_path / kind)
        wav_file(tmp_path / kind / "p0.wav", np.zeros(16000))
    wav_file(tmp_path / "noisy" / "p1.wav", np.zeros(16000))
    lists = [f"data_cfg.train_{kind}_json={tmp_path / kind}.json" for kind in ("clean", "noisy")]
    for kind in ("clean", "noisy"):
        write_json(tmp_path / f"{kind}.json", [f"{kind}/p{i}.wav" for i in range(4)])
    assert run(recipe, tmp_path, "run", *lists) == 0
    steps = log_of(tmp_path / "run")
    assert len(steps) == 4 and not log_of(tmp_path / "run", "skipped")  # no batch was lost to it
    assert all(np.isfinite(value) for step in steps for value in step.values() if isinstance(value, float))
    assert [step["pesq_failed"] for step in steps][1::2] == [2, 4]  # both of them, once an epoch of two steps
    weights, rest, _ = latest_pair(tmp_path / "run")
    assert load_checkpoint(rest)["report"]["pesq_failed"] == 4
    assert all(torch.isfinite(value).all() for value in load_checkpoint(weights)["generator"].values())


def test_scoring_processes_give_what_the_trainer_alone_gives(recipe, tmp_path) -> None:
    assert run(recipe, tmp_path, "alone", "training_cfg.max_steps=1") == 0
    assert run(recipe, tmp_path, "pool", "training_cfg.max_steps=1", "env_setting.num_workers=1") == 0
    assert log_of(tmp_path / "alone") == log_of(tmp_path / "pool")


# Discriminators and checkpoints of others ----------------------------------------------------------------------------


def test_a_pretrained_discriminator_begins_a_run_and_never_replaces_one(recipe, tmp_path, capsys) -> None:
    pretrained = MetricDiscriminator().state_dict()
    save_checkpoint(tmp_path / "D.pth", pretrained)
    use = ["training_cfg.use_pretrainedD=true", f"training_cfg.pretrained_discriminator={tmp_path / 'D.pth'}"]
    fresh = trainer_of(recipe, tmp_path / "run", *use)
    assert all(torch.equal(value, pretrained[key]) for key, value in fresh.adversary.module.state_dict().items())
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=2", *use) == 0
    assert "discriminator starts from" in capsys.readouterr().out
    learnt = load_checkpoint(latest_pair(tmp_path / "run")[1])["discriminator"]
    again = trainer_of(recipe, tmp_path / "run", *use)
    assert again.resume() and "starts from" not in capsys.readouterr().out
    held = again.adversary.module.state_dict()
    assert all(torch.equal(value, learnt[key]) for key, value in held.items())
    assert any(not torch.equal(value, pretrained[key]) for key, value in held.items())


def test_semambas_own_pretrained_discriminator(recipe, tmp_path, shared_data) -> None:
    path = shared_data / "weights" / "pretrained_discriminator.pth"
    trainer = trainer_of(
        recipe, tmp_path, "training_cfg.use_pretrainedD=true", f"training_cfg.pretrained_discriminator={path}"
    )
    held, given = trainer.adversary.module.state_dict(), load_checkpoint(path)
    assert set(held) == set(given) and all(torch.equal(held[key], given[key]) for key in given)


def test_a_run_of_semambas_own_goes_on(recipe, tmp_path) -> None:
    """Its pairs hold neither our position nor the best score, its optimiser numbers parameters in its own order, and a
    newer g_ file may lie without a partner."""
    trainer = trainer_of(recipe, tmp_path)
    trainer.train_step(next(iter(trainer._batches())))
    spec = json.loads((GOLDEN / "semamba_state_dict.json").read_text())
    ours = trainer.generator.state_dict()
    theirs = {name: ours[name] for name in spec["SEMamba"] if name in ours}  # in the order in which SEMamba saves them
    assert set(theirs) == set(ours)
    names = [name for name, _ in trainer.generator.named_parameters()]
    moments = dict(zip(names, trainer.optimizer.state_dict()["state"].values(), strict=True))
    optim_g = trainer.optimizer.state_dict() | {"state": {i: moments[name] for i, name in enumerate(theirs)}}
    save_checkpoint(tmp_path / "run" / "g_00001000.pth", {"generator": theirs})
    save_checkpoint(tmp_path / "run" / "do_00001000.pth", {
        "discriminator": trainer.adversary.module.state_dict(), "optim_g": optim_g,
        "optim_d": trainer.rival.optimizer.state_dict(), "steps": 1000, "epoch": 2,
    })  # fmt: skip
    save_checkpoint(tmp_path / "run" / "g_00002000.pth", {"generator": {}})
    again = trainer_of(recipe, tmp_path / "run")
    assert again.resume() and (again.step, again.epoch, again.position) == (1000, 2, 0)
    for mine, parameter in zip(again.parameters, trainer.parameters, strict=True):
        assert torch.equal(mine, parameter)
        assert torch.equal(again.optimizer.state[mine]["exp_avg"], trainer.optimizer.state[parameter]["exp_avg"])
    again.train_step(next(iter(again._batches())))


def test_checkpoints_enhance_to_the_last_sample(recipe, tmp_path) -> None:
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1", "training_cfg.use_PCS400=true") == 0
    wav_file(tmp_path / "in" / "a.wav", voice(0.5)[:7999])
    assert inference.main(["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"),
                           "--checkpoint_file", str(latest_pair(tmp_path / "run")[0]), "--device", "cpu"]) == 0  # fmt: skip
    trainer = trainer_of(recipe, tmp_path)
    made = trainer.adversary.forward(next(iter(trainer._batches())))
    assert made.estimate.audio.shape == made.item.clean_audio.shape
    odd = trainer_of(recipe, tmp_path, "training_cfg.segment_size=8099")
    assert odd.adversary.forward(next(iter(odd._batches()))).estimate.audio.shape[1] == 8099


def test_contrast_stretched_targets_are_for_training_alone(recipe) -> None:
    plain, stretched = (load_config(recipe, [f"training_cfg.use_PCS400={on}"]) for on in ("false", "true"))
    assert not torch.equal(train.make_set(plain, "train")[0].clean_mag, train.make_set(stretched, "train")[0].clean_mag)
    assert torch.equal(train.make_set(plain, "valid")[0].clean_mag, train.make_set(stretched, "valid")[0].clean_mag)


@pytest.mark.parametrize(("override", "said"), [
    ("data_cfg.train_clean_json=nowhere.json", "data_cfg.train_clean_json: list nowhere.json"),
    ("data_cfg.valid_noisy_json=null", "data_cfg.valid_noisy_json: no list given"),
    ("training_cfg.batch_size=5", "batch_size 5 is more than the 4 clips"),
    ("training_cfg.loss.confidence=0.1", "loss.confidence"),
    ("training_cfg.use_pretrainedD=true", "pretrained_discriminator: ckpts/pretrained_discriminator.pth does not exist"),
    ("stft_cfg.sampling_rate=8000", "sampling_rate must be 16000"),
])  # fmt: skip
def test_a_users_mistake_is_one_clear_line(recipe, tmp_path, capsys, monkeypatch, override, said) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(recipe, tmp_path, "run", override) == 2
    assert said in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_without_metric_there_is_no_discriminator(recipe, tmp_path, capsys) -> None:
    assert run(recipe, tmp_path, "run", "training_cfg.loss.metric=0", "training_cfg.max_steps=1") == 0
    assert "discriminator" not in load_checkpoint(latest_pair(tmp_path / "run")[1])
    capsys.readouterr()
    assert run(recipe, tmp_path, "run") == 2
    assert "without a discriminator" in only_line(capsys.readouterr().err)
    assert run(recipe, tmp_path, "other", "training_cfg.loss.metric=0", "training_cfg.use_discriminator=true") == 2
    assert "loss.metric is 0" in only_line(capsys.readouterr().err)


# The audio-only twin of the audio-visual model -----------------------------------------------------------------------


def test_the_audio_only_twin_trains_and_its_checkpoint_enhances(recipe, tmp_path) -> None:
    """The same recipe with use_visual: false, on lists of sounds alone."""
    clips = [{"audio": str(path)} for path in sorted((recipe.parent / "clean").iterdir())]
    write_json(tmp_path / "clips.json", clips)
    write_json(tmp_path / "noise.json", [str(path) for path in sorted((recipe.parent / "noisy").iterdir())])
    lists = [f"data_cfg.{split}_{kind}_json={tmp_path}/{name}.json" for split in ("train", "valid")
             for kind, name in (("data", "clips"), ("noise", "noise"))]  # fmt: skip
    overrides = ["training_cfg.loss.metric=0", "visual_cfg.use_visual=false", "model_cfg.causal=true", *lists]
    arguments = ["--config", str(recipe), "--exp_folder", str(tmp_path), "--device", "cpu", "--exp_name", "twin", "--override"]
    assert train_lite.main([*arguments, *overrides, "env_setting.validation_interval=4"]) == 0
    assert len(log_of(tmp_path / "twin")) == 4
    held = load_checkpoint(latest_pair(tmp_path / "twin")[0])
    assert held["architecture"] == "LiteAVSEMamba" and not any("visual" in key for key in held["generator"])
    wav_file(tmp_path / "in" / "a.wav")
    assert inference.main(["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"),
                           "--checkpoint_file", str(tmp_path / "twin" / "best.pth"), "--device", "cpu"]) == 0  # fmt: skip


def test_a_semamba_checkpoint_of_another_size_does_not_begin_a_run(recipe, tmp_path, capsys) -> None:
    save_tiny_checkpoint(tmp_path / "wide.pth", "SEMamba", model_cfg={"hid_feature": 16})
    assert run(recipe, tmp_path, "run", f"training_cfg.init_checkpoint={tmp_path / 'wide.pth'}") == 2
    assert "hid_feature" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(("override", "said"), [
    ("model_cfg.norm=channel", "norm: channel"), ("model_cfg.phase_residual=true", "phase_residual: true"),
])  # fmt: skip
def test_weights_without_a_configuration_do_not_begin_what_they_do_not_mean(recipe, tmp_path, capsys, override, said) -> None:
    model, cfg = tiny_model("SEMamba")
    save_checkpoint(tmp_path / "semamba.pth", {"generator": model.state_dict()})
    start = f"training_cfg.init_checkpoint={tmp_path / 'semamba.pth'}"
    assert run(recipe, tmp_path, "run", start, override) == 2
    assert said in only_line(capsys.readouterr().err)
    with pytest.raises(ValueError, match=said):
        load_generator(tmp_path / "semamba.pth", load_config(recipe, [override]))
    assert load_generator(tmp_path / "semamba.pth", cfg)
    assert run(recipe, tmp_path, "fits", start, "training_cfg.max_steps=1") == 0
