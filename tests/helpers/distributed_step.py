"""Run by test_distributed.py under torchrun: takes one step and keeps its gradients, then trains as the scripts do."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch

import train
import train_lite
from utils.config import load_config
from utils.distributed import Group, process_group
from utils.training.launch import train_in, training_parser

ACCUMULATED = ("training_cfg.batch_size=2", "training_cfg.accumulate_steps=2")  # in the place of a batch of 4
SCRIPTS = {"train": train, "train_lite": train_lite}


def first_gradients(script: str, recipe: str, folder: Path, group: Group, *overrides: str) -> dict[str, torch.Tensor]:
    """Gradients of generator and discriminator in the first step, without dropout: its masks are each process's own."""
    trainer = SCRIPTS[script].build_trainer(load_config(recipe, overrides), folder, torch.device("cpu"), group)
    trainer.resume()
    networks = {"generator": trainer.generator}
    if trainer.adversary is not None:
        networks["discriminator"] = trainer.adversary.module
    for network in networks.values():
        network.train()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
            if hasattr(layer, "weight_orig"):  # spectral norm: each pass in training changes the weights a little
                layer.eval()
    _, problem = trainer.train_step(*islice(trainer._batches(), trainer.n_accumulated))
    assert problem is None, problem
    if trainer.adversary is not None:
        trainer.adversary.close()
    return {
        f"{name}.{key}": value.grad for name, network in networks.items() for key, value in network.named_parameters()
        if value.grad is not None
    }  # fmt: skip


def validated(script: str, recipe: str, folder: Path, group: Group) -> dict[str, float]:
    """What a validation of four clips, one of which cannot be read, gives before any step."""
    cfg = load_config(recipe, ["training_cfg.valid_clips=null", f"data_cfg.valid_data_json={Path(recipe).parent}/some.json"])
    return SCRIPTS[script].build_trainer(cfg, folder, torch.device("cpu"), group).validate()


def main(folder: str, recipes: dict[str, str]) -> None:
    with process_group("gloo", torch.device("cpu")) as group:
        for script, recipe in recipes.items():
            for name, overrides in (("gradients", ()), ("accumulated", ACCUMULATED)):
                gradients = first_gradients(script, recipe, Path(folder) / "none", group, *overrides)
                if group.is_main:
                    torch.save(gradients, Path(folder) / f"{script}_{name}.pth")
            if script == "train_lite":
                scores = validated(script, recipe, Path(folder) / "none", group)
                torch.save(scores, Path(folder) / f"scores_{group.rank}.pth")
            args = training_parser(script, "", recipe).parse_args(["--exp_folder", folder, "--exp_name", script])
            code = train_in(args, load_config(recipe), SCRIPTS[script].build_trainer, torch.device("cpu"), group)
            assert code == 0


if __name__ == "__main__":
    main(sys.argv[1], dict(zip(SCRIPTS, sys.argv[2:], strict=True)))
