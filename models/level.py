"""Input level: the gain that brings any recording to the loudness the model was trained at.

Offline models divide the utterance by its RMS, as SEMamba does. A causal model may not know the utterance, so it uses a
running estimate of the power heard so far. The gain is a function of time; the enhanced waveform is divided by the same
gain, sample by sample, so that the output is as loud as the input.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

BLOCK_SAMPLES = 100  # one STFT hop: the gain moves once per block, in a straight line between blocks
SLOW_SEC, FAST_SEC = 3.0, 0.1
FAST_WEIGHT = 0.25  # a burst after silence is heard at once, but does not set the level alone
PRIOR_POWER = 0.05**2  # -26 dB re full scale: ordinary speech, believed until something was heard
PRIOR_BLOCKS = 10.0
FLOOR_POWER = 10.0 ** (-60 / 10)  # below this it is silence, not quiet speech


class RunningLevel:
    """Causal level estimate: an exponential average of power over 3 s, or a quarter of that over 0.1 s if larger.

    Gain in block k comes from blocks before k only, and is linear inside the block, so that it is continuous.
    """

    def __init__(self, sample_rate: int = 16000) -> None:
        self._slow_decay = float(np.exp(-BLOCK_SAMPLES / (SLOW_SEC * sample_rate)))
        self._fast_decay = float(np.exp(-BLOCK_SAMPLES / (FAST_SEC * sample_rate)))
        self._slow_sum, self._slow_count = PRIOR_BLOCKS * PRIOR_POWER, PRIOR_BLOCKS
        self._fast_power = 0.0
        self._gain = PRIOR_POWER**-0.5  # at the end of the last block
        self._target = self._gain  # at the end of the block under way

    def step(self, x: np.ndarray) -> np.ndarray:
        """x [n], n a multiple of BLOCK_SAMPLES, -> gain [n]; the state moves on."""
        blocks = np.asarray(x, dtype=np.float64).reshape(-1, BLOCK_SAMPLES)
        if not len(blocks):
            return np.zeros(0, np.float32)
        power = np.mean(np.square(blocks), axis=1)
        slow_sum, _ = lfilter([1.0], [1.0, -self._slow_decay], power, zi=[self._slow_decay * self._slow_sum])
        count, _ = lfilter(
            [1.0], [1.0, -self._slow_decay], np.ones_like(power), zi=[self._slow_decay * self._slow_count]
        )
        fast, _ = lfilter(
            [1.0 - self._fast_decay], [1.0, -self._fast_decay], power, zi=[self._fast_decay * self._fast_power]
        )
        level = np.maximum(np.maximum(slow_sum / count, FAST_WEIGHT * fast), FLOOR_POWER)
        # ends[k] is the gain where block k ends: what was known when block k began.
        ends = np.concatenate(([self._gain, self._target], level**-0.5))
        ramp = np.arange(1, BLOCK_SAMPLES + 1) / BLOCK_SAMPLES
        gain = ends[:-2, None] + (ends[1:-1] - ends[:-2])[:, None] * ramp
        self._slow_sum, self._slow_count, self._fast_power = float(slow_sum[-1]), float(count[-1]), float(fast[-1])
        self._gain, self._target = float(ends[-2]), float(ends[-1])
        return gain.reshape(-1).astype(np.float32)


def level_gain(x: np.ndarray, causal: bool, sample_rate: int = 16000) -> np.ndarray:
    """Gain per sample for the waveform x [L] -> float32 [L].

    `causal=False`: one over the RMS of the whole of x (1 for silence). `causal=True`: `RunningLevel` from its start.
    """
    x = np.asarray(x, dtype=np.float64)
    if causal:
        padded = np.pad(x, (0, -len(x) % BLOCK_SAMPLES))
        return RunningLevel(sample_rate).step(padded)[: len(x)]
    rms = float(np.sqrt(np.mean(np.square(x)))) if len(x) else 0.0
    return np.full(len(x), 1.0 / rms if rms > 1e-8 else 1.0, np.float32)
