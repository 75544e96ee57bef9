"""visual_cfg.visual_lookahead_ms: later video for each moment of the sound, the same offline and live, and its price."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.tiny import tiny_model, voice
from models.inference.enhancer import Enhancer
from models.inference.streaming import StreamingEnhancer
from models.timing import newest_seen, shown_frames, video_frame_index

FPS, RATE = 25, 16000
CAUSAL = {"causal": True}


def crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 96, 96, 3), np.uint8)


def test_the_map_moves_by_the_look_ahead() -> None:
    now = video_frame_index(100, 100, RATE, 25)
    assert torch.equal(video_frame_index(100, 100, RATE, 25, lookahead_ms=120.0), now + 3)
    assert torch.equal(video_frame_index(94, 100, RATE, 29.97, lookahead_ms=37.5), video_frame_index(100, 100, RATE, 29.97)[6:])


def test_a_frame_without_a_face_gives_way_to_the_newest_before_it_that_is_not_past() -> None:
    seen = torch.tensor([[True, False, True, True, False, False]])
    now = torch.arange(8)
    index, valid = newest_seen(seen, now, now + 2)
    assert valid.tolist() == [[True, True, True, True, False, False, False, False]]
    assert index[0, :4].tolist() == [2, 3, 3, 3]
    index, valid = newest_seen(seen, now, now)
    assert valid.tolist() == [[True, False, True, True, False, False, False, False]]
    assert index[0][valid[0]].tolist() == [0, 2, 3]


def test_the_end_of_a_clip_keeps_its_video() -> None:
    index, valid = shown_frames(torch.ones(1, 5, dtype=torch.bool), 40, 100, RATE, 25, lookahead_ms=80.0)
    assert bool(valid[0, :32].all()) and not bool(valid[0, 32:].any())  # 5 frames last 0.2 s = 32 STFT frames
    assert int(index[0, 0]) == 2 and int(index[0, 31]) == 4


@pytest.mark.parametrize("vce_type", ["smoothed", "agreement"])
@pytest.mark.parametrize("lookahead_ms", [0.0, 100.0, 240.0])
def test_live_is_offline(lookahead_ms: float, vce_type: str) -> None:
    model, cfg = tiny_model(
        model_cfg=CAUSAL, visual_cfg={"visual_lookahead_ms": lookahead_ms},
        lite_cfg={"vce_type": vce_type, "visual_encoder_type": "distilled"},
    )
    enhancer, wav, video = Enhancer(model, cfg), voice(1.2), crops(30)
    mask = np.ones(30, bool)
    mask[9:12] = mask[20] = False
    whole = enhancer.enhance(wav, RATE, video, mask)
    stream, out, fed = StreamingEnhancer(enhancer), [], 0
    for first in range(0, len(wav), 777):
        piece = wav[first : first + 777]
        due = min(30, int((first + len(piece)) / RATE * FPS) + 1)  # the frames that a camera has shown by then
        if due > fed:
            stream.feed_video(video[fed:due], np.arange(fed, due) / FPS, mask[fed:due])
            fed = due
        out.append(stream.feed(piece))
    live = np.concatenate([*out, stream.flush()])
    np.testing.assert_allclose(live, whole.wav, rtol=0, atol=2e-5)
    assert 0 < whole.mean_alpha < 1


@torch.no_grad()
def test_an_edited_frame_is_seen_as_early_as_promised_and_no_earlier() -> None:
    frame = 13  # shown from 0.52 s on: STFT frame 83.2
    for lookahead_ms, wanted in ((0.0, 84), (80.0, 71)):
        model, _ = tiny_model(model_cfg=CAUSAL, visual_cfg={"visual_lookahead_ms": lookahead_ms})
        mag, pha, video = torch.rand(1, 201, 120), torch.randn(1, 201, 120), torch.rand(1, 3, 19, 96, 96)
        edited = video.clone()
        edited[:, :, frame:] = 1 - edited[:, :, frame:]
        index = video_frame_index(120, 100, RATE, 25, lookahead_ms=lookahead_ms)
        first = int((index >= frame).nonzero()[0])
        change = (model(mag, pha, video)[0] - model(mag, pha, edited)[0]).abs().amax((0, 1))  # [T]
        assert float(change[:first].max()) == 0
        assert float(change[first]) > 0
        assert first == wanted


@pytest.mark.parametrize(("lookahead_ms", "latency"), [(0.0, 400), (10.0, 400), (120.0, 200 + 1920)])
def test_the_latency_says_how_long_the_sound_waits(lookahead_ms: float, latency: int) -> None:
    model, cfg = tiny_model(model_cfg=CAUSAL, visual_cfg={"visual_lookahead_ms": lookahead_ms})
    stream = StreamingEnhancer(Enhancer(model, cfg))
    assert stream.latency_samples == latency == stream.readout().latency_samples
    wav, given = voice(0.5), 0
    for first in range(0, len(wav), 100):
        given += len(stream.feed(wav[first : first + 100]))
        heard = min(len(wav), first + 100)
        assert given >= heard - latency + 1
    assert given < len(wav)
    assert given + len(stream.flush()) == len(wav)
