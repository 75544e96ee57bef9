"""Makes visual features for voices without a video: a part that the sound predicts, and the rest of a real face's features."""

from __future__ import annotations

import os

import numpy as np

BANDS_HZ = (80.0, 250.0, 500.0, 1000.0, 1500.0, 2500.0, 3500.0, 5000.0, 8000.0)  # edges
FLOOR_DB = -50.0  # below the loudest moment of the sound
CONTEXT_FRAMES = 4  # video frames of sound before and after, which a mouth's position goes with
DB_UNIT = 10.0


def context_energies(sound: np.ndarray, n_frames: int, fps: float, rate: int) -> np.ndarray:
    """Energies (tens of dB) of sound [L] in BANDS_HZ around each video frame, and in the frames beside it: [n_frames, .]."""
    step, half = rate / fps, round(0.8 * rate / fps)
    centres = np.round((np.arange(-CONTEXT_FRAMES, n_frames + CONTEXT_FRAMES) + 0.5) * step).astype(int)
    before = half - centres[0]
    padded = np.pad(np.asarray(sound, np.float32), (before, max(0, centres[-1] + half - len(sound))))
    pieces = np.stack([padded[before + c - half : before + c + half] for c in centres]) * np.hanning(2 * half)
    power = np.abs(np.fft.rfft(pieces, axis=1)) ** 2
    hz = np.fft.rfftfreq(2 * half, 1 / rate)
    energies = np.stack(
        [power[:, (hz >= low) & (hz < high)].sum(1) for low, high in zip(BANDS_HZ[:-1], BANDS_HZ[1:], strict=True)], axis=1
    )
    floor = max(energies.sum(1).max(), 1e-9) * 10 ** (FLOOR_DB / 10)
    db = 10 * np.log10(np.maximum(energies, floor)) / DB_UNIT
    return np.concatenate([db[k : k + n_frames] for k in range(2 * CONTEXT_FRAMES + 1)], axis=1).astype(np.float32)


class Dubber:
    """Makes features [V, D] of a face that speaks a given sound.

    A linear map gives the part of the features that sound explains. The rest is taken from a real clip, as it is: how somebody
    holds and moves the head, and what the mouth does that does not sound. So a made face is as hard to read as a real one.
    The map is that of the people who were filmed. `variation` makes others of it: for each face all of the first part is
    weighted by one number between 1 - variation and 1, and each feature of it by one between 1 - variation and 1 + variation.
    """

    def __init__(self, path: str | os.PathLike, variation: float = 0.0) -> None:
        self._variation = variation
        with np.load(path, allow_pickle=False) as bank:
            self._map, self._mean, self._residual = bank["map"], bank["mean"], bank["residual"]
            self._ends, speakers = np.cumsum(bank["length"]), list(bank["speaker"])
        shares = np.array([speakers.count(name) for name in speakers], float) ** -0.5
        self._shares = shares / shares.sum()  # speakers by the square root of their clips' number

    def __call__(self, sound: np.ndarray, n_frames: int, fps: float, rate: int, rng: np.random.Generator) -> np.ndarray:
        """sound [L] -> features float32 [n_frames, D]."""
        energies = context_energies(sound, n_frames, fps, rate)
        k = int(rng.choice(len(self._ends), p=self._shares))
        first, end = (int(self._ends[k - 1]) if k else 0), int(self._ends[k])
        start = int(rng.integers(max(1, end - first - n_frames + 1)))
        rest = self._residual[first:end][np.minimum(start + np.arange(n_frames), end - first - 1)].astype(np.float32)
        explained = (energies - energies.mean(0)) @ self._map
        if self._variation:
            v = self._variation
            explained *= (rng.uniform(1 - v, 1) * rng.uniform(1 - v, 1 + v, explained.shape[1])).astype(np.float32)
        return self._mean[k] + explained + rest
