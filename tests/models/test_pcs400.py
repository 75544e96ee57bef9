"""Perceptual contrast stretching: librosa's numbers without librosa."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.paths import GOLDEN
from helpers.tiny import voice
from models.pcs400 import cal_pcs, pcs_weights


@pytest.mark.parametrize("n", [401, 1600, 1677])
def test_matches_librosa(n: int) -> None:
    """tests/golden/pcs400.npz: librosa 0.11.0 stft and istft (centred, zero edges) around the same stretching."""
    with np.load(GOLDEN / "pcs400.npz") as golden:
        np.testing.assert_allclose(cal_pcs(golden[f"in_{n}"]), golden[f"out_{n}"], rtol=0, atol=1e-6)


def test_band_weights() -> None:
    weights = pcs_weights()
    assert weights.shape == (201,)
    expected = {
        0: 1.0, 2: 1.0, 3: 1.070175439, 4: 1.070175439, 5: 1.182456140, 8: 1.287719298, 9: 1.287719298, 10: 1.4, 109: 1.4,
        110: 1.322807018, 130: 1.238596491, 160: 1.161403509, 189: 1.161403509, 190: 1.077192982, 200: 1.077192982,
    }
    assert {k: weights[k] for k in expected} == expected


@pytest.mark.parametrize("n", [1, 99, 100, 199, 200, 400, 16000, 16099])
def test_length_and_peak(n: int) -> None:
    y = cal_pcs(voice(2.0)[7 : 7 + n] + 1e-3)
    assert y.shape == (n,)
    assert np.abs(y).max() == pytest.approx(1.0)


@pytest.mark.parametrize("n", [0, 1, 4000])
def test_silence_stays_silence(n: int) -> None:
    y = cal_pcs(np.zeros(n, np.float32))
    assert y.shape == (n,)
    assert (y == 0).all()


def test_silent_stretches_inside_a_clip_are_fine() -> None:
    x = voice(1.0)
    x[4000:9000] = 0
    y = cal_pcs(x)
    assert np.isfinite(y).all()
    assert np.abs(y[4500:8500]).max() < 1e-12


def test_the_input_is_left_alone() -> None:
    x = voice(0.5)
    before = x.copy()
    cal_pcs(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(("wav", "word"), [(np.zeros((2, 800)), "one channel"), (np.array([0.1, np.nan]), "NaN")])
def test_unusable_input_is_refused(wav: np.ndarray, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        cal_pcs(wav)
