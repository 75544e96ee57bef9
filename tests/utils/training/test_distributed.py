"""Two processes on one batch are one process on it; what they share is written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train
from helpers.distributed_step import ACCUMULATED, SCRIPTS, first_gradients, validated
from helpers.paths import LONGEST_SEC, ROOT
from helpers.processes import torchrun
from helpers.tiny import face_crops, only_line, voice, wav_file
from utils.checkpoint import latest_pair, load_checkpoint
from utils.config import complete_config
from utils.distributed import Group
from utils.media.clip_writer import write_clip
from utils.training import launch
from utils.training.launch import usable_gpus
from utils.util import write_json

TINY = {
    "env_setting": {"num_workers": 0, "stdout_interval": 1, "checkpoint_interval": 2, "validation_interval": 3, "seed": 3,
                    "shown_clips": 0},
    "model_cfg": {"hid_feature": 8, "num_tfmamba": 1, "d_state": 4, "expand": 2, "causal": False},
    "visual_cfg": {"visual_dim": 32}, "lite_cfg": {"visual_encoder_type": "custom3d"},
}  # fmt: skip
TRAINING = {"batch_size": 4, "segment_size": 8000, "max_steps": 3, "valid_clips": 1, "video_dropout": 0.5}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recipe for each script; one of the pairs is silent, so that its PESQ fails."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(4):
        write_clip(folder / f"clip{i}.mp4", face_crops(30, seed=i), voice(1.2, seed=i))
        clean = voice(1.2, seed=i) if i else np.zeros(19200)
        wav_file(folder / "clean" / f"{i}.wav", clean)
        wav_file(folder / "noisy" / f"{i}.wav", clean + 0.02 * np.random.default_rng(i).standard_normal(19200))
    write_json(folder / "clips.json", [{"video": f"clip{i}.mp4"} for i in range(4)])
    write_json(folder / "some.json", [{"video": name} for name in ("clip0.mp4", "gone.mp4", "clip2.mp4", "clip3.mp4")])
    for kind in ("clean", "noisy"):
        write_json(folder / f"{kind}.json", [f"{kind}/{i}.wav" for i in range(4)])
    lists = {f"{split}_data_json": str(folder / "clips.json") for split in ("train", "valid")}
    lists |= {f"{split}_noise_json": str(folder / "noisy.json") for split in ("train", "valid")}
    for kind in ("clean", "noisy"):
        lists |= {f"{split}_{kind}_json": str(folder / f"{kind}.json") for split in ("train", "valid")}
    # Confidence is a mean over the frames that have a crop, which the processes' shares need not have alike.
    losses = {"train": {"metric": 0.05, "time": 0.2}, "train_lite": {"si_sdr": 0.03}}
    for script, loss in losses.items():
        recipe = TINY | {"data_cfg": lists, "training_cfg": TRAINING | {"loss": loss}}
        (folder / f"{script}.yaml").write_text(yaml.safe_dump(recipe))
    return {script: folder / f"{script}.yaml" for script in losses}


@pytest.fixture(scope="module")
def two_processes(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun("tests/helpers/distributed_step.py", str(folder), *(str(recipes[script]) for script in SCRIPTS))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_two_processes_give_the_gradient_of_one_with_the_whole_batch(script, recipes, two_processes, tmp_path) -> None:
    alone = first_gradients(script, str(recipes[script]), tmp_path, Group())
    shared = load_checkpoint(two_processes[0] / f"{script}_gradients.pth")
    assert any(key.startswith("generator") for key in alone)
    assert any(key.startswith("discriminator") for key in alone) == (script == "train")
    assert error_of(shared, alone) < 1e-3


def error_of(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of what gradients are off by, over their norm."""
    assert set(found) == set(expected)
    size = torch.cat([value.flatten() for value in expected.values()]).norm()
    assert size > 0.01
    return float(torch.cat([(expected[key] - found[key]).flatten() for key in expected]).norm() / size)


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_accumulated_gradients_are_those_of_a_batch_as_large(script, recipes, two_processes, tmp_path) -> None:
    """In one process and in two. The discriminator's loss is a mean over the clips that have a PESQ: all, for this."""
    overrides = ["training_cfg.clips_per_epoch=4"]
    if script == "train":
        for kind in ("clean", "noisy"):
            write_json(tmp_path / f"{kind}.json", [str(recipes[script].parent / kind / f"{i}.wav") for i in (1, 2, 3)])
            overrides.append(f"data_cfg.train_{kind}_json={tmp_path / kind}.json")
    whole = first_gradients(script, str(recipes[script]), tmp_path, Group(), *overrides)
    parts = first_gradients(script, str(recipes[script]), tmp_path, Group(), *overrides, *ACCUMULATED)
    assert error_of(parts, whole) < 1e-3
    half = first_gradients(script, str(recipes[script]), tmp_path, Group(), *overrides, ACCUMULATED[0])
    assert error_of(half, whole) > 0.1
    if script == "train_lite":
        assert error_of(load_checkpoint(two_processes[0] / f"{script}_accumulated.pth"), whole) < 1e-3


