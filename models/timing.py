"""The one place that maps audio frames to video frames."""

from __future__ import annotations

import numpy as np
import torch


def video_frame_index(
    n_stft_frames: int, hop_size: int, sampling_rate: int, fps: float, first: int = 0,
    lookahead_ms: float = 0.0,
) -> torch.Tensor:
    """Newest video frame that STFT frames first .. first + n_stft_frames - 1 may see: floor(t * hop * fps / rate).

    lookahead_ms (visual_cfg.visual_lookahead_ms): how much later video than the sound may be seen; the sound waits for it.

    Holding the newest frame, and never interpolating towards the next, is what keeps the visual branch causal.
    Video frame v is taken to be shown from v / fps seconds on; STFT frame t is centred on sample t * hop_size.

    Returns int64 [n_stft_frames].
    """
    frames = np.arange(first, first + n_stft_frames, dtype=np.int64)
    samples = frames * hop_size + lookahead_samples(lookahead_ms, sampling_rate)
    if float(fps).is_integer():
        return torch.from_numpy(samples * int(fps) // sampling_rate)  # exact at any length
    # A relative tick forgives frame boundaries that fall exactly on an STFT centre but round down in floating point.
    return torch.from_numpy(np.floor(samples * (fps / sampling_rate) * (1 + 1e-12) + 1e-9).astype(np.int64))


def lookahead_samples(lookahead_ms: float, sampling_rate: int) -> int:
    """How many samples the sound waits for later video."""
    return round(lookahead_ms * sampling_rate / 1000)


def latency_samples(n_fft: int, sampling_rate: int, lookahead_ms: float = 0.0) -> int:
    """How many samples of input a causal model needs to give one of output: half a window, and what its centre waits for.

    The centre of an STFT window waits for the window's second half, and for the later video that it may see.
    """
    return n_fft // 2 + max(n_fft // 2, lookahead_samples(lookahead_ms, sampling_rate))


def newest_seen(seen: torch.Tensor, now: torch.Tensor, ahead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The newest video frame with a face among frames now .. ahead, for each STFT frame.

    seen bool [B, V]; now, ahead int64 [T], before 0 or past the end where there is no frame. Returns index int64 [B, T] in
    0 .. V - 1, and valid bool [B, T]: whether there is such a frame (the index means nothing where there is none).
    """
    numbers = torch.arange(seen.shape[1], device=seen.device)
    newest = torch.where(seen, numbers, -1).cummax(dim=1).values  # [B, V]
    now, ahead = now.to(seen.device), ahead.to(seen.device)
    last = ahead.clamp(0, seen.shape[1] - 1)
    index = newest[:, last]
    valid = (index >= now) & (ahead >= 0) & (index >= 0)
    return torch.where(valid, index, last), valid


def shown_frames(
    seen: torch.Tensor, n_stft_frames: int, hop_size: int, sampling_rate: int, fps: float, lookahead_ms: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which video frame each STFT frame of a whole clip is given: index int64 [B, T] and valid bool [B, T].

    seen bool [B, V]. That is the newest frame with a face from the present one to lookahead_ms later.
    """
    now = video_frame_index(n_stft_frames, hop_size, sampling_rate, fps)
    ahead = video_frame_index(n_stft_frames, hop_size, sampling_rate, fps, lookahead_ms=lookahead_ms)
    return newest_seen(seen, now, ahead)
