"""Layers that know which of their axes is time, and the convolutions and norms that the codec is built from.

A causal layer pads time on the left only, so it can run piece by piece. A layer that is not causal pads both sides: it
takes whole inputs, and its state is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from models.ops.dense_layer import compiled_for, depthwise_rows


def full_precision(x: torch.Tensor) -> AbstractContextManager:
    """Inside the `with` block autocast is off for tensors on x's device: what bfloat16 would spoil is computed there."""
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in float32 if it is in half precision, else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class TimeLayer:
    """A layer with a state: `init_state(x)` is the state before the first frame for inputs of x's sizes, and
    `step(x, state)` takes any number of further frames and returns as many, with the next state.

    `forward` is `step` from that first state, so whole inputs and streams cannot drift apart. Where a kernel starts faster
    from nothing than from zeros that it must read, the first state holds None instead of zeros.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(x, self.init_state(x))[0]


class _TimeConv(TimeLayer):
    """Time padding and state for an nn.ConvNd whose first spatial axis (dim 2) is time; the other axes keep theirs."""

    def _set_up_time(self, causal: bool) -> None:
        if self.stride[0] != 1:
            raise ValueError(f"time stride must be 1, not {self.stride[0]}: a frame in is a frame out")
        self.causal = causal
        self.context = (self.kernel_size[0] - 1) * self.dilation[0]  # frames of the past (or of both sides) in a kernel

    def init_state(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros [B, C, context, ...] for inputs of x's batch and spatial size, x [B, ., ., ...]; no frames if not causal."""
        return x.new_zeros((x.shape[0], self.in_channels, self.context if self.causal else 0) + x.shape[3:])

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, C, t, ...], state [B, C, context, ...] -> (y [B, C', t, ...], next state)."""
        if not self.context:
            return self._convolve(x), state
        if not self.causal:
            left = self.context // 2
            return self._convolve(F.pad(x, [0, 0] * (x.dim() - 3) + [left, self.context - left])), state
        joined = torch.cat((state, x), dim=2)
        return self._convolve(joined), joined[:, :, joined.shape[2] - self.context :]


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


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each time-frequency bin: no statistics over time, so causal.

    Same affine shape as InstanceNorm2d. A single channel has nothing to be normalised by and is only scaled and shifted.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = len(self.weight)
        if channels == 1:
            return x * self.weight + self.bias
        return F.layer_norm(x.permute(0, 2, 3, 1), (channels,), self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def make_norm(kind: str, channels: int) -> nn.Module:
    """InstanceNorm2d ("instance": statistics over all time and frequency, SEMamba's) or ChannelNorm ("channel")."""
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return ChannelNorm(channels)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution, computed as a matrix product over the channels: 2 to 3 times as fast in channel-last memory."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1, bias: bool = True, **where) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=bias, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.groups > 1:
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DepthwiseSeparableConv2d(TimeLayer, nn.Module):
    """A filter per input channel, then a 1x1 convolution that mixes the channels (Howard et al., MobileNets, 2017).

    The arguments are nn.Conv2d's, and the first spatial axis is time. `causal=True` pads time on the left only, by as much
    as the kernel reaches back; `padding` is then that of the second axis alone.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", device: torch.device | None = None, dtype: torch.dtype | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        shared = {"stride": stride, "dilation": dilation, "groups": in_channels, "bias": False}
        where = {"device": device, "dtype": dtype}
        if causal:
            if padding_mode != "zeros":
                raise ValueError(f"padding_mode {padding_mode!r} is not causal; use 'zeros'")
            across = padding if isinstance(padding, int) else padding[1]
            self.depthwise = TimeConv2d(
                in_channels, in_channels, kernel_size, causal=True, padding=across, **shared, **where
            )
        else:
            self.depthwise = nn.Conv2d(
                in_channels, in_channels, kernel_size, padding=padding, padding_mode=padding_mode, **shared, **where
            )
        self.pointwise = PointwiseConv2d(in_channels, out_channels, groups=groups, bias=bias, **where)

    def init_state(self, x: torch.Tensor) -> torch.Tensor:
        return self.depthwise.init_state(x) if self.causal else x.new_zeros(0)

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, state = self.depthwise.step(x, state) if self.causal else (self.depthwise(x), state)
        return self.pointwise(x), state

    def beside(self, sources: Sequence[torch.Tensor], before: Sequence[torch.Tensor] | None) -> torch.Tensor:
        """Convolve sources [B, C, T, F], whose channels side by side are the input channels, without joining them.

        Causal 3x3 kernels only. `before` holds the sources' earlier frames [B, C, R, F], where R is at least what the
        kernel reaches back; None stands for zeros.
        """
        conv = self.depthwise
        plain = conv.stride == (1, 1) and conv.kernel_size == (3, 3) and conv.dilation[1] == conv.padding[1] == 1
        if plain and compiled_for(sources[0], sources[0].shape[1]):
            before = None if before is None else [x.permute(0, 2, 3, 1) for x in before]
            rows = depthwise_rows([x.permute(0, 2, 3, 1) for x in sources], before, conv.weight, conv.dilation[0])
            return self.pointwise(rows.permute(0, 3, 1, 2))
        x = torch.cat(tuple(sources), dim=1)
        if before is None:
            return self.forward(x)
        return self.step(x, torch.cat(tuple(before), dim=1)[:, :, before[0].shape[2] - conv.context :])[0]


class ConvNormAct(TimeLayer, nn.Sequential):
    """Convolution, normalisation, PReLU, numbered as in nn.Sequential; only the convolution has a state."""

    def init_state(self, x: torch.Tensor) -> torch.Tensor:
        return self[0].init_state(x)

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, state = self[0].step(x, state)
        return self[2](self[1](x)), state


def running_mean(values: torch.Tensor, frames: int) -> torch.Tensor:
    """Means over `frames` frames: [B, T, D] -> [B, T - frames + 1, D]. Cumulative sums are ten times faster than pooling."""
    sums = F.pad(values, (0, 0, 1, 0)).cumsum(1)
    return (sums[:, frames:] - sums[:, :-frames]) / frames


def latest_means(values: torch.Tensor, frames: int, count: int) -> torch.Tensor:
    """The last `count` of `running_mean(values, frames)`: [B, T, D] -> [B, count, D], with no sums before the first of them."""
    values = values[:, values.shape[1] - (frames + count - 1) :]
    first = values[:, :frames].sum(1, keepdim=True)
    change = (values[:, frames:] - values[:, :-frames]).cumsum(1)
    return torch.cat((first, first + change), dim=1) / frames
