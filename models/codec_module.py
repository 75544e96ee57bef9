"""Encoder and decoders of SEMamba (after MP-SENet, Lu et al. 2023) and their depthwise-separable light versions.

There is one implementation. The light classes are built from another convolution; a causal recipe changes the padding and
the norm. Tensors are [B, C, T, F]; F' is the number of bins after the encoder's stride. `cfg` is a complete recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import (
    ConvNormAct,
    DepthwiseSeparableConv2d,
    PointwiseConv2d,
    TimeConv2d,
    TimeLayer,
    full_precision,
    make_norm,
    widened,
)
from models.lsigmoid import LearnableSigmoid2D
from models.ops.dense_layer import compiled_for, dense_layer, pack_layer
from models.ops.packed_weights import Packed


def _frequency_conv(channels: int, light: bool, stride: int = 2) -> nn.Module:
    """A (1, stride + 1) convolution with that stride over frequency: F bins -> F'."""
    if light:
        return DepthwiseSeparableConv2d(channels, channels, (1, stride + 1), stride=(1, stride))
    return nn.Conv2d(channels, channels, (1, stride + 1), stride=(1, stride))


def _frequency_up(channels: int, light: bool, stride: int = 2) -> nn.Module:
    """A (1, stride + 1) transposed convolution with that stride over frequency: F' bins -> F."""
    if light:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels, (1, stride + 1), stride=(1, stride), groups=channels, bias=False),
            PointwiseConv2d(channels, channels),
        )
    return nn.ConvTranspose2d(channels, channels, (1, stride + 1), stride=(1, stride))


