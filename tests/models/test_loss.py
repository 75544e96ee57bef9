"""Losses: SEMamba's numbers, the size of si_sdr beside the others, finite gradients on awkward clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.paths import GOLDEN, ROOT
from helpers.tiny import voice
from models.loss import (
    SI_SDR_LIMIT_DB,
    Signal,
    Trust,
    anti_wrapping,
    confidence_loss,
    generator_losses,
    pesq_score,
    phase_losses,
    si_sdr_loss,
    si_sdr_score,
    stoi_score,
)
from models.lsigmoid import LearnableSigmoid1D, LearnableSigmoid2D
from models.stfts import mag_phase_istft, mag_phase_stft
from utils.config import complete_config, load_config
from utils.scores.metrics import si_sdr

STFT = {"n_fft": 400, "hop_size": 100, "win_size": 400, "compress_factor": 0.3}
CFG = {"stft_cfg": {**STFT, "sampling_rate": 16000}}
RECIPE = {"magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.0, "consistancy": 0.1, "si_sdr": 0.03}


def noisy_pair(snr_db: float, seed: int = 0, n: int = 8000) -> tuple[torch.Tensor, torch.Tensor]:
    """A clean clip of RMS 1 and the same with white noise, [2, n] each."""
    clean = torch.from_numpy(np.stack([voice(n / 16000, seed=seed + i) for i in range(2)])) / 0.05
    noise = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    return clean, clean + noise * 10 ** (-snr_db / 20)


def signals(clean: torch.Tensor, estimate: torch.Tensor) -> tuple[Signal, Signal]:
    """The estimate, with gradients on its magnitude and phase, and the clean signal, as generator_losses takes them."""
    mag, pha, _ = mag_phase_stft(estimate, **STFT)
    mag, pha = mag.requires_grad_(), pha.requires_grad_()
    com = torch.stack((mag * pha.cos(), mag * pha.sin()), dim=-1)
    audio = mag_phase_istft(mag, pha, **STFT, length=clean.shape[1])
    return Signal(mag, pha, com, audio), Signal(*mag_phase_stft(clean, **STFT), clean)


# --- phase ---


def test_phase_losses_match_semamba() -> None:
    with np.load(GOLDEN / "semamba.npz") as golden:
        losses = phase_losses(torch.from_numpy(golden["pha"]), torch.from_numpy(golden["out_pha"]), CFG)
        np.testing.assert_allclose([float(x) for x in losses], golden["phase_losses"], rtol=0, atol=1e-4)


def test_phase_losses_match_the_difference_matrices() -> None:
    """The definition with SEMamba's dense matrices (upper first diagonal minus the main one)."""
    rng = torch.Generator().manual_seed(0)
    bins, frames = 201, 7
    r, g = (torch.rand(2, bins, frames, generator=rng, dtype=torch.float64) * 6 - 3 for _ in range(2))
    over_bins, over_frames = (torch.ones(n, n, dtype=r.dtype).triu(1).tril(1) - torch.eye(n) for n in (bins, frames))
    expected = (
        anti_wrapping(r - g).mean(),
        anti_wrapping((r.mT @ over_bins) - (g.mT @ over_bins)).mean(),
        anti_wrapping((r @ over_frames) - (g @ over_frames)).mean(),
    )
    torch.testing.assert_close(phase_losses(r, g, CFG), expected)


def test_phase_losses_do_not_see_whole_turns() -> None:
    rng = torch.Generator().manual_seed(0)
    r = torch.rand(1, 201, 5, generator=rng, dtype=torch.float64)
    turned = r + 2 * torch.pi * torch.randint(-2, 3, r.shape, generator=rng).double()
    assert max(float(x) for x in phase_losses(r, turned, CFG)) < 1e-12


def test_phase_losses_refuse_another_n_fft() -> None:
    with pytest.raises(ValueError, match="201"):
        phase_losses(torch.zeros(1, 129, 4), torch.zeros(1, 129, 4), CFG)


# --- SI-SDR ---


@pytest.mark.parametrize("snr_db", [-20, 0, 15, 40])
def test_si_sdr_loss_is_minus_the_score(snr_db: float) -> None:
    clean, noisy = noisy_pair(snr_db)
    expected = np.mean([si_sdr(c.numpy(), n.numpy()) for c, n in zip(clean, noisy, strict=True)])
    assert float(si_sdr_loss(clean, noisy)) == pytest.approx(-expected, abs=0.01)
    assert float(si_sdr_loss(clean[0], noisy[0])) == pytest.approx(-si_sdr(clean[0].numpy(), noisy[0].numpy()), abs=0.01)


