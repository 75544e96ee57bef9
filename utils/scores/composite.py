"""Composite measures of enhanced speech: CSIG, CBAK and COVL, and the three distances under them.

Hu & Loizou, "Evaluation of Objective Quality Measures for Speech Enhancement", IEEE TASLP 16(1), 2008. The numbers are
those of the authors' own program (Loizou, *Speech Enhancement: Theory and Practice*, composite.m), also where it differs from
the text of the paper, because other papers report the numbers of the program.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FRAME_SEC = 0.03
OVERLAP = 4  # a frame begins every quarter of a frame
KEPT = 0.95  # LLR and WSS are means over this share of the frames, the best ones
SEG_SNR_RANGE_DB = (-10.0, 35.0)
_EPS = np.finfo(np.float64).eps

# Critical bands of the weighted spectral slope (Klatt, ICASSP 1982).
_CENTRES_HZ = np.array([
    50.0, 120.0, 190.0, 260.0, 330.0, 400.0, 470.0, 540.0, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30, 1288.72,
    1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63,
])  # fmt: skip
_WIDTHS_HZ = np.array([70.0] * 7 + [
    77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154, 183.457, 199.776, 217.153, 235.631,
    255.255, 276.072, 298.126, 321.465, 346.136,
])  # fmt: skip
_K_MAX, _K_LOCAL = 20.0, 1.0  # weight of the loudest band, and of the nearest peak


class Composite(NamedTuple):
    """Predicted ratings from 1 to 5."""

    csig: float  # of the speech's distortion
    cbak: float  # of the background's intrusiveness
    covl: float  # of the whole


def _frames(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """Hann-windowed frames [T, N] of 30 ms, a quarter of a frame apart; the last whole one is left out, as in composite.m."""
    size = round(FRAME_SEC * sample_rate)
    hop = size // OVERLAP
    count = int(len(x) / hop - size / hop)
    if count < 1:
        raise ValueError(f"{len(x)} samples are too few for the composite measures, which need {size + hop}")
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, size + 1) / (size + 1)))
    return np.lib.stride_tricks.sliding_window_view(x, size)[::hop][:count] * window


def _best_mean(per_frame: np.ndarray) -> float:
    return float(np.mean(np.sort(per_frame)[: max(1, round(KEPT * len(per_frame)))]))


def segmental_snr(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """Mean over frames of the SNR in dB, held to -10 .. 35 dB in each (Hu & Loizou 2008, equation 3); signals [L]."""
    clean, noise = _frames(reference, sample_rate), _frames(reference - estimate, sample_rate)
    power_r, power_n = np.sum(clean**2, axis=1), np.sum(noise**2, axis=1)
    return float(np.mean(np.clip(10 * np.log10(power_r / (power_n + _EPS) + _EPS), *SEG_SNR_RANGE_DB)))


def _linear_prediction(autocorrelation: np.ndarray) -> np.ndarray:
    """Levinson-Durbin over frames: autocorrelation [T, P + 1] -> prediction-error filters [T, P + 1], the first 1."""
    n_frames, size = autocorrelation.shape
    filters = np.zeros((n_frames, size))
    filters[:, 0] = 1.0
    error = autocorrelation[:, 0].copy()
    for order in range(1, size):
        mismatch = np.sum(filters[:, :order] * autocorrelation[:, order:0:-1], axis=1)
        reflection = -mismatch / error
        filters[:, 1 : order + 1] += reflection[:, None] * filters[:, order - 1 :: -1][:, :order]
        error *= 1 - reflection**2
    return filters


def _residual_energy(filters: np.ndarray, autocorrelation: np.ndarray) -> np.ndarray:
    """a R a' of each frame, R the Toeplitz matrix of the autocorrelation; both [T, P + 1] -> [T]."""
    lags = np.abs(np.subtract.outer(np.arange(filters.shape[1]), np.arange(filters.shape[1])))
    return np.einsum("ti,tij,tj->t", filters, autocorrelation[:, lags], filters)


