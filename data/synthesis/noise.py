"""Seeded noises: coloured, babble, hum, impulsive, machine-like and wind-like, at 16 kHz."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.signal import butter, lfilter, sosfilt

from data.synthesis.voice import SAMPLE_RATE, FormantVoice

LEVEL_RMS = 0.06
BABBLE_VOICES = 7
Noise = Callable[[np.random.Generator, int], np.ndarray]


def coloured(rng: np.random.Generator, n_samples: int, slope_db_per_octave: float) -> np.ndarray:
    """Gaussian noise [n_samples] whose power falls or rises by slope_db_per_octave above 40 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    freq_hz = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(freq_hz, 40.0) ** (slope_db_per_octave / (20 * np.log10(2)))
    return np.fft.irfft(spectrum, n_samples)


def tinted(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Coloured noise [n_samples] of random slope, from brown (-6 dB an octave) to faintly blue (+1)."""
    return coloured(rng, n_samples, rng.uniform(-6, 1))


def wind(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Low noise [n_samples] in gusts of a second or so."""
    gusts = np.interp(np.arange(n_samples), np.linspace(0, n_samples, n_samples // 8000 + 3),
                      rng.uniform(0.15, 1, n_samples // 8000 + 3))  # fmt: skip
    return coloured(rng, n_samples, rng.uniform(-6, -3)) * gusts**2


def hum(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Mains hum [n_samples], 50 or 60 Hz and overtones, over a little hiss."""
    base_hz = rng.choice([50.0, 60.0]) * rng.uniform(0.998, 1.002)
    at_sec = np.arange(n_samples) / SAMPLE_RATE
    wave = 0.02 * rng.standard_normal(n_samples)
    for harmonic in range(1, 16):
        level = rng.uniform(0.2, 1) / harmonic**0.8
        wave += level * np.sin(2 * np.pi * base_hz * harmonic * at_sec + rng.uniform(0, 2 * np.pi))
    return wave


def clicks(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Knocks and clinks [n_samples]: struck, ringing, decaying, some six in a second, over faint pink noise."""
    wave = coloured(rng, n_samples, -3)
    wave *= 0.01 / np.std(wave)
    for start in rng.integers(0, n_samples, max(1, int(6 * n_samples / SAMPLE_RATE))):
        length = min(int(rng.uniform(0.02, 0.25) * SAMPLE_RATE), n_samples - int(start))
        at_sec = np.arange(length) / SAMPLE_RATE
        ring = sum(np.sin(2 * np.pi * freq_hz * at_sec) for freq_hz in np.exp(rng.uniform(np.log(200), np.log(5000), 3)))
        struck = rng.standard_normal(length) * np.exp(-at_sec / 0.003)
        wave[start : start + length] += rng.uniform(0.2, 1) * (ring * np.exp(-at_sec / rng.uniform(0.01, 0.06)) + struck)
    return wave


def machine(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """A motor [n_samples]: a slowly wandering tone with overtones, and noise that beats with it."""
    wander = np.interp(np.arange(n_samples), np.linspace(0, n_samples, 9), rng.uniform(0.93, 1.07, 9))
    phase = 2 * np.pi * np.cumsum(rng.uniform(40, 160) * wander) / SAMPLE_RATE
    tones = sum(rng.uniform(0.1, 1) / k * np.sin(k * phase + rng.uniform(0, 6.28)) for k in range(1, 12))
    return tones + 0.5 * lfilter([0.4], [1, -0.6], rng.standard_normal(n_samples)) * (1 + 0.7 * np.sin(phase / 2))


def babble(rng: np.random.Generator, n_samples: int, talkers: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Many voices at once [n_samples] with a dull room behind them; formant voices unless `talkers` (waves) are given."""
    if talkers is None:
        duration_sec = n_samples / SAMPLE_RATE
        talkers = [FormantVoice.draw(rng).speak(rng, duration_sec).wave for _ in range(BABBLE_VOICES)]
    voices = np.zeros(n_samples)
    for talker in talkers:
        voices += np.resize(talker, n_samples) * rng.uniform(0.5, 1)
    tail_sec = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    room = rng.standard_normal(tail_sec.size) * np.exp(-tail_sec / 0.08)
    room *= 0.9 / np.sqrt(np.sum(room**2))
    size = 1 << int(np.ceil(np.log2(n_samples + room.size)))
    echo = np.fft.irfft(np.fft.rfft(voices, size) * np.fft.rfft(room, size), size)[:n_samples]
    dull = butter(1, 3500, fs=SAMPLE_RATE, output="sos")
    murmur = coloured(rng, n_samples, -4)
    return voices + sosfilt(dull, echo) + murmur * 0.1 * np.std(voices) / np.std(murmur)


KINDS: dict[str, Noise] = {
    "colour": tinted, "babble": babble, "hum": hum, "clicks": clicks, "machine": machine, "wind": wind
}  # fmt: skip


def make_noise(kind: str, rng: np.random.Generator, duration_sec: float) -> np.ndarray:
    """Noise [L] float32 of one of KINDS at LEVEL_RMS, its peaks held under full scale."""
    wave = KINDS[kind](rng, round(duration_sec * SAMPLE_RATE))
    wave = wave * LEVEL_RMS / np.sqrt(np.mean(wave**2))
    peak = np.max(np.abs(wave))
    return (wave * min(1.0, 0.95 / peak)).astype(np.float32)
