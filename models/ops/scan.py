"""The selective scan and the causal depthwise convolution of Mamba behind one call each.

The plain-torch `reference` here defines what every backend (models/ops/backend.py) must compute.
Sequences are [B, L, D] (channels last). All backends compute in float32, also under autocast and for half precision,
except that float64 always takes the reference, which stays in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ops.backend import resolve_backend


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The selective state space recurrence h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = (C_t h_t + D u_t) silu(z_t).

    Shapes: u, delta, z [B, L, D]; A [D, N]; B, C [B, L, N]; D, delta_bias [D]; initial_state [B, D, N] (zeros if None).
    dt = softplus(delta + delta_bias), or delta + delta_bias without delta_softplus. `reverse` runs t = L-1 ... 0: the
    same as flip, scan, flip, without the copies. N up to 64 is what the kernels are tuned for; more works.
    Returns y [B, L, D] in u's dtype and the state after the last step read [B, D, N] in float32 (float64 for float64):
    fed to the next call as initial_state, pieces of a sequence give what the whole gives.
    Raises ValueError on shapes or devices that do not fit, or a backend that is not available.
    Source: Gu & Dao 2023, Mamba, arXiv:2312.00752, eq. 2a with the simplified discretisation of its code.
    """
    _require(u.dim() == 3, "u must be [B, L, D], not {}", u)
    _require(A.dim() == 2 and A.shape[1] > 0, "A must be [D, N] with N > 0, not {}", A)
    (batch, length, dim), n = u.shape, A.shape[1]
    sequence, coefficients = (batch, length, dim), (batch, length, n)
    _check("u", u, delta=(delta, sequence), A=(A, (dim, n)), B=(B, coefficients), C=(C, coefficients), D=(D, (dim,)),
           z=(z, sequence), delta_bias=(delta_bias, (dim,)), initial_state=(initial_state, (batch, dim, n)))  # fmt: skip
    name, dtype = _backend_and_dtype(u, backend)
    u_, delta, B, C, z = _cast_sequences(name, dtype, u, delta, B, C, z)
    A, D, delta_bias, initial_state = (_cast(x, dtype) for x in (A, D, delta_bias, initial_state))
    tensors = (u_, delta, A, B, C, D, z, delta_bias, initial_state)
    with torch.autocast(u.device.type, enabled=False):
        y, last = _SCANS[name](*tensors, delta_softplus, reverse)
    return _cast(y, u.dtype), last


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """silu of the causal depthwise convolution sum_k weight[:, k] x_{t-K+1+k} + bias.

    Shapes: x [B, L, D]; weight [D, K]; bias [D]; initial_state [B, K-1, D], the inputs before the first, oldest first
    (zeros if None). `reverse` reads t = L-1 ... 0: the same as flip, convolve, flip.
    Returns y [B, L, D] in x's dtype and the last K-1 inputs read, oldest first, in float32 (float64 for float64).
    Raises ValueError on shapes or devices that do not fit, or a backend that is not available.
    """
    _require(x.dim() == 3, "x must be [B, L, D], not {}", x)
    _require(weight.dim() == 2 and weight.shape[1] > 0, "weight must be [D, K] with K > 0, not {}", weight)
    (batch, _, dim), width = x.shape, weight.shape[1]
    _check("x", x, weight=(weight, (dim, width)), bias=(bias, (dim,)),
           initial_state=(initial_state, (batch, width - 1, dim)))  # fmt: skip
    name, dtype = _backend_and_dtype(x, backend)
    (x_,) = _cast_sequences(name, dtype, x)
    tensors = (x_, *(_cast(v, dtype) for v in (weight, bias, initial_state)))
    with torch.autocast(x.device.type, enabled=False):
        y, last = _CONVOLUTIONS[name](*tensors, reverse)
    return _cast(y, x.dtype), last


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"


def _require(condition: bool, otherwise: str, x: Tensor) -> None:
    if not condition:
        raise ValueError(otherwise.format(_shape(x.shape)))