def test_a_validation_that_is_shared_out_gives_the_same_scores(recipes, two_processes, tmp_path) -> None:
    alone = validated("train_lite", str(recipes["train_lite"]), tmp_path, Group())
    assert (alone["n"], alone["n_unreadable"]) == (3, 1) and np.isfinite([alone["pesq"], alone["loss"]]).all()
    for rank in (0, 1):
        # Processes may have other numbers of threads, which sum in another order.
        assert torch.load(two_processes[0] / f"scores_{rank}.pth", weights_only=True) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_two_processes_train_and_log_once(script, two_processes) -> None:
    folder, said = two_processes[0] / script, two_processes[1]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert len([line for line in lines if line["kind"] == "validation"]) == 1
    assert said.count(f"/{script}: ") == 1
    assert said.count("finished at step 3 (training_cfg.max_steps: 3)") == 2  # two scripts, once each
    pair = latest_pair(folder)
    assert pair[2] == 3
    rest = load_checkpoint(pair[1])
    assert len(rest["rng"]) == 2 and not torch.equal(rest["rng"][0]["torch"], rest["rng"][1]["torch"])
    if script == "train":
        assert rest["report"]["pesq_failed"] == 3  # the silent clip, once in each step: counted over all processes


@pytest.mark.slow
def test_a_mistake_is_said_by_one_of_them(recipes, tmp_path) -> None:
    done = torchrun("train.py", "--config", str(recipes["train"]), "--exp_folder", str(tmp_path), "--override",
                    "data_cfg.train_clean_json=nowhere.json")  # fmt: skip
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("train.py: ") and "nowhere.json" in line]) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_num_gpus_starts_as_many_processes(recipes, tmp_path, monkeypatch, capfd) -> None:
    """SEMamba's own way, with two processes on the CPU in place of two GPUs; a child's exit code is the script's."""
    monkeypatch.setattr(launch, "usable_gpus", lambda cfg, present: (2, None))
    arguments = ["--config", str(recipes["train"]), "--exp_folder", str(tmp_path), "--exp_name", "run", "--override",
                 "training_cfg.max_steps=2"]  # fmt: skip
    assert train.main(arguments) == 0
    assert "one of 2 processes" in capfd.readouterr().out and latest_pair(tmp_path / "run")[2] == 2
    assert train.main([*arguments, "model_cfg.hid_feature=16"]) == 2
    assert capfd.readouterr().err.count("model_cfg.hid_feature: 8, this one has 16") == 1


class TwoProcesses(Group):
    def __init__(self) -> None:
        super().__init__()
        self.size = 2


