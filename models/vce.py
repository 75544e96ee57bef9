"""Visual confidence estimators (VCE): how far the video can be trusted at each moment."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_HIDDEN = 64
_START_LOGIT = 1.0  # the video is trusted until training says otherwise


class VCE(nn.Module):
    """A two-layer perceptron on each frame's visual features gives the confidence alpha: [B, T, in_dim] -> [B, T, 1]."""

    def __init__(self, in_dim: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_dim, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, 1)
        nn.init.constant_(self.output.bias, _START_LOGIT)

    def _logits(self, feat: torch.Tensor) -> torch.Tensor:
        """Raw confidence logits, before smoothing and masking: [B, T, in_dim] -> [B, T, 1]."""
        return self.output(F.silu(self.hidden(feat)))

    def judge(
        self, feat: torch.Tensor, audio: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`step`, with the logits: (alpha, logits, next state). This class does not use the encoded sound [B, C, t, F']."""
        logits = self._logits(feat)
        alpha, state = self._confidence(logits, state, valid)
        return alpha, logits, state

    def init_state(self, batch: int) -> torch.Tensor:
        """The state before the first frame, [B, 0, 2]: it is empty, because each frame is judged by itself."""
        return self.output.weight.new_zeros(batch, 0, 2)

    def step(
        self, feat: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """feat [B, t, in_dim], valid bool [B, t] (None: all) -> (alpha [B, t, 1], exactly 0 where not valid; next state)."""
        return self._confidence(self._logits(feat), state, valid)

    def look_away(self, audio: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The state after further frames of sound [B, C, t, F'] in which nobody is seen, as `judge` gives it."""
        return F.pad(state, (0, 0, 0, audio.shape[2]))[:, audio.shape[2] :]

    def _confidence(
        self, logits: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        alpha = torch.sigmoid(logits)
        return (alpha if valid is None else _zero_unless(valid, alpha)), state

    def forward(self, feat: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """feat [B, T, in_dim], valid bool [B, T] (None: all) -> alpha [B, T, 1] in [0, 1], exactly 0 where not valid."""
        return self.step(feat, self.init_state(feat.shape[0]), valid)[0]


class VCEWithTemporalSmoothing(VCE):
    """VCE whose alpha is a weighted mean over the last `smooth_kernel` frames, the present one included.

    The learnt weights are a softmax, and the mean is over the valid frames of the window only, so a frame without a face has
    no effect on the alpha of others. The state is [B, smooth_kernel - 1, 2]: (confidence, valid) of each past frame.
    """

    def __init__(self, in_dim: int = 512, smooth_kernel: int = 5) -> None:
        super().__init__(in_dim)
        if smooth_kernel < 1:
            raise ValueError(f"smooth_kernel is {smooth_kernel}, it should be at least 1 frame (lite_cfg.smooth_kernel)")
        self.smooth_kernel = smooth_kernel
        self.smooth_logits = nn.Parameter(torch.zeros(smooth_kernel))  # oldest frame first

    def init_state(self, batch: int) -> torch.Tensor:
        """The state before the first frame, [B, smooth_kernel - 1, 2]: no frame is valid."""
        return self.output.weight.new_zeros(batch, self.smooth_kernel - 1, 2)

    def _confidence(
        self, logits: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        confidence = torch.sigmoid(logits)  # [B, t, 1]
        if valid is None:
            valid = torch.ones(confidence.shape[:2], dtype=torch.bool, device=confidence.device)
        confidence = _zero_unless(valid, confidence)
        weighed = torch.cat((confidence, valid.unsqueeze(-1).to(confidence.dtype)), dim=-1)  # [B, t, 2]
        joined = torch.cat((state, weighed), dim=1)  # [B, K - 1 + t, 2]
        kernel = torch.softmax(self.smooth_logits, 0)
        sums = joined.unfold(1, self.smooth_kernel, 1) @ kernel  # [B, t, 2]
        confidences, weights = sums.split(1, dim=-1)
        # A window without a valid frame holds only zeros: division by 1 keeps its value and its gradient at 0.
        alpha = confidences / torch.where(weights > 0, weights, torch.ones_like(weights))
        alpha = _zero_unless(valid, alpha.clamp(0.0, 1.0))
        return alpha, joined[:, joined.shape[1] - (self.smooth_kernel - 1) :]


def _zero_unless(valid: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Set alpha [B, T, 1] to exactly 0 where valid [B, T] is False, even if it is NaN there."""
    return torch.where(valid.unsqueeze(-1), alpha, torch.zeros_like(alpha))
