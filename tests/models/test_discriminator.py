"""MetricDiscriminator: SEMamba's names and numbers; PESQ of a batch with its failures marked."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import GOLDEN
from helpers.tiny import voice
from helpers.weights import golden_state_dict
from models.discriminator import MetricDiscriminator, batch_pesq, normalized_pesq
from utils.scores.metrics import ScoringPool, score_clip


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "semamba.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_state_dict_is_semambas() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = MetricDiscriminator()
    expected = json.loads((GOLDEN / "semamba_state_dict.json").read_text())["MetricDiscriminator"]
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


def test_output_is_semambas(golden: dict[str, torch.Tensor]) -> None:
    model = MetricDiscriminator()
    state = golden_state_dict(model)
    for name in state:
        if name.endswith(("_u", "_v")):  # the golden model held unit vectors, as spectral norm keeps them
            state[name] /= state[name].norm()
    model.load_state_dict(state)
    with torch.no_grad():
        score = model.eval()(golden["mag"], golden["out_mag"])
    assert score.shape == (2, 1)
    # These weights drive the sigmoid to its end, so it is the logit that is compared.
    torch.testing.assert_close(score.double().logit(), golden["disc"].double().logit(), rtol=0, atol=1e-3)


def test_the_pretrained_discriminator_loads_and_scores_as_pinned(golden: dict[str, torch.Tensor], shared_data: Path) -> None:
    weights = torch.load(shared_data / "weights" / "pretrained_discriminator.pth", weights_only=True)
    model = MetricDiscriminator()
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        score = model.eval()(golden["mag"], 0.9 * golden["mag"])
    torch.testing.assert_close(score, golden["disc_pretrained"], rtol=0, atol=1e-4)


def test_it_learns_the_scores_of_a_batch() -> None:
    torch.manual_seed(0)
    model = MetricDiscriminator(dim=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    clean = torch.rand(4, 64, 48)
    estimate = torch.cat((clean, clean + torch.rand(4, 64, 48)))
    target = torch.tensor([1.0] * 4 + [0.1] * 4)[:, None]
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.mse_loss(model(torch.cat((clean, clean)), estimate), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.25 * losses[0]


def test_a_state_in_eval_mode_does_not_move(golden: dict[str, torch.Tensor]) -> None:
    model = MetricDiscriminator().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model(golden["mag"], golden["mag"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_scale_of_the_scores() -> None:
    assert normalized_pesq(1.0) == 0
    assert normalized_pesq(4.5) == 1


def test_failures_are_masked_and_never_a_score() -> None:
    clean = torch.from_numpy(voice(1.0))
    noisy = clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    silent = torch.zeros_like(clean)
    expected = (score_clip(clean.numpy(), noisy.numpy(), metrics=("pesq",))["pesq"] - 1) / 3.5
    with ScoringPool(2) as pool:
        score, scored = batch_pesq(torch.stack((clean, silent, clean)), torch.stack((noisy, noisy, silent)), pool=pool)
        again, _ = batch_pesq([clean], [noisy.requires_grad_()], pool=pool)  # the pool lives on
    assert scored.tolist() == [True, False, False]
    assert score.dtype == torch.float32
    assert float(score[0]) == pytest.approx(expected, rel=1e-5)
    assert float(again[0]) == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(score).all()


def test_other_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="8000 Hz"):
        batch_pesq(torch.zeros(1, 8000), torch.zeros(1, 8000), sample_rate=8000)