class DenseBlock(TimeLayer, nn.Module):
    """Four 3x3 convolutions with time dilation 1, 2, 4, 8. Each reads the input and all earlier outputs, newest first."""

    light = False

    def __init__(self, cfg: Mapping, kernel_size: tuple[int, int] = (3, 3), depth: int = 4) -> None:
        super().__init__()
        model = cfg["model_cfg"]
        channels, causal = model["hid_feature"], model["causal"]
        self.causal, self.channels = causal, channels
        self.dense_block = nn.ModuleList()
        for i in range(depth):
            dilation, across = 2**i, kernel_size[1] // 2
            args = (channels * (i + 1), channels, kernel_size)
            if self.light:
                time_pad = 0 if causal else (kernel_size[0] - 1) * dilation // 2
                conv = DepthwiseSeparableConv2d(
                    *args, padding=(time_pad, across), dilation=(dilation, 1), causal=causal
                )
            else:
                conv = TimeConv2d(*args, causal=causal, padding=across, dilation=(dilation, 1))
            self.dense_block.append(ConvNormAct(conv, make_norm(model["norm"], channels), nn.PReLU(channels)))

    def init_state(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The first state for inputs of x's batch size and bins, x [B, ., ., F]."""
        return [layer.init_state(x) for layer in self.dense_block]

    def step(self, x: torch.Tensor, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """x [B, C, t, F] -> (y [B, C, t, F], next state)."""
        skip, out, after = x, x, []
        for i, (layer, past) in enumerate(zip(self.dense_block, state, strict=True)):
            if i:
                skip = torch.cat((out, skip), dim=1)
            out, past = layer.step(skip, past)
            after.append(past)
        return out, after


class LiteDenseBlock(DenseBlock):
    """DenseBlock of depthwise-separable convolutions.

    If it is causal, its state holds the last frames of each layer's own input once, for all the layers that read it:
    [B, C, R, F] each, R frames being what the widest kernel reaches back. The first state is None for each: with zeros
    to read, a forward pass takes 1.05 to 1.14 times as long on the CPU, and one with gradients 1.2 to 1.4 times.
    """

    light = True

    def __init__(self, cfg: Mapping, kernel_size: tuple[int, int] = (3, 3), depth: int = 4) -> None:
        super().__init__(cfg, kernel_size, depth)
        self._packed = [Packed(pack_layer) for _ in self.dense_block]

    def init_state(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        return [None for _ in self.dense_block] if self.causal else super().init_state(x)

    def step(
        self, x: torch.Tensor, state: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        if not self.causal:
            return super().step(x, state)
        reach = self.dense_block[-1][0].depthwise.context
        sources, before, after = [], [], []  # the first two are newest first, as the weights count them
        for i, past in enumerate(state):
            sources.insert(0, x)
            before.insert(0, past)
            after.append(_last_frames(past, x, reach))
            x = self._layer(i, sources, None if past is None else before)
        return x, after

    def _layer(self, i: int, sources: list[torch.Tensor], before: list[torch.Tensor] | None) -> torch.Tensor:
        conv, norm, activation = self.dense_block[i]
        if torch.is_grad_enabled() or not compiled_for(sources[0], self.channels):
            return activation(norm(conv.beside(sources, before)))
        packed = self._packed[i](
            conv.depthwise.weight, conv.pointwise.weight, conv.pointwise.bias, norm.weight, norm.bias, activation.weight
        )
        before = None if before is None else [x.permute(0, 2, 3, 1) for x in before]
        rows = [x.permute(0, 2, 3, 1) for x in sources]  # [B, T, F, C]
        return dense_layer(rows, before, packed, conv.depthwise.dilation[0], norm.eps).permute(0, 3, 1, 2)


def _last_frames(before: torch.Tensor | None, x: torch.Tensor, reach: int) -> torch.Tensor:
    """A copy of the newest `reach` frames of before [B, C, reach, F] (None: zeros) and, after it, x [B, C, t, F]."""
    new = x.shape[2]
    if new >= reach:
        return x[:, :, new - reach :].clone(memory_format=torch.channels_last)
    return F.pad(x, (0, 0, reach - new, 0)) if before is None else torch.cat((before[:, :, new:], x), dim=2)


class _Codec(TimeLayer, nn.Module):
    """A dense block and layers without a state around it: the state is the dense block's."""

    block: type[DenseBlock] = DenseBlock

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        model = cfg["model_cfg"]
        self.channels = model["hid_feature"]
        self.norm = model["norm"]
        lite = cfg["lite_cfg"] if self.block.light else {}  # SEMamba's own codec has none of these settings
        self.freq_stride, self.encode_first = lite.get("freq_stride", 2), lite.get("encode_first", False)
        self.dense_block = self.block(cfg, depth=lite.get("dense_depth", 4))

    def init_state(self, x: torch.Tensor) -> Any:
        """The first state for inputs of x's batch size and bins, x [B, ., ., F]; F is that of the dense block's input."""
        return self.dense_block.init_state(x)


class DenseEncoder(_Codec):
    """(magnitude, phase) [B, 2, T, F] -> features [B, C, T, F'].

    The dense block stands before the strided convolution, or after it with `lite_cfg.encode_first`.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        channels, inputs = self.channels, cfg["model_cfg"]["input_channel"]
        self.dense_conv_1 = nn.Sequential(
            PointwiseConv2d(inputs, channels), make_norm(self.norm, channels), nn.PReLU(channels)
        )
        if self.norm == "channel":
            # The phase has larger values than the magnitude and is close to random: a norm over channels would let it
            # hide the magnitude.
            with torch.no_grad():
                self.dense_conv_1[0].weight[:, 1] *= 0.1
        self.dense_conv_2 = nn.Sequential(
            _frequency_conv(channels, self.block.light, self.freq_stride), make_norm(self.norm, channels), nn.PReLU(channels)
        )

    def step(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        if self.encode_first:
            return self.dense_block.step(self.dense_conv_2(self.dense_conv_1(x)), state)
        x, state = self.dense_block.step(self.dense_conv_1(x), state)
        return self.dense_conv_2(x), state

    def init_state(self, x: torch.Tensor) -> Any:
        """The first state for inputs of x's batch size and bins, x [B, ., ., F]."""
        return super().init_state(x[..., : self.encoded_bins(x.shape[3])] if self.encode_first else x)

    def encoded_bins(self, bins: int) -> int:
        """How many bins F' the encoder makes of F bins."""
        return (bins - (self.freq_stride + 1)) // self.freq_stride + 1


class MagDecoder(_Codec):
    """Features [B, C, T, F'] -> the mask [B, 1, T, F] that the noisy magnitude is multiplied by, between 0 and beta."""

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        channels, outputs = self.channels, cfg["model_cfg"]["output_channel"]
        self.mask_conv = nn.Sequential(
            _frequency_up(channels, self.block.light, self.freq_stride),
            PointwiseConv2d(channels, outputs),
            make_norm(self.norm, outputs),
            nn.PReLU(outputs),
            PointwiseConv2d(outputs, outputs),
        )
        self.lsigmoid = LearnableSigmoid2D(cfg["stft_cfg"]["n_fft"] // 2 + 1, beta=cfg["model_cfg"]["beta"])
        if self.norm == "channel":
            # A single channel is not normalised over channels, so a random factor near 0 would leave the mask almost
            # constant: these layers start as the identity.
            with torch.no_grad():
                self.mask_conv[3].weight.fill_(1.0)
                self.mask_conv[4].weight.fill_(1.0)
                self.mask_conv[4].bias.zero_()

    def step(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        x, state = self.dense_block.step(x, state)
        up, *projections = self.mask_conv
        x = up(x)
        with full_precision(x):
            x = widened(x)
            for layer in projections:
                x = layer(x)
            # There is a slope [F, 1] per bin, so the sigmoid takes [B, 1, F, T].
            return self.lsigmoid(x.transpose(2, 3)).transpose(2, 3), state


class PhaseDecoder(_Codec):
    """Features [B, C, T, F'] -> phase [B, 1, T, F] in radians: the angle of two 1x1 projections.

    With `model_cfg.phase_residual` that angle is added to the noisy phase. It is near zero before training, so that an
    untrained model gives the noisy phase and not a random one.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        channels, outputs = self.channels, cfg["model_cfg"]["output_channel"]
        self.phase_conv = nn.Sequential(
            _frequency_up(channels, self.block.light, self.freq_stride), make_norm(self.norm, channels), nn.PReLU(channels)
        )
        self.phase_conv_r = PointwiseConv2d(channels, outputs)
        self.phase_conv_i = PointwiseConv2d(channels, outputs)
        if cfg["model_cfg"]["phase_residual"]:
            with torch.no_grad():
                self.phase_conv_r.weight.mul_(0.1)
                self.phase_conv_r.bias.fill_(1.0)
                self.phase_conv_i.weight.mul_(0.1)
                self.phase_conv_i.bias.zero_()

    def step(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        x, state = self.dense_block.step(x, state)
        x = self.phase_conv(x)
        with full_precision(x):
            x = widened(x)
            return torch.atan2(self.phase_conv_i(x), self.phase_conv_r(x)), state


class LiteDenseEncoder(DenseEncoder):
    """DenseEncoder of depthwise-separable convolutions."""

    block = LiteDenseBlock


class LiteMagDecoder(MagDecoder):
    """MagDecoder of depthwise-separable convolutions."""

    block = LiteDenseBlock


class LitePhaseDecoder(PhaseDecoder):
    """PhaseDecoder of depthwise-separable convolutions."""

    block = LiteDenseBlock
