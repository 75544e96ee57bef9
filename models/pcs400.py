"""Perceptual contrast stretching (PCS; Chao et al., Interspeech 2022): amplifies the bands that matter to hearing.

The output equals that of PCS with the 400-point Hamming STFT of librosa (0.10 and later: zeros at the edges), hop 100, at
16 kHz; librosa itself is not needed.
"""

from __future__ import annotations

import numpy as np

N_FFT = 400
HOP_SAMPLES = 100
SAMPLE_RATE_HZ = 16000

# (first bin after the band, weight): the band-importance function of ANSI S3.5, as the paper maps it to weights.
_BANDS = (
    (3, 1.0), (5, 1.070175439), (8, 1.182456140), (10, 1.287719298), (110, 1.4),
    (130, 1.322807018), (160, 1.238596491), (190, 1.161403509), (201, 1.077192982),
)


def pcs_weights() -> np.ndarray:
    """Weight of each of the 201 bins on log1p of the magnitude, float64 [201]."""
    ends, weights = zip(*_BANDS, strict=True)
    return np.repeat(weights, np.diff(ends, prepend=0))


def _overlap_add(frames: np.ndarray) -> np.ndarray:
    """frames [T, N_FFT], one every HOP_SAMPLES -> sum [(T - 1) * HOP_SAMPLES + N_FFT]."""
    n_frames, ratio = len(frames), N_FFT // HOP_SAMPLES
    total = np.zeros((n_frames + ratio - 1, HOP_SAMPLES))
    for part in range(ratio):
        total[part : part + n_frames] += frames[:, part * HOP_SAMPLES : (part + 1) * HOP_SAMPLES]
    return total.reshape(-1)


def cal_pcs(wav: np.ndarray) -> np.ndarray:
    """Stretch the contrast of a 16 kHz waveform [L] and divide by its peak -> float64 [L], peak 1 (silence: 0).

    ValueError for anything but one channel of finite samples.
    """
    wav = np.asarray(wav, dtype=np.float64)
    if wav.ndim != 1:
        raise ValueError(f"PCS takes one channel, [samples], not {list(wav.shape)}")
    if not np.isfinite(wav).all():
        raise ValueError("PCS: the waveform holds NaN or infinite samples")
    if not wav.any():
        return wav.copy()
    window = np.hamming(N_FFT)  # the symmetric window, as in PCS
    padded = np.pad(wav, N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_SAMPLES]  # [T, N_FFT]
    spectrum = np.fft.rfft(frames * window)
    magnitude = np.abs(spectrum)
    stretched = np.expm1(pcs_weights() * np.log1p(magnitude))
    spectrum *= np.divide(stretched, magnitude, out=np.ones_like(magnitude), where=magnitude > 0)

    out = _overlap_add(np.fft.irfft(spectrum, N_FFT) * window)
    out /= _overlap_add(np.broadcast_to(window**2, frames.shape))  # a Hamming window has no zeros to divide by
    out = np.pad(out[N_FFT // 2 :], (0, len(wav)))[: len(wav)]
    return out / np.max(np.abs(out))
