"""Sigmoids with a learnable slope (Fu et al., MetricGAN+, Interspeech 2021)."""

from __future__ import annotations

import torch
from torch import nn


class LearnableSigmoid1D(nn.Module):
    """beta * sigmoid(slope * x) with a slope per feature: x [..., in_features] -> the same shape, in (0, beta)."""

    def __init__(self, in_features: int, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.slope = nn.Parameter(torch.ones(in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beta * torch.sigmoid(self.slope * x)


class LearnableSigmoid2D(nn.Module):
    """beta * sigmoid(slope * x) with a slope per frequency: x [..., in_features, T] -> the same shape, in (0, beta)."""

    def __init__(self, in_features: int, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.slope = nn.Parameter(torch.ones(in_features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beta * torch.sigmoid(self.slope * x)
