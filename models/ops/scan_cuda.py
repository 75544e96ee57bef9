"""The CUDA kernels of mamba-ssm and causal-conv1d behind this project's layout and states.

Both want [B, D, L], given here as views. The compiled modules are called directly: the packages around them import much else
that need not work. Neither is imported before somebody asks for it.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.console import first_line

WIDTHS = (2, 3, 4)  # convolution widths that causal-conv1d has kernels for

_PARTS = {  # module: what to do where it cannot be imported
    "selective_scan_cuda": "install mamba-ssm with MAMBA_KEEP_CUDA_BUILD=TRUE (requirements-cuda.txt)",
    "causal_conv1d_cuda": "install causal-conv1d built for this torch (requirements-cuda.txt)",
    "causal_conv1d": "install causal-conv1d (requirements-cuda.txt)",
}


def why_not() -> str:
    """Why the packages' kernels cannot be used, in one line; empty if they can. Found out by importing them."""
    for module, remedy in _PARTS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a kernel built for another torch or CUDA may raise anything
            return f"{module} cannot be imported ({first_line(error)}): {remedy}"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


class _Scan(torch.autograd.Function):
    """`selective_scan_cuda` from the zero state: u, delta, z [B, D, L]; A [D, N]; B, C [B, N, L] -> y, last state [B, D, N]."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, softplus):
        import selective_scan_cuda

        # The kernel wants time contiguous and B, C with an axis for groups of channels.
        u, delta, z = (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (u, delta, z))
        B, C = (x.contiguous()[:, None] for x in (B, C))  # [B, 1, N, L]
        A, D, delta_bias = (x if x is None else x.contiguous() for x in (A, D, delta_bias))
        y, states, *gated = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, delta_bias, softplus)
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, None if z is None else y)
        ctx.softplus = softplus
        ctx.set_materialize_grads(False)
        return (y if z is None else gated[0]), states[:, :, -1, 1::2].clone()  # [B, D, chunks, 2 N] holds decays and states

    @staticmethod
    def backward(ctx, gy, glast):
        import selective_scan_cuda

        if glast is not None:
            raise ValueError(
                "mamba_ssm's kernel has no gradient of the last state: set LITEAVSE_SCAN to triton or reference for this"
            )
        if gy is None:
            return (None,) * 9
        u, delta, A, B, C, D, z, delta_bias, states, y = ctx.saved_tensors
        gy = gy if gy.stride(-1) == 1 else gy.contiguous()
        gu, gdelta, gA, gB, gC, gD, gbias, *gz = selective_scan_cuda.bwd(
            u, delta, A, B, C, D, z, delta_bias, gy, states, y, None, ctx.softplus, False
        )
        gD, gbias = (g if x is not None else None for g, x in ((gD, D), (gbias, delta_bias)))
        return gu, gdelta, gA, gB[:, 0], gC[:, 0], gD, (gz[0] if z is not None else None), gbias, None


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, softplus: bool, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """models.ops.scan.selective_scan without its checks.

    The kernel starts from the zero state. The recurrence is linear in its state, so that an initial state h0 adds
    exp(A S_t) h0 to the state at t, with S_t = dt_1 + ... + dt_t; this part is computed here. The kernel leaves out the
    gradient of the last state, so that asking for it raises ValueError.
    """
    if u.shape[1] == 0:
        return torch.zeros_like(u), u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    if reverse:
        u, delta, B, C, z = (x if x is None else x.flip(1) for x in (u, delta, B, C, z))
    gate = z if initial_state is None else None
    u_, delta_, B_, C_, gate = (x if x is None else x.transpose(1, 2) for x in (u, delta, B, C, gate))
    y, last = _Scan.apply(u_, delta_, A, B_, C_, D, gate, delta_bias, softplus)
    y = y.transpose(1, 2)  # [B, L, D]
    if initial_state is not None:
        dt = delta if delta_bias is None else delta + delta_bias
        elapsed = (F.softplus(dt) if softplus else dt).cumsum(1)
        for n in range(A.shape[1]):  # one state at a time: all at once would be [B, L, D, N]
            y = y + C[:, :, n, None] * torch.exp(elapsed * A[:, n]) * initial_state[:, None, :, n]
        last = last + torch.exp(elapsed[:, -1, :, None] * A) * initial_state
        y = y if z is None else y * F.silu(z)
    return (y.flip(1) if reverse else y), last


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """models.ops.scan.causal_conv1d without its checks. The state is put before the inputs, and its outputs are dropped."""
    (batch, length, dim), width = x.shape, weight.shape[1]
    state = x.new_zeros(batch, width - 1, dim) if initial_state is None else initial_state
    joined = torch.cat((state, x.flip(1) if reverse else x), dim=1)  # [B, K-1+L, D]
    last = joined[:, length:]
    if length == 0:
        return torch.zeros_like(x), last
    from causal_conv1d import causal_conv1d_fn

    y = causal_conv1d_fn(joined.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)[:, width - 1 :]
    return (y.flip(1) if reverse else y), last
