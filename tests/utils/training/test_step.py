"""What a training step reads, waits for and learns from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from helpers.training import trainer_of, write_recipe


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
        values, problem = trainer._update(trainer.player, losses)
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
