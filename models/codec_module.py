"""Encoder and decoders of SEMamba (after MP-SENet, Lu et al. 2023) and their depthwise-separable light versions.

One implementation: the light classes differ in which convolution they are built from, the causal ones in its padding and
in the normalisation. Tensors are [B, C, T, F]; F' is the number of bins after the encoder's stride of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.layers import ConvNormAct, DepthwiseSeparableConv2d, PointwiseConv2d, TimeConv2d, make_norm
from models.lsigmoid import LearnableSigmoid2D
from models.ops.dense_layer import compiled_for, dense_layer, pack_layer
from models.ops.packed_weights import Packed


def _frequency_conv(channels: int, light: bool, stride: int = 2) -> nn.Module:
    """(1, stride + 1) convolution of that stride over frequency: F bins in, F' out."""
    if light:
        return DepthwiseSeparableConv2d(channels, channels, (1, stride + 1), stride=(1, stride))
    return nn.Conv2d(channels, channels, (1, stride + 1), stride=(1, stride))


def _frequency_up(channels: int, light: bool, stride: int = 2) -> nn.Module:
    """(1, stride + 1) transposed convolution of that stride over frequency: F' bins in, F out."""
    if light:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels, (1, stride + 1), stride=(1, stride), groups=channels, bias=False),
            PointwiseConv2d(channels, channels),
        )
    return nn.ConvTranspose2d(channels, channels, (1, stride + 1), stride=(1, stride))


