"""GPU kernels of silu(causal depthwise convolution) in Triton, for every width K.

Inputs are counted in reading order: input i >= 0 is x at t = i, or at L - 1 - i with REVERSE; the K - 1 inputs before the
first, i = -(K - 1) ... -1, come from the state `s0` and are zeros where there is none. A program takes TIME steps of BLOCK
channels of a sequence. As in triton_scan.py, sums are float32 and kept as partial results that torch adds up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.ops.kernels.triton_scan import sigmoid


@triton.jit
def _inputs(x, s0, i, d, x_t, L, D, width: tl.constexpr, REVERSE: tl.constexpr, HAS_S0: tl.constexpr):
    """The inputs i [TIME] of the channels d [BLOCK] as float32; zeros outside of the sequence and its state."""
    t = L - 1 - i if REVERSE else i
    there = d[None, :] < D
    now = ((i >= 0) & (i < L))[:, None] & there
    values = tl.load(x + t[:, None] * x_t + d[None, :], mask=now, other=0.0).to(tl.float32)
    if HAS_S0:
        before = ((i < 0) & (i > -width))[:, None] & there
        values += tl.load(s0 + (i + width - 1)[:, None] * D + d[None, :], mask=before, other=0.0).to(tl.float32)
    return values


@triton.jit
def conv_forward_kernel(
    x, w, bias, s0, gy, y, x_b, x_t, gy_b, gy_t, L, D,
    WIDTH: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_S0: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """x [B, L, D], w [D, K], s0 [B, K - 1, D] -> y [B, L, D].

    With GRADIENT, y gets the gradient of the sum before silu instead, in reading order: gy times the slope of silu.
    """
    blocks, pieces = tl.cdiv(D, BLOCK), tl.cdiv(L, TIME)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    piece, row = tl.program_id(0) // blocks % pieces, (tl.program_id(0) // blocks // pieces).to(tl.int64)
    i = piece * TIME + tl.arange(0, TIME)
    there = d < D
    total = tl.zeros([TIME, BLOCK], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + d, mask=there, other=0.0).to(tl.float32)[None, :]
    for k in range(WIDTH):
        tap = tl.load(w + d * WIDTH + k, mask=there, other=0.0).to(tl.float32)
        total += tap[None, :] * _inputs(
            x + row * x_b, s0 + row * (WIDTH - 1) * D, i - (WIDTH - 1) + k, d, x_t, L, D, WIDTH, REVERSE, HAS_S0
        )
    gate = sigmoid(total)
    t = L - 1 - i if REVERSE else i
    mask = (i < L)[:, None] & there[None, :]
    if GRADIENT:
        g = tl.load(gy + row * gy_b + t[:, None] * gy_t + d[None, :], mask=mask, other=0.0).to(tl.float32)
        total = g * gate * (1.0 + total * (1.0 - gate))
        tl.store(y + row * L * D + i[:, None] * D + d[None, :], total, mask=mask)
    else:
        tl.store(y + row * L * D + t[:, None] * D + d[None, :], (total * gate).to(y.dtype.element_ty), mask=mask)


@triton.jit
def conv_input_gradient_kernel(
    g, w, glast, gx, gs0, L, D,
    WIDTH: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr, HAS_GLAST: tl.constexpr,
):  # fmt: skip
    """g [B, L, D] of conv_forward_kernel with GRADIENT; glast [B, K - 1, D] -> gx [B, L, D] and gs0 [B, K - 1, D].

    An input was used by its own step and by the K - 1 after it, and the last K - 1 inputs are the last state, too.
    """
    blocks, pieces = tl.cdiv(D, BLOCK), tl.cdiv(L + WIDTH - 1, TIME)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    piece, row = tl.program_id(0) // blocks % pieces, (tl.program_id(0) // blocks // pieces).to(tl.int64)
    i = piece * TIME - (WIDTH - 1) + tl.arange(0, TIME)
    there = d < D
    total = tl.zeros([TIME, BLOCK], tl.float32)
    for k in range(WIDTH):
        tap = tl.load(w + d * WIDTH + k, mask=there, other=0.0).to(tl.float32)
        step = i + WIDTH - 1 - k
        mask = ((step >= 0) & (step < L))[:, None] & there[None, :]
        total += tap[None, :] * tl.load(g + row * L * D + step[:, None] * D + d[None, :], mask=mask, other=0.0)
    if HAS_GLAST:
        place = i - (L - (WIDTH - 1))  # of the input in the last state
        mask = ((place >= 0) & (i < L))[:, None] & there[None, :]
        at = glast + row * (WIDTH - 1) * D + place[:, None] * D + d[None, :]
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    t = L - 1 - i if REVERSE else i
    mask = ((i >= 0) & (i < L))[:, None] & there[None, :]
    tl.store(gx + row * L * D + t[:, None] * D + d[None, :], total.to(gx.dtype.element_ty), mask=mask)
    mask = (i < 0)[:, None] & there[None, :]
    tl.store(gs0 + row * (WIDTH - 1) * D + (i + WIDTH - 1)[:, None] * D + d[None, :], total, mask=mask)


@triton.jit
def conv_weight_gradient_kernel(
    g, x, s0, gw, x_b, x_t, L, D, ROWS, GROUPS,
    WIDTH: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr, HAS_S0: tl.constexpr,
):  # fmt: skip
    """g [B, L, D] as above -> gw [GROUPS, D, K]: a program sums one tap over the sequences of one group."""
    blocks = tl.cdiv(D, BLOCK)
    d = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    k, group = tl.program_id(0) // blocks % WIDTH, (tl.program_id(0) // blocks // WIDTH).to(tl.int64)
    total = tl.zeros([TIME, BLOCK], tl.float32)
    for row in range(group * ROWS // GROUPS, (group + 1) * ROWS // GROUPS):
        for first in range(0, L, TIME):
            i = first + tl.arange(0, TIME)
            mask = (i < L)[:, None] & (d < D)[None, :]
            values = _inputs(
                x + row * x_b, s0 + row * (WIDTH - 1) * D, i - (WIDTH - 1) + k, d, x_t, L, D, WIDTH, REVERSE, HAS_S0
            )
            total += values * tl.load(g + row * L * D + i[:, None] * D + d[None, :], mask=mask, other=0.0)
    tl.store(gw + (group * D + d) * WIDTH + k, tl.sum(total, axis=0), mask=d < D)
