"""The visual encoders: shapes, streaming, causality, what is trained and what is frozen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import tiny_model
from models.distilled_encoder import LiteVisualEncoderC, load_encoder_weights
from models.lite_visual_encoder import LiteVisualEncoderA, LiteVisualEncoderB
from models.mobilenet import MobileNetV3SmallFeatures
from models.pretrained import load_generator, pack_generator
from utils.checkpoint import save_checkpoint
from utils.config import complete_config

ENCODERS = (LiteVisualEncoderA, LiteVisualEncoderB, LiteVisualEncoderC)
SIZE = 64  # pixels: small faces keep the tests quick


def _cfg(causal: bool = True, face_size: int = SIZE, **visual) -> dict:
    visual = {"backbone_weights": "none", "face_size": face_size} | visual
    return complete_config({"model_cfg": {"causal": causal}, "visual_cfg": visual})


def _encoder(kind, causal: bool = True, **visual):
    torch.manual_seed(0)
    return kind(_cfg(causal, **visual)).eval()


def _video(frames: int, batch: int = 1, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_video_becomes_a_feature_per_stft_frame(kind, causal):
    features = _encoder(kind, causal, face_size=96)(_video(5, batch=2, size=96), 33)
    assert features.shape == (2, 512, 33)
    assert bool(torch.isfinite(features).all()) and float(features.std()) > 1e-3


def test_sizes_are_light():
    b = LiteVisualEncoderB(_cfg(face_size=96))
    assert sum(parameter.numel() for parameter in b.parameters()) < 1_000_000
    a = LiteVisualEncoderA(_cfg(face_size=96))
    assert sum(parameter.numel() for parameter in a.parameters() if parameter.requires_grad) < 1_000_000


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_stft_frames_hold_the_newest_video_frame(kind):
    encoder, video = _encoder(kind), _video(3)
    per_frame, _ = encoder.encode_frames(video)
    held = encoder(video, 30)
    # 160 STFT frames and 25 video frames a second: frame 1 is shown from 0.04 s = STFT frame 6.4 on, so from frame 7.
    shown = [0] * 7 + [1] * 6 + [2] * 17
    assert torch.equal(held, per_frame[:, :, shown])


@pytest.mark.parametrize("kind", ENCODERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 4), min_size=2, max_size=5))
@torch.no_grad()
def test_pieces_of_any_size_give_what_the_whole_clip_gives(kind, pieces):
    encoder = _encoder(kind)
    video = _video(sum(pieces), batch=2)
    whole, last = encoder.encode_frames(video)
    state, features = encoder.init_state(2), []
    for piece in video.split(pieces, dim=2):
        feature, state = encoder.encode_frames(piece, state)
        features.append(feature)
    torch.testing.assert_close(torch.cat(features, 2), whole, rtol=0, atol=1e-5)
    for one, other in zip(state, last, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_streams_can_be_joined_and_taken_apart(kind):
    encoder, video = _encoder(kind), _video(6, batch=2)
    whole, _ = encoder.encode_frames(video)
    states = [encoder.encode_frames(video[i : i + 1, :, :3])[1] for i in (0, 1)]
    joined = [torch.cat(parts) for parts in zip(*states, strict=True)]
    features, _ = encoder.encode_frames(video[:, :, 3:], joined)
    torch.testing.assert_close(features, whole[:, :, 3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_causal_means_no_later_frame_is_seen(kind):
    video = _video(12)
    edited = video.clone()
    edited[:, :, 8:] = 1 - edited[:, :, 8:]
    for causal in (True, False):
        encoder = _encoder(kind, causal)
        change = (encoder.encode_frames(video)[0] - encoder.encode_frames(edited)[0]).abs().amax((0, 1))  # [V]
        assert float(change[8:].min()) > 1e-3
        assert (float(change[:8].max()) < 1e-6) == causal


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_past_frames_matter(kind):
    video = _video(6)
    edited = video.clone()
    edited[:, :, 3] = 0
    encoder = _encoder(kind)
    change = (encoder.encode_frames(video)[0] - encoder.encode_frames(edited)[0]).abs().amax((0, 1))
    assert float(change[4]) > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_clips_of_a_batch_do_not_mix(kind):
    encoder, video = _encoder(kind, causal=False).train(), _video(4, batch=3)
    together = encoder(video, 20)
    torch.testing.assert_close(together[1:2], encoder(video[1:2], 20), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_a_missing_face_gives_finite_features(kind):
    assert bool(torch.isfinite(_encoder(kind)(torch.zeros(1, 3, 4, SIZE, SIZE), 25)).all())


@pytest.mark.parametrize("kind", [LiteVisualEncoderA, LiteVisualEncoderB])
@torch.no_grad()
def test_a_face_that_comes_late_is_as_if_the_clip_began_with_it(kind):
    encoder, video, seen = _encoder(kind), _video(30), torch.arange(30)[None] >= 9
    blank = video * seen[:, None, :, None, None]
    late, _ = encoder.encode_frames(blank, seen=seen)
    fresh, _ = encoder.encode_frames(video[:, :, 9:])
    settled = 4  # frames that the head's convolutions reach back
    torch.testing.assert_close(late[:, :, 9 + settled :], fresh[:, :, settled:], rtol=0, atol=1e-5)
    unaware, _ = encoder.encode_frames(blank)
    assert float((unaware - late)[:, :, 9 + settled :].abs().max()) > 1e-2


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_face_that_keeps_still_has_not_moved_while_it_was_away(causal):
    encoder, seen = _encoder(LiteVisualEncoderA, causal), torch.ones(1, 30, dtype=torch.bool)
    seen[:, 10:14] = False
    video = _video(1).expand(-1, -1, 30, -1, -1)
    features, _ = encoder.encode_frames(video * seen[:, None, :, None, None], seen=seen)
    whole, _ = encoder.encode_frames(video)
    torch.testing.assert_close(features, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_non_causal_encoder_has_no_streaming_state(kind):
    encoder = _encoder(kind, causal=False)
    with pytest.raises(ValueError, match="model_cfg.causal"):
        encoder.init_state(1)
    with pytest.raises(ValueError, match="whole clips"):
        encoder.encode_frames(_video(2), [])


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ((1, 3, 4, SIZE, SIZE + 1), "face_size"),
        ((1, 1, 4, SIZE, SIZE), "visual_channels"),
        ((3, 4, SIZE, SIZE), "face_size"),
        ((1, 3, 0, SIZE, SIZE), "no frames"),
    ],
)
def test_wrong_shapes_are_named(kind, shape, word):
    with pytest.raises(ValueError, match=word) as caught:
        _encoder(kind)(torch.zeros(shape), 10)
    assert str(list(shape)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_reach_what_is_trained_and_nothing_frozen(frozen):
    encoder = _encoder(LiteVisualEncoderA, freeze_visual_encoder=frozen).train()
    encoder(_video(4), 25).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        if frozen and name.startswith("backbone."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_gradients_reach_all_of_encoder_b():
    encoder = _encoder(LiteVisualEncoderB).train()
    encoder(_video(4), 25).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("frozen", [True, False])
def test_training_leaves_batchnorm_statistics_alone(frozen):
    encoder = _encoder(LiteVisualEncoderA, freeze_visual_encoder=frozen)
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    quiet = encoder.encode_frames(_video(3))[0]
    encoder.train()
    trained = encoder.encode_frames(_video(3))[0]
    for key, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    torch.testing.assert_close(quiet, trained, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_long_clip_goes_through_the_frozen_backbone_in_pieces(monkeypatch):
    encoder, video = _encoder(LiteVisualEncoderA), _video(7)
    whole, _ = encoder.encode_frames(video)
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    monkeypatch.setattr("models.lite_visual_encoder._FRAMES_PER_PASS", 3)
    torch.testing.assert_close(encoder.encode_frames(video)[0], whole, rtol=0, atol=1e-5)
    assert seen == [3, 3, 1]


def test_the_published_backbone_is_named_as_third_party(tmp_path):
    torch.manual_seed(1)
    published = MobileNetV3SmallFeatures().state_dict()
    path = tmp_path / "weights.pth"
    torch.save(published, path)

    encoder = _encoder(LiteVisualEncoderA, backbone_weights=str(path))
    third_party = set(encoder.third_party_keys())
    state = encoder.state_dict()
    assert third_party == {key for key in state if key.startswith("backbone.")} and len(third_party) == 240
    own = {key: value for key, value in state.items() if key not in third_party}
    again = _encoder(LiteVisualEncoderA, backbone_weights=str(path))
    torch.nn.init.normal_(again.pool.weight)  # a model that has to be loaded to be the same
    loaded = again.load_state_dict(own, strict=False)
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= third_party
    with torch.no_grad():
        assert torch.equal(encoder(_video(2), 9), again(_video(2), 9))

    # Weights nobody else can supply belong into the checkpoint: random ones and fine-tuned ones.
    assert not _encoder(LiteVisualEncoderA).third_party_keys()
    assert not _encoder(LiteVisualEncoderA, backbone_weights=str(path), freeze_visual_encoder=False).third_party_keys()
    assert not _encoder(LiteVisualEncoderB).third_party_keys()


def _talking_faces(batch: int, frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn faces of random place, skin and background: ([B, 3, V, 96, 96], mouth opening [B, V] in [0, 1])."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=random)

    opening = torch.sin(draw(batch, 1) * 6.3 + torch.arange(frames) * (0.5 + draw(batch, 1))) / 2 + 0.5
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    centre_x, centre_y = (48 + 4 * (draw(2, batch, 1, 1, 1) - 0.5)).unbind(0)
    face = ((x - centre_x) / 34) ** 2 + ((y - centre_y) / 44) ** 2 < 1
    height = 1 + 9 * opening.view(batch, frames, 1, 1)
    mouth = ((x - centre_x) / 16) ** 2 + ((y - centre_y - 22) / height) ** 2 < 1
    skin, background, lips = (0.4 + 0.6 * draw(3, batch, 3, 1, 1, 1)).unbind(0)
    video = torch.where(face.unsqueeze(1), skin, background)
    video = torch.where(mouth.unsqueeze(1), lips * torch.tensor([0.5, 0.2, 0.2]).view(1, 3, 1, 1, 1), video)
    return (video + 0.05 * draw(*video.shape)).clamp(0, 1), opening


def _change(opening: torch.Tensor) -> torch.Tensor:
    """[B, V] less its mean so far: what features that have lost their mean can tell."""
    return opening - opening.cumsum(1) / torch.arange(1, opening.shape[1] + 1)


def test_encoder_b_learns_to_read_mouths_of_faces_it_has_never_seen():
    encoder = _encoder(LiteVisualEncoderB, face_size=96).train()
    readout = torch.nn.Linear(512, 1)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *readout.parameters()], lr=1e-3)
    for step in range(80):
        video, opening = _talking_faces(6, 5, seed=step)
        features, _ = encoder.encode_frames(video)
        loss = (readout(features.transpose(1, 2)).squeeze(-1) - _change(opening)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        video, opening = _talking_faces(16, 6, seed=1000)
        read = readout(encoder.encode_frames(video)[0].transpose(1, 2)).squeeze(-1)
    wanted = _change(opening)
    assert float((read - wanted).square().mean() / wanted.var()) < 0.4  # of the variance left unexplained


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_what_stays_the_same_leaves_no_trace_in_the_change(kind):
    """A still face gives the same features whoever it is; a moving mouth does not."""
    encoder = _encoder(kind)
    still = _video(1, batch=2).expand(-1, -1, 6, -1, -1)
    features, _ = encoder.encode_frames(still)
    settled = features[:, :, 3:]  # the stem's two frames of zeros before the first are a change, too
    if kind is LiteVisualEncoderA:
        torch.testing.assert_close(settled[0], settled[1], atol=1e-3, rtol=0)
    moving, _ = encoder.encode_frames(_video(6, batch=2))
    assert (moving[0] - moving[1]).abs().max() > 1e-2


@torch.no_grad()
def test_encoder_c_remembers_no_longer_than_it_says():
    encoder, video = _encoder(LiteVisualEncoderC), _video(45)
    edited = video.clone()
    edited[:, :, 2] = 0
    change = (encoder.encode_frames(video)[0] - encoder.encode_frames(edited)[0]).abs().amax((0, 1))
    assert float(change[3:12].min()) > 1e-3
    assert float(change[3 + encoder.memory_frames :].max()) < 1e-5


@torch.no_grad()
def test_encoder_c_sees_the_lower_face_in_any_light():
    encoder, video = _encoder(LiteVisualEncoderC, face_size=96), _video(4, size=96)
    other = video.clone()
    other[..., :19, :] = 0
    assert torch.equal(encoder.encode_frames(video)[0], encoder.encode_frames(other)[0])
    dim = encoder.encode_frames(0.5 * video + 0.2)[0]
    bright = encoder.encode_frames(0.9 * video)[0]
    assert float((dim - bright).abs().max()) < 0.2 * float(bright.abs().max())


def test_encoder_weights_are_the_start_and_may_stay_as_they_are(tmp_path):
    taught = LiteVisualEncoderC(_cfg())
    path = tmp_path / "encoder.pth"
    save_checkpoint(path, {"visual_encoder": {key: value.half() for key, value in taught.state_dict().items()}})
    for freeze in (True, False):
        model, cfg = tiny_model(
            visual_cfg={"encoder_weights": str(path), "freeze_visual_encoder": freeze, "visual_dim": 512, "face_size": SIZE},
            lite_cfg={"visual_encoder_type": "distilled"}, model_cfg={"causal": True},
        )  # fmt: skip
        for key, value in model.visual_encoder.state_dict().items():
            torch.testing.assert_close(value, taught.state_dict()[key], rtol=1e-3, atol=1e-4)
        assert any(p.requires_grad for p in model.visual_encoder.parameters()) != freeze
        assert model.visual_encoder.encode_frames(_video(2))[0].requires_grad != freeze
    save_checkpoint(tmp_path / "g.pth", pack_generator(model, cfg))
    path.unlink()
    again, _ = load_generator(tmp_path / "g.pth")  # a checkpoint of ours needs no other file
    assert torch.equal(again.visual_encoder.stem.weight, model.visual_encoder.stem.weight)
    with pytest.raises(ValueError, match="encoder_weights .*g.pth holds no visual_encoder"):
        load_encoder_weights(taught, tmp_path / "g.pth")
    save_checkpoint(path, {"visual_encoder": LiteVisualEncoderC(_cfg(visual_dim=32)).state_dict()})
    with pytest.raises(ValueError, match="encoder_weights .* shapes differ"):
        load_encoder_weights(taught, path)
