"""The training loop: it learns, resumes bit for bit, and survives bad batches, interruption and users' mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evaluation.validation import Validation
from helpers.paths import LONGEST_SEC, ROOT
from helpers.tiny import only_line
from helpers.training import last_pair, log_lines, train, trainer_of, write_recipe
from models.pretrained import load_generator
from utils.checkpoint import latest_pair, load_checkpoint, prune_pairs
from utils.config import load_config
from utils.training.trainer import epoch_order
from utils.util import initialize_seed, write_json


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """A run of five steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("steps")
    assert train(recipe, folder, "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def validated(recipe, tmp_path_factory) -> Path:
    """A run of four steps with two validations that nothing interrupted."""
    folder = tmp_path_factory.mktemp("validations")
    assert train(recipe, folder, "run", *VALIDATE) == 0
    return folder / "run"


def test_resume_equals_uninterrupted_bit_for_bit(recipe, tmp_path, whole):
    for last in (1, 3, 5):  # stops between checkpoints and in the middle of epochs of two batches
        assert train(recipe, tmp_path, "parts", f"training_cfg.max_steps={last}") == 0
    (weights, rest), (parts, parts_rest) = last_pair(whole), last_pair(tmp_path / "parts")
    assert all(torch.equal(weights[name], parts[name]) for name in weights)
    for name in ("steps", "epoch", "position", "best"):
        assert rest[name] == parts_rest[name]
    for a, b in zip(rest["optim_g"]["state"].values(), parts_rest["optim_g"]["state"].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(a, b) for a, b in zip(rest["average"], parts_rest["average"], strict=True))
    assert log_lines(whole) == log_lines(tmp_path / "parts")
    assert len(log_lines(whole)) == 5


def test_killed_and_started_again_gives_the_same_numbers(recipe, tmp_path, whole):
    """Checkpoints stand at even steps; a run that died at step 5 goes back to 4 and writes the same step 5."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    weights, before = last_pair(folder)[0], log_lines(folder)
    for name in ("g_00000005.pth", "do_00000005.pth"):
        (folder / name).unlink()
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # a line that was being written
    assert train(recipe, tmp_path, "run") == 0
    assert all(torch.equal(weights[name], value) for name, value in last_pair(folder)[0].items())
    assert log_lines(folder) == before


def test_a_half_written_pair_is_not_resumed_from(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "do_00000005.pth").unlink()
    assert latest_pair(tmp_path / "run")[2] == 4


def test_one_batch_overfits(recipe, tmp_path):
    """The loss of a fixed batch falls to well below where it began: every part of the step does its work."""
    initialize_seed(0)
    trainer = trainer_of(recipe, tmp_path, "training_cfg.learning_rate=0.005", "training_cfg.visual_degradation=false")
    batch = next(iter(trainer._batches()))
    losses = []
    for _ in range(40):
        values, problem = trainer.train_step(batch)
        assert problem is None
        losses.append(values)
    assert losses[-1]["magnitude"] < 0.5 * losses[0]["magnitude"]
    assert losses[-1]["si_sdr"] < losses[0]["si_sdr"] - 0.3  # bels: 3 dB
    assert losses[-1]["total"] < losses[0]["total"]


def test_the_average_of_the_weights_is_validated_and_training_goes_on_with_its_own(recipe, tmp_path):
    trainer = trainer_of(recipe, tmp_path)
    expected = [p.detach().clone() for p in trainer.parameters]
    batch = next(iter(trainer._batches()))
    for step in range(3):
        trainer.train_step(batch)
        trainer.step += 1
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, trainer.parameters, strict=True)]
    own = [p.detach().clone() for p in trainer.parameters]
    with trainer.averaged_weights():
        for p, e in zip(trainer.parameters, expected, strict=True):
            torch.testing.assert_close(p.detach(), e)
        assert any(not torch.equal(p, before) for p, before in zip(trainer.parameters, own, strict=True))
    assert all(torch.equal(p, before) for p, before in zip(trainer.parameters, own, strict=True))


def test_a_run_may_start_from_the_audio_path_of_another(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path, "first", "training_cfg.max_steps=2") == 0
    first, path = last_pair(tmp_path / "first")[0], latest_pair(tmp_path / "first")[0]
    settings = (f"training_cfg.init_checkpoint={path}", "training_cfg.init_parts=audio", "env_setting.seed=8")
    weights = trainer_of(recipe, tmp_path / "second", *settings).generator.state_dict()
    said = capsys.readouterr().out
    assert str(path) in said and "(audio)" in said
    visual = [name for name in weights if name.startswith(("visual_", "vce.", "fsvg."))]
    assert all(torch.equal(weights[name], first[name]) for name in weights if name not in visual)
    assert any(not torch.equal(weights[name], first[name]) for name in visual)
    # A run that has checkpoints of its own goes on from those, whether or not the other one still exists.
    assert train(recipe, tmp_path, "third", *settings, "training_cfg.max_steps=1") == 0
    path.unlink()
    assert train(recipe, tmp_path, "third", *settings, "training_cfg.max_steps=2") == 0


@pytest.mark.parametrize(
    "override, named",
    [("model_cfg.hid_feature=16", "model_cfg.hid_feature"), ("model_cfg.d_conv=3", "model_cfg.d_conv")],
)
def test_a_run_does_not_start_from_another_kind_of_model(recipe, tmp_path, capsys, override, named):
    assert train(recipe, tmp_path, "first", "training_cfg.max_steps=1") == 0
    path = latest_pair(tmp_path / "first")[0]
    capsys.readouterr()
    assert train(recipe, tmp_path, "second", f"training_cfg.init_checkpoint={path}", override) == 2
    assert named in only_line(capsys.readouterr().err)


def test_interrupted_run_saves_and_says_so(recipe, tmp_path):
    """SIGINT to the whole process group, workers too, as Ctrl-C in a terminal does."""
    process = subprocess.Popen(
        [sys.executable, "train_lite.py", "--config", str(recipe), "--exp_folder", str(tmp_path), "--exp_name", "run",
         "--override", "training_cfg.max_steps=100000", "training_cfg.training_epochs=100000", "env_setting.num_workers=1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + LONGEST_SEC
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST_SEC)
    assert process.returncode == 130, err
    assert "interrupted at step" in out and "Traceback" not in err
    step = latest_pair(tmp_path / "run")[2]
    assert f"interrupted at step {step}" in out
    assert load_checkpoint(tmp_path / "run" / f"do_{step:08d}.pth")["steps"] == step


def test_bad_batches_are_skipped_counted_and_named(recipe, tmp_path, capsys):
    trainer = trainer_of(recipe, tmp_path, "training_cfg.max_steps=4")
    losses, poisoned = trainer.compute_losses, []

    def sometimes_nan(batch):
        total, terms = losses(batch)
        if trainer.step == 1:
            poisoned.append({n: p.detach().clone() for n, p in trainer.generator.named_parameters()})
            return total * torch.nan, terms | {"phase": terms["phase"] * torch.nan}
        if trainer.step == 2:
            for name, value in poisoned[0].items():  # the bad batch moved nothing
                assert torch.equal(value, dict(trainer.generator.named_parameters())[name])
        return total, terms

    trainer.compute_losses = sometimes_nan
    assert trainer.run() == "finished"
    assert trainer.bad_batches == 1 and trainer.bad_in_row == 0
    skipped = log_lines(tmp_path, "skipped")
    assert len(skipped) == 1 and "phase=nan" in skipped[0]["problem"]


def test_many_bad_batches_in_a_row_go_back_to_the_checkpoint(recipe, tmp_path):
    trainer = trainer_of(recipe, tmp_path, "training_cfg.max_steps=8", "training_cfg.nan_patience=2")
    losses, seen = trainer.compute_losses, {}

    def broken_for_a_while(batch):
        if trainer.step in (2, 3):
            with torch.no_grad():
                trainer.parameters[0].fill_(torch.nan)  # such as a broken optimiser step leaves behind
        if trainer.step == 4:
            seen["finite"] = bool(torch.isfinite(trainer.parameters[0]).all())
        return losses(batch)

    trainer.compute_losses = broken_for_a_while
    assert trainer.run() == "finished"
    assert seen["finite"] and trainer.bad_batches == 2


def test_a_run_that_cannot_recover_stops_with_a_reason(recipe, tmp_path):
    trainer = trainer_of(recipe, tmp_path, "training_cfg.nan_patience=2")
    losses = trainer.compute_losses
    trainer.compute_losses = lambda batch: (losses(batch)[0] * torch.nan, {})
    with pytest.raises(ValueError, match="does not recover"):
        trainer.run()


def test_validation_keeps_the_best_and_the_checkpoint_enhances(recipe, tmp_path):
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=2", "env_setting.validation_interval=2") == 0
    scores = log_lines(tmp_path / "run", "validation")[0]
    for name in ("pesq", "stoi", "estoi", "si_sdr"):
        assert np.isfinite(scores[name]) and np.isfinite(scores[f"{name}_improvement"])
    assert scores["n"] == 1 and scores["n_failed"] == 0
    model, cfg = load_generator(tmp_path / "run" / "best.pth")
    assert cfg["model_cfg"]["hid_feature"] == 8 and not model.training
    assert load_checkpoint(tmp_path / "run" / "do_00000002.pth")["best"] == {"pesq": scores["pesq"], "step": 2}


def test_a_validation_clip_that_cannot_be_read_counts_for_nobody(recipe, tmp_path, caplog):
    """The means are those of the clips that are there; how many are missing is in the log, and said each time."""
    clips = json.loads((recipe.parent / "clips.json").read_text())
    means = []
    for name, listed in (("all", clips[:2]), ("some", [*clips[:2], {"video": "gone.mp4"}])):
        write_json(tmp_path / f"{name}.json", listed)
        lists = (f"data_cfg.valid_data_json={tmp_path / name}.json", "training_cfg.valid_clips=null")
        assert train(recipe, tmp_path, name, *VALIDATE, *lists) == 0
        lines = log_lines(tmp_path / name, "validation")
        assert [line["n_unreadable"] for line in lines] == [len(listed) - 2] * 2
        means.append([{key: value for key, value in line.items() if key != "n_unreadable"} for line in lines])
    assert means[0] == means[1] and caplog.text.count("1 of 3 validation clips cannot be read; first: gone.mp4") == 2


VALIDATE = ("env_setting.validation_interval=2", "training_cfg.max_steps=4")


def test_a_validation_that_fails_costs_no_step(recipe, tmp_path, validated, monkeypatch):
    """The steps before it are saved; once it can be done it is, with the same scores and lines as if nothing had been."""
    folder = tmp_path / "run"
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(Validation, "__call__", broken_validation)
            assert train(recipe, tmp_path, "run", *VALIDATE) == 2
        assert latest_pair(folder)[2] == 2 and not log_lines(folder, "validation")
    assert train(recipe, tmp_path, "run", *VALIDATE) == 0
    for kind in ("train", "validation"):
        assert log_lines(validated, kind) == log_lines(folder, kind)
    assert len(log_lines(folder, "validation")) == 2
    (weights, rest), (own, own_rest) = last_pair(validated), last_pair(folder)
    assert all(torch.equal(weights[name], own[name]) for name in weights) and rest["best"] == own_rest["best"]


def broken_validation(*arguments: object) -> dict[str, float]:
    raise ValueError("the validation set is broken")


@pytest.mark.parametrize("last", [2, 4])
def test_a_stop_does_not_wait_for_a_validation(recipe, tmp_path, validated, last):
    """It is made up for when the run goes on, be that after its last step."""
    trainer = trainer_of(recipe, tmp_path / "run", *VALIDATE)
    losses, validate = trainer.compute_losses, trainer.validate

    def stop_in_the_last(batch):
        if trainer.step == last - 1:
            trainer._remember_signal(signal.SIGTERM, None)
        return losses(batch)

    def never_in_the_last():
        assert trainer.step != last
        return validate()

    trainer.compute_losses, trainer.validate = stop_in_the_last, never_in_the_last
    assert trainer.run() == "interrupted"
    assert train(recipe, tmp_path, "run", *VALIDATE) == 0
    assert log_lines(validated, "validation") == log_lines(tmp_path / "run", "validation")
    assert last_pair(validated)[1]["best"] == last_pair(tmp_path / "run")[1]["best"]


def test_a_run_killed_right_after_a_validation_has_its_line_once_and_its_score(recipe, tmp_path, validated, monkeypatch):
    trainer = trainer_of(recipe, tmp_path / "run", *VALIDATE)
    save, seen = trainer.save, []

    def killed():
        seen.append(trainer.step)
        if len(seen) == 2:
            raise KeyboardInterrupt
        save()

    trainer.save = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert seen == [2, 2] and len(log_lines(tmp_path / "run", "validation")) == 1
    assert train(recipe, tmp_path, "run", *VALIDATE) == 0
    assert log_lines(validated, "validation") == log_lines(tmp_path / "run", "validation")
    assert last_pair(validated)[1]["best"] == last_pair(tmp_path / "run")[1]["best"]


def test_what_made_the_run_is_kept_with_it(recipe, tmp_path):
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=1", "training_cfg.learning_rate=0.002") == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["training_cfg"]["learning_rate"] == 0.002
    assert kept == load_config(tmp_path / "run" / "config.yaml")  # complete: it reproduces itself
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__ and environment["revision"]


def test_old_checkpoints_are_pruned(recipe, tmp_path):
    assert train(recipe, tmp_path, "run", "env_setting.checkpoint_interval=1", "env_setting.keep_checkpoints=2") == 0
    assert sorted(p.name for p in (tmp_path / "run").glob("g_*.pth")) == ["g_00000004.pth", "g_00000005.pth"]


def test_pruning_counts_whole_pairs_and_leaves_other_files(tmp_path):
    for name in ("g_original", "g_bestmodl", "g_00000001", "do_00000001", "g_00000002", "do_00000002", "do_00000003",
                 "g_00000004", "do_00000004", "g_00000009"):  # fmt: skip
        (tmp_path / f"{name}.pth").touch()
    prune_pairs(tmp_path, 2)
    assert {path.stem for path in tmp_path.iterdir()} == {
        "g_original", "g_bestmodl", "g_00000002", "do_00000002", "g_00000004", "do_00000004", "g_00000009",
    }  # fmt: skip
    assert latest_pair(tmp_path)[2] == 4


def test_epoch_order_is_a_permutation_that_changes():
    assert sorted(epoch_order(10, None, 1, 0)) == list(range(10))
    assert epoch_order(10, None, 1, 0) == epoch_order(10, None, 1, 0) != epoch_order(10, None, 1, 1)
    assert len(epoch_order(10, 4, 1, 0)) == 4
    assert sorted(epoch_order(3, 6, 1, 0)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("override", "said"), [
    ("training_cfg.batch_sise=2", "did you mean batch_size"),
    ("data_cfg.train_data_json=nowhere.json", "nowhere.json"),
    ("data_cfg.train_noise_json=null", "train_noise_json"),
    ("training_cfg.batch_size=50", "batch_size 50 is more than the 4 clips"),
    ("batch_size=2", "section.key=value"),
    ("training_cfg.use_discriminator=true", "use_discriminator"),
    ("training_cfg.loss.metric=0.05", "loss.metric"),
    ("stft_cfg.sampling_rate=8000", "stft_cfg.sampling_rate must be 16000"),
])  # fmt: skip
def test_a_users_mistake_is_one_clear_line(recipe, tmp_path, capsys, override, said):
    assert train(recipe, tmp_path, "run", override) != 0
    assert said in only_line(capsys.readouterr().err)


def test_a_folder_with_another_model_is_not_overwritten(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=1") == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    capsys.readouterr()
    assert train(recipe, tmp_path, "run", "model_cfg.hid_feature=16") == 2
    assert "model_cfg.hid_feature: 8, this one has 16" in only_line(capsys.readouterr().err)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_signal_that_comes_twice_at_once_is_one_request(recipe, tmp_path, monkeypatch):
    """GNU timeout and launchers signal the process and then its group, which it belongs to."""
    now = [100.0]
    monkeypatch.setattr("utils.training.trainer.time.monotonic", lambda: now[0])
    trainer = trainer_of(recipe, tmp_path)
    trainer._remember_signal(signal.SIGTERM, None)
    trainer._remember_signal(signal.SIGTERM, None)
    assert trainer._stopping()
    now[0] += 3
    with pytest.raises(KeyboardInterrupt):
        trainer._remember_signal(signal.SIGTERM, None)
