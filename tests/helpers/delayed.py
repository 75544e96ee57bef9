"""A stand-in for another program: it gives the sound back, later, frame by frame."""

from __future__ import annotations

import numpy as np


class Delayed:
    """Frames of 480 samples at 48 kHz, given back 1440 samples later."""

    name, rate, frame, delay = "Delayed", 48000, 480, 1440

    def __init__(self) -> None:
        self._held = np.zeros(self.delay, np.float32)

    def step(self, samples: np.ndarray) -> np.ndarray:
        self._held = np.concatenate([self._held, samples])
        made, self._held = self._held[: self.frame], self._held[self.frame :]
        return made
