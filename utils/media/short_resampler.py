"""Sampling-rate conversion for streams: a short filter, so that a sample waits for 2 ms only.

soxr, which converts files elsewhere, gives its samples in blocks: a stream at 48 kHz waits 37 ms for it on the way down,
and 30 ms more on the way up (measured). This filter is a windowed sinc (A. Oppenheim and R. Schafer, Discrete-Time Signal
Processing, section 7.6).
"""

from __future__ import annotations

import math

import numpy as np

HALF_SAMPLES = 32  # of the lower rate: the filter reaches this far to both sides, 2 ms at 16 kHz
CUTOFF = 15 / 32  # -6 dB, as a share of the lower rate: 7.5 kHz at 16 kHz; the transition ends at the Nyquist frequency
KAISER_BETA = 6.8  # 70 dB less beyond the transition


class ShortResampler:
    """Converts sound float32 [..., n] from one rate to another, any number of samples at a time.

    Output sample m belongs to the same time as input m * from_rate / to_rate, so nothing is shifted. It is given as soon as
    input floor(m * from_rate / to_rate) + `reach` is in. What is given does not depend on the sizes of the pieces. No array
    is changed in place, so a shallow copy is a snapshot.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        common = math.gcd(from_rate, to_rate)
        self._up, self._down = to_rate // common, from_rate // common
        lower = min(from_rate, to_rate)
        half = HALF_SAMPLES * from_rate / lower  # in input samples
        self.reach = math.ceil(half)
        offsets = np.arange(-self.reach, self.reach + 1) - np.arange(self._up)[:, None] / self._up  # [phases, taps]
        window = np.i0(KAISER_BETA * np.sqrt(np.clip(1.0 - np.square(offsets / half), 0.0, None)))
        taps = np.where(np.abs(offsets) <= half, np.sinc(2 * CUTOFF * lower / from_rate * offsets) * window, 0.0)
        self._taps = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)  # each phase passes a constant as it is
        self._held: np.ndarray | None = None  # inputs from index `_first` on
        self._first = -self.reach
        self._heard = self._given = 0

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """Further samples [..., n] -> the converted samples [..., m] that are ready."""
        samples = np.asarray(samples, np.float32)
        if self._held is None:
            self._held = np.zeros((*samples.shape[:-1], self.reach), np.float32)  # there is silence before the sound
        self._held = np.concatenate((self._held, samples), axis=-1)
        self._heard += samples.shape[-1]
        return self._convert(-(-(self._heard - self.reach) * self._up // self._down))

    def end(self, length: int | None = None) -> np.ndarray:
        """The sound is over -> the last samples [..., m]; all together are `length`, or what the ratio of the rates gives."""
        wanted = round(self._heard * self._up / self._down) if length is None else length
        if self._held is None:
            return np.zeros(wanted, np.float32)
        last = (wanted - 1) * self._down // self._up + self.reach + 1 - self._heard
        if last > 0:
            self._held = np.concatenate((self._held, np.zeros((*self._held.shape[:-1], last), np.float32)), axis=-1)
        return self._convert(wanted)

    def _convert(self, stop: int) -> np.ndarray:
        """Give output samples up to stop - 1, and forget the inputs that no later one needs."""
        if stop <= self._given:
            return self._held[..., :0]
        places = np.arange(self._given, stop, dtype=np.int64) * self._down
        windows = np.lib.stride_tricks.sliding_window_view(self._held, self._taps.shape[1], axis=-1)  # [..., n, taps]
        first = places // self._up - self.reach - self._first
        out = np.einsum("...mt,mt->...m", windows[..., first, :], self._taps[places % self._up])
        self._given += len(places)
        cut = max(0, self._given * self._down // self._up - self.reach - self._first)
        self._held, self._first = self._held[..., cut:], self._first + cut
        return out


def convert(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Convert the whole of samples [L] -> float32 [round(L * to_rate / from_rate)], piece by piece."""
    resampler = ShortResampler(from_rate, to_rate)
    pieces = [resampler.feed(samples[first : first + from_rate]) for first in range(0, len(samples), from_rate)]
    return np.concatenate([*pieces, resampler.end()])
