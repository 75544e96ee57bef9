"""The composite measures: against the published algorithm written out frame by frame and band by band."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import solve_toeplitz, toeplitz

from helpers.tiny import voice
from utils.scores import composite
from utils.scores.composite import (
    composite_measures,
    log_likelihood_ratio,
    segmental_snr,
    weighted_spectral_slope,
)
from utils.scores.metrics import score_clip

RATE = 16000


def pair(snr_db: float = 5.0, seconds: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    clean = voice(seconds).astype(np.float64)
    noise = np.random.default_rng(1).standard_normal(len(clean))
    return clean, clean + noise * np.sqrt(np.mean(clean**2)) * 10 ** (-snr_db / 20)


def frames(x: np.ndarray) -> list[np.ndarray]:
    size, hop = 480, 120
    window = np.hanning(size + 2)[1:-1]
    return [x[k * hop : k * hop + size] * window for k in range(int(len(x) / hop - size / hop))]


def best(values: list[float]) -> float:
    return float(np.mean(sorted(values)[: round(0.95 * len(values))]))


def test_llr_is_that_of_the_normal_equations() -> None:
    clean, processed = pair()
    values = []
    for c, p in zip(frames(clean), frames(processed), strict=True):
        r_c, r_p = ([float(x[: len(x) - lag] @ x[lag:]) for lag in range(17)] for x in (c, p))
        a_c, a_p = (np.concatenate(([1.0], -solve_toeplitz(r[:-1], r[1:]))) for r in (r_c, r_p))
        matrix = toeplitz(r_c)
        values.append(math.log((a_p @ matrix @ a_p) / (a_c @ matrix @ a_c)))
    assert log_likelihood_ratio(clean, processed, RATE) == pytest.approx(best(values), rel=1e-6)


def test_segmental_snr_is_held_to_its_range_in_each_frame() -> None:
    clean, processed = pair()
    values = [
        np.clip(10 * np.log10(np.sum(c**2) / np.sum((c - p) ** 2)), -10, 35)
        for c, p in zip(frames(clean), frames(processed), strict=True)
    ]
    assert segmental_snr(clean, processed, RATE) == pytest.approx(np.mean(values), rel=1e-9)
    assert segmental_snr(clean, clean, RATE) == 35
    assert segmental_snr(clean, -100 * clean, RATE) == -10


def peaks(energy: np.ndarray) -> list[float]:
    """composite.m's search for the nearest peak, as its two loops do it."""
    slope, found = np.diff(energy), []
    for band in range(len(slope)):
        n = band
        if slope[band] > 0:
            while n < len(slope) and slope[n] > 0:
                n += 1
            found.append(energy[n - 1])
        else:
            while n >= 0 and slope[n] <= 0:
                n -= 1
            found.append(energy[n + 1])
    return found


def test_peaks_are_those_of_the_two_loops() -> None:
    energy = np.random.default_rng(0).standard_normal((50, 25)).round(1)  # rounded: equal neighbours occur
    np.testing.assert_array_equal(composite._nearest_peaks(energy), [peaks(row) for row in energy])


def test_wss_is_that_of_the_loops() -> None:
    clean, processed = pair()
    n_fft, values = 1024, []
    for c, p in zip(frames(clean), frames(processed), strict=True):
        slopes, weights = [], []
        for x in (c, p):
            power, energy = np.abs(np.fft.fft(x, n_fft)) ** 2, []
            for centre, width in zip(composite._CENTRES_HZ, composite._WIDTHS_HZ, strict=True):
                f0, bw = centre / 8000 * 512, width / 8000 * 512
                gain = np.exp(-11 * ((np.arange(512) - np.floor(f0)) / bw) ** 2 + math.log(70) - math.log(width))
                gain *= gain > math.exp(-30 / (2 * 2.303))
                energy.append(10 * math.log10(max(gain @ power[:512], 1e-10)))
            inner = np.array(energy[:-1])
            slopes.append(np.diff(energy))
            weights.append(20 / (20 + max(energy) - inner) / (1 + np.array(peaks(np.array(energy))) - inner))
        weight = (weights[0] + weights[1]) / 2
        values.append(float(weight @ (slopes[0] - slopes[1]) ** 2 / weight.sum()))
    assert weighted_spectral_slope(clean, processed, RATE) == pytest.approx(best(values), rel=1e-9)


def test_a_perfect_clip_is_at_the_top_and_regressions_hold() -> None:
    clean, processed = pair()
    assert composite_measures(clean, clean, RATE, 4.64) == (5.0, 5.0, 5.0)
    llr, wss, snr = (f(clean, processed, RATE) for f in (log_likelihood_ratio, weighted_spectral_slope, segmental_snr))
    csig, cbak, covl = composite_measures(clean, processed, RATE, 2.0)
    assert csig == pytest.approx(max(1.0, 3.093 - 1.029 * llr + 1.206 - 0.009 * wss))
    assert cbak == pytest.approx(1.634 + 0.956 - 0.007 * wss + 0.063 * snr)
    assert covl == pytest.approx(max(1.0, 1.594 + 1.610 - 0.512 * llr - 0.007 * wss))


def test_measures_rise_with_the_snr_and_use_the_pesq_beside_them() -> None:
    rows = [score_clip(*pair(snr_db, 1.5), metrics=("csig", "cbak", "covl", "pesq")) for snr_db in (0, 15, 30)]
    for measure in ("csig", "cbak", "covl"):
        values = [row[measure] for row in rows]
        assert values == sorted(values) and values[0] < values[-1]
    clean, processed = pair(15, 1.5)
    assert rows[1]["covl"] == composite_measures(clean, processed, RATE, rows[1]["pesq"]).covl
    alone = score_clip(clean, processed, metrics=("covl",))
    assert alone == {"covl": rows[1]["covl"], "errors": {}}


def test_silence_and_short_clips_have_no_measures_but_a_reason() -> None:
    clean, processed = pair(10, 1.5)
    clean[:8000] = processed[:8000] = 0.0  # frames of silence on both sides
    assert all(math.isfinite(value) for value in composite_measures(clean, processed, RATE, 2.0))
    short = score_clip(clean[-2000:], processed[-2000:], metrics=("csig", "si_sdr"))
    assert math.isnan(short["csig"]) and "quarter of a second" in short["errors"]["csig"]
    assert math.isfinite(short["si_sdr"]) and "pesq" not in short["errors"]
    with pytest.raises(ValueError, match="600"):
        composite_measures(clean[:500], clean[:500], RATE, 2.0)
