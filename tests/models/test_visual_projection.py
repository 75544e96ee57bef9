"""The normalisation of visual features over time, and what training tells the model of a video."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import tiny_model
from models.generator import Lesson, LiteAVSEMamba
from models.visual_projection import RunningNorm

RATE = 10.0  # frames a second: windows of 20 frames
DIM = 6
SECTIONS = {
    "model_cfg": {"causal": True},
    "visual_cfg": {"visual_norm": "running", "feature_dropout": 0.5},
    "lite_cfg": {"vce_type": "agreement"},
}


def made() -> RunningNorm:
    norm = RunningNorm(DIM, RATE)
    with torch.no_grad():
        norm.average.copy_(torch.linspace(-1, 1, DIM))
    return norm


def inputs(frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(frames)
    return torch.randn(batch, frames, DIM, generator=draw), torch.rand(batch, frames, generator=draw) > 0.2


@pytest.mark.parametrize("frames", [1, 7, 40])
def test_looking_away_leaves_the_state_that_nobody_leaves(frames: int) -> None:
    norm = made()
    _, state = norm.step(torch.randn(2, 25, DIM), torch.ones(2, 25, dtype=torch.bool), norm.init_state(2))
    seen = norm.step(torch.randn(2, frames, DIM), torch.zeros(2, frames, dtype=torch.bool), state)[1]
    assert torch.equal(norm.look_away(frames, state), seen) and seen.shape == state.shape


@torch.no_grad()
def test_it_is_the_mean_and_the_spread_of_the_valid_frames_of_two_seconds_and_a_bit_of_an_average_face() -> None:
    norm = made()
    features, valid = inputs(50, batch=1)
    found = norm.step(features, valid, norm.init_state(1))[0][0].double()
    for t in (0, 7, 30, 49):
        window = slice(max(0, t - 19), t + 1)
        seen = features[0, window][valid[0, window]].double()
        weight, average = len(seen) + 2.5, norm.average.double()  # 0.25 s of an average face
        mean = (seen.sum(0) + 2.5 * average) / weight
        power = (seen.square().sum() + 2.5 * (average.square().sum() + DIM * 0.25)) / weight
        wanted = (features[0, t].double() - mean) / ((power - mean.square().sum()) / DIM + 0.01).sqrt()
        wanted = wanted if valid[0, t] else torch.zeros(DIM).double()
        torch.testing.assert_close(found[t], wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 30), min_size=2, max_size=5))
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(pieces: list[int]) -> None:
    norm = made()
    features, valid = inputs(sum(pieces))
    whole, last = norm.step(features, valid, norm.init_state(2))
    state, parts = norm.init_state(2), []
    for f, v in zip(features.split(pieces, 1), valid.split(pieces, 1), strict=True):
        part, state = norm.step(f, v, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=0, atol=0)


@torch.no_grad()
def test_after_two_seconds_it_says_hardly_anything_of_whose_face_it_is_and_nothing_of_a_still_one() -> None:
    norm = made()
    features = inputs(60)[0]
    all_valid = torch.ones(2, 60, dtype=torch.bool)
    other = features + 3 * torch.randn(1, 1, DIM)
    mine, theirs = (norm.step(f, all_valid, norm.init_state(2))[0][:, 25:] for f in (features, other))
    assert (mine - theirs).abs().mean() < 0.35 * (features - other).abs().mean()
    still = norm.step(features[:, :1].expand(-1, 60, -1), all_valid, norm.init_state(2))[0][:, 25:]
    assert still.abs().mean() < 0.3 * mine.abs().mean()


def test_what_is_not_a_face_has_no_effect_and_gets_no_gradient() -> None:
    norm = made()
    features, valid = inputs(40)
    spoilt = torch.where(valid[..., None], features, torch.nan).requires_grad_()
    found = norm.step(spoilt, valid, norm.init_state(2))[0]
    torch.testing.assert_close(found, norm.step(features, valid, norm.init_state(2))[0])
    found.square().sum().backward()
    assert not spoilt.grad[~valid].any() and spoilt.grad[valid].isfinite().all()


@pytest.fixture(scope="module")
def model() -> LiteAVSEMamba:
    return tiny_model(**SECTIONS)[0]


def batch(model: LiteAVSEMamba) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    mag, pha = torch.rand(2, 201, 30, generator=draw), torch.rand(2, 201, 30, generator=draw)
    video = torch.rand(2, 3, 6, 96, 96, generator=draw)
    return mag, pha, video, torch.ones(2, 6, dtype=torch.bool)


@torch.no_grad()
def test_a_label_takes_the_place_of_alpha_in_the_fusion_alone(model: LiteAVSEMamba) -> None:
    mag, pha, video, mask = batch(model)
    plain, sound = model.forward_with_gates(mag, pha, video, mask), model.forward_with_gates(mag, pha)
    n_frames = mag.shape[2]
    none, nan, full = (torch.full((2, n_frames), value) for value in (0.0, torch.nan, 1.0))
    withheld = model.forward_with_gates(mag, pha, video, mask, Lesson(none))
    assert torch.equal(withheld.mag, sound.mag) and torch.equal(withheld.alpha_logits, plain.alpha_logits)
    assert torch.equal(model.forward_with_gates(mag, pha, video, mask, Lesson(nan)).mag, plain.mag)
    assert not torch.equal(model.forward_with_gates(mag, pha, video, mask, Lesson(full)).mag, plain.mag)
    # Where no face is seen, a label of 1 does not bring one.
    nobody = torch.zeros_like(mask)
    nobody[1] = True
    half = model.forward_with_gates(mag, pha, video, nobody, Lesson(full))
    assert torch.equal(half.mag[0], sound.mag[0]) and not torch.equal(half.mag[1], sound.mag[1])


@torch.no_grad()
def test_features_of_made_faces_take_the_place_of_the_video_of_those_clips_alone(model: LiteAVSEMamba) -> None:
    mag, pha, video, mask = batch(model)
    plain = model.forward_with_gates(mag, pha, video, mask)
    own = model._features(video, mask)
    filmed = torch.tensor([True, False])
    features = torch.stack((torch.full_like(own[0], torch.nan), own[1]))
    blank = torch.cat((video[:1], torch.zeros_like(video[1:])))
    same = model.forward_with_gates(mag, pha, blank, mask, Lesson(features=features, filmed=filmed))
    torch.testing.assert_close(same.mag, plain.mag, rtol=1e-4, atol=1e-5)
    other = model.forward_with_gates(mag, pha, blank, mask, Lesson(features=features + 1, filmed=filmed))
    torch.testing.assert_close(other.mag[0], plain.mag[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other.mag[1], plain.mag[1], rtol=1e-4, atol=1e-5)


def test_features_are_missing_in_training_only_and_for_a_whole_clip(model: LiteAVSEMamba) -> None:
    mag, pha, video, mask = batch(model)
    seen: list[torch.Tensor] = []
    hook = model.visual_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.forward_with_gates(mag, pha, video, mask)
        model.train()
        model.forward_with_gates(mag, pha, video, mask)
        model.eval()
    hook.remove()
    assert seen[0].ne(0).all(dim=1).any(dim=1).all()
    missing = seen[1].eq(0).all(dim=1)  # [B, D]
    assert 0.2 < missing.float().mean() < 0.8 and torch.equal(missing, seen[1].eq(0).any(dim=1) & missing)
    assert not torch.equal(missing[0], missing[1])
