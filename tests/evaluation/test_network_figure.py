"""The figure of the network: it says the shapes that the network has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluation.network_figure import ARROWS, boxes, main
from helpers.tiny import tiny_model


def test_it_says_the_shapes_that_the_network_has() -> None:
    model, cfg = tiny_model(model_cfg={"causal": True})
    parts, size = boxes(cfg), cfg["visual_cfg"]["face_size"]
    shapes = {}
    model.visual_projection.register_forward_hook(lambda _, inputs, output: shapes.update(hold=inputs[0], project=output))
    mag = torch.rand(1, cfg["stft_cfg"]["n_fft"] // 2 + 1, 20)
    with torch.no_grad():
        out = model.eval().forward_with_gates(mag, torch.zeros_like(mag), torch.rand(1, 3, 4, size, size))
    shapes |= {"fuse": shapes["project"], "gate": out.gate, "alpha": out.alpha, "mask": out.mag, "phase": out.pha}
    for name, value in shapes.items():
        said = parts[name].text[parts[name].text.rindex("[") + 1 : -1].split(", ")
        assert [{"B": "1", "T": "20"}.get(letter, letter) for letter in said] == [str(length) for length in value.shape], name


def test_arrows_join_parts_that_are_there_and_reach_all_of_them() -> None:
    parts = boxes(tiny_model()[1])
    assert {end for arrow in ARROWS for end in (arrow[0], arrow[2])} == set(parts)


def test_it_is_written_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "network.svg")]) == 0
    assert "<svg" in (tmp_path / "network.svg").read_text(encoding="utf-8")
    assert main(["--output", str(tmp_path / "network.txt")]) == 2
    assert "should end in" in capsys.readouterr().err
