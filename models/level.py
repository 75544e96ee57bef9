"""Input level: the gain that gives any recording the loudness of the training data.

Models that are not causal divide the whole recording by its RMS, as SEMamba does. A causal model uses a running estimate of
the power so far, so its gain changes over time. The enhanced waveform is divided by the same gain, sample by sample: the
output is as loud as the input.
"""

from __future__ import annotations

import numpy as np

BLOCK_SAMPLES = 100  # one STFT hop: there is a new gain per block, and the gain is linear inside a block
SLOW_SEC, FAST_SEC = 3.0, 0.1
FAST_WEIGHT = 0.25  # a burst after silence changes the level at once, but not by its whole power
PRIOR_POWER = 0.05**2  # -26 dB re full scale: the level of ordinary speech, assumed at the start
PRIOR_BLOCKS = 10.0
FLOOR_POWER = 10.0 ** (-60 / 10)  # a lower power is silence, not quiet speech


class RunningLevel:
    """Causal level estimate: the exponential average of power over 3 s, or a quarter of the one over 0.1 s if that is larger.

    The gain in block k depends on the blocks before k only. It is linear inside a block and continuous. `streams` is the
    number of independent sounds, if there are several. No array is changed in place, so a shallow copy is a snapshot.
    """

    def __init__(self, sample_rate: int = 16000, streams: int | None = None) -> None:
        shape = () if streams is None else (streams,)
        self._slow_decay = float(np.exp(-BLOCK_SAMPLES / (SLOW_SEC * sample_rate)))
        self._fast_decay = float(np.exp(-BLOCK_SAMPLES / (FAST_SEC * sample_rate)))
        self._slow_sum, self._slow_count = np.full((*shape, 1), PRIOR_BLOCKS * PRIOR_POWER), np.full((*shape, 1), PRIOR_BLOCKS)
        self._fast_power = np.zeros((*shape, 1))
        self._ends = np.full((*shape, 2), PRIOR_POWER**-0.5)  # gain at the start and at the end of the present block
        self._begun = np.zeros((*shape, 0))  # the samples of that block so far

    def step(self, x: np.ndarray) -> np.ndarray:
        """Any number of further samples x [n], or [streams, n], -> their gain, float32 of that shape."""
        begun = self._begun.shape[-1]
        heard = np.concatenate((self._begun, np.asarray(x, dtype=np.float64)), axis=-1)
        whole = heard.shape[-1] // BLOCK_SAMPLES
        self._begun = heard[..., whole * BLOCK_SAMPLES :]
        ends = self._ends
        if whole:
            blocks = heard[..., : whole * BLOCK_SAMPLES].reshape(*heard.shape[:-1], whole, BLOCK_SAMPLES)
            # ends[k] is the gain at the end of block k. It depends on what was known when block k began.
            ends = np.concatenate((ends, self._levels(np.mean(np.square(blocks), axis=-1)) ** -0.5), axis=-1)
            self._ends = ends[..., -2:]
        ramp = np.arange(1, BLOCK_SAMPLES + 1) / BLOCK_SAMPLES
        gain = ends[..., :-1, None] + np.diff(ends)[..., None] * ramp  # [..., blocks, BLOCK_SAMPLES]
        gain = gain.reshape(*heard.shape[:-1], -1)[..., begun : heard.shape[-1]]
        return gain.astype(np.float32)

    def _levels(self, power: np.ndarray) -> np.ndarray:
        """Power of further blocks [..., k] -> the level estimate after each of them [..., k]."""
        # A loop of ours: the import of scipy.signal, which has one, takes longer than this does for an hour of sound.
        levels = np.empty_like(power)
        for k in range(power.shape[-1]):
            new = power[..., k : k + 1]
            self._slow_sum = new + self._slow_decay * self._slow_sum
            self._slow_count = 1.0 + self._slow_decay * self._slow_count
            self._fast_power = (1.0 - self._fast_decay) * new + self._fast_decay * self._fast_power
            levels[..., k : k + 1] = np.maximum(self._slow_sum / self._slow_count, FAST_WEIGHT * self._fast_power)
        return np.maximum(levels, FLOOR_POWER)


def level_gain(x: np.ndarray, causal: bool, sample_rate: int = 16000) -> np.ndarray:
    """Gain per sample for the waveform x [L] -> float32 [L].

    `causal=False`: one over the RMS of the whole of x (1 for silence). `causal=True`: `RunningLevel` from its start.
    """
    x = np.asarray(x, dtype=np.float64)
    if causal:
        return RunningLevel(sample_rate).step(x)
    rms = float(np.sqrt(np.mean(np.square(x)))) if len(x) else 0.0
    return np.full(len(x), 1.0 / rms if rms > 1e-8 else 1.0, np.float32)
