"""Confidence that listens (lite_cfg.vce_type: agreement): streaming, causality, exact zeros, and that it can learn to tell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import tiny_model
from models.agreement import DEAD_ZONE, AgreementVCE
from models.layers import latest_means
from models.loss import confidence_loss

RATE = 20.0  # STFT frames a second: a short window keeps the tests quick


def made(seed: int = 0, window_sec: float = 1.0) -> AgreementVCE:
    torch.manual_seed(seed)
    return AgreementVCE(6, 4, RATE, window_sec).eval()


def inputs(frames: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    feat, audio = torch.randn(batch, frames, 6, generator=draw), torch.randn(batch, 4, frames, 10, generator=draw)
    return feat, audio, torch.rand(batch, frames, generator=draw) > 0.2


@pytest.mark.parametrize("count", [1, 2, 31])
def test_the_latest_means_are_those_of_all(count: int) -> None:
    values = torch.randn(2, 40, 3, dtype=torch.float64)
    torch.testing.assert_close(latest_means(values, 10, count), values.unfold(1, 10, 1).mean(3)[:, -count:])


@pytest.mark.parametrize("frames", [1, 9, 60])
def test_looking_away_leaves_the_state_that_judging_nobody_leaves(frames: int) -> None:
    vce = made()
    state = vce.judge(*inputs(25)[:2], vce.init_state(2), None)[2]
    feat, audio, _ = inputs(frames, seed=1)
    nobody = torch.zeros(2, frames, dtype=torch.bool)
    judged = vce.judge(feat, audio, state, nobody)[2]
    assert torch.equal(vce.look_away(audio, state), judged) and judged.shape == state.shape


@settings(max_examples=10, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 20), min_size=2, max_size=5))
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(pieces: list[int]) -> None:
    vce = made()
    feat, audio, valid = inputs(sum(pieces))
    whole = vce.judge(feat, audio, vce.init_state(len(feat)), valid)
    state, alphas, logits = vce.init_state(2), [], []
    for f, a, v in zip(feat.split(pieces, 1), audio.split(pieces, 2), valid.split(pieces, 1), strict=True):
        alpha, logit, state = vce.judge(f, a, state, v)
        alphas.append(alpha)
        logits.append(logit)
    torch.testing.assert_close(torch.cat(alphas, 1), whole[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(logits, 1), whole[1], rtol=0, atol=1e-4)
    assert state.shape[0] == 2
    torch.testing.assert_close(state, whole[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("window_sec", [0.5, 1.0])
@pytest.mark.parametrize("edited", ["feat", "audio"])
@torch.no_grad()
def test_only_the_window_counts(edited: str, window_sec: float) -> None:
    vce = made(window_sec=window_sec)
    feat, audio, _ = inputs(80, batch=1)
    before = vce.judge(feat, audio, vce.init_state(len(feat)), None)[1]
    part = feat if edited == "feat" else audio.transpose(1, 2)
    part[:, 30] = torch.randn(part[:, 30].shape)
    change = (vce.judge(feat, audio, vce.init_state(len(feat)), None)[1] - before).abs().flatten()
    assert float(change[:30].max()) == 0
    assert float(change[30 : 30 + round(window_sec * RATE)].min()) > 0
    assert float(change[31 + vce._history :].max()) < 1e-4


def test_a_recipe_says_how_long_the_window_is() -> None:
    stft = {"sampling_rate": 16000, "hop_size": 200, "n_fft": 400, "win_size": 400}
    for keys, frames in (({}, 80), ({"agreement_window_sec": 3.0}, 240)):
        model, _ = tiny_model(lite_cfg={"vce_type": "agreement", **keys}, stft_cfg=stft)
        assert model.vce.window == frames


@torch.no_grad()
def test_what_an_absent_face_shows_is_not_looked_at() -> None:
    vce = made()
    feat, audio, valid = inputs(40)
    other = torch.where(valid[..., None], feat, torch.nan)
    alpha, logits, _ = vce.judge(feat, audio, vce.init_state(len(feat)), valid)
    again = vce.judge(other, audio, vce.init_state(len(feat)), valid)
    assert torch.equal(alpha, again[0]) and torch.equal(logits, again[1])
    assert float(alpha[~valid].abs().max()) == 0


@torch.no_grad()
def test_low_confidence_is_none_and_high_confidence_is_whole() -> None:
    vce = made()
    feat, audio, _ = inputs(30)
    for bias, wanted in ((-2.5, 0.0), (30.0, 1.0)):
        torch.nn.init.zeros_(vce.verdict[2].weight)
        torch.nn.init.zeros_(vce.output.weight)
        vce.output.bias.fill_(bias)
        vce.verdict[2].bias.zero_()
        assert torch.equal(vce.judge(feat, audio, vce.init_state(len(feat)), None)[0], torch.full((2, 30, 1), wanted))
    assert torch.sigmoid(torch.tensor(-2.5)) < DEAD_ZONE


@torch.no_grad()
def test_where_alpha_is_low_the_output_is_the_sound_only_one() -> None:
    model, _ = tiny_model(lite_cfg={"vce_type": "agreement"}, model_cfg={"causal": True})
    mag, pha = torch.rand(1, 201, 50), torch.randn(1, 201, 50)
    video = torch.rand(1, 3, 8, 96, 96)
    assert not torch.equal(model(mag, pha, video)[0], model(mag, pha)[0])
    model.vce.output.bias.fill_(-50.0)
    assert torch.equal(model(mag, pha, video)[0], model(mag, pha)[0])


def test_it_learns_to_tell_whose_mouth_it_is() -> None:
    """Sound and video share a slow signal, or have one each, or the same one 0.3 s apart."""
    torch.manual_seed(1)
    vce = AgreementVCE(6, 4, RATE)
    sight, hearing = torch.randn(1, 6), torch.randn(4)
    optimizer = torch.optim.Adam(vce.parameters(), 1e-2)

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        slow = torch.nn.functional.avg_pool1d(torch.randn(24, 1, 80, generator=draw), 4, 1)[:, 0] * 2
        video, sound = slow[:, :66].clone(), slow[:, :66].clone()
        video[8:16] = slow[torch.arange(8, 16).roll(1), :66]
        video[16:] = slow[16:, 6:72]
        label = torch.zeros(24, 66)
        label[:8] = 1
        feat = video[..., None] * sight + 0.3 * torch.randn(24, 66, 6, generator=draw)
        audio = sound[:, None, :, None] * hearing[:, None, None] + 0.3 * torch.randn(24, 4, 66, 10, generator=draw)
        return feat, audio, label

    for step in range(120):
        feat, audio, label = batch(step)
        logits = vce.judge(feat, audio, vce.init_state(len(feat)), None)[1]
        loss = confidence_loss(logits, label, torch.ones_like(label, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        feat, audio, label = batch(1000)
        score = vce.judge(feat, audio, vce.init_state(len(feat)), None)[1][:, 40:, 0].mean(1)
    assert float(score[:8].mean() - score[8:16].mean()) > 2
    assert float(score[:8].mean() - score[16:].mean()) > 2


def test_the_sounds_encoder_is_not_pulled_by_alpha() -> None:
    vce = made()
    feat, audio, _ = inputs(20)
    audio.requires_grad_()
    vce.judge(feat.requires_grad_(), audio, vce.init_state(len(feat)), None)[1].sum().backward()
    assert audio.grad is None and feat.grad is not None
