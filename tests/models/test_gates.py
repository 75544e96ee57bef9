"""The gates of the visual branch: the confidence alpha (VCE) and the frequency gate (FSVG)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import tiny_model
from models.fsvg import FSVG, FSVGWithPrior, speech_band_prior
from models.vce import VCE, VCEWithTemporalSmoothing

# Confidence


@pytest.fixture(params=[VCE, VCEWithTemporalSmoothing])
def vce(request) -> VCE:
    torch.manual_seed(0)
    model = request.param(16)
    torch.nn.init.normal_(model.output.weight)
    if isinstance(model, VCEWithTemporalSmoothing):
        torch.nn.init.normal_(model.smooth_logits)
    return model


def test_confidence_has_its_shape_and_range(vce):
    alpha = vce(torch.randn(3, 11, 16) * 20)
    assert alpha.shape == (3, 11, 1)
    assert float(alpha.detach().min()) >= 0 and float(alpha.detach().max()) <= 1


@pytest.mark.parametrize("kind", [VCE, VCEWithTemporalSmoothing])
def test_video_is_trusted_at_first(kind):
    torch.manual_seed(0)
    alpha = kind()(torch.randn(2, 20, 512))
    assert float(alpha.detach().mean()) > 0.65


def test_logits_are_confidence_before_smoothing_and_masking():
    model, feat = VCE(16), torch.randn(2, 5, 16)
    torch.testing.assert_close(torch.sigmoid(model._logits(feat)), model(feat))
    smoothed = VCEWithTemporalSmoothing(16, smooth_kernel=1)
    torch.testing.assert_close(torch.sigmoid(smoothed._logits(feat)), smoothed(feat))


def test_confidence_is_exactly_zero_where_no_face_is(vce):
    feat = torch.randn(2, 12, 16)
    valid = torch.rand(2, 12) > 0.4
    feat[~valid] = float("nan")
    alpha = vce(feat, valid)
    assert torch.equal(alpha[~valid], torch.zeros_like(alpha[~valid]))
    assert float(alpha[valid].detach().min()) > 0
    assert torch.equal(vce(feat, torch.zeros_like(valid)), torch.zeros(2, 12, 1))


def test_an_absent_face_neither_leaks_in_nor_drags_alpha_down(vce):
    feat = torch.randn(1, 12, 16)
    valid = torch.ones(1, 12, dtype=torch.bool)
    valid[:, 4:7] = False
    other = feat.clone()
    other[:, 4:7] = 9 * torch.randn(1, 3, 16)
    assert torch.equal(vce(feat, valid), vce(other, valid))
    steady = vce(feat[:, :1].expand(1, 12, 16), valid)[valid]
    torch.testing.assert_close(steady, torch.sigmoid(vce._logits(feat[:, :1])).expand(1, 9, 1)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 3, 20])
def test_looking_away_leaves_the_state_that_judging_nobody_leaves(vce, frames):
    _, state = vce.step(torch.randn(2, 7, 16), vce.init_state(2))
    audio = torch.randn(2, 4, frames, 10)
    judged = vce.judge(torch.randn(2, frames, 16), audio, state, torch.zeros(2, frames, dtype=torch.bool))[2]
    assert torch.equal(vce.look_away(audio, state), judged) and judged.shape == state.shape


def test_smoothing_is_the_weighted_mean_of_the_valid_past():
    torch.manual_seed(0)
    model = VCEWithTemporalSmoothing(16, smooth_kernel=3)
    torch.nn.init.normal_(model.smooth_logits)
    feat, valid = torch.randn(1, 4, 16), torch.tensor([[True, False, True, True]])
    oldest, middle, newest = torch.softmax(model.smooth_logits, 0).tolist()
    p = torch.sigmoid(model._logits(feat)).flatten().tolist()
    expected = [
        p[0],
        0.0,
        (oldest * p[0] + newest * p[2]) / (oldest + newest),
        (middle * p[2] + newest * p[3]) / (middle + newest),
    ]
    torch.testing.assert_close(model(feat, valid).flatten(), torch.tensor(expected))


def test_smoothing_sees_the_past_only():
    torch.manual_seed(0)
    model = VCEWithTemporalSmoothing(16)
    feat = torch.randn(1, 20, 16)
    edited = feat.clone()
    edited[:, 10] += 3
    change = (model(feat) - model(edited)).detach().abs().flatten()
    assert float(change[:10].max()) == 0
    assert float(change[10:15].min()) > 1e-5  # its own window and the four after it
    assert float(change[15:].max()) == 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), kernel=st.integers(1, 7), seed=st.integers(0, 9))
@torch.no_grad()
def test_confidence_in_pieces_is_confidence_at_once(pieces, kernel, seed):
    torch.manual_seed(seed)
    for model in (VCE(8), VCEWithTemporalSmoothing(8, kernel)):
        feat, valid = torch.randn(2, sum(pieces), 8), torch.rand(2, sum(pieces)) > 0.3
        state, alphas = model.init_state(2), []
        for piece, mask in zip(feat.split(pieces, 1), valid.split(pieces, 1), strict=True):
            alpha, state = model.step(piece, state, mask)
            alphas.append(alpha)
        torch.testing.assert_close(torch.cat(alphas, 1), model(feat, valid), rtol=0, atol=1e-6)


def test_confidence_gradients_are_finite_and_reach_everything(vce):
    feat = torch.randn(2, 12, 16, requires_grad=True)
    valid = torch.rand(2, 12) > 0.5
    valid[1] = False
    (vce(feat, valid) * torch.randn(2, 12, 1)).sum().backward()
    for name, parameter in vce.named_parameters():
        assert bool(torch.isfinite(parameter.grad).all()) and float(parameter.grad.abs().sum()) > 0, name
    assert bool(torch.isfinite(feat.grad).all())
    assert float(feat.grad[1].abs().sum()) == 0


def test_a_smoothing_window_of_no_frames_is_refused():
    with pytest.raises(ValueError, match="smooth_kernel"):
        VCEWithTemporalSmoothing(16, smooth_kernel=0)


# Frequency gate


@pytest.fixture(params=[FSVG, FSVGWithPrior])
def fsvg(request) -> FSVG:
    torch.manual_seed(0)
    return request.param(6) if request.param is FSVG else request.param(6, 20)


def test_gate_has_its_shape_and_range(fsvg):
    gate = fsvg(torch.randn(2, 6, 7, 20), torch.randn(2, 6, 7, 20))
    assert gate.shape == (2, 1, 7, 20)
    assert float(gate.detach().min()) > 0 and float(gate.detach().max()) < 1


def test_gate_is_the_sigmoid_of_its_logits(fsvg):
    audio, visual = torch.randn(2, 2, 6, 7, 20)
    torch.testing.assert_close(fsvg(audio, visual), torch.sigmoid(fsvg._logits(audio, visual)))


@pytest.mark.parametrize("edited", ["audio", "visual"])
def test_a_bin_of_the_gate_depends_on_that_bin_of_both_inputs(fsvg, edited):
    inputs = {"audio": torch.randn(1, 6, 7, 20), "visual": torch.randn(1, 6, 7, 20)}
    before = fsvg(inputs["audio"], inputs["visual"])
    inputs[edited][:, :, 3, 5] += 2
    change = (fsvg(inputs["audio"], inputs["visual"]) - before).detach().abs()
    assert float(change[:, :, 3, 5]) > 1e-4
    change[:, :, 3, 5] = 0
    assert float(change.max()) < 1e-6


def test_gate_gradients_reach_everything(fsvg):
    fsvg(torch.randn(2, 6, 7, 20), torch.randn(2, 6, 7, 20)).sum().backward()
    for name, parameter in fsvg.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name


def test_the_prior_starts_out_favouring_speech_frequencies():
    prior = FSVGWithPrior(6, 100).prior.detach()
    centre_hz = (torch.arange(100) + 0.5) * 80  # 100 bins over 0 .. 8 kHz
    assert float(prior[(centre_hz > 500) & (centre_hz < 2000)].min()) > 1
    assert float(prior[(centre_hz < 100) | (centre_hz > 6000)].max()) < -1
    middle = int(prior.argmax())
    assert bool((prior[1 : middle + 1] >= prior[:middle]).all()) and bool((prior[middle + 1 :] <= prior[middle:-1]).all())
    for edge_hz in (300, 3000):  # halfway there
        assert abs(float(prior[int((centre_hz - edge_hz).abs().argmin())])) < 0.5
    gate = FSVGWithPrior(6, 100)(torch.randn(2, 6, 7, 100) * 0.1, torch.randn(2, 6, 7, 100) * 0.1).detach().mean((0, 1, 2))
    assert float(gate[10:25].mean()) > 2 * float(gate[60:].mean())


def test_a_gate_for_other_frequencies_is_refused():
    with pytest.raises(ValueError, match="n_freq_enc"):
        FSVGWithPrior(6, 20)(torch.randn(1, 6, 7, 21), torch.randn(1, 6, 7, 21))


def test_the_prior_is_for_the_models_own_sampling_rate() -> None:
    model, _ = tiny_model(stft_cfg={"sampling_rate": 8000})
    torch.testing.assert_close(model.fsvg.prior.detach(), speech_band_prior(100, 8000))
