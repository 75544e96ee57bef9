"""The Triton kernels as torch operators for NVIDIA GPUs: autograd, torch.compile and the flop counter see them.

Operators take states as [B, N, D] and A as [N, D], channels innermost; models/ops/scan.py turns the public layout into views of
these. Sequences may be float32, bfloat16 or float16; parameters and states are float32. An empty tensor stands for an output
that was not asked for, since operators cannot return None. With TRITON_INTERPRET=1 in the environment the same operators run
on the CPU, slowly: that is how they are tested without a GPU.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from models.ops.operators import ANY_DEVICE, LIBRARY, connect_conv, connect_scan, flat, operator
from utils.console import first_line

BLOCK = 32  # channels of a program of the scan: one warp
TIME, CHANNELS = 32, 32  # steps and channels of a program of the convolution
_GROUPS = 64  # partial sums of the convolution's weights, whatever the GPU: the same bits on each
_MIN_VERSION = (3, 0)
_MIN_CAPABILITY = (8, 0)


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not() -> str:
    """Why the Triton kernels cannot run here, in one line; empty if they can."""
    try:
        import triton
    except Exception as error:  # a broken package may raise anything
        return f"triton cannot be imported ({first_line(error)}); it comes with the CUDA build of torch"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _MIN_VERSION:
        return f"triton {triton.__version__} is too old: 3.0 or later is needed"
    if interpreted():
        return ""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip:
        return "its kernels were written for NVIDIA GPUs, not for ROCm"
    capability = torch.cuda.get_device_capability()
    if capability < _MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}: 8.0 is needed"
    try:
        triton.runtime.driver.active.get_current_device()  # builds a small helper: needs a C compiler the first time
    except Exception as error:
        return f"triton cannot start ({first_line(error)}); it needs a C compiler (gcc) and a writable TRITON_CACHE_DIR"
    return ""


def settings(N: int) -> dict[str, int]:
    """How the scan's kernels are built for N states: what must fit in a thread's 255 registers decides."""
    states = 1 << (N - 1).bit_length()
    # 16 states a thread; the backward kernel holds K of each in registers, and with more than 4 x 16 it spills.
    return {"STATES": states, "K": max(1, min(8, 64 // states)), "num_warps": min(8, max(1, states // 16))}


@functools.cache
def _kernels():
    # Triton 3.9 warns where nobody says whether it may fuse multiply and add. It may, as every Triton before it did.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from models.ops.kernels import triton_conv, triton_scan

    return triton_scan, triton_conv


def _rows(x: Tensor | None) -> Tensor | None:
    """[B, L, *] as the kernels want it: the last axis contiguous, the others as they are; a step's place in 31 bits."""
    if x is None:
        return None
    x = x if x.stride(-1) == 1 or x.numel() == 0 else x.contiguous()
    if x.shape[1] * abs(x.stride(1)) >= 2**31:
        raise ValueError(f"a sequence of {x.shape[1]} steps, {x.stride(1)} elements apart, is too long for the triton backend")
    return x


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for x in tensors for stride in ((0, 0) if x is None else x.stride()[:2])]