def test_si_sdr_loss_does_not_see_scale() -> None:
    clean, noisy = noisy_pair(5)
    assert float(si_sdr_loss(clean, 1e-3 * noisy)) == pytest.approx(float(si_sdr_loss(clean, noisy)), abs=1e-3)
    assert float(si_sdr_loss(1e-2 * clean, noisy)) == pytest.approx(float(si_sdr_loss(clean, noisy)), abs=1e-3)


def test_zero_mean_takes_an_offset_off() -> None:
    clean, noisy = noisy_pair(10)
    without, shifted = si_sdr_loss(clean, noisy, zero_mean=True), si_sdr_loss(clean, noisy + 3, zero_mean=True)
    assert float(shifted) == pytest.approx(float(without), abs=1e-3)
    assert float(si_sdr_loss(clean, noisy + 3)) > float(without) + 5


@pytest.mark.parametrize("limit_db", [30.0, 80.0])
@pytest.mark.parametrize("case", ["silent reference", "silent estimate", "perfect", "opposite", "unrelated"])
def test_si_sdr_loss_and_gradient_are_finite(case: str, limit_db: float) -> None:
    clean, noisy = noisy_pair(0)
    reference = clean * 0 if case == "silent reference" else clean
    estimate = {"silent estimate": clean * 0, "perfect": clean.clone(), "opposite": -clean}.get(case, noisy - clean)
    estimate.requires_grad_()
    loss = si_sdr_loss(reference, estimate, limit_db=limit_db)
    loss.backward()
    assert abs(float(loss.detach())) <= limit_db + 1e-3
    assert torch.isfinite(estimate.grad).all()
    # The change of the loss in dB per change of the estimate by the reference's own size; without limits it is unbounded.
    assert estimate.grad.norm() * clean[0].norm() < 4.4 * 10 ** (limit_db / 20)


def test_silent_references_count_for_nothing() -> None:
    clean, noisy = noisy_pair(5)
    half = torch.cat((clean[:1], 0 * clean[1:]))
    estimate = noisy.clone().requires_grad_()
    loss = si_sdr_loss(half, estimate)
    assert float(loss.detach()) == pytest.approx(float(si_sdr_loss(clean[:1], noisy[:1])))
    loss.backward()
    assert estimate.grad[1].abs().max() == 0


def test_si_sdr_loss_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="shape"):
        si_sdr_loss(torch.zeros(2, 100), torch.zeros(100))


# --- together ---


def test_terms_are_semambas() -> None:
    estimate, clean = signals(*noisy_pair(5))
    total, terms = generator_losses({**RECIPE, "time": 0.2}, estimate, clean, STFT)
    assert set(terms) == {"magnitude", "phase", "complex", "time", "consistancy", "si_sdr"}
    torch.testing.assert_close(terms["magnitude"], F.mse_loss(clean.mag, estimate.mag))
    torch.testing.assert_close(terms["complex"], 2 * F.mse_loss(clean.com, estimate.com))
    torch.testing.assert_close(terms["time"], F.l1_loss(clean.audio, estimate.audio))
    torch.testing.assert_close(terms["phase"], sum(phase_losses(clean.pha, estimate.pha, CFG)))
    weighted = sum({**RECIPE, "time": 0.2}[name] * value for name, value in terms.items())
    torch.testing.assert_close(total, weighted)
    assert float(terms["si_sdr"].detach()) == pytest.approx(-5, abs=1)  # dB


def test_the_plans_loss_is_the_weighted_sum_by_hand() -> None:
    """Its weights as they stand in its recipe, its SI-SDR written out: minus the mean in dB, of signals without their means."""
    plan = {"magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.0, "consistancy": 0.1, "si_sdr": 0.3}
    estimate, clean = signals(*noisy_pair(5))
    estimate = estimate._replace(audio=estimate.audio + 0.2)  # an offset, which costs nothing
    total, terms = generator_losses(plan, estimate, clean, STFT)
    reference, estimate = ((x - x.mean(-1, keepdim=True)).double() for x in (clean.audio, estimate.audio))
    target = (reference * estimate).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True) * reference
    si_sdr_db = 10 * torch.log10(target.square().sum(-1) / (estimate - target).square().sum(-1))
    by_hand = -0.3 * si_sdr_db.mean() + sum(plan[name] * terms[name] for name in terms if name != "si_sdr")
    assert float(terms["si_sdr"].detach()) == pytest.approx(-float(si_sdr_db.mean().detach()), abs=0.05)
    assert float(total.detach()) == pytest.approx(float(by_hand.detach()), abs=0.02)


