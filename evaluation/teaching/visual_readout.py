"""How much visual features tell of the sound: a linear readout predicts the clean speech's energy in four bands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BANDS_HZ = (80.0, 500.0, 1500.0, 3500.0, 8000.0)  # edges
FLOOR_DB = -50.0  # below the loudest moment of the clip
RIDGE = 1e-2  # ridge penalty, relative to the features' variance


def band_energies_db(
    sound: np.ndarray, n_frames: int, fps: float, rate: int, edges_hz: Sequence[float] = BANDS_HZ
) -> np.ndarray:
    """Energy in dB of sound [L] in each band around each video frame's time on screen: float32 [n_frames, bands]."""
    step = rate / fps
    window = np.hanning(round(1.6 * step))
    padded = np.pad(np.asarray(sound, np.float32), (round(0.3 * step), round(2 * step)))
    padded = np.pad(padded, (0, max(0, round(n_frames * step) + len(window) - len(padded))))
    pieces = np.stack([padded[round(v * step) :][: len(window)] for v in range(n_frames)]) * window
    power, hz = np.abs(np.fft.rfft(pieces, axis=1)) ** 2, np.fft.rfftfreq(len(window), 1 / rate)
    bands = [power[:, (hz >= low) & (hz < high)].sum(1) for low, high in zip(edges_hz[:-1], edges_hz[1:], strict=True)]
    energies = np.stack(bands, axis=1)
    floor = energies.sum(1).max() * 10 ** (FLOOR_DB / 10)
    return (10 * np.log10(np.maximum(energies, floor) + 1e-12)).astype(np.float32)


def readout_correlation(
    train: Sequence[tuple[np.ndarray, np.ndarray]], valid: Sequence[tuple[np.ndarray, np.ndarray]], later: int = 0
) -> float:
    """Mean over bands of the correlation of predicted and true energies on `valid`; the readout is fitted on `train`.

    Clips: (features [V, D], energies [V, bands]), less their means; the features are those `later` frames after the energies.
    """

    def parts(clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        moved = [(f[np.clip(np.arange(len(e)) + later, 0, len(f) - 1)], e) for f, e in clips]
        return tuple(np.concatenate([pair[k] - pair[k].mean(0) for pair in moved]).astype(np.float64) for k in (0, 1))

    x, y = parts(train)
    spread = x.std(0) + 1e-6
    x = x / spread
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    x, y = parts(valid)
    predicted = (x / spread) @ weights
    return float(np.mean([np.corrcoef(predicted[:, k], y[:, k])[0, 1] for k in range(y.shape[1])]))
