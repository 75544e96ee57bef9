"""The band above the model's: it is kept, and it follows the gain that the model gives to its own top octave.

A recording at 32 to 192 kHz is converted to the model's rate and enhanced there (the low band). The upper band is the
recording minus the low band before the model, both at the recording's rate. So the two bands add up to the recording
exactly, whatever the filter between them is, and nothing can be heard where they meet. The upper band is multiplied by one
gain for each STFT frame, the ratio of the enhanced to the noisy magnitude in the model's top octave (4 to 8 kHz): it is small
where nobody speaks and nearly 1 in a loud fricative. The gain is linear between the centres of the frames. All that a
moment needs is known when the low band of that moment is given, so no stream waits longer because of the upper band.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from utils.media.short_resampler import HALF_SAMPLES, ShortResampler

FULL, MODEL_BAND = "full", "16k"
BANDS = (FULL, MODEL_BAND)
HIGHEST_RATE_HZ = 384_000
PIECE_SAMPLES = 16000
FLOOR_DB = -40.0  # the upper band is never turned down by more than this
SILENCE_POWER = 1e-6  # of the spectrum at the model's level: less than this in the top octave is nothing to judge by

# (first, stop) -> samples first .. stop - 1, float32
Between = Callable[[int, int], np.ndarray]


def has_upper_band(sample_rate: int, model_rate: int) -> bool:
    """Whether sound at this rate holds a band above the model's that is treated."""
    return model_rate < sample_rate <= HIGHEST_RATE_HZ


def check_band(band: str) -> str:
    """Return `band`; ValueError for a name that is none of BANDS."""
    if band not in BANDS:
        raise ValueError(f"band is {band!r}, it should be one of {', '.join(BANDS)}")
    return band


def top_octave_gain(noisy: torch.Tensor, enhanced: torch.Tensor, compress_factor: float) -> np.ndarray:
    """Compressed magnitudes [B, F, T] before and after the model -> gain of the upper band [B, T], from FLOOR_DB to 0 dB."""
    top = noisy.shape[1] // 2  # the STFT's bins are 0 .. F - 1, and bin F - 1 is the Nyquist frequency
    before, after = (mag[:, top:].pow(2.0 / compress_factor).sum(dim=1) + SILENCE_POWER for mag in (noisy, enhanced))
    return (after / before).sqrt().clamp(10.0 ** (FLOOR_DB / 20), 1.0).cpu().numpy()


def stream_latency_samples(sample_rate: int, model_rate: int, latency_samples: int) -> int:
    """Return the latency at a stream's own rate: the model's, and 2 ms for each of the two conversions."""
    return (latency_samples - 1 + 2 * HALF_SAMPLES) * sample_rate // model_rate + 1


class UpperBand:
    """Puts the enhanced low band and the treated upper band together, at the recording's rate, piece by piece.

    own: samples of the recording at sample_rate. noisy: samples of its low band at model_rate, before the model. No array is
    changed in place, so a shallow copy is a snapshot.
    """

    def __init__(self, sample_rate: int, model_rate: int, n_fft: int, hop_size: int, own: Between, noisy: Between) -> None:
        self._up = ShortResampler(model_rate, sample_rate)
        self._frames_per_sample = model_rate / (sample_rate * hop_size)
        self._smooth = n_fft >= 4 * hop_size  # then the frame after the next is known, too
        self._own, self._noisy = own, noisy
        self._gains = np.zeros(0, np.float32)  # of the frames from index `_first` on
        self._first = 0
        self._heard = self._given = 0  # samples of the low band, samples of the output

    def feed(self, enhanced: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Further enhanced samples [m] at the model's rate and gains [t] of further frames -> output [k] that is ready."""
        self._gains = np.concatenate((self._gains, gains))
        noisy = self._noisy(self._heard, self._heard + len(enhanced))
        self._heard += len(enhanced)
        return self._join(self._up.feed(np.stack((noisy, enhanced))))

    def end(self, length: int) -> np.ndarray:
        """The sound is over -> the last output [k]; in all it has `length` samples."""
        return self._join(self._up.end(length)) if self._heard else self._own(0, length)

    def whole(self, enhanced: np.ndarray, gains: np.ndarray, length: int) -> np.ndarray:
        """All enhanced samples [n] and gains [T] at once -> the output [length], made piece by piece in little memory."""
        cuts = range(0, len(enhanced), PIECE_SAMPLES)
        pieces = [self.feed(enhanced[:0], gains)]
        pieces += [self.feed(enhanced[first : first + PIECE_SAMPLES], gains[:0]) for first in cuts]
        return np.concatenate([*pieces, self.end(length)])

    def _join(self, bands: np.ndarray) -> np.ndarray:
        """Noisy and enhanced low band [2, k] at the output's rate -> output [k]."""
        stop = self._given + bands.shape[1]
        noisy, enhanced = bands
        gain = self._gain(np.arange(self._given, stop) * self._frames_per_sample)
        out = enhanced + gain * (self._own(self._given, stop) - noisy)
        self._given = stop
        keep = max(0, int(stop * self._frames_per_sample) - 1 - self._first)
        self._gains, self._first = self._gains[keep:], self._first + keep
        return out

    def _gain(self, frames: np.ndarray) -> np.ndarray:
        """Times in STFT frames [k] -> float32 [k]: linear between frames, whose gains are averaged with both neighbours'."""
        if not len(frames) or not len(self._gains):
            return np.ones(len(frames), np.float32)
        gains = self._gains
        if self._smooth:
            wide = np.concatenate((gains[:1], gains, gains[-1:]))
            gains = 0.25 * wide[:-2] + 0.5 * wide[1:-1] + 0.25 * wide[2:]
        return np.interp(frames - self._first, np.arange(len(gains)), gains).astype(np.float32)