# What the weight of si_sdr was in each recipe while the term was in bels: the same training, to what float32 tells apart.
WEIGHTS_IN_BELS = {
    "LiteAVSE": 0.3, "LiteAVSE_offline": 0.3, "LiteAVSE_smoke": 0.3, "LiteAVSE_grid": 1.0, "LiteAVSE_small_audio": 0.5,
    "LiteAVSE_small": 0.5, "ablations/LiteAVSE_audio_only": 0.3, "ablations/LiteAVSE_custom3d": 0.3,
    "ablations/LiteAVSE_distilled": 0.3, "ablations/LiteAVSE_no_fsvg": 0.3, "ablations/LiteAVSE_no_vce": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", list(WEIGHTS_IN_BELS))
def test_the_shipped_recipes_train_on_the_same_numbers_as_before(name: str) -> None:
    weights = load_config(ROOT / "recipes" / "LiteAVSE" / f"{name}.yaml")["training_cfg"]["loss"]
    estimate, clean = signals(*noisy_pair(5))
    audio = estimate.audio.detach().requires_grad_()
    now, _ = generator_losses({"si_sdr": weights["si_sdr"]}, estimate._replace(audio=audio), clean, STFT)
    (gradient_now,) = torch.autograd.grad(now, audio)
    before = WEIGHTS_IN_BELS[name] * si_sdr_loss(clean.audio, audio, limit_db=SI_SDR_LIMIT_DB) / 10
    (gradient_before,) = torch.autograd.grad(before, audio)
    # Only what an offset of the output would change is gone, half a percent of the gradient here.
    offset = gradient_before.mean(-1, keepdim=True)
    assert float(now.detach()) == pytest.approx(float(before.detach()), rel=2e-3)
    assert (gradient_now - (gradient_before - offset)).norm() < 1e-3 * gradient_before.norm()
    assert (gradient_before - offset).norm() > 0.99 * gradient_before.norm()


def test_consistancy_is_small_for_a_real_signals_spectrum_only() -> None:
    estimate, clean = signals(*noisy_pair(5))
    _, terms = generator_losses({"consistancy": 1.0}, estimate, clean, STFT)
    assert float(terms["consistancy"].detach()) < 1e-6
    _, worse = generator_losses({"consistancy": 1.0}, estimate._replace(com=estimate.com + 0.3), clean, STFT)
    assert float(worse["consistancy"].detach()) == pytest.approx(2 * 0.3**2, rel=0.01)


def test_terms_without_weight_are_not_computed() -> None:
    estimate, clean = signals(*noisy_pair(5))
    estimate = estimate._replace(audio=None, com=None)  # would fail if touched
    total, terms = generator_losses(
        {"magnitude": 2.0, "phase": 0, "metric": 0.05, "confidence": 1.0}, estimate, clean, STFT
    )
    assert list(terms) == ["magnitude"]
    torch.testing.assert_close(total, 2 * terms["magnitude"])


def test_the_configurations_weights_are_taken_as_they_are() -> None:
    weights = complete_config({"training_cfg": {"loss": {"metric": 0.05, "si_sdr": 0.3}}})["training_cfg"]["loss"]
    _, terms = generator_losses(weights, *signals(*noisy_pair(5)), STFT)
    assert set(terms) == {"magnitude", "phase", "complex", "consistancy", "si_sdr"}


def test_gradients_are_finite_on_silence_and_on_perfect_output() -> None:
    clean, _ = noisy_pair(5)
    for target, estimate in ((clean, clean.clone()), (0 * clean, clean.clone())):
        given, wanted = signals(target, estimate)
        total, _ = generator_losses({**RECIPE, "time": 0.2}, given, wanted, STFT)
        total.backward()
        assert torch.isfinite(given.mag.grad).all()
        assert torch.isfinite(given.pha.grad).all()


def test_a_silent_output_has_a_finite_gradient() -> None:
    estimate, clean = signals(*noisy_pair(5))
    estimate = estimate._replace(audio=torch.zeros_like(clean.audio).requires_grad_())
    generator_losses({**RECIPE, "time": 0.2}, estimate, clean, STFT)[0].backward()
    assert torch.isfinite(estimate.audio.grad).all()


def test_si_sdr_cannot_drown_the_other_terms_at_the_start_of_training() -> None:
    """Random phases, as an untrained decoder draws them: without the limit the gradient is hundreds of times larger."""
    clean, noisy = noisy_pair(5)
    rng = torch.Generator().manual_seed(3)
    ratio = []
    for _ in range(5):
        estimate, wanted = signals(clean, noisy)
        pha = (6.28 * torch.rand(estimate.pha.shape, generator=rng)).requires_grad_()
        audio = mag_phase_istft(estimate.mag, pha, **STFT, length=clean.shape[1])
        audio.retain_grad()
        generator_losses({"si_sdr": 0.1}, estimate._replace(audio=audio), wanted, STFT)[0].backward()
        ratio.append(float(audio.grad.norm() * audio.detach().norm()))
    # Gradient times signal is the change of the loss per change of the signal by its own size.
    assert max(ratio) < 10 ** (SI_SDR_LIMIT_DB / 20)


def test_confidence_is_cross_entropy_over_seen_frames() -> None:
    logits = torch.tensor([[[2.0], [-1.0], [30.0]]], requires_grad=True)
    trust, mask = torch.tensor([[1.0, 0.25, 0.0]]), torch.tensor([[True, True, False]])
    loss = confidence_loss(logits, trust, mask)
    p = 1 / (1 + math.exp(1.0))
    expected = (math.log(1 + math.exp(-2.0)) - 0.25 * math.log(p) - 0.75 * math.log(1 - p)) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad[0, 2] == 0
    assert float(confidence_loss(logits, trust, mask & False).detach()) == 0


def test_confidence_enters_the_total() -> None:
    logits = torch.zeros(2, 81, 1, requires_grad=True)
    total, terms = generator_losses(
        {"confidence": 0.5}, *signals(*noisy_pair(5)), STFT,
        trust=Trust(logits, torch.ones(2, 81), torch.ones(2, 81, dtype=torch.bool)),
    )
    assert float(total.detach()) == pytest.approx(0.5 * math.log(2), rel=1e-5)
    total.backward()
    assert (logits.grad < 0).all()  # towards trust


# --- scores by SEMamba's names ---


def test_scores_take_lists_of_tensors_of_any_length() -> None:
    cfg = complete_config({"env_setting": {"num_workers": 0}})
    utts_r = [torch.from_numpy(voice(1.5)), torch.from_numpy(voice(2.0, seed=1))]
    rng = torch.Generator().manual_seed(0)
    utts_g = [x + 0.02 * torch.randn(x.shape, generator=rng) for x in utts_r]
    expected = np.mean([si_sdr(r.numpy(), g.numpy()) for r, g in zip(utts_r, utts_g, strict=True)])
    assert si_sdr_score(utts_r, utts_g) == pytest.approx(expected)
    assert si_sdr_score([r[None] for r in utts_r], [g[None] for g in utts_g]) == pytest.approx(expected)
    assert 0.3 < stoi_score(utts_r, utts_g, cfg) < 1
    assert 1 < pesq_score(utts_r, utts_g, cfg) < 4.7


def test_a_failed_clip_is_not_averaged_in() -> None:
    cfg = complete_config({"env_setting": {"num_workers": 0}})
    good, silent = torch.from_numpy(voice(1.5)), torch.zeros(8000)
    noisy = good + 0.01 * torch.randn(good.shape, generator=torch.Generator().manual_seed(0))
    alone = pesq_score([good], [noisy], cfg)
    assert pesq_score([good, silent], [noisy, silent], cfg) == alone
    assert math.isnan(pesq_score([silent], [silent], cfg))


# --- learnable sigmoid ---


def test_learnable_sigmoids_hold_a_slope_per_feature() -> None:
    one, two = LearnableSigmoid1D(3), LearnableSigmoid2D(3, beta=2.0)
    assert one.state_dict()["slope"].shape == (3,)
    assert two.state_dict()["slope"].shape == (3, 1)
    assert float(one(torch.zeros(2, 3)).mean().detach()) == 0.5
    torch.nn.init.constant_(two.slope[1:2], 2.0)
    y = two(torch.ones(1, 3, 4))
    assert y.shape == (1, 3, 4)
    torch.testing.assert_close(y[0, :, 0], 2 / (1 + torch.exp(-torch.tensor([1.0, 2.0, 1.0]))))
