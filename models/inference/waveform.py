"""Samples before and after the model: any waveform as float32 mono, and a limit of the attenuation of noise."""

from __future__ import annotations

import math
import os

import numpy as np

from utils.media.sound import to_mono

INTEGER_KINDS = {np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.int32)}
LOUDEST = 1e12  # integers that are stored as floats are below it; louder floats would lose precision or overflow later


def float_waveform(wav: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Samples of any common type, [L], [L, ch] or [ch, L] -> float32 [L] mono. `axis` is that of the channels (default: the
    shorter one).

    Integers are scaled to full scale 1 (uint8 is centred at 128, as in 8-bit WAV); floats are taken as they are.
    ValueError for no samples, NaN or infinity, complex, boolean or 64-bit integer samples.
    """
    if isinstance(wav, (str, bytes, os.PathLike)):
        kind = type(wav).__name__
        raise ValueError(f"sound is a {kind}, not samples: wav, rate = soundfile.read(path) gives those of a file")
    wav = np.asarray(wav)
    if wav.ndim not in (1, 2):
        raise ValueError(f"sound should have the shape [samples] or [samples, channels], not {list(wav.shape)}")
    if wav.size == 0:
        raise ValueError("the sound holds no samples (0 s)")
    if wav.dtype in INTEGER_KINDS:
        bits, centre = 8 * wav.dtype.itemsize, 128 if wav.dtype == np.uint8 else 0
        wav = (wav.astype(np.float32 if bits <= 16 else np.float64) - centre) / 2 ** (bits - 1)
    elif not np.issubdtype(wav.dtype, np.floating):
        raise ValueError(f"samples are {wav.dtype}; give 8, 16 or 32-bit integers, or floats with full scale 1")
    # Minimum and maximum reveal NaN and infinity without another array as long as the sound.
    low, high = float(wav.min()), float(wav.max())
    if not math.isfinite(low + high):
        bad = int(np.count_nonzero(~np.isfinite(wav)))
        count = f"{bad} samples that are" if bad > 1 else "1 sample that is"
        raise ValueError(f"the sound holds {count} NaN or infinite; repair it, or replace it by 0 (np.nan_to_num)")
    if (peak := max(-low, high)) > LOUDEST:
        raise ValueError(f"the sound reaches {peak:g}; floats should have full scale 1")
    return to_mono(wav, axis)


def noisy_share(limit_db: float | None) -> float:
    """The share g of the noisy sound in the output under an attenuation limit: 10^(-limit_db / 20), 0 for None.

    The output is (1 - g) * enhanced + g * noisy, as in DeepFilterNet. Where the model gives silence the noise is attenuated
    by exactly limit_db; where it changes nothing the output is the input. 0 dB gives the noisy sound. ValueError below 0.
    """
    if limit_db is None:
        return 0.0
    if not limit_db >= 0:
        raise ValueError(f"attenuation_limit_db is {limit_db:g}, it should be 0 (the sound as it was) or more, e.g. 12")
    return math.pow(10.0, -limit_db / 20)


def mix_back(enhanced: np.ndarray, noisy: np.ndarray, share: float) -> np.ndarray:
    """Return (1 - share) * enhanced + share * noisy of two aligned float32 [n]."""
    if share == 0.0:
        return enhanced
    if share == 1.0:
        return noisy.copy()
    return np.float32(1.0 - share) * enhanced + np.float32(share) * noisy
