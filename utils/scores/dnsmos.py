"""DNSMOS: listeners' ratings predicted without a reference, by Microsoft's ONNX models (not shipped; onnxruntime needed).

P.835 (sig_bak_ovr.onnx): Reddy et al., ICASSP 2022. P.808 (model_v8.onnx): Reddy et al., ICASSP 2021. Windows, polynomials
and mel features are those of dnsmos_local.py of the DNS Challenge; librosa is not needed.
"""

from __future__ import annotations

import math
import os

import numpy as np

RATE_HZ = 16000
WINDOW_SAMPLES = 144160  # 9.01 s
# Raw outputs to ratings from 1 to 5, highest power first.
_POLYNOMIALS = {
    "dnsmos_sig": (-0.08397278, 1.22083953, 0.0052439),
    "dnsmos_bak": (-0.13166888, 1.60915514, -0.39604546),
    "dnsmos_ovr": (-0.06766283, 1.11546468, 0.04602535),
}
_N_FFT, _HOP_SAMPLES, _N_MELS = 321, 160, 120


def _mel_filters() -> np.ndarray:
    """Triangular filters [120, 161] on Slaney's mel scale, each of area one in Hz (Slaney, Auditory Toolbox, 1998)."""
    linear_step_hz, knee_hz, log_step = 200.0 / 3, 1000.0, math.log(6.4) / 27
    knee_mel = knee_hz / linear_step_hz
    mels = np.linspace(0.0, knee_mel + math.log(RATE_HZ / 2 / knee_hz) / log_step, _N_MELS + 2)
    above = knee_hz * np.exp(log_step * np.maximum(mels - knee_mel, 0.0))
    edges_hz = np.where(mels < knee_mel, linear_step_hz * mels, above)
    bins_hz = np.fft.rfftfreq(_N_FFT, 1 / RATE_HZ)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]


def mel_features(wav: np.ndarray) -> np.ndarray:
    """Log-mel features of the P.808 model: wav [L] -> float32 [1 + (L - 1) // 160, 120], 0 dB (the loudest) at 1."""
    padded = np.pad(np.asarray(wav, np.float64), _N_FFT // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_N_FFT) / _N_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP_SAMPLES]
    power = np.abs(np.fft.rfft(frames * window)) ** 2 @ _mel_filters().T
    level_db = 10 * np.log10(np.maximum(power, 1e-10) / max(float(power.max()), 1e-10))
    return ((np.maximum(level_db, level_db.max() - 80.0) + 40) / 40).astype(np.float32)


class DNSMOS:
    """Scores recordings with one model or both; ValueError, FileNotFoundError for a model that cannot be used."""

    def __init__(self, p835: str | os.PathLike | None = None, p808: str | os.PathLike | None = None) -> None:
        self._p835, self._p808 = (None if path is None else _session(path) for path in (p835, p808))
        self.metrics = (*(_POLYNOMIALS if p835 is not None else ()), *(("dnsmos_p808",) if p808 is not None else ()))

    def __call__(self, wav: np.ndarray) -> dict[str, float]:
        """wav [L] at 16 kHz -> mean rating over windows of 9.01 s, one each second; shorter sounds are repeated first."""
        if not len(wav) or not np.isfinite(wav).all():
            return dict.fromkeys(self.metrics, math.nan)
        wav = np.asarray(wav, np.float32)
        while len(wav) < WINDOW_SAMPLES:
            wav = np.concatenate((wav, wav))
        starts = range(0, max(1, int(len(wav) // RATE_HZ - WINDOW_SAMPLES / RATE_HZ) + 1) * RATE_HZ, RATE_HZ)
        windows = [wav[start : start + WINDOW_SAMPLES] for start in starts if start + WINDOW_SAMPLES <= len(wav)]
        ratings = [self._rate(window) for window in windows]
        return {metric: float(np.mean([rating[metric] for rating in ratings])) for metric in self.metrics}

    def _rate(self, window: np.ndarray) -> dict[str, float]:
        rating = {}
        if self._p835 is not None:
            raw = self._p835.run(None, {"input_1": window[None]})[0][0]  # signal, background, overall
            rating |= {name: np.polyval(c, value) for (name, c), value in zip(_POLYNOMIALS.items(), raw, strict=True)}
        if self._p808 is not None:
            rating["dnsmos_p808"] = self._p808.run(None, {"input_1": mel_features(window[:-_HOP_SAMPLES])[None]})[0][0][0]
        return rating


def _session(path: str | os.PathLike):  # noqa: ANN202 - onnxruntime is optional, and so is its type
    if not os.path.isfile(path):
        raise FileNotFoundError(f"DNSMOS model {path} does not exist; it is published with the DNS Challenge (microsoft)")
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("DNSMOS needs the onnxruntime package, which is not installed: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # scoring runs in processes, whose threads would wait for each other
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own classes for every kind of damage
        raise ValueError(f"DNSMOS model {path} cannot be read: {str(error).splitlines()[0]}") from None
