"""What stands between two devices and the model: order, gaps, bounded waiting, and a camera beside it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from helpers.pass_through import PassThrough
from helpers.tiny import face_crops, tiny_config, tiny_model, voice
from models.inference.enhancer import Enhancer
from models.inference.live import BLOCKS_AHEAD, LiveSound, Watcher
from models.inference.streaming import StreamingEnhancer

BLOCK = 480


@pytest.fixture
def sound() -> LiveSound:
    return LiveSound(StreamingEnhancer(Enhancer(PassThrough(True), tiny_config()), sample_rate=48000), BLOCK)


def test_what_goes_in_comes_out_in_order_and_in_time(sound: LiveSound) -> None:
    wav, out = voice(0.5, 48000), []
    for first in range(0, len(wav), BLOCK):
        sound.hear(wav[first : first + BLOCK])
        assert sound.work()
        out.append(sound.play(BLOCK))
    out = np.concatenate(out)
    delay = int(np.argmax(np.correlate(out, wav[:4800], "valid")))
    np.testing.assert_allclose(out[delay:], wav[: len(out) - delay], atol=1e-5)
    assert delay <= sound.stream.latency_samples + BLOCKS_AHEAD * BLOCK and sound.silences == 0 and not sound.work()
    assert "load " in sound.line(0.02) and "devices 20" in sound.line(0.02)


def test_a_slow_model_means_gaps_and_no_growing_delay(sound: LiveSound) -> None:
    for _ in range(100):  # a second that nobody works on
        sound.hear(np.ones(BLOCK))
    assert sound.waiting_samples() == 12000 and sound.left_out_sec == pytest.approx(0.75)
    sound.work()
    assert np.abs(sound.play(BLOCK)).max() > 0
    while sound.waiting_samples():
        sound.play(BLOCK)
    assert not sound.play(BLOCK).any() and sound.silences == 1
    sound.hear(np.ones(BLOCK))
    sound.work()
    assert not sound.play(BLOCK).any()  # after a gap it waits until there is a little more


class FakeCamera:
    def __init__(self, frames: list) -> None:
        self.frames = iter(frames)

    def read(self) -> tuple[bool, np.ndarray | None]:
        frame = next(self.frames, None)
        return frame is not None, frame


def test_a_camera_is_seen_with_the_sound_that_comes_with_it() -> None:
    enhancer = Enhancer(*tiny_model(model_cfg={"causal": True}))
    sound = LiveSound(StreamingEnhancer(enhancer, hold_sec=1.0), 160)
    frames = list(face_crops(3))
    seen = []

    def crop(frame: np.ndarray, at_sec: float) -> tuple[np.ndarray, bool]:
        seen.append((frame.copy(), at_sec))
        return frame, True

    sound.hear(voice(0.2))
    watcher = Watcher(FakeCamera(frames), crop, sound)
    watcher.start()
    assert watcher.ended.wait(10)
    assert len(seen) == 3 and all(0.2 <= at_sec < 10 for _, at_sec in seen)
    np.testing.assert_array_equal(seen[0][0], frames[0][..., ::-1])  # cameras give BGR
    watcher.feed()
    sound.work()
    sound.hear(voice(20.0)[: 16000 * 4])
    assert threading.active_count() < 20
    sound.work()
    assert sound.stream._batch.video.queues[0].next_tick > 0