def _new(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _on(x: Tensor) -> torch.cuda.device:
    """Triton launches on the current device, which need not be the tensors'. A device of -1 changes nothing."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


@operator("triton_scan_forward", ANY_DEVICE)
def scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, h0: Tensor | None, softplus: bool, reverse: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A [N, D], h0 [B, N, D]; the others as in models.ops.scan.selective_scan -> y, last state [B, N, D], every K-th state."""
    (batch, length, dim), n = u.shape, A.shape[0]
    y, last, kept = _scan_outputs(u, A, save)
    u, delta, z, B, C = _rows(u), _rows(delta), _rows(z), _rows(B), _rows(C)
    A, D, bias, h0 = flat(A), flat(D), flat(bias), flat(h0)
    if batch and dim:
        with _on(u):
            _kernels()[0].scan_forward_kernel[(batch * _blocks(dim, BLOCK),)](
                u, delta, u if z is None else z, A, B, C, A if D is None else D, A if bias is None else bias,
                A if h0 is None else h0, y, last, kept, *_strides(u, delta, z, B, C), length, dim,
                N=n, BLOCK=BLOCK, SOFTPLUS=softplus, REVERSE=reverse, HAS_Z=z is not None, HAS_SKIP=D is not None,
                HAS_BIAS=bias is not None, HAS_H0=h0 is not None, KEEP=save, **settings(n),
            )  # fmt: skip
    return y, last, kept


def _scan_outputs(u: Tensor, A: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, dim), n = u.shape, A.shape[0]
    chunks = _blocks(length, settings(n)["K"]) if save else 0
    return _new(u, batch, length, dim, dtype=u.dtype), _new(u, batch, n, dim), _new(u, batch, chunks, n, dim)


@torch.library.register_fake(scan_forward, lib=LIBRARY)
def _(u, delta, A, B, C, D, z, bias, h0, softplus, reverse, save):
    return _scan_outputs(u, A, save)


@operator("triton_scan_backward", ANY_DEVICE)
def scan_backward(
    gy: Tensor, glast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, bias: Tensor | None, kept: Tensor, softplus: bool, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D, z, bias and h0, in this order."""
    (batch, length, dim), n, blocks = u.shape, A.shape[0], _blocks(u.shape[2], BLOCK)
    gy, u, delta, z, B, C = _rows(gy), _rows(u), _rows(delta), _rows(z), _rows(B), _rows(C)
    A, D, bias, glast = flat(A), flat(D), flat(bias), flat(glast)
    gu, gdelta = _new(u, *u.shape, dtype=u.dtype), _new(u, *u.shape, dtype=delta.dtype)
    gz = _new(u, 0) if z is None else _new(u, *u.shape, dtype=z.dtype)
    ga, gb, gc = _new(u, batch, n, dim), _new(u, blocks, batch, length, n), _new(u, blocks, batch, length, n)
    gskip, gbias, gh0 = _new(u, batch, dim), _new(u, batch, dim), _new(u, batch, n, dim)
    if batch and dim:
        with _on(u):
            _kernels()[0].scan_backward_kernel[(batch * blocks,)](
                gy, A if glast is None else glast, u, delta, u if z is None else z, A, B, C, A if D is None else D,
                A if bias is None else bias, kept, gu, gdelta, gu if z is None else gz, ga, gb, gc, gskip, gbias, gh0,
                *_strides(gy, u, delta, z, B, C), length, dim, batch,
                N=n, BLOCK=BLOCK, SOFTPLUS=softplus, REVERSE=reverse, HAS_Z=z is not None, HAS_SKIP=D is not None,
                HAS_BIAS=bias is not None, HAS_GLAST=glast is not None, **settings(n),
            )  # fmt: skip
    gb, gc = gb.sum(0).to(B.dtype), gc.sum(0).to(C.dtype)
    return [gu, gdelta, ga.sum(0), gb, gc, gskip.sum(0), gz, gbias.sum(0), gh0]


@torch.library.register_fake(scan_backward, lib=LIBRARY)
def _(gy, glast, u, delta, A, B, C, D, z, bias, kept, softplus, reverse):
    (batch, _, dim), n = u.shape, A.shape[0]
    gz = _new(u, 0) if z is None else _new(u, *u.shape, dtype=z.dtype)
    sequences = [_new(u, *x.shape, dtype=x.dtype) for x in (u, delta)]
    gb, gc = (_new(u, *x.shape, dtype=x.dtype) for x in (B, C))
    return [*sequences, _new(u, n, dim), gb, gc, _new(u, dim), gz, _new(u, dim), _new(u, batch, n, dim)]


connect_scan(scan_forward, scan_backward)


@operator("triton_conv_forward", ANY_DEVICE)
def conv_forward(x: Tensor, w: Tensor, bias: Tensor | None, s0: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """As models.ops.scan.causal_conv1d -> y [B, L, D] and the last K - 1 inputs [B, K - 1, D]."""
    (batch, length, dim), width = x.shape, w.shape[1]
    y = _new(x, *x.shape, dtype=x.dtype)
    x, w, bias, s0 = _rows(x), flat(w), flat(bias), flat(s0)
    _launch_conv(x, w, bias, s0, None, y, reverse)
    newest = x[:, : width - 1].flip(1) if reverse else x[:, max(0, length - width + 1) :]
    last = _new(x, batch, width - 1, dim)
    from_state = max(0, width - 1 - length)
    last[:, from_state:] = newest
    last[:, :from_state] = 0.0 if s0 is None else s0[:, width - 1 - from_state :]
    return y, last


def _launch_conv(x, w, bias, s0, gy, y, reverse: bool) -> None:
    (batch, length, dim), width = x.shape, w.shape[1]
    if x.numel():
        with _on(x):
            _kernels()[1].conv_forward_kernel[(batch * _blocks(length, TIME) * _blocks(dim, CHANNELS),)](
                x, w, w if bias is None else bias, w if s0 is None else s0, x if gy is None else gy, y,
                *_strides(x, gy), length, dim, WIDTH=width, TIME=TIME, BLOCK=CHANNELS, REVERSE=reverse,
                HAS_BIAS=bias is not None, HAS_S0=s0 is not None, GRADIENT=gy is not None, num_warps=4,
            )  # fmt: skip


@torch.library.register_fake(conv_forward, lib=LIBRARY)
def _(x, w, bias, s0, reverse):
    return _new(x, *x.shape, dtype=x.dtype), _new(x, x.shape[0], w.shape[1] - 1, x.shape[2])


@operator("triton_conv_backward", ANY_DEVICE)
def conv_backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, w: Tensor, bias: Tensor | None, s0: Tensor | None, reverse: bool
) -> list[Tensor]:
    """Gradients of x, w, bias and s0."""
    (batch, length, dim), width = x.shape, w.shape[1]
    gy, x, w, bias, s0, glast = _rows(gy), _rows(x), flat(w), flat(bias), flat(s0), flat(glast)
    g = _new(x, *x.shape)  # the gradient of the sums before silu, in reading order
    _launch_conv(x, w, bias, s0, gy, g, reverse)
    gx, gs0, groups = _new(x, *x.shape, dtype=x.dtype), _new(x, batch, width - 1, dim), min(_GROUPS, batch)
    gw = torch.zeros(groups, dim, width, device=x.device)
    if batch and dim:
        flags = {"WIDTH": width, "TIME": TIME, "BLOCK": CHANNELS, "REVERSE": reverse, "num_warps": 4}
        blocks = _blocks(dim, CHANNELS)
        with _on(x):
            _kernels()[1].conv_input_gradient_kernel[(batch * _blocks(length + width - 1, TIME) * blocks,)](
                g, w, w if glast is None else glast, gx, gs0, length, dim, HAS_GLAST=glast is not None, **flags
            )
            _kernels()[1].conv_weight_gradient_kernel[(groups * width * blocks,)](
                g, x, w if s0 is None else s0, gw, *_strides(x), length, dim, batch, groups, HAS_S0=s0 is not None, **flags
            )
    return [gx, gw.sum(0), g.sum((0, 1)), gs0]


@torch.library.register_fake(conv_backward, lib=LIBRARY)
def _(gy, glast, x, w, bias, s0, reverse):
    (batch, _, dim), width = x.shape, w.shape[1]
    return [_new(x, *x.shape, dtype=x.dtype), _new(x, dim, width), _new(x, dim), _new(x, batch, width - 1, dim)]


connect_conv(conv_forward, conv_backward)
