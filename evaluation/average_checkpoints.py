"""The mean of checkpoints' weights: of one run, or of runs that began with the same weights.

    python -m evaluation.average_checkpoints exp/small/g_00003250.pth exp/small/g_00021000.pth --output exp/small/mean.pth

Where a run keeps a running average of its weights (training_cfg.ema_decay), in the do_*.pth beside the checkpoint, the average
is taken in the place of the weights. The mean of an early and a late checkpoint may do better on people whom training has not
seen than either ("model soups", Wortsman et al., ICML 2022, arXiv:2203.05482).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from models.distilled_encoder import LiteVisualEncoderC, stays_as_taught
from models.pretrained import load_generator
from utils.checkpoint import check_fit, load_checkpoint, save_checkpoint
from utils.console import Parser, run


def trained_names(path: Path) -> list[str]:
    """The names of the weights that the run of a checkpoint trains, in their order."""
    model, cfg = load_generator(path)
    if isinstance(getattr(model, "visual_encoder", None), LiteVisualEncoderC):
        # A loaded one has its weights from the checkpoint, and does not know that the run kept them as they were taught.
        model.visual_encoder.requires_grad_(not stays_as_taught(cfg["visual_cfg"]))
    parts = cfg["training_cfg"]["train_only"]
    return [
        name for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parts is None or name.split(".")[0] in parts)
    ]  # fmt: skip


def averaged_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, those that were trained from the run's running average where there is one."""
    weights = dict(load_checkpoint(path)["generator"])
    rest = path.with_name(path.name.replace("g_", "do_", 1))
    average = load_checkpoint(rest).get("average") if rest != path and rest.is_file() else None
    if average:
        weights |= dict(zip(trained_names(path), average, strict=True))
    return weights


def mean_weights(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of the checkpoints' floating-point weights, in float64; ValueError where their shapes differ."""
    model, _ = load_generator(paths[0])
    everyone = []
    for path in paths:
        everyone.append(averaged_weights(path))
        check_fit(model, everyone[-1], f"checkpoint {path}", may_miss=set(model.state_dict()) - set(everyone[0]))
    return {
        name: torch.stack([weights[name].double() for weights in everyone]).mean(0).to(value.dtype)
        if value.is_floating_point() else value
        for name, value in everyone[0].items()
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("average_checkpoints.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="g_*.pth of ours; the first gives the configuration")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    args = parser.parse_args(argv)

    def average() -> int:
        contents = load_checkpoint(args.checkpoints[0]) | {"generator": mean_weights(args.checkpoints)}
        contents["meta"] = {"mean_of": [path.name for path in args.checkpoints]}
        save_checkpoint(args.output, contents)
        print(f"the mean of {len(args.checkpoints)} checkpoints was written to {args.output}")
        return 0

    return run("average_checkpoints.py", average)


if __name__ == "__main__":
    raise SystemExit(main())
