"""The compiled CPU kernels as torch operators: autograd, torch.compile and the flop counter see them.

Operators take float32 tensors, states as [B, N, D] and A as [N, D], with the channels innermost. models/ops/scan.py makes these
from the public layout as views, without a copy. Operators cannot return None, so an empty tensor is returned for an output
that the caller did not ask for.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from models.ops.kernels import conv as conv_numba
from models.ops.kernels import scan as scan_numba
from models.ops.kernels.simd import LANES, compiled
from models.ops.kernels.threads import launch, threads
from models.ops.operators import LIBRARY, connect_conv, connect_scan, flat, operator

# A sum over the batch has this many partial sums for any number of threads, so that each machine gives the same bits.
_GROUPS = 16


@functools.cache
def _kernel(name: str):
    return compiled(getattr(scan_numba if name.startswith("scan") else conv_numba, name), _LAYOUTS[name[:4]])


_LAYOUTS = {"scan": scan_numba.SCAN, "conv": conv_numba.CONV}
_NAMES = {key: layout.names for key, layout in _LAYOUTS.items()}


def _run(name: str, tasks: int, rows: int, multiply_adds: int, pointers: dict[str, int], **sizes: int) -> None:
    launch(_kernel(name), _NAMES[name[:4]], pointers | sizes, tasks, rows * LANES, multiply_adds)


def _rows(x: Tensor | None) -> Tensor | None:
    """[B, L, *] with a contiguous last axis. The kernels take the other axes with any stride."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _strided(**tensors: Tensor | None) -> dict[str, int]:
    """Addresses and byte strides of [B, L, *] tensors."""
    fields = {}
    for name, x in tensors.items():
        if x is not None:
            fields[name] = x.data_ptr()
            b, t, _ = x.stride()
            fields[name + "_b"], fields[name + "_t"] = 4 * b, 4 * t
    return fields


def _addresses(**tensors: Tensor | None) -> dict[str, int]:
    return {name: x.data_ptr() for name, x in tensors.items() if x is not None}


