"""A run goes on from the newest pair of checkpoints that can be read, and says which one cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.semamba_training import run, trainer_of, write_semamba_recipe
from helpers.tiny import bytes_file
from utils.checkpoint import all_pairs, load_checkpoint, save_checkpoint
from utils.training.run_state import resume

EVERY_STEP = ("env_setting.checkpoint_interval=1", "env_setting.keep_checkpoints=3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, folder) of a run of two steps with a pair for each."""
    folder = tmp_path_factory.mktemp("corpus")
    recipe = write_semamba_recipe(folder)
    assert run(recipe, folder, "run", "training_cfg.max_steps=2", *EVERY_STEP) == 0
    assert [step for _, _, step in all_pairs(folder / "run")] == [2, 1]
    return recipe, folder / "run"


@pytest.mark.parametrize(("which", "how"), [(0, "cut"), (1, "cut"), (1, "empty"), (0, "nan"), (1, "steps"), (1, "optimiser")])
def test_a_damaged_newest_pair_is_named_and_the_older_one_used(
    finished: tuple[Path, Path], tmp_path: Path, capsys, which: int, how: str
) -> None:
    recipe, folder = finished
    for path in folder.glob("*.pth"):
        bytes_file(tmp_path / path.name, path.read_bytes())
    newest = all_pairs(tmp_path)[0][which]
    if how in ("cut", "empty"):
        bytes_file(newest, newest.read_bytes()[: newest.stat().st_size // 2 if how == "cut" else 0])
    else:
        held = load_checkpoint(newest)
        if how == "nan":
            next(iter(held["generator"].values())).fill_(torch.nan)
        held |= {"steps": {"steps": "two"}, "optimiser": {"optim_g": [1, 2]}}.get(how, {})
        save_checkpoint(newest, held)
    trainer = trainer_of(recipe, tmp_path)
    assert resume(trainer) and trainer.step == 1
    said = capsys.readouterr().out
    assert newest.name in said and "the pair of step 1 is used instead" in said
    for path in all_pairs(tmp_path)[1][:2]:
        bytes_file(path, b"")
    with pytest.raises(ValueError, match="cannot be read"):
        resume(trainer_of(recipe, tmp_path))