def test_a_batch_that_cannot_be_shared_is_refused(recipes, tmp_path) -> None:
    cfg = complete_config(yaml.safe_load(recipes["train"].read_text()))
    cfg["training_cfg"]["batch_size"] = 3
    with pytest.raises(ValueError, match="batch_size 3 cannot be shared by 2"):
        train.build_trainer(cfg, tmp_path, torch.device("cpu"), TwoProcesses())


def test_shares_of_a_batch_make_up_the_batch(recipes, tmp_path) -> None:
    """Whoever trains, epoch after epoch the same clips meet in the same batch; and epochs differ."""
    cfg = complete_config(yaml.safe_load(recipes["train"].read_text()))
    cfg["training_cfg"] |= {"batch_size": 2, "segment_size": 19200}
    seen = {}
    for rank in (None, 0, 1):
        group = Group() if rank is None else TwoProcesses()
        group.rank = rank or 0
        trainer = train.build_trainer(cfg, tmp_path, torch.device("cpu"), group)
        for trainer.epoch in (0, 1):
            seen[rank, trainer.epoch] = [batch.noisy_audio for batch in trainer._batches()]
    for epoch in (0, 1):
        for whole, first, second in zip(seen[None, epoch], seen[0, epoch], seen[1, epoch], strict=True):
            assert torch.equal(whole, torch.cat((first, second)))
    assert not all(torch.equal(a, b) for a, b in zip(seen[None, 0], seen[None, 1], strict=True))


def test_gpus_that_are_not_there(recipes, tmp_path, capsys, monkeypatch) -> None:
    cfg = complete_config({"env_setting": {"num_gpus": 2}})
    assert usable_gpus(cfg, 4) == (2, None)
    assert usable_gpus(cfg, 1)[0] == 1 and "this machine has 1" in usable_gpus(cfg, 1)[1]
    count, said = usable_gpus(complete_config({"env_setting": {"num_gpus": 0}}), 2)
    assert count == 0 and "on the CPU, though this machine has 2 GPUs" in only_line(said)
    everything = complete_config({"training_cfg": {"batch_size": 6}})
    assert usable_gpus(everything, 3) == (3, None) and usable_gpus(everything, 0) == (0, None)
    assert usable_gpus(everything, 4)[0] == 3 and "3 of 4 GPUs" in only_line(usable_gpus(everything, 4)[1])
    count, said = usable_gpus(cfg, 0)
    assert count == 0 and "CPU" in only_line(said)
    with pytest.raises(ValueError, match="torchrun"):
        usable_gpus(complete_config({"env_setting": {"dist_cfg": {"world_size": 2}}}), 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--config", str(recipes["train"]), "--exp_folder", str(tmp_path), "--override"]
    assert train.main([*arguments, "env_setting.num_gpus=2", "training_cfg.max_steps=1"]) == 0
    assert "training on its CPU" in capsys.readouterr().out
    assert train.main(["--device", "cuda", *arguments]) == 2
    assert "--device cpu" in only_line(capsys.readouterr().err)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
@pytest.mark.parametrize("orphaned", [False, True])
def test_who_was_started_by_torchrun_ends_with_it(orphaned: bool) -> None:
    """Whether torchrun is killed while a process works or while it still imports torch.

    Otherwise its processes stayed for hours, and kept the run's folder or met the processes of the next torchrun.
    """
    child = "import os, time, utils.distributed as ours; parent = os.getppid()\n"
    if orphaned:
        child += "print('up', flush=True)\nwhile os.getppid() == parent: time.sleep(0.05)\nours.end_with_launcher()"
    else:
        child += "ours.end_with_launcher(); print('up', flush=True); time.sleep(9999)"
    parent = f"import subprocess, sys, torch; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "run", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen(
        [sys.executable, "-c", parent], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert launcher.stdout.readline() == "up\n"
    launcher.kill()
    out, said = launcher.communicate(timeout=LONGEST_SEC)  # at the end of both: the child holds the pipes, too
    assert not out and said.endswith("has ended; run its command again\n") == orphaned
