"""Compares the mouth in a video with the sound, and estimates by how much the video is late.

Two pairs of signals are compared, because they fail in different places: how much the mouth region changes from frame to
frame with how much the spectrum changes (spectral flux), and how fast the mouth opens (dark and bright parts drift apart)
with how fast the speech grows louder. Levels are raised to the power 0.3, as loudness is. In dB, pauses would change
as much as speech does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

STEP_SEC = 0.01  # of the sound's analysis and of the offsets tried
FARTHEST_SEC = 0.6  # offsets looked for
LEVEL_POWER = 0.3
BANDS_HZ = np.geomspace(100, 7000, 13)  # 12 bands
SMOOTH_SEC = 0.02  # a frame stands for 40 ms
LOUDEST_PERCENTILE = 98  # cuts to another camera and door slams are not to decide

# Where the mouth is in a crop, as shares of its side: the crop's centre is half-way between eyes and mouth.
MOUTH_ROWS, MOUTH_COLUMNS = (0.55, 0.875), (0.27, 0.73)


OFFSETS_SEC = np.arange(-round(FARTHEST_SEC / STEP_SEC), round(FARTHEST_SEC / STEP_SEC) + 1) * STEP_SEC
BESIDE_SEC = 0.13  # what fits within this of the best offset is the same peak
SURE = 0.7  # lead of the best offset over any other, in correlations times the root of seconds; see `estimate_offset`
TALKING_REACH_SEC = 0.2  # offsets allowed for when a mouth is matched with a voice
TALKING_LEAD = 0.6  # as SURE, of one mouth over the next


@dataclass(frozen=True)
class SoundTrack:
    """The sound that a video belongs to: `between(first, stop)` gives its float samples first .. stop - 1, mono."""

    between: Callable[[int, int], np.ndarray]
    sample_rate: int

    def activity(self, first_sec: float, stop_sec: float) -> tuple[np.ndarray, np.ndarray]:
        """`sound_activity` of a stretch and FARTHEST_SEC around it: (seconds [n], float [n, 2])."""
        first = max(0, round((first_sec - FARTHEST_SEC) * self.sample_rate))
        samples = self.between(first, max(first, round((stop_sec + FARTHEST_SEC) * self.sample_rate)))
        activity = sound_activity(samples, self.sample_rate)
        return first / self.sample_rate + STEP_SEC * np.arange(len(activity)), activity


@dataclass(frozen=True)
class OffsetEstimate:
    """By how much the video is late (negative: early). The estimate is reliable where confidence is 1 or more."""

    offset_sec: float
    confidence: float

    @property
    def sure(self) -> bool:
        return self.confidence >= 1.0


def sound_activity(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """float [n, 2] each STEP_SEC: how much the spectrum of samples [L] changes, and how fast it grows louder."""
    from scipy.ndimage import gaussian_filter1d  # here, not above: it costs every start of a program half a second

    hop, size = round(STEP_SEC * sample_rate), round(0.032 * sample_rate)
    padded = np.pad(np.asarray(samples, np.float32), (size // 2, size))
    n_steps = len(samples) // hop
    if n_steps < 2:
        return np.zeros((n_steps, 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:n_steps]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2  # [n, bins]
    edges = np.clip(np.round(BANDS_HZ * size / sample_rate).astype(int), 1, power.shape[1] - 1)
    bands = np.stack([power[:, a : max(b, a + 1)].sum(axis=1) for a, b in zip(edges[:-1], edges[1:], strict=True)], 1)
    level = gaussian_filter1d(bands, SMOOTH_SEC / STEP_SEC, axis=0) ** LEVEL_POWER  # [n, bands]
    change = np.gradient(level / (level.mean(axis=0) + 1e-12), axis=0)
    return np.stack((np.abs(change).mean(axis=1), change.mean(axis=1)), 1)


def mouth_activity(crops: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face crops uint8 [V, S, S, 3], mask bool [V] -> (float [V - 1, 2], bool [V - 1]: both frames show the face).

    How much the mouth region changes from frame k to k + 1, and how fast the mouth opens between them.
    """
    side = crops.shape[1]
    (top, bottom), (left, right) = ([round(share * side) for share in pair] for pair in (MOUTH_ROWS, MOUTH_COLUMNS))
    mouths = np.stack([
        cv2.GaussianBlur(cv2.cvtColor(crop[top:bottom, left:right], cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), side / 48)
        for crop in crops
    ])  # fmt: skip
    change = np.abs(np.diff(mouths, axis=0)).mean(axis=(1, 2))
    opening = np.diff(mouths.std(axis=(1, 2)))
    return np.stack((change, opening), 1), mask[1:] & mask[:-1]


def fit(mouth: np.ndarray, seen: np.ndarray, mouth_sec: np.ndarray, sound: np.ndarray, sound_sec: np.ndarray) -> np.ndarray:
    """How well mouth [V, 2] at mouth_sec [V] fits sound [n, 2] at sound_sec [n] if the video is late by OFFSETS_SEC.

    Each entry is the sum of the correlations of both pairs of signals, -2 to 2, over the frames where `seen` bool [V].
    """
    fits = np.zeros(len(OFFSETS_SEC))
    if len(sound) < 2:
        return fits
    mouth, mouth_sec = mouth[seen], mouth_sec[seen]
    for signal in range(2):
        moves, heard = _limited(mouth[:, signal]), _limited(sound[:, signal])
        for number, offset in enumerate(OFFSETS_SEC):
            at = mouth_sec - offset
            use = (at >= sound_sec[0]) & (at <= sound_sec[-1])
            if use.sum() > 2:
                fits[number] += _correlation(moves[use], np.interp(at[use], sound_sec, heard))
    return fits


def _limited(signal: np.ndarray) -> np.ndarray:
    largest = np.percentile(np.abs(signal), LOUDEST_PERCENTILE) if len(signal) else 0.0
    return np.clip(signal, -largest, largest)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    power = float((one @ one) * (other @ other))
    return float(one @ other) / power**0.5 if power > 1e-20 else 0.0


def mouth_fit(crops: np.ndarray, mask: np.ndarray, first_sec: float, fps: float, sound: SoundTrack) -> tuple[np.ndarray, float]:
    """`fit` of face crops shown from first_sec on at `fps` with their sound: (float [offsets], seconds of face)."""
    if len(crops) < 2:
        return np.zeros(len(OFFSETS_SEC)), 0.0
    mouth, seen = mouth_activity(crops, mask)
    mouth_sec = first_sec + (np.arange(len(mouth)) + 0.5) / fps
    sound_sec, heard = sound.activity(first_sec, first_sec + len(crops) / fps)
    return fit(mouth, seen, mouth_sec, heard, sound_sec), float(seen.sum()) / fps


def talking(fits: np.ndarray) -> float:
    """The best entry of a `fit` at offsets of up to TALKING_REACH_SEC: how well this mouth fits the voice."""
    return float(fits[np.abs(OFFSETS_SEC) <= TALKING_REACH_SEC + 1e-9].max())


def estimate_offset(fits: np.ndarray, seconds: float) -> OffsetEstimate:
    """The offset that fits best, from `mouth_fit`.

    The largest correlation that occurs by chance falls with the square root of the time. The confidence is therefore the
    lead of the best offset over all offsets that are not beside it, times that root.
    """
    best = int(fits.argmax())
    others = np.abs(OFFSETS_SEC - OFFSETS_SEC[best]) > BESIDE_SEC
    lead = float(fits[best] - fits[others].max())
    return OffsetEstimate(float(OFFSETS_SEC[best]), lead * seconds**0.5 / SURE)
