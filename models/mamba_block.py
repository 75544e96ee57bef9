"""Time-frequency Mamba blocks (Chao et al., SEMamba, SLT 2024, section 3 and Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import TimeLayer
from models.mamba import Mamba, Mamba2, MambaState
from models.ops import mamba_layer as mixer
from models.ops.packed_weights import Packed

MIXERS = {1: Mamba, 2: Mamba2}


class ResidualMixer(nn.Module):
    """x + mixer(RMSNorm(x)) over [B, L, C]."""

    def __init__(
        self, channels: int, mamba_version: int, d_state: int, d_conv: int, expand: int, norm_epsilon: float
    ) -> None:
        super().__init__()
        self.mixer = MIXERS[mamba_version](channels, d_state=d_state, d_conv=d_conv, expand=expand)
        self.norm = nn.RMSNorm(channels, eps=norm_epsilon)
        self._packed = Packed(mixer.pack_weights)

    def _weights(self) -> tuple[torch.Tensor, ...]:
        """The layer's weights in the order of `pack_weights`' arguments."""
        m = self.mixer
        return (self.norm.weight, m.in_proj.weight, m.conv1d.weight, m.conv1d.bias, m.x_proj.weight, m.dt_proj.weight,
                m.dt_proj.bias, m.A_log, m.D, m.out_proj.weight)  # fmt: skip

    def step(self, x: torch.Tensor, state: MambaState, reverse: bool = False) -> tuple[torch.Tensor, MambaState]:
        """x [B, L, C] -> (y [B, L, C], the state after the last frame read)."""
        if isinstance(self.mixer, Mamba) and mixer.usable(x):
            h = None if state.ssm is None else state.ssm.transpose(1, 2)  # the kernel's states are [B, N, D]
            sizes, packed = (self.mixer.d_inner, self.mixer.d_state), self._packed(*self._weights())
            y, conv, h = mixer.mixer_forward(x, packed, state.conv, h, *sizes, self.norm.eps, reverse)
            return y, MambaState(conv, h.transpose(1, 2))
        y, state = self.mixer.step(self.norm(x), state, reverse)
        return x + y, state

    def forward(self, x: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        return self.step(x, MambaState(), reverse)[0]


class MambaBlock(TimeLayer, nn.Module):
    """A Mamba layer that reads forwards and, if `bidirectional`, another that reads backwards: [B, L, C] -> [B, L, C or 2C].

    A bidirectional block reads its input from both ends, so `step` takes whole inputs only.
    """

    def __init__(self, in_channels: int, cfg: Mapping, bidirectional: bool = True) -> None:
        super().__init__()
        model = cfg["model_cfg"]
        keywords = {key: model[key] for key in ("mamba_version", "d_state", "d_conv", "expand", "norm_epsilon")}
        self.bidirectional = bidirectional
        self.forward_blocks = nn.ModuleList([ResidualMixer(in_channels, **keywords)])
        if bidirectional:
            self.backward_blocks = nn.ModuleList([ResidualMixer(in_channels, **keywords)])

    def init_state(self, x: torch.Tensor) -> MambaState:
        return MambaState()

    def step(self, x: torch.Tensor, state: MambaState) -> tuple[torch.Tensor, MambaState]:
        """x [B, L, C] -> (y [B, L, C or 2C], next state)."""
        ahead, state = self.forward_blocks[0].step(x, state)
        if not self.bidirectional:
            return ahead, state
        return torch.cat((ahead, self.backward_blocks[0](x, reverse=True)), dim=-1), state


def _pointwise(layer: nn.ConvTranspose1d, x: torch.Tensor) -> torch.Tensor:
    """Apply a transposed convolution of width 1, weight [Cin, Cout, 1], as a matrix product: [..., Cin] -> [..., Cout]."""
    return F.linear(x, layer.weight.squeeze(-1).t(), layer.bias)


class TFMambaBlock(TimeLayer, nn.Module):
    """Mamba along time for every bin, then along frequency for every frame, each with a residual: [B, C, T, F] -> same.

    The block works channel-last inside: tensors in torch.channels_last memory format save two copies.
    """

    time_bidirectional = True

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        channels = cfg["model_cfg"]["hid_feature"]
        self.time_mamba = MambaBlock(channels, cfg, bidirectional=self.time_bidirectional)
        self.freq_mamba = MambaBlock(channels, cfg, bidirectional=True)
        self.tlinear = nn.ConvTranspose1d(channels * (2 if self.time_bidirectional else 1), channels, 1)
        self.flinear = nn.ConvTranspose1d(channels * 2, channels, 1)

    @torch.no_grad()
    def become_identity(self) -> None:
        """Let both residuals begin at zero: the block gives back what it is given until training changes that."""
        for layer in (self.tlinear, self.flinear):
            layer.weight.zero_()
            layer.bias.zero_()

    def init_state(self, x: torch.Tensor) -> MambaState:
        return self.time_mamba.init_state(x)

    def step(self, x: torch.Tensor, state: MambaState) -> tuple[torch.Tensor, MambaState]:
        """x [B, C, t, F] -> (y [B, C, t, F], next state)."""
        b, c, t, f = x.shape
        along_time = x.permute(0, 3, 2, 1).reshape(b * f, t, c)
        y, state = self.time_mamba.step(along_time, state)
        along_time = along_time + _pointwise(self.tlinear, y)
        along_freq = along_time.view(b, f, t, c).transpose(1, 2).reshape(b * t, f, c)
        along_freq = along_freq + _pointwise(self.flinear, self.freq_mamba(along_freq))
        return along_freq.view(b, t, f, c).permute(0, 3, 1, 2), state  # channels-last [B, C, T, F]


class CausalTFMambaBlock(TFMambaBlock):
    """TFMambaBlock that reads time forwards only; it reads frequency in both directions."""

    time_bidirectional = False