def _check(first: str, like: Tensor, **tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    if not like.is_floating_point():
        raise ValueError(f"{first} must be floating point, not {like.dtype}")
    for name, (x, shape) in tensors.items():
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(f"{name} has shape {_shape(x.shape)} where {first} {_shape(like.shape)} needs {_shape(shape)}")
        if x.device != like.device:
            raise ValueError(f"{name} is on {x.device}, {first} on {like.device}")


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return x if x is None or x.dtype == dtype else x.to(dtype)  # an idle .to() costs time in a short streaming call


def _cast_sequences(name: str, dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """Sequences in the backend's type; the Triton kernels read half precision themselves, which halves what they move."""
    half = (torch.bfloat16, torch.float16) if name == "triton" else ()
    return [x if x is None or x.dtype in half else _cast(x, dtype) for x in tensors]


def _backend_and_dtype(x: Tensor, backend: str | None) -> tuple[str, torch.dtype]:
    name = resolve_backend(x.device, backend)
    return ("reference", torch.float64) if x.dtype == torch.float64 else (name, torch.float32)


def _reference_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, softplus, reverse):
    dt = delta if delta_bias is None else delta + delta_bias
    dt = F.softplus(dt) if softplus else dt
    batch, length, dim = u.shape
    state = u.new_zeros(batch, dim, A.shape[1]) if initial_state is None else initial_state
    # unbind, since the gradient of a slice x[:, t] is a tensor of x's size: L of those would make the backward O(L^2).
    steps = list(zip(dt.unbind(1), (dt * u).unbind(1), B.unbind(1), C.unbind(1), strict=True))
    ys = []
    for dt_t, du_t, B_t, C_t in reversed(steps) if reverse else steps:
        decay = torch.exp(dt_t[:, :, None] * A)  # [B, D, N]
        state = decay * state + du_t[:, :, None] * B_t[:, None, :]
        ys.append((state * C_t[:, None, :]).sum(-1))  # [B, D]
    y = torch.stack(ys[::-1] if reverse else ys, dim=1) if ys else torch.zeros_like(u)
    y = y if D is None else y + D * u
    return (y if z is None else y * F.silu(z)), state


def _reference_conv(x, weight, bias, initial_state, reverse):
    (batch, length, dim), width = x.shape, weight.shape[1]
    state = x.new_zeros(batch, width - 1, dim) if initial_state is None else initial_state
    joined = torch.cat((state, x.flip(1) if reverse else x), dim=1)  # [B, K-1+L, D] in reading order
    y = sum(joined[:, k : k + length] * weight[:, k] for k in range(width))
    y = F.silu(y if bias is None else y + bias)
    return (y.flip(1) if reverse else y), joined[:, length:]


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _numba_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, softplus, reverse):
    from models.ops.scan_cpu import scan_forward

    # The kernels' state is [B, N, D]. It is a view in both directions, so that streaming never copies it.
    h0 = None if initial_state is None else initial_state.transpose(1, 2)
    keep = _needs_grad(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, last, _ = scan_forward(u, delta, A.t(), B, C, D, z, delta_bias, h0, softplus, reverse, keep)
    return y, last.transpose(1, 2)


def _numba_conv(x, weight, bias, initial_state, reverse):
    from models.ops.scan_cpu import conv_forward

    return conv_forward(x, weight.t(), bias, initial_state, reverse)


def _mamba_ssm_scan(*args):
    from models.ops.scan_cuda import scan

    return scan(*args)


def _mamba_ssm_conv(x, weight, bias, initial_state, reverse):
    from models.ops.scan_cuda import WIDTHS, convolve

    if weight.shape[1] not in WIDTHS:  # the CUDA kernel has no others
        return _reference_conv(x, weight, bias, initial_state, reverse)
    return convolve(x, weight, bias, initial_state, reverse)


def _triton_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, softplus, reverse):
    from models.ops.scan_triton import scan_forward

    h0 = None if initial_state is None else initial_state.transpose(1, 2)  # [B, N, D], as in _numba_scan
    keep = _needs_grad(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, last, _ = scan_forward(u, delta, A.t(), B, C, D, z, delta_bias, h0, softplus, reverse, keep)
    return y, last.transpose(1, 2)


def _triton_conv(*args):
    from models.ops.scan_triton import conv_forward

    return conv_forward(*args)


_SCANS = {"reference": _reference_scan, "numba": _numba_scan, "mamba_ssm": _mamba_ssm_scan, "triton": _triton_scan}
_CONVOLUTIONS = {"reference": _reference_conv, "numba": _numba_conv, "mamba_ssm": _mamba_ssm_conv, "triton": _triton_conv}
