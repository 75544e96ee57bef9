"""mix_audio: the asked ratio over the active part, whatever it is given."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dataloaders.mixing import active_samples, fit_length, mix_audio, scale_noise, snr_db
from utils.media.sound import load_audio


def ratio_db(clean: np.ndarray, mixture: np.ndarray) -> float:
    """The definition, spelt out anew: powers over clean's 20 ms frames within 40 dB of its loudest."""
    added = mixture.astype(np.float64) - clean
    pairs = [(clean[k : k + 320], added[k : k + 320]) for k in range(0, len(clean), 320)]
    loudest = max(np.mean(np.square(speech, dtype=np.float64)) for speech, _ in pairs)
    active = [pair for pair in pairs if np.mean(np.square(pair[0], dtype=np.float64)) >= 1e-4 * loudest]
    speech, noise = (np.concatenate([pair[side] for pair in active]).astype(np.float64) for side in (0, 1))
    return float(10 * np.log10(np.mean(speech**2) / np.mean(noise**2)))


def talk(length: int, rng: np.random.Generator, level: float = 0.1) -> np.ndarray:
    """Noise that comes and goes, with pauses of digital silence."""
    on = np.repeat(rng.random(length // 1000 + 1) < 0.7, 1000)[:length]
    on[: min(length, 400)] = True
    return (level * on * rng.standard_normal(length)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), clean_length=st.integers(1, 9000), noise_length=st.integers(1, 9000),
    snr=st.floats(-40, 40), clean_level=st.floats(1e-3, 1), noise_level=st.floats(1e-3, 1),
)  # fmt: skip
def test_the_asked_ratio_is_reached(
    seed: int, clean_length: int, noise_length: int, snr: float, clean_level: float, noise_level: float
) -> None:
    rng = np.random.default_rng(seed)
    clean = talk(clean_length, rng, clean_level)
    noise = noise_level * rng.standard_normal(noise_length).astype(np.float32)
    assume(np.max(np.abs(clean)) > 1e-4 and np.max(np.abs(noise)) > 1e-4)
    mixture = mix_audio(clean, noise, snr)
    assert mixture.shape == clean.shape and mixture.dtype == np.float32
    assert abs(ratio_db(clean, mixture) - snr) < 0.01


@pytest.mark.parametrize(("rate", "channels", "subtype"), [(44100, 2, "PCM_U8"), (8000, 1, "PCM_16"), (48000, 6, "PCM_24")])
def test_rates_and_channels_of_the_files_do_not_matter(tmp_path, rate: int, channels: int, subtype: str) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "noise.wav", 0.1 * rng.standard_normal((rate, channels)), rate, subtype=subtype)
    clean = talk(20000, rng)
    mixture = mix_audio(clean, load_audio(tmp_path / "noise.wav"), 3.0)
    assert abs(ratio_db(clean, mixture) - 3.0) < 0.01


def test_channels_are_averaged_and_integers_accepted() -> None:
    rng = np.random.default_rng(1)
    clean, noise = talk(4000, rng), rng.standard_normal((2, 4000))
    assert np.allclose(mix_audio(clean, noise, 5.0), mix_audio(clean, noise.mean(0), 5.0), atol=1e-6)
    assert np.allclose(mix_audio(clean, noise.T, 5.0), mix_audio(clean, noise.mean(0), 5.0), atol=1e-6)
    integers = np.round(1000 * noise[0]).astype(np.int16)
    assert abs(ratio_db(clean, mix_audio(clean, integers, 5.0)) - 5.0) < 0.01


def test_pauses_do_not_count() -> None:
    rng = np.random.default_rng(2)
    short = 0.1 * rng.standard_normal(8000)
    long = np.concatenate([short, np.zeros(24000)])
    noise = 0.1 * rng.standard_normal(32000)
    assert np.allclose(scale_noise(long, noise, 0.0)[:8000], scale_noise(short, noise, 0.0))
    assert active_samples(long)[:8000].all() and not active_samples(long)[8000:].any()


def test_silence_is_mixed_without_a_ratio() -> None:
    rng = np.random.default_rng(3)
    noise, silence = 0.1 * rng.standard_normal(2000).astype(np.float32), np.zeros(2000, np.float32)
    assert np.allclose(mix_audio(silence, noise, 0.0), noise)
    assert np.array_equal(mix_audio(noise, silence, 0.0), noise)
    assert np.isnan(snr_db(silence, noise)) and np.isnan(snr_db(noise, silence))
    assert not mix_audio(silence, silence, 0.0).any()
    # Noise that is silent exactly while somebody speaks cannot be scaled to any ratio either.
    speech = np.concatenate([0.1 * rng.standard_normal(3200), np.zeros(3200)])
    late = np.concatenate([np.zeros(3200), 0.1 * rng.standard_normal(3200)])
    assert np.allclose(mix_audio(speech, late, 0.0), speech + late, atol=1e-7)


@pytest.mark.parametrize(
    ("clean", "noise", "snr"),
    [
        (np.array([0.1, np.nan]), np.ones(2), 0.0),
        (np.ones(2), np.array([np.inf, 0.0]), 0.0),
        (np.ones(2), np.ones(2), float("nan")),
        (np.ones(2), np.zeros(0), 0.0),
        (np.zeros(0), np.ones(2), 0.0),
    ],
)
def test_what_is_not_finite_or_empty_is_refused(clean: np.ndarray, noise: np.ndarray, snr: float) -> None:
    with pytest.raises(ValueError, match="clean|noise|snr_db"):
        mix_audio(clean, noise, snr)


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 300))
def test_short_noise_starts_over(n: int, length: int, offset: int) -> None:
    audio = np.arange(n)
    assert list(fit_length(audio, length, offset)) == [(offset + k) % n for k in range(length)]
