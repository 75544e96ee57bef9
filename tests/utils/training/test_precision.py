"""training_cfg.precision: what it means on a device, what a step makes of it, and that a checkpoint knows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.tiny import only_line
from helpers.training import last_pair, train, trainer_of, write_recipe
from utils.training.precision import choose_precision, matrix_products

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("corpus"))


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision(None, CPU) == "fp32" and choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match="precision is tf32, but cpu has only fp32 and bf16"):
        choose_precision("tf32", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_precision(None, GPU) == "fp32"
    for wanted in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=f"precision is {wanted}, but Tesla T4 has only fp32"):
            choose_precision(wanted, GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert [choose_precision(wanted, GPU) for wanted in (None, "fp32", "tf32", "bf16")] == ["tf32", "fp32", "tf32", "bf16"]


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_products_are_as_before_after_a_step() -> None:
    before = settings()
    for precision, inside in (("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("highest", False))):
        with pytest.raises(KeyboardInterrupt), matrix_products(precision):
            assert settings() == inside
            raise KeyboardInterrupt
        assert settings() == before


def test_a_step_in_bf16_is_one_in_fp32_to_rounding(recipe: Path, tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(recipe, tmp_path / precision, f"training_cfg.precision={precision}")
        seen = []
        trainer.generator.TSMamba[0].tlinear.weight.register_hook(lambda grad, seen=seen: seen.append(grad.dtype))
        block = trainer.generator.dense_encoder.dense_block.dense_block[0][0].pointwise
        block.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.dtype))
        values, problem = trainer.train_step(next(iter(trainer._batches())))
        assert problem is None
        assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32, torch.float32]
        found[precision] = values
    for name, value in found["fp32"].items():
        tolerance = 0.2 if name == "grad_norm" else 0.03
        assert found["bf16"][name] == pytest.approx(value, rel=tolerance, abs=1e-3), name
    assert found["bf16"]["total"] != found["fp32"]["total"]


def test_a_checkpoint_knows_its_precision(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=2", "training_cfg.precision=bf16") == 0
    said = capsys.readouterr().out
    assert "on cpu in bf16" in said and "goes on in" not in said
    assert last_pair(tmp_path / "run")[1]["precision"] == "bf16"
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=3", "training_cfg.precision=bf16") == 0
    assert "goes on in" not in capsys.readouterr().out
    assert train(recipe, tmp_path, "run", "training_cfg.max_steps=4") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "goes on in" in line]
    assert said == [f"{tmp_path / 'run'} was trained in bf16 up to step 3, and goes on in fp32"]


def test_a_resumed_run_in_bf16_equals_an_uninterrupted_one(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, tmp_path, "whole", "training_cfg.precision=bf16", "training_cfg.max_steps=3") == 0
    for last in (1, 3):
        assert train(recipe, tmp_path, "parts", "training_cfg.precision=bf16", f"training_cfg.max_steps={last}") == 0
    whole, parts = last_pair(tmp_path / "whole")[0], last_pair(tmp_path / "parts")[0]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_precision_that_is_not_there_is_one_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe, tmp_path, "run", "training_cfg.precision=tf32") == 2
    assert "training_cfg.precision is tf32, but cpu has only fp32 and bf16" in only_line(capsys.readouterr().err)
    assert train(recipe, tmp_path, "run", "training_cfg.precision=half") == 2
    assert "training_cfg.precision" in only_line(capsys.readouterr().err)
