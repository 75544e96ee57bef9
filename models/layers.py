"""Convolutions that know which of their axes is time.

`causal=True` pads time on the left only and can run piece by piece: `step(x, state)` takes any number of frames and
returns as many; `forward` is `step` from the zero state, so the two cannot drift apart. `causal=False` pads both sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _TimeConv:
    """Time padding and state for an nn.ConvNd whose first spatial axis (dim 2) is time; the other axes keep theirs."""

    def _set_up_time(self, causal: bool) -> None:
        if self.stride[0] != 1:
            raise ValueError(f"time stride must be 1, not {self.stride[0]}: a frame in is a frame out")
        self.causal = causal
        self.context = (self.kernel_size[0] - 1) * self.dilation[0]  # frames of the past (or of both sides) in a kernel

    def init_state(self, x: torch.Tensor) -> torch.Tensor:
        """The zero state for inputs of x's batch and spatial size, x [B, ., ., ...]: `context` frames of zeros."""
        if not self.causal:
            raise ValueError("this convolution looks ahead (causal=False): it has no streaming state")
        return x.new_zeros((x.shape[0], self.in_channels, self.context) + x.shape[3:])

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, C, t, ...], state [B, C, context, ...] -> (y [B, C', t, ...], next state)."""
        if not self.context:
            return self._convolve(x), state
        joined = torch.cat((state, x), dim=2)
        return self._convolve(joined), joined[:, :, joined.shape[2] - self.context :]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.causal:
            return self.step(x, self.init_state(x))[0]
        left = self.context // 2
        pad = [0, 0] * (x.dim() - 3) + [left, self.context - left]
        return self._convolve(F.pad(x, pad) if self.context else x)


class TimeConv1d(_TimeConv, nn.Conv1d):
    """nn.Conv1d over [B, C, T]; `padding` is set by `causal` and must not be given."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, causal: bool, **kwargs) -> None:
        nn.Conv1d.__init__(self, in_channels, out_channels, kernel_size, padding=0, **kwargs)
        self._set_up_time(causal)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class TimeConv2d(_TimeConv, nn.Conv2d):
    """nn.Conv2d over [B, C, T, F]; `padding` is that of the frequency axis, time padding is set by `causal`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], causal: bool, padding: int = 0, **kwargs
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, padding=(0, padding), **kwargs)
        self._set_up_time(causal)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class TimeConv3d(_TimeConv, nn.Conv3d):
    """nn.Conv3d over [B, C, V, H, W]; `padding` is that of height and width, time padding is set by `causal`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], causal: bool, padding: int = 0, **kwargs
    ) -> None:
        nn.Conv3d.__init__(self, in_channels, out_channels, kernel_size, padding=(0, padding, padding), **kwargs)
        self._set_up_time(causal)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
