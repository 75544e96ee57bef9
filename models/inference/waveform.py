"""A limit to how far noise is turned down, for listeners who want some of the place to be left."""

from __future__ import annotations

import math

import numpy as np


def noisy_share(limit_db: float | None) -> float:
    """Share g of the noisy sound in what is given back under an attenuation limit: 10^(-limit_db / 20), 0 for None.

    (1 - g) * enhanced + g * noisy is DeepFilterNet's definition: where enhancing leaves nothing the noise is turned down
    by exactly limit_db, where it changes nothing nothing changes. 0 dB is the noisy sound itself. ValueError below 0.
    """
    if limit_db is None:
        return 0.0
    if not limit_db >= 0:
        raise ValueError(f"attenuation_limit_db is {limit_db:g}, it should be 0 (the sound as it was) or more, e.g. 12")
    return math.pow(10.0, -limit_db / 20)


def mix_back(enhanced: np.ndarray, noisy: np.ndarray, share: float) -> np.ndarray:
    """(1 - share) * enhanced + share * noisy of two float32 [n] that belong together sample by sample."""
    if share == 0.0:
        return enhanced
    if share == 1.0:
        return noisy.copy()
    return np.float32(1.0 - share) * enhanced + np.float32(share) * noisy
