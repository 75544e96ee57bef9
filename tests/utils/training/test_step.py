"""What a training step reads, waits for and learns from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

import train_lite
from helpers.tiny import only_line
from helpers.training import last_pair, log_lines, train, trainer_of, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("corpus"))


class Reads(TorchFunctionMode):
    """Counts what makes the program wait for a device: values of tensors that are asked for."""

    WAITING = (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__bool__,
               torch.Tensor.__float__, torch.Tensor.__int__)  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


def test_an_update_reads_tensors_once(recipe, tmp_path):
    """But for the optimiser, whose step count is on the CPU."""
    trainer = trainer_of(recipe, tmp_path)
    losses = trainer.compute_losses(next(iter(trainer._batches())))
    trainer.optimizer.step = lambda: None
    with Reads() as reads:
        values, problem = trainer._update(trainer.player, [losses])
    assert problem is None and set(values) > {"total", "si_sdr", "grad_norm"}
    assert reads.count == 1


def test_losses_read_the_mask_alone(recipe, tmp_path):
    """Which is on the CPU: no step waits for a GPU to know whether a batch shows a face."""
    trainer = trainer_of(recipe, tmp_path)
    batch = next(iter(trainer._batches()))
    trainer.compute_losses(batch)  # what is made once and kept is made here
    with Reads() as reads:
        trainer.compute_losses(batch)
    assert reads.count <= 2


def test_workers_stay_and_give_the_batches_of_every_epoch(recipe, tmp_path):
    found, workers = {}, set()
    for count in (0, 1):
        trainer = trainer_of(recipe, tmp_path, f"env_setting.num_workers={count}")
        for trainer.epoch in (0, 1, 2):
            trainer.position = 1 if trainer.epoch == 1 else 0  # as in a run that goes on
            found[count, trainer.epoch] = list(trainer._batches())
            if count:
                workers.add(trainer._loader._iterator._workers[0].pid)
        del trainer
    assert len(workers) == 1
    for epoch, batches in ((0, 2), (1, 1), (2, 2)):
        assert len(found[0, epoch]) == batches
        for a, b in zip(found[0, epoch], found[1, epoch], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(found[0, 0][0].noisy_audio, found[0, 2][0].noisy_audio)


def test_steps_are_updates_whatever_is_accumulated(recipe, tmp_path):
    """Eight clips an epoch, two batches of two an update: two updates an epoch, and what is left of a third is not used."""
    options = ("training_cfg.accumulate_steps=2", "training_cfg.clips_per_epoch=10", "training_cfg.warmup_steps=10")
    assert train(recipe, tmp_path, "whole", *options, "training_cfg.max_steps=5") == 0
    lines = log_lines(tmp_path / "whole")
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [5e-4 * 0.99**epoch * step / 10 for epoch, step in ((0, 1), (0, 2), (1, 3), (1, 4), (2, 5))]
    )
    for last in (1, 3, 5):
        assert train(recipe, tmp_path, "parts", *options, f"training_cfg.max_steps={last}") == 0
    (whole, rest), (parts, parts_rest) = last_pair(tmp_path / "whole"), last_pair(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert rest["position"] == parts_rest["position"] == 2  # batches of epoch 2
    assert all(torch.equal(a, b) for a, b in zip(rest["average"], parts_rest["average"], strict=True))
    assert log_lines(tmp_path / "parts") == lines


def test_a_batch_that_spoils_an_update_is_named(recipe, tmp_path):
    trainer = trainer_of(recipe, tmp_path, "training_cfg.accumulate_steps=2")
    losses, calls = trainer.compute_losses, []

    def second_is_nan(batch):
        calls.append(batch)
        total, terms = losses(batch)
        return (total, terms) if len(calls) == 1 else (total * torch.nan, terms | {"phase": terms["phase"] * torch.nan})

    trainer.compute_losses = second_is_nan
    values, problem = trainer.train_step(*trainer._batches())
    assert len(calls) == 2 and not values and "phase=nan" in problem and "magnitude" not in problem
    assert all(p.grad is None for p in trainer.parameters)


def test_a_full_memory_is_one_line_that_says_what_to_change(recipe, tmp_path, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")

    monkeypatch.setattr(train_lite, "compute_losses", full)
    assert train(recipe, tmp_path, "run", "training_cfg.accumulate_steps=2") == 2
    line = only_line(capsys.readouterr().err)
    for said in ("step 0: the memory of cpu is full", "batch_size (2)", "accumulate_steps (2)", "bf16 (it is fp32)"):
        assert said in line


def test_more_than_an_epoch_holds_is_refused(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path, "run", "training_cfg.accumulate_steps=3") == 2
    assert "batch_size 2 times accumulate_steps 3 is more than the 4 clips" in only_line(capsys.readouterr().err)