def _total(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _blocks(D: int) -> int:
    return -(-D // LANES)


def _chunk(N: int) -> int:
    """Steps between two kept states. A long chunk needs less memory; the states of a short one stay in the L2 cache."""
    return 16 if N <= 16 else 32


@operator("scan_forward")
def scan_forward(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor | None, z: Tensor | None,
    bias: Tensor | None, h0: Tensor | None, softplus: bool, reverse: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """u, delta, z [B, L, D]; a [N, D]; b, c [B, L, N]; h0 [B, N, D] -> y, last state, states at chunk starts."""
    threads.settle()
    (B, L, D), N = u.shape, a.shape[0]
    y, last, chunks = _scan_outputs(u, a, save)
    u, delta, z, b, c = _rows(u), _rows(delta), _rows(z), _rows(b), _rows(c)
    a, skip, bias, h0 = flat(a), flat(skip), flat(bias), flat(h0)
    pointers = _strided(u=u, delta=delta, z=z, b=b, c=c)
    pointers |= _addresses(a=a, skip=skip, bias=bias, h0=h0, y=y, last=last, chunks=chunks if save else None)
    rows = scan_numba.scan_work_rows(N, _chunk(N), backward=False)
    _run("scan_forward", B * _blocks(D), rows, B * L * D * N, pointers,
         chunk=_chunk(N), B=B, L=L, D=D, N=N, softplus=softplus, reverse=reverse)  # fmt: skip
    return y, last, chunks


def _scan_outputs(u: Tensor, a: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    (B, L, D), N = u.shape, a.shape[0]
    n_chunks = -(-L // _chunk(N)) if save else 0
    return u.new_empty(B, L, D), u.new_empty(B, N, D), u.new_empty(B, n_chunks, N, D)


@torch.library.register_fake(scan_forward, lib=LIBRARY)
def _(u, delta, a, b, c, skip, z, bias, h0, softplus, reverse, save):
    return _scan_outputs(u, a, save)


@operator("scan_backward")
def scan_backward(
    gy: Tensor, glast: Tensor | None, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor | None,
    z: Tensor | None, bias: Tensor | None, chunks: Tensor, softplus: bool, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of u, delta, a, b, c, skip, z, bias, h0, in this order."""
    threads.settle()
    (B, L, D), N = u.shape, a.shape[0]
    blocks, groups = _blocks(D), min(_GROUPS, B)
    gy, u, delta, z, b, c = _rows(gy), _rows(u), _rows(delta), _rows(z), _rows(b), _rows(c)
    a, skip, bias, glast = flat(a), flat(skip), flat(bias), flat(glast)
    gu, gdelta = u.new_empty(B, L, D), u.new_empty(B, L, D)
    gz = u.new_empty((B, L, D) if z is not None else 0)
    ga, gskip, gbias = u.new_empty(groups, N, D), u.new_empty(groups, D), u.new_empty(groups, D)
    gb, gc, gh0 = u.new_empty(blocks, B, L, N), u.new_empty(blocks, B, L, N), u.new_empty(B, N, D)
    pointers = _strided(u=u, delta=delta, z=z, b=b, c=c, gy=gy)
    pointers |= _addresses(a=a, skip=skip, bias=bias, chunks=chunks, glast=glast)
    pointers |= _addresses(gu=gu, gdelta=gdelta, gz=gz, ga=ga, gb=gb, gc=gc, gskip=gskip, gbias=gbias, gh0=gh0)
    rows = scan_numba.scan_work_rows(N, _chunk(N), backward=True)
    _run("scan_backward", groups * blocks, rows, 3 * B * L * D * N, pointers,
         groups=groups, chunk=_chunk(N), B=B, L=L, D=D, N=N, softplus=softplus, reverse=reverse)  # fmt: skip
    return [gu, gdelta, _total(ga), _total(gb), _total(gc), _total(gskip), gz, _total(gbias), gh0]


@torch.library.register_fake(scan_backward, lib=LIBRARY)
def _(gy, glast, u, delta, a, b, c, skip, z, bias, chunks, softplus, reverse):
    (B, L, D), N = u.shape, a.shape[0]
    gz = u.new_empty((B, L, D) if z is not None else 0)
    shapes = (u.shape, u.shape, (N, D), (B, L, N), (B, L, N), (D,))
    return [*(u.new_empty(s) for s in shapes), gz, u.new_empty(D), u.new_empty(B, N, D)]


connect_scan(scan_forward, scan_backward)


@operator("conv_forward")
def conv_forward(x: Tensor, w: Tensor, bias: Tensor | None, s0: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """x [B, L, D], w [K, D], s0 [B, K-1, D] -> silu of the causal depthwise convolution, and its last K-1 inputs."""
    threads.settle()
    (B, L, D), K = x.shape, w.shape[0]
    y, last = x.new_empty(B, L, D), x.new_empty(B, K - 1, D)
    x, w, bias, s0 = _rows(x), flat(w), flat(bias), flat(s0)
    pointers = _strided(x=x) | _addresses(w=w, bias=bias, s0=s0, y=y, last=last)
    rows = conv_numba.conv_work_rows(K)
    _run("conv_forward", B * _blocks(D), rows, B * L * D * K, pointers, B=B, L=L, D=D, K=K, reverse=reverse)
    return y, last


@torch.library.register_fake(conv_forward, lib=LIBRARY)
def _(x, w, bias, s0, reverse):
    B, L, D = x.shape
    return x.new_empty(B, L, D), x.new_empty(B, w.shape[0] - 1, D)


@operator("conv_backward")
def conv_backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, w: Tensor, bias: Tensor | None, s0: Tensor | None, reverse: bool
) -> list[Tensor]:
    """Gradients of x, w, bias, s0."""
    threads.settle()
    (B, L, D), K = x.shape, w.shape[0]
    groups = min(_GROUPS, B)
    gy, x, w, bias, s0 = _rows(gy), _rows(x), flat(w), flat(bias), flat(s0)
    gx, gs0 = x.new_empty(B, L, D), x.new_empty(B, K - 1, D)
    gw, gbias = x.new_empty(groups, K, D), x.new_empty(groups, D)
    pointers = _strided(x=x, gy=gy) | _addresses(w=w, bias=bias, s0=s0, gx=gx, gw=gw, gbias=gbias, gs0=gs0)
    _run("conv_backward", groups * _blocks(D), conv_numba.conv_work_rows(K), 3 * B * L * D * K, pointers,
         groups=groups, B=B, L=L, D=D, K=K, reverse=reverse)  # fmt: skip
    if glast is not None:  # the last state is the end of (state, inputs)
        n = min(L, K - 1)
        newest = glast[:, K - 1 - n :]
        if reverse:
            gx[:, :n] += newest.flip(1)
        else:
            gx[:, L - n :] += newest
        gs0[:, n:] += glast[:, : K - 1 - n]
    return [gx, _total(gw), _total(gbias), gs0]


@torch.library.register_fake(conv_backward, lib=LIBRARY)
def _(gy, glast, x, w, bias, s0, reverse):
    (B, L, D), K = x.shape, w.shape[0]
    return [x.new_empty(s) for s in ((B, L, D), (K, D), (D,), (B, K - 1, D))]


connect_conv(conv_forward, conv_backward)