class DenseBlock(nn.Module):
    """Four 3x3 convolutions with time dilation 1, 2, 4, 8, each fed with all earlier outputs, newest first."""

    light = False

    def __init__(self, cfg: Mapping, kernel_size: tuple[int, int] = (3, 3), depth: int = 4) -> None:
        super().__init__()
        model = cfg["model_cfg"]
        channels, causal = model["hid_feature"], bool(model.get("causal", False))
        norm = model.get("norm") or ("channel" if causal else "instance")
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
            self.dense_block.append(ConvNormAct(conv, make_norm(norm, channels), nn.PReLU(channels)))

    def init_state(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Zero state for inputs of x's batch size and bins, x [B, C, ., F]."""
        return [layer.init_state(x) for layer in self.dense_block]

    def step(self, x: torch.Tensor, state: list[torch.Tensor] | None) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """x [B, C, t, F] -> (y [B, C, t, F], next state)."""
        skip, out, after = x, x, []
        for i, layer in enumerate(self.dense_block):
            if i:
                skip = torch.cat((out, skip), dim=1)
            if state is None:
                out = layer(skip)
            else:
                out, layer_state = layer.step(skip, state[i])
                after.append(layer_state)
        return out, after if state is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(x, None)[0]


class LiteDenseBlock(DenseBlock):
    """DenseBlock of depthwise-separable convolutions.

    The causal one keeps the last frames of each layer's input once, for all the layers that read it.
    """

    light = True

    def __init__(self, cfg: Mapping, kernel_size: tuple[int, int] = (3, 3), depth: int = 4) -> None:
        super().__init__(cfg, kernel_size, depth)
        self._packed = [Packed(pack_layer) for _ in self.dense_block]

    def init_state(self, x: torch.Tensor) -> list[torch.Tensor]:
        if not self.causal:
            return super().init_state(x)
        reach = self.dense_block[-1][0].depthwise.context
        shape = (x.shape[0], self.channels, reach, x.shape[3])
        return [x.new_zeros(shape).contiguous(memory_format=torch.channels_last) for _ in self.dense_block]

    def step(self, x: torch.Tensor, state: list[torch.Tensor] | None) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        if not self.causal:
            return super().step(x, state)
        sources, before = [], []  # newest first, as the weights count them
        after = []
        for i in range(len(self.dense_block)):
            sources.insert(0, x)
            if state is not None:
                before.insert(0, state[i])
                after.append(_last_frames(state[i], x))
            x = self._layer(i, sources, before or None)
        return x, None if state is None else after

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


def _last_frames(before: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The newest frames of before [B, C, R, F] and x [B, C, t, F] after it, R of them, in memory of their own."""
    reach, new = before.shape[2], x.shape[2]
    if new >= reach:
        return x[:, :, new - reach :].clone(memory_format=torch.channels_last)
    return torch.cat((before[:, :, new:], x), dim=2)


class _Codec(nn.Module):
    """A dense block between two parts that carry no time; the block's state is the whole state."""

    block: type[DenseBlock] = DenseBlock

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        model = cfg["model_cfg"]
        self.channels = model["hid_feature"]
        self.norm = model.get("norm") or ("channel" if model.get("causal") else "instance")
        lite = cfg.get("lite_cfg", {}) if self.block.light else {}  # SEMamba's own codec knows none of these
        self.freq_stride, self.encode_first = lite.get("freq_stride", 2), lite.get("encode_first", False)
        self.dense_block = self.block(cfg, depth=lite.get("dense_depth", 4))

    def init_state(self, x: torch.Tensor) -> Any:
        """Zero state for inputs of x's batch size and bins, x [B, ., ., F]."""
        return self.dense_block.init_state(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(x, None)[0]


class DenseEncoder(_Codec):
    """(magnitude, phase) [B, 2, T, F] -> features [B, C, T, F'].

    With `lite_cfg.encode_first` the dense block follows the strided convolution instead of preceding it.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        channels, inputs = self.channels, cfg["model_cfg"]["input_channel"]
        self.dense_conv_1 = nn.Sequential(
            PointwiseConv2d(inputs, channels), make_norm(self.norm, channels), nn.PReLU(channels)
        )
        if self.norm == "channel":
            # The phase is louder than the magnitude and close to random: a norm over channels would let it drown the rest.
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

    def encoded_bins(self, bins: int) -> int:
        """F' of F bins."""
        return (bins - (self.freq_stride + 1)) // self.freq_stride + 1


class MagDecoder(_Codec):
    """Features [B, C, T, F'] -> mask on the noisy magnitude [B, 1, T, F], between 0 and beta."""

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
            # Without statistics to lean on, one channel through a random factor may start out nearly deaf: start as identity.
            with torch.no_grad():
                self.mask_conv[3].weight.fill_(1.0)
                self.mask_conv[4].weight.fill_(1.0)
                self.mask_conv[4].bias.zero_()

    def step(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        x, state = self.dense_block.step(x, state)
        # The slope [F, 1] belongs to the bins: bring them before time, as [B, 1, F, T], and back.
        return self.lsigmoid(self.mask_conv(x).transpose(2, 3)).transpose(2, 3), state


class PhaseDecoder(_Codec):
    """Features [B, C, T, F'] -> phase [B, 1, T, F] in radians: the angle of two 1x1 projections.

    With `model_cfg.phase_residual` that angle is the turn from the noisy phase to the clean one and starts out near zero,
    so that an untrained model passes the noisy phase on instead of scrambling it.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        channels, outputs = self.channels, cfg["model_cfg"]["output_channel"]
        self.phase_conv = nn.Sequential(
            _frequency_up(channels, self.block.light, self.freq_stride), make_norm(self.norm, channels), nn.PReLU(channels)
        )
        self.phase_conv_r = PointwiseConv2d(channels, outputs)
        self.phase_conv_i = PointwiseConv2d(channels, outputs)
        if cfg["model_cfg"].get("phase_residual", False):
            with torch.no_grad():
                self.phase_conv_r.weight.mul_(0.1)
                self.phase_conv_r.bias.fill_(1.0)
                self.phase_conv_i.weight.mul_(0.1)
                self.phase_conv_i.bias.zero_()

    def step(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        x, state = self.dense_block.step(x, state)
        x = self.phase_conv(x)
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
