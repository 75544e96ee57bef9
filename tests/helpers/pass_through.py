"""A model that hands its input through."""

from __future__ import annotations

import torch


class PassThrough(torch.nn.Module):
    """A model that changes nothing: what comes out is what the code around the model does."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def init_state(self, mag: torch.Tensor) -> None:
        return None

    def step(self, mag: torch.Tensor, pha: torch.Tensor, state: None) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        return mag, pha, None, None

    def forward(self, mag: torch.Tensor, pha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return mag, pha, None
