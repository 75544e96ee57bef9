"""Checkpoints that hold what no checkpoint should are refused in one short line, before they take memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.tiny import tiny_model
from models.pretrained import load_generator, pack_generator, start_from
from utils.checkpoint import save_checkpoint


def spoilt(kind: str) -> dict:
    """A checkpoint of the tiny model with one thing wrong."""
    model, cfg = tiny_model()
    held = pack_generator(model, cfg)
    key = next(iter(held["generator"]))
    weight = held["generator"][key]
    if kind == "huge":
        held["config"]["model_cfg"] = held["config"]["model_cfg"] | {"hid_feature": 1024, "expand": 16, "num_tfmamba": 64}
    elif kind == "architecture":
        held["architecture"] = ["SEMamba"] * 1000
    elif kind == "number":
        held["generator"] = {3: weight}
    else:
        held["generator"][key] = {
            "list": [1.0], "sparse": weight.to_sparse(), "quantised": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
            "nan": torch.full_like(weight, torch.nan), "complex": weight.to(torch.complex64), "meta": weight.to("meta"),
        }[kind]  # fmt: skip
    return held


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["list", "sparse", "quantised", "nan", "complex", "number", "architecture", "huge"])
def test_odd_contents_are_one_line(tmp_path: Path, kind: str) -> None:
    save_checkpoint(tmp_path / "a.pth", spoilt(kind))
    with pytest.raises(ValueError, match=r"a\.pth") as refused:
        load_generator(tmp_path / "a.pth")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    if kind not in ("architecture", "huge"):
        model, cfg = tiny_model()
        for parts in ("all", "fitting"):
            with pytest.raises(ValueError, match=r"a\.pth"):
                start_from(model, cfg, tmp_path / "a.pth", parts)
