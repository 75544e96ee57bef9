"""Input level: SEMamba's RMS offline; causal, block-wise and convergent when running."""

from __future__ import annotations

import numpy as np
import pytest

from models.level import BLOCK_SAMPLES, RunningLevel, level_gain


def speech_like(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.choice([0.0, 0.01, 0.1, 0.5], n // 800 + 1), 800)[:n]
    return (envelope * rng.standard_normal(n)).astype(np.float32)


def test_offline_gain_is_one_over_rms() -> None:
    x = speech_like(12345)
    gain = level_gain(x, causal=False)
    assert gain.dtype == np.float32
    assert gain.shape == x.shape
    assert np.ptp(gain) == 0
    assert np.sqrt(np.mean((gain * x) ** 2.0)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 16000])
def test_silence_and_odd_lengths_have_a_finite_gain(causal: bool, n: int) -> None:
    gain = level_gain(np.zeros(n, np.float32), causal)
    assert gain.shape == (n,)
    assert np.isfinite(gain).all()
    assert (gain > 0).all()


def test_offline_silence_is_left_alone() -> None:
    assert (level_gain(np.zeros(500), causal=False) == 1).all()


def test_running_level_steps_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    x = speech_like(400 * BLOCK_SAMPLES, seed=1)
    whole = RunningLevel().step(x)
    for _ in range(3):
        level, pieces, at = RunningLevel(), [], 0
        while at < len(x):
            n = int(rng.integers(0, 20)) * BLOCK_SAMPLES
            pieces.append(level.step(x[at : at + n]))
            at += n
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-6)


@pytest.mark.parametrize("at", [1, 100, 150, 3999, 20000])
def test_running_gain_knows_nothing_of_the_future(at: int) -> None:
    x = speech_like(30000, seed=2)
    other = x.copy()
    other[at:] = speech_like(30000, seed=3)[at:] * 20
    before, after = level_gain(x, causal=True), level_gain(other, causal=True)
    # Sample `at` itself differs, and its own gain may not follow it either.
    np.testing.assert_array_equal(before[: at + 1], after[: at + 1])
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("rms", [0.005, 0.05, 0.3])
def test_running_gain_converges_to_one_over_rms(rms: float) -> None:
    x = rms * np.sign(np.random.default_rng(0).standard_normal(40 * 16000))  # of power rms**2 in every block
    gain = level_gain(x, causal=True)
    np.testing.assert_allclose(gain[-16000:], 1 / rms, rtol=1e-3)


def test_running_gain_moves_smoothly() -> None:
    x = np.concatenate((np.zeros(16000), 0.5 * speech_like(16000), np.zeros(16000)))
    gain = level_gain(x, causal=True).astype(np.float64)
    jumps = np.abs(np.diff(gain))
    blocks = np.abs(np.diff(gain[BLOCK_SAMPLES - 1 :: BLOCK_SAMPLES]))
    assert jumps.max() <= 1.001 * max(blocks.max(), abs(gain[BLOCK_SAMPLES - 1] - gain[0])) / BLOCK_SAMPLES + 1e-4


def test_running_gain_is_bounded_in_long_silence() -> None:
    assert level_gain(np.zeros(60 * 16000), causal=True).max() <= 1000 * (1 + 1e-6)  # -60 dB floor


def test_a_burst_after_silence_is_heard_within_a_fifth_of_a_second() -> None:
    burst = 0.3 * np.sign(np.random.default_rng(0).standard_normal(16000))
    gain = level_gain(np.concatenate((np.zeros(5 * 16000), burst)), causal=True)
    assert gain[5 * 16000 + 3200] * 0.3 < 2.5  # at most 8 dB over the level the model was trained at