def log_likelihood_ratio(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """LLR of linear-prediction spectra, mean of the best 95 % of frames (Hu & Loizou 2008, equation 1); signals [L].

    Order 16 (10 under 10 kHz). As in the composite measures, not limited to 2.
    """
    order = 10 if sample_rate < 10000 else 16
    correlations = []
    for x in (reference, estimate):
        frames = _frames(x + _EPS, sample_rate)
        spectrum = np.fft.rfft(frames, 2 * frames.shape[1])
        correlations.append(np.fft.irfft(np.abs(spectrum) ** 2)[:, : order + 1])
    clean, processed = correlations
    with np.errstate(divide="ignore", invalid="ignore"):  # frames of silence, settled in the next lines
        ratio = _residual_energy(_linear_prediction(processed), clean) / _residual_energy(_linear_prediction(clean), clean)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    return _best_mean(np.log(np.where(ratio <= 0, 1000.0, ratio)))


def _band_energies_db(x: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energy in the 25 critical bands, dB [T, 25], floor -100."""
    frames = _frames(x, sample_rate)
    n_fft = 2 ** int(np.ceil(np.log2(2 * frames.shape[1])))
    per_hz = n_fft / sample_rate
    bins = np.arange(n_fft // 2)
    centre = np.floor(_CENTRES_HZ * per_hz)[:, None]
    shape = np.exp(-11 * ((bins - centre) / (_WIDTHS_HZ * per_hz)[:, None]) ** 2 + np.log(_WIDTHS_HZ[0] / _WIDTHS_HZ)[:, None])
    shape[shape <= np.exp(-30 / (2 * 2.303))] = 0.0  # -30 dB
    power = np.abs(np.fft.rfft(frames, n_fft)[:, :-1]) ** 2  # [T, bins]
    return 10 * np.log10(np.maximum(power @ shape.T, 1e-10))


def _nearest_peaks(energy: np.ndarray) -> np.ndarray:
    """Energy of the spectral peak nearest to each of the first 24 bands: energy [T, 25] -> [T, 24].

    Above a band, the authors' program stops one band before the peak, and so does this one.
    """
    slope = np.diff(energy)  # [T, 24]
    n_slopes = slope.shape[1]
    above = np.empty_like(slope, dtype=int)  # first band from here on at which energy no longer rises
    below = np.empty_like(above)  # band above the last rise under here: that rise's peak
    for band in reversed(range(n_slopes)):
        further = above[:, band + 1] if band + 1 < n_slopes else n_slopes
        above[:, band] = np.where(slope[:, band] > 0, further, band)
    for band in range(n_slopes):
        further = below[:, band - 1] if band else 0
        below[:, band] = np.where(slope[:, band] <= 0, further, band + 1)
    index = np.where(slope > 0, above - 1, below)
    return np.take_along_axis(energy, index, axis=1)


def weighted_spectral_slope(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    """WSS distance, mean of the best 95 % of frames (Klatt 1982; Hu & Loizou 2008, equation 2); signals [L]."""
    weights, slopes = [], []
    for x in (reference, estimate):
        energy = _band_energies_db(x, sample_rate)
        inner = energy[:, :-1]
        to_loudest = energy.max(axis=1, keepdims=True) - inner
        weights.append(_K_MAX / (_K_MAX + to_loudest) * _K_LOCAL / (_K_LOCAL + _nearest_peaks(energy) - inner))
        slopes.append(np.diff(energy))
    weight = (weights[0] + weights[1]) / 2
    per_frame = np.sum(weight * (slopes[0] - slopes[1]) ** 2, axis=1) / np.sum(weight, axis=1)
    return _best_mean(per_frame)


def composite_measures(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, pesq: float) -> Composite:
    """CSIG, CBAK and COVL, held to 1 .. 5 (Hu & Loizou 2008, table III, as revised in composite.m); signals [L].

    `pesq` is put into the regressions as it is. The field (CMGAN, MP-SENet, SEMamba) gives them wide-band PESQ as the
    pesq package returns it, a MOS-LQO; the regressions were fitted to narrow-band raw PESQ, which reads differently.
    ValueError for signals under 38 ms.
    """
    llr = log_likelihood_ratio(reference, estimate, sample_rate)
    wss = weighted_spectral_slope(reference, estimate, sample_rate)
    snr = segmental_snr(reference, estimate, sample_rate)
    csig = 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss
    cbak = 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * snr
    covl = 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss
    return Composite(*(float(np.clip(value, 1.0, 5.0)) for value in (csig, cbak, covl)))
