"""Several channels of sound made into one: their mean, or one of them where the mean would cancel what they hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CANCELLED_DB = 12.0  # a mean so far below the loudest channel has lost the sound, e.g. by opposite phases
AUDIBLE_POWER = 1e-8  # -80 dB re full scale: blocks below this say nothing about the channels
MEASURED_SEC = 30.0  # of audible sound, by which a channel is chosen


def mix_down(data: np.ndarray, channel: int | None = None) -> np.ndarray:
    """Return the mean over channels of [n, ch], or one `channel`, as float32 [n]."""
    if data.shape[1] == 1:
        channel = 0
    if channel is not None:
        return np.ascontiguousarray(data[:, channel], dtype=np.float32)
    return data.mean(axis=1, dtype=np.float64).astype(np.float32)


def louder_channel(blocks: Iterable[np.ndarray], most_samples: int | None = None) -> int | None:
    """Return the loudest channel's index where the mean is more than CANCELLED_DB below it, else None.

    blocks: [n, ch], all of one channel count; none is read after `most_samples` audible samples.
    """
    channels, mean, heard = None, 0.0, 0
    for block in blocks:
        block = np.asarray(block, np.float64)
        powers = np.square(block).sum(axis=0)  # [ch]
        if not len(block) or not powers.max() > AUDIBLE_POWER * len(block):
            continue
        channels = powers if channels is None else channels + powers
        mean += float(np.square(block.mean(axis=1)).sum())
        heard += len(block)
        if most_samples is not None and heard >= most_samples:
            break
    if channels is None or not mean < channels.max() * 10 ** (-CANCELLED_DB / 10):
        return None
    return int(channels.argmax())
