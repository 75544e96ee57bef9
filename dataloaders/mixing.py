"""Mixing speech and noise at a stated signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

FRAME_SEC = 0.02
ACTIVE_RANGE_DB = 40.0
SILENCE_POWER = 1e-12  # -120 dB re full scale: digital silence and rounding dust


def fit_length(audio: np.ndarray, length: int, offset: int = 0) -> np.ndarray:
    """Exactly `length` samples of audio [n], beginning at `offset` and starting over at the end as often as needed."""
    if len(audio) == 0:
        raise ValueError("noise with 0 samples cannot be mixed; drop it from the noise list")
    if offset + length <= len(audio):
        return audio[offset : offset + length]
    return np.take(audio, np.arange(offset, offset + length), mode="wrap")


def active_samples(speech: np.ndarray, sample_rate: int = 16000) -> np.ndarray:
    """Where somebody speaks: bool [L], True in 20 ms frames within 40 dB of the loudest one; all False for silence."""
    frame = max(1, round(FRAME_SEC * sample_rate))
    length = len(speech)
    starts = np.arange(0, length, frame)
    if not length:
        return np.zeros(0, bool)
    energy = np.add.reduceat(np.square(speech, dtype=np.float64), starts)
    power = energy / np.minimum(frame, length - starts)
    loudest = power.max()
    if loudest <= SILENCE_POWER:
        return np.zeros(length, bool)
    return np.repeat(power >= loudest * 10 ** (-ACTIVE_RANGE_DB / 10), frame)[:length]


def snr_db(speech: np.ndarray, noise: np.ndarray, sample_rate: int = 16000) -> float:
    """Signal-to-noise ratio in dB over the samples where `speech` is active; NaN when it is undefined (see mix_audio)."""
    active = active_samples(speech, sample_rate)
    if not active.any():
        return float("nan")
    noise_power = float(np.mean(np.square(noise[active], dtype=np.float64)))
    if noise_power <= SILENCE_POWER:
        return float("nan")
    return float(10 * np.log10(np.mean(np.square(speech[active], dtype=np.float64)) / noise_power))


def scale_noise(clean: np.ndarray, noise: np.ndarray, snr: float, sample_rate: int = 16000) -> np.ndarray:
    """The noise [L] that, added to clean [L], gives `snr` dB; unscaled where that is undefined. See mix_audio."""
    clean, noise = _mono(clean, "clean"), _mono(noise, "noise")
    if not np.isfinite(snr):
        raise ValueError(f"snr_db should be a finite number of dB, not {snr}")
    noise = fit_length(noise, len(clean))
    present = snr_db(clean, noise, sample_rate)
    gain = 1.0 if np.isnan(present) else 10 ** ((present - snr) / 20)
    return gain * noise


def mix_audio(clean: np.ndarray, noise: np.ndarray, snr_db: float, sample_rate: int = 16000) -> np.ndarray:
    """Add noise to clean at an SNR of `snr_db` -> float32 [L], as long as clean, which keeps its level.

    SNR here is 10 log10 of mean clean power over mean noise power, *both* taken over the samples where the clean signal
    is active: its 20 ms frames within 40 dB of its loudest one. Pauses in the speech therefore do not count, and noise
    that falls into pauses does not either. Noise of another length is cut or starts over; several channels ([L, ch] or
    [ch, L]) are averaged; both must be at `sample_rate`. Where the ratio is undefined (clean is silent, or noise is
    while clean is active) the noise is added as it is. ValueError for NaN, infinite or empty input.
    """
    clean = _mono(clean, "clean")
    return (clean + scale_noise(clean, noise, snr_db, sample_rate)).astype(np.float32)


def _mono(audio: np.ndarray, name: str) -> np.ndarray:
    """float64 [L] of [L], [L, ch] or [ch, L], checked to be finite."""
    audio = np.asarray(audio)
    if audio.ndim == 2:
        audio = audio.mean(axis=0 if audio.shape[0] < audio.shape[1] else 1, dtype=np.float64)
    if audio.ndim != 1 or not len(audio):
        raise ValueError(f"{name} should be a waveform [samples] with at least one sample, not {list(audio.shape)}")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds samples that are NaN or infinite")
    return audio.astype(np.float64)
