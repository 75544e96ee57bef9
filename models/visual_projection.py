"""From visual features to what is added to the encoded sound: a normalisation over time, and a projection onto frequencies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import running_mean

VISUAL_RANK = 8  # frequency profiles a visual feature may draw on
VISUAL_TRAITS = 16  # numbers a frame to which features that are normalised over time are reduced
_WINDOW_SEC = 2.0
_PRIOR_SEC = 0.25  # of an average face, which every window holds: a mean over a few frames is none
_START_SPREAD = 0.5  # of one feature over time, before training
_LEAST_VARIANCE = 0.01  # a smaller one is no movement, and is not made larger


class RunningNorm(nn.Module):
    """Causal normalisation of visual features [B, T, D] over the valid frames of the last 2 s.

    The mean of a clip's features says who is filmed and how, and a model that has seen few people takes it for speech. The
    spread is one number for all features. The first frames are measured against an average face, which is learnt. The state
    is [B, H, D + 2]: features, their squared length and valid of the past H frames.
    """

    def __init__(self, dim: int, frames_per_sec: float) -> None:
        super().__init__()
        self.window = max(2, round(_WINDOW_SEC * frames_per_sec))
        self.prior_frames = _PRIOR_SEC * frames_per_sec
        self.average = nn.Parameter(torch.zeros(dim))
        self.spread = nn.Parameter(torch.tensor(_START_SPREAD))

    def init_state(self, batch: int) -> torch.Tensor:
        """The state before the first frame, [B, H, D + 2]: no valid frame."""
        return self.average.new_zeros(batch, self.window - 1, self.average.numel() + 2)

    def step(self, features: torch.Tensor, valid: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features [B, t, D], valid bool [B, t] -> (normalised [B, t, D], 0 where not valid; next state)."""
        dim = self.average.numel()
        features = torch.where(valid[..., None], features, 0.0)
        power = features.square().sum(2, keepdim=True)
        now = torch.cat((features, power, valid[..., None].to(features.dtype)), dim=2)
        joined = torch.cat((state, now), dim=1)  # [B, H + t, D + 2]
        sums = self.window * running_mean(joined, self.window)
        weight = sums[..., -1:] + self.prior_frames
        mean = (sums[..., :dim] + self.prior_frames * self.average) / weight
        prior_power = self.average.square().sum() + dim * self.spread.square()
        power = (sums[..., dim : dim + 1] + self.prior_frames * prior_power) / weight
        variance = (power - mean.square().sum(2, keepdim=True)).clamp(min=0.0) / dim
        normed = (features - mean) * (variance + _LEAST_VARIANCE).rsqrt()
        return torch.where(valid[..., None], normed, 0.0), joined[:, joined.shape[1] - (self.window - 1) :]

    @staticmethod
    def look_away(frames: int, state: torch.Tensor) -> torch.Tensor:
        """The state after further frames in which nobody is seen, as `step` gives it."""
        return F.pad(state, (0, 0, 0, frames))[:, frames:]


class VisualProjection(nn.Module):
    """Visual features [B, T, D] -> [B, C, T, F']. Each channel is a weighted sum of a few learned frequency profiles.

    frame_norm: each frame is normalised by itself. Without it the features come normalised over time (RunningNorm), and pass a
    narrow place, `norm`, which leaves no room for what only one person does.
    """

    def __init__(
        self, visual_dim: int, channels: int, n_freq: int, rank: int = VISUAL_RANK, frame_norm: bool = True
    ) -> None:
        super().__init__()
        width = visual_dim if frame_norm else VISUAL_TRAITS
        self.norm = nn.LayerNorm(visual_dim) if frame_norm else nn.Linear(visual_dim, width)
        self.linear = nn.Linear(width, rank * channels)
        # The profiles start as cosines. The first is flat, so that a feature can act on all frequencies alike.
        bins = (torch.arange(n_freq) + 0.5) / n_freq
        self.profiles = nn.Parameter(torch.cos(torch.pi * bins[:, None] * torch.arange(rank)) / rank**0.5)
        self.rank = rank

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weights = self.linear(self.norm(features)).unflatten(-1, (self.rank, -1))  # [B, T, K, C]
        return torch.matmul(self.profiles, weights).permute(0, 3, 1, 2)  # [B, T, F', C] seen as [B, C, T, F']
