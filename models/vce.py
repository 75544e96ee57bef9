"""Visual confidence: how far this moment's video can be trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_HIDDEN = 64
_START_LOGIT = 1.0  # the video is trusted until training says otherwise


class VCE(nn.Module):
    """Confidence alpha from visual features by a two-layer perceptron on each frame: [B, T, in_dim] -> [B, T, 1]."""

    def __init__(self, in_dim: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_dim, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, 1)
        nn.init.constant_(self.output.bias, _START_LOGIT)

    def _logits(self, feat: torch.Tensor) -> torch.Tensor:
        """Raw confidence logits, before smoothing and masking: [B, T, in_dim] -> [B, T, 1]."""
        return self.output(F.silu(self.hidden(feat)))

    def judge(
        self, feat: torch.Tensor, audio: torch.Tensor, state: torch.Tensor | None, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """`step`, with the logits: (alpha, logits, next state). The encoded sound [B, C, t, F'] is not listened to here.

        state None: the whole clip at once.
        """
        if state is None:
            return self(feat, valid), self._logits(feat), None
        alpha, state = self.step(feat, state, valid)
        return alpha, self._logits(feat), state

    def init_state(self, batch: int) -> torch.Tensor:
        """State before the first frame; empty, each frame stands alone: [B, 0, 2]."""
        return self.output.weight.new_zeros(batch, 0, 2)

    def step(
        self, feat: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """feat [B, t, in_dim], valid bool [B, t] (None: all) -> (alpha [B, t, 1], exactly 0 where not valid; next state)."""
        alpha = torch.sigmoid(self._logits(feat))
        return (alpha if valid is None else _zero_unless(valid, alpha)), state

    def forward(self, feat: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """feat [B, T, in_dim], valid bool [B, T] (None: all) -> alpha [B, T, 1] in [0, 1], exactly 0 where not valid."""
        return self.step(feat, self.init_state(feat.shape[0]), valid)[0]


class VCEWithTemporalSmoothing(VCE):
    """VCE whose alpha is a learnt average over the last `smooth_kernel` frames, itself included.

    The weights are a softmax, and each average is taken over the valid frames of its window only: an absent face neither
    leaks in nor pulls alpha down before and after it. State: [B, smooth_kernel - 1, 2], (confidence, valid) per past frame.
    """

    def __init__(self, in_dim: int = 512, smooth_kernel: int = 5) -> None:
        super().__init__(in_dim)
        if smooth_kernel < 1:
            raise ValueError(f"smooth_kernel is {smooth_kernel}, it should be at least 1 frame (lite_cfg.smooth_kernel)")
        self.smooth_kernel = smooth_kernel
        self.smooth_logits = nn.Parameter(torch.zeros(smooth_kernel))  # oldest frame first

    def init_state(self, batch: int) -> torch.Tensor:
        """State before the first frame: no valid frame yet, [B, smooth_kernel - 1, 2]."""
        return self.output.weight.new_zeros(batch, self.smooth_kernel - 1, 2)

    def step(
        self, feat: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        confidence = torch.sigmoid(self._logits(feat))  # [B, t, 1]
        if valid is None:
            valid = torch.ones(confidence.shape[:2], dtype=torch.bool, device=confidence.device)
        confidence = _zero_unless(valid, confidence)
        weighed = torch.cat((confidence, valid.unsqueeze(-1).to(confidence.dtype)), dim=-1)  # [B, t, 2]
        joined = torch.cat((state, weighed), dim=1)  # [B, K - 1 + t, 2]
        kernel = torch.softmax(self.smooth_logits, 0)
        sums = joined.unfold(1, self.smooth_kernel, 1) @ kernel  # [B, t, 2]
        confidences, weights = sums.split(1, dim=-1)
        # A window without a valid frame holds zeros only; dividing by 1 keeps both its value and its gradient 0.
        alpha = confidences / torch.where(weights > 0, weights, torch.ones_like(weights))
        alpha = _zero_unless(valid, alpha.clamp(0.0, 1.0))
        return alpha, joined[:, joined.shape[1] - (self.smooth_kernel - 1) :]


def _zero_unless(valid: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """alpha [B, T, 1], exactly 0 where valid [B, T] is False, whatever it was there (NaN included)."""
    return torch.where(valid.unsqueeze(-1), alpha, torch.zeros_like(alpha))
