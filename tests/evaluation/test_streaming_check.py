"""evaluation.streaming_check: passes what is causal, and finds what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from evaluation import streaming_check
from helpers.tiny import only_line, save_tiny_checkpoint, tiny_model
from models.inference.enhancer import Enhancer

TINY = {"model_cfg": {"causal": True, "phase_residual": True}}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer chunk sizes: what they come to is tests/models/inference/test_streaming.py's concern."""
    monkeypatch.setattr(streaming_check, "CHUNKS", {"400": [400], "random": [700, 3, 450]})


def broken(enhancer: Enhancer) -> set[str]:
    return {row.name.split(",")[0].split(" from ")[0] for row in streaming_check.check(enhancer, 0.5) if not row.ok}


def test_a_causal_checkpoint_passes(tmp_path, quick, capsys) -> None:
    path = save_tiny_checkpoint(tmp_path / "tiny.pth", **TINY)
    assert streaming_check.main(["--checkpoint_file", str(path), "--duration_sec", "0.5", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "LiteAVSEMamba" in lines[0] and lines[-1] == "20 of 20 hold"
    assert any("SNR" in line for line in lines) and any("video changed" in line for line in lines)


def test_sound_alone_passes(quick) -> None:
    assert not broken(Enhancer(*tiny_model("SEMamba", model_cfg={"causal": True})))


def leaks(model: torch.nn.Module, step: Callable) -> Callable:
    """An encoder that hears the mean of all it is given."""
    return lambda x, state: step(x + 0.1 * x.mean(2, keepdim=True), state)


def forgets(model: torch.nn.Module, step: Callable) -> Callable:
    """An encoder whose state is lost between pieces."""
    return lambda x, state: (step(x, state)[0], model.dense_encoder.init_state(x[:, :, :0]))


@pytest.mark.parametrize("fault", [leaks, forgets])
def test_a_leak_and_a_lost_state_are_found(quick, tmp_path, capsys, monkeypatch, fault: Callable) -> None:
    model, cfg = tiny_model(**TINY)
    monkeypatch.setattr(model.dense_encoder, "step", fault(model, model.dense_encoder.step))
    found = broken(Enhancer(model, cfg))
    assert "sound alone" in found and "with video" in found
    assert ("sound changed" in found) == (fault is leaks)


def test_a_video_that_is_never_looked_at_is_found(quick) -> None:
    model, cfg = tiny_model(**TINY)
    with torch.no_grad():
        model.vce.output.bias.fill_(-100)
    assert broken(Enhancer(model, cfg)) == {"video changed"}


def test_exit_code_of_a_broken_promise(quick, tmp_path, monkeypatch, capsys) -> None:
    path = save_tiny_checkpoint(tmp_path / "tiny.pth", **TINY)
    monkeypatch.setattr(streaming_check, "LEAST_SNR_DB", 500.0)
    assert streaming_check.main(["--checkpoint_file", str(path), "--duration_sec", "0.5", "--device", "cpu"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_a_model_that_is_not_causal_is_one_line(av_checkpoint, capsys) -> None:
    assert streaming_check.main(["--checkpoint_file", str(av_checkpoint), "--device", "cpu"]) == 2
    assert "not causal" in only_line(capsys.readouterr().err)
