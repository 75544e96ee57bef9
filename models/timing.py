"""The one place that maps audio frames to video frames."""

from __future__ import annotations

import numpy as np
import torch


def video_frame_index(
    n_stft_frames: int, hop_size: int, sampling_rate: int, fps: float, first: int = 0
) -> torch.Tensor:
    """Newest video frame that STFT frames first .. first + n_stft_frames - 1 may see: floor(t * hop * fps / rate).

    Holding the newest frame, and never interpolating towards the next, is what keeps the visual branch causal.
    Video frame v is taken to be shown from v / fps seconds on; STFT frame t is centred on sample t * hop_size.

    Returns int64 [n_stft_frames].
    """
    frames = np.arange(first, first + n_stft_frames, dtype=np.int64)
    if float(fps).is_integer():
        return torch.from_numpy(frames * hop_size * int(fps) // sampling_rate)  # exact at any length
    # A relative tick forgives frame boundaries that fall exactly on an STFT centre but round down in floating point.
    return torch.from_numpy(np.floor(frames * (hop_size * fps / sampling_rate) * (1 + 1e-12) + 1e-9).astype(np.int64))
