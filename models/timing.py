"""Which video frame an STFT frame sees; no other file decides this."""

from __future__ import annotations

import functools

import numpy as np
import torch


def video_frame_index(
    n_stft_frames: int, hop_size: int, sampling_rate: int, fps: float, first: int = 0,
    lookahead_ms: float = 0.0,
) -> torch.Tensor:
    """The newest video frame that STFT frames first .. first + n_stft_frames - 1 may see: floor(t * hop * fps / rate).

    Video frame v is shown from v / fps seconds on; STFT frame t is centred on sample t * hop_size. lookahead_ms
    (visual_cfg.visual_lookahead_ms) is how much later than the sound the video may be; the sound waits for it. The newest
    frame is held: interpolation towards the next one would not be causal. Returns int64 [n_stft_frames].
    """
    frames = np.arange(first, first + n_stft_frames, dtype=np.int64)
    samples = frames * hop_size + lookahead_samples(lookahead_ms, sampling_rate)
    if float(fps).is_integer():
        return torch.from_numpy(samples * int(fps) // sampling_rate)  # exact at any length
    # A frame boundary that is exactly at an STFT frame's centre may round down in floating point: hence the small excess.
    return torch.from_numpy(np.floor(samples * (fps / sampling_rate) * (1 + 1e-12) + 1e-9).astype(np.int64))


@functools.lru_cache(maxsize=64)
def kept_frame_index(
    n_stft_frames: int, hop_size: int, sampling_rate: int, fps: float, lookahead_ms: float, device: torch.device
) -> torch.Tensor:
    """`video_frame_index` on a device, kept there: copying it at each step of a training would make the step wait."""
    with torch.inference_mode(False):  # what inference makes first, training must be able to use
        return video_frame_index(n_stft_frames, hop_size, sampling_rate, fps, lookahead_ms=lookahead_ms).to(device)


def lookahead_samples(lookahead_ms: float, sampling_rate: int) -> int:
    """How many samples the sound waits for later video."""
    return round(lookahead_ms * sampling_rate / 1000)


def latency_samples(n_fft: int, sampling_rate: int, lookahead_ms: float = 0.0) -> int:
    """How many samples of input a causal model needs to give one of output: half a window, and what its centre waits for.

    The centre of an STFT window waits for the window's second half, and for the later video that it may see.
    """
    return n_fft // 2 + max(n_fft // 2, lookahead_samples(lookahead_ms, sampling_rate))


def newest_seen(seen: torch.Tensor, now: torch.Tensor, ahead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each STFT frame the newest video frame that shows a face, among video frames now .. ahead.

    seen bool [B, V]; now, ahead int64 [T], which may be below 0 or past the last video frame. Returns index int64 [B, T] in
    0 .. V - 1 and valid bool [B, T], which says whether there is such a frame; where there is none the index is arbitrary.
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
    """Which video frame each STFT frame of a whole clip sees: index int64 [B, T] and valid bool [B, T].

    seen bool [B, V]. It is the newest frame that shows a face, from the present one to the one lookahead_ms later.
    """
    now, ahead = (
        kept_frame_index(n_stft_frames, hop_size, sampling_rate, fps, ms, seen.device) for ms in (0.0, lookahead_ms)
    )
    return newest_seen(seen, now, ahead)
