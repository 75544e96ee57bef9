"""What lies in a run's folder: what is no run of ours is refused in one line, and left as it is."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from helpers.paths import ROOT
from helpers.semamba_training import RECIPE, run, trainer_of, write_semamba_recipe
from helpers.tiny import all_files, bytes_file, only_line
from utils.checkpoint import latest_pair, load_checkpoint, save_checkpoint
from utils.training.run_folder import RunLog, ShownClip

__all__ = ["recipe"]  # a fixture


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_semamba_recipe(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(("kind", "key"), [("g", "generator"), ("do", "optim_g"), ("do", "steps"), ("do", "optim_d")])
def test_a_checkpoint_that_lacks_something_is_one_line(recipe, tmp_path, capsys, kind: str, key: str) -> None:
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1") == 0
    path = latest_pair(tmp_path / "run")[("g", "do").index(kind)]
    contents = load_checkpoint(path)
    del contents[key]
    save_checkpoint(path, contents)
    capsys.readouterr()
    assert run(recipe, tmp_path, "run") == 2
    line = only_line(capsys.readouterr().err)
    assert ("discriminator" if key == "optim_d" else f"no {key}") in line and "--exp_name" in line


def test_changed_betas_are_those_of_the_recipe(recipe, tmp_path) -> None:
    """And the moments those of the run."""
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1") == 0
    trainer = trainer_of(recipe, tmp_path / "run", "training_cfg.adam_b1=0.7", "training_cfg.adam_b2=0.9")
    assert trainer.resume()
    for player in (trainer.player, trainer.rival):
        assert [group["betas"] for group in player.optimizer.param_groups] == [(0.7, 0.9)]
        assert all(float(state["step"]) == 1 for state in player.optimizer.state.values())


HOLDER = """
import pathlib, sys
from utils.training.run_folder import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_share_a_folder(recipe, tmp_path, capsys) -> None:
    """The second is refused and changes nothing; it may go on as soon as the first has ended, killed or not."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1") == 2
        assert "another run trains in" in only_line(capsys.readouterr().err)
        assert all_files(tmp_path) == {"run/.lock"}
    finally:
        holder.kill()
        holder.communicate()
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1") == 0


def test_an_empty_config_is_one_line(recipe, tmp_path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert run(recipe, tmp_path, "run") == 2
    assert "config.yaml is empty" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "run" / "config.yaml").read_bytes()


def test_the_recipe_that_semambas_own_script_keeps_is_read_as_it_is(recipe, tmp_path) -> None:
    """It has no section of ours, and not all keys; another size is still another model."""
    (tmp_path / "run").mkdir()
    kept = {section: dict(keys) for section, keys in RECIPE.items()}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1", "model_cfg.d_state=8") == 2
    assert run(recipe, tmp_path, "run", "training_cfg.max_steps=1") == 0


@pytest.mark.parametrize("content", [b"no checkpoint", b"", b"PK\x03\x04 cut", pickle.dumps({"generator": Path("x")})])
def test_what_is_no_checkpoint_is_said_in_our_own_words(tmp_path, recwarn, content: bytes) -> None:
    """torch's are a number, or advice to let the file run its code."""
    with pytest.raises(ValueError, match=r"g\.pth cannot be read: it is damaged, no checkpoint, or") as error:
        load_checkpoint(bytes_file(tmp_path / "g.pth", content))
    assert "weights_only" not in str(error.value) and not recwarn.list


def test_what_never_changes_is_shown_once(tmp_path: Path) -> None:
    wav = np.zeros(1600, np.float32)
    log = RunLog(tmp_path, 0)
    for step in (1, 2):
        log.show(step, [ShownClip("clip 0", {"noisy": wav, "enhanced": wav, "clean": wav}, 16000)])
    log.close()
    board = EventAccumulator(str(tmp_path / "logs"))
    board.Reload()
    heard = {tag.split("/")[1]: [event.step for event in board.Audio(tag)] for tag in board.Tags()["audio"]}
    assert heard == {"noisy": [1], "enhanced": [1, 2], "clean": [1]} and not board.Tags()["images"]


def test_a_full_disk_is_named_by_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """TensorBoard writes in a thread of its own: the error comes with a later call, and without that thread's traceback."""
    hook = threading.excepthook
    log = RunLog(tmp_path, 0)
    log.write("train", 1, {"total": 1.0})

    def full(*given, **named) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "append", full)
    with pytest.raises(OSError, match="No space left on device: .*logs; TensorBoard's entries end there") as error:
        for step in range(100_000):
            log.summarize("train", step, {"total": 1.0})
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="TensorBoard"):
        log.close()
    assert threading.excepthook is hook and "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == '{"kind": "train", "step": 1, "total": 1.0}\n'
