"""The CUDA kernels of mamba-ssm and causal-conv1d behind this project's layout and states.

Both want [B, D, L], given here as views. Neither is imported before it is called.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = (2, 3, 4)  # convolution widths that causal-conv1d has kernels for

_PARTS = (
    ("mamba_ssm", "mamba_ssm is not installed"),
    ("selective_scan_cuda", "mamba_ssm is installed without its CUDA scan: reinstall with MAMBA_KEEP_CUDA_BUILD=TRUE"),
    ("causal_conv1d", "causal_conv1d is not installed: pip install causal-conv1d"),
    ("causal_conv1d_cuda", "causal_conv1d is installed without its CUDA kernel: reinstall it from source"),
)


def missing_half() -> str:
    """What of the two packages is missing, in a sentence; empty if they are complete."""
    absent = [sentence for module, sentence in _PARTS if find_spec(module) is None]
    if not absent:
        return ""
    if len(absent) == len(_PARTS):
        return "mamba_ssm and causal_conv1d are not installed"
    return absent[0]


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, softplus: bool, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """models.ops.scan.selective_scan without its checks. The kernel starts from zero: an initial state h0 is added after,

    since the recurrence is linear in it: h0 adds exp(A S_t) h0 to the state at t, with S_t = dt_1 + ... + dt_t.
    """
    if u.shape[1] == 0:
        return torch.zeros_like(u), u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if reverse:
        u, delta, B, C, z = (x if x is None else x.flip(1) for x in (u, delta, B, C, z))
    gate = z.transpose(1, 2) if z is not None and initial_state is None else None
    y, last = selective_scan_fn(
        u.transpose(1, 2), delta.transpose(1, 2), A, B.transpose(1, 2), C.transpose(1, 2), D, z=gate,
        delta_bias=delta_bias, delta_softplus=softplus, return_last_state=True,
    )  # fmt: skip
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
    """models.ops.scan.causal_conv1d without its checks; the state goes in as inputs whose outputs are dropped."""
    (batch, length, dim), width = x.shape, weight.shape[1]
    state = x.new_zeros(batch, width - 1, dim) if initial_state is None else initial_state
    joined = torch.cat((state, x.flip(1) if reverse else x), dim=1)  # [B, K-1+L, D]
    last = joined[:, length:]
    if length == 0:
        return torch.zeros_like(x), last
    from causal_conv1d import causal_conv1d_fn

    y = causal_conv1d_fn(joined.transpose(1, 2), weight, bias, activation="silu").transpose(1, 2)[:, width - 1 :]
    return (y.flip(1) if reverse else y), last
