"""Mamba layers, with the parameter names of the mamba-ssm package so that its checkpoints load.

`Mamba`: selective state space, Gu & Dao 2023 (arXiv 2312.00752), Algorithm 2 and Figure 3.
`Mamba2`: state space duality, Dao & Gu 2024 (arXiv 2405.21060), Listing 1 (chunked) and Figure 6.

Both map [B, L, C] to [B, L, C]. `step(x, state)` takes any number of frames and returns the state after them; `forward`
is `step` from the first state. `reverse=True` reads the sequence from its end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import full_precision, widened
from models.ops.scan import causal_conv1d, selective_scan


class MambaState(NamedTuple):
    """What a Mamba layer carries on; None stands for zeros.

    The first state is None: zeros that must be read make a long forward pass on the CPU 1 to 2 % slower and that of a
    single frame 10 %, and the CUDA scan needs d_state more passes over the sequence to start from a given state.
    """

    conv: torch.Tensor | None = None  # [B, d_conv - 1, D] last inputs of the convolution
    ssm: torch.Tensor | None = None  # [B, D, N] (Mamba) or [B, heads, D / heads, N] (Mamba2) of the state space


def _inverse_softplus_dt(n: int, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4) -> torch.Tensor:
    """Bias [n] whose softplus is log-uniform in [dt_min, dt_max] (Gu & Dao 2023, section 3.6)."""
    dt = torch.exp(torch.rand(n) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


class Mamba(nn.Module):
    """Selective state-space layer: gated, causal in its reading direction, in time linear in the length."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(_inverse_softplus_dt(self.d_inner))
        levels = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(torch.log(levels).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def step(self, x: torch.Tensor, state: MambaState, reverse: bool = False) -> tuple[torch.Tensor, MambaState]:
        """x [B, L, C] -> (y [B, L, C], the state after the last frame read)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [B, L, D] each; the kernels need no contiguous copies
        u, conv = causal_conv1d(
            u, self.conv1d.weight.squeeze(1), self.conv1d.bias, initial_state=state.conv, reverse=reverse
        )
        dt, b, c = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        y, ssm = selective_scan(
            u, F.linear(dt, self.dt_proj.weight), -torch.exp(self.A_log.float()), b, c, self.D, z=z,
            delta_bias=self.dt_proj.bias, initial_state=state.ssm, reverse=reverse,
        )
        return self.out_proj(y), MambaState(conv, ssm)

    def forward(self, x: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        return self.step(x, MambaState(), reverse)[0]


class GatedRMSNorm(nn.Module):
    """RMS norm of x * silu(z) with a learned scale per channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x * F.silu(z), (x.shape[-1],), self.weight, self.eps)


def ssd_scan(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor,
    initial_state: torch.Tensor | None = None, chunk: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t; y_t = C_t h_t, with one decay per head, chunk by chunk.

    x [B, L, H, P], dt [B, L, H] > 0, A [H] < 0, B and C [B, L, N], initial_state [B, H, P, N] or None
    -> (y [B, L, H, P], last state [B, H, P, N]).
    Inside a chunk this is masked attention, between chunks a short recurrence (Dao & Gu 2024, section 6).
    """
    batch, length, heads, width = x.shape
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs, lower = [], torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    for start in range(0, length, chunk):
        xs, dts, bs, cs = (v[:, start : start + chunk] for v in (x, dt, B, C))
        decay = torch.cumsum(dts * A, dim=1).transpose(1, 2)  # [B, H, S]: log of the decay from the chunk's start
        gap = decay[..., :, None] - decay[..., None, :]  # [B, H, S, S]
        keep = lower[: gap.shape[-2], : gap.shape[-1]]
        # exp of the masked half could overflow, and inf * 0 is NaN in the backward pass: mask before exp.
        attention = torch.exp(gap.masked_fill(~keep, -torch.inf)) * torch.einsum("bin,bjn->bij", cs, bs)[:, None]
        dx = xs * dts[..., None]  # [B, S, H, P]
        y = torch.einsum("bhij,bjhp->bihp", attention, dx)
        y = y + torch.einsum("bin,bhpn,bhi->bihp", cs, state, torch.exp(decay))
        to_end = torch.exp(decay[..., -1:] - decay)  # [B, H, S]
        state = state * torch.exp(decay[..., -1])[..., None, None] + torch.einsum("bhs,bshp,bsn->bhpn", to_end, dx, bs)
        outputs.append(y)
    return (torch.cat(outputs, dim=1) if outputs else torch.zeros_like(x)), state


class Mamba2(nn.Module):
    """State-space-dual layer: one decay per head, so that a chunk is a few matrix products on any device."""

    def __init__(self, d_model: int, d_state: int = 128, d_conv: int = 4, expand: int = 2, headdim: int = 64) -> None:
        super().__init__()
        self.d_inner = expand * d_model
        self.d_state = d_state
        self.headdim = math.gcd(headdim, self.d_inner)  # small models are narrower than mamba-ssm's head
        self.nheads = self.d_inner // self.headdim
        width = self.d_inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + width + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(_inverse_softplus_dt(self.nheads))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.nheads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def step(self, x: torch.Tensor, state: MambaState, reverse: bool = False) -> tuple[torch.Tensor, MambaState]:
        """x [B, L, C] -> (y [B, L, C], the state after the last frame read)."""
        if reverse:
            x = x.flip(1)
        z, xbc, dt = self.in_proj(x).split((self.d_inner, self.conv1d.in_channels, self.nheads), dim=-1)
        xbc, conv = causal_conv1d(xbc, self.conv1d.weight.squeeze(1), self.conv1d.bias, initial_state=state.conv)
        u, b, c = xbc.split((self.d_inner, self.d_state, self.d_state), dim=-1)
        with full_precision(x):
            heads, b, c = widened(u).unflatten(-1, (self.nheads, self.headdim)), widened(b), widened(c)  # [B, L, H, P]
            dt = F.softplus(widened(dt) + self.dt_bias)
            y, ssm = ssd_scan(heads, dt, -torch.exp(self.A_log.float()), b, c, state.ssm)
            y = (y + heads * self.D[:, None]).flatten(-2)
        y = self.out_proj(self.norm(y, z))
        return (y.flip(1) if reverse else y), MambaState(conv, ssm)

    def forward(self, x: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        return self.step(x, MambaState(), reverse)[0]
