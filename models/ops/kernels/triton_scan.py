"""GPU kernels of the selective scan in Triton, forward and backward.

A program takes BLOCK neighbouring channels of one sequence through the whole time. The states, [STATES, BLOCK], stay in
registers: axis 0 inside each thread, axis 1 over the threads of a warp, so that the sum over the states needs no exchange
between threads. The forward kernel keeps the states before every K-th step. The backward kernel goes through these chunks
from the last to the first, computes the states of a chunk again and holds them in registers.

What is summed over sequences or over channel blocks is written as one partial result per program, and torch adds the
partial results up. There are no atomic additions, so that every run gives the same bits.

Sequences come as pointers and strides in elements, last axis contiguous, in float32, bfloat16 or float16; all sums and states
are float32. Steps are counted in reading order: t = step, or L - 1 - step with REVERSE. STATES is N rounded up to a power
of 2, which `tl.arange` asks for; the states past N have a zero in `a`, `b` and `c` and are never stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """log(1 + e^x) to the last digits of float32: log1p as Kahan computes it, since the interpreter has no log1p."""
    v = tl.exp(-tl.abs(x))
    w = 1.0 + v
    small = tl.where(w == 1.0, v, tl.log(w) * (v / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.maximum(x, 0.0) + small


@triton.jit
def _vector(pointer, d, there, present: tl.constexpr, BLOCK: tl.constexpr):
    """A block of a [D] parameter; zeros where it is absent."""
    return tl.load(pointer + d, mask=there, other=0.0).to(tl.float32) if present else tl.zeros([BLOCK], tl.float32)


@triton.jit
def _step(u, delta, b, u_t, delta_t, b_t, t, now, now_n, bias, SOFTPLUS: tl.constexpr):
    """Input u, delta + bias, step size dt and the row of b at time t; dt is 0 past the end, so that the state stays."""
    u_now = tl.load(u + t * u_t, mask=now, other=0.0).to(tl.float32)
    raw = tl.load(delta + t * delta_t, mask=now, other=0.0).to(tl.float32) + bias
    dt = tl.where(now, _softplus(raw) if SOFTPLUS else raw, 0.0)
    return u_now, raw, dt, tl.load(b + t * b_t, mask=now_n, other=0.0).to(tl.float32)


@triton.jit
def scan_forward_kernel(
    u, delta, z, a, b, c, skip, bias, h0, y, last, kept,
    u_b, u_t, delta_b, delta_t, z_b, z_t, b_b, b_t, c_b, c_t,
    L, D,
    N: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, HAS_Z: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_H0: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """a [N, D]; h0 and last [B, N, D]; kept [B, chunks, N, D]; the others as in models.ops.scan.selective_scan."""
    blocks = tl.cdiv(D, BLOCK)  # one grid axis: the second one of a grid has only 65535 places
    block, row = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    d, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    there, there_n = d < D, n < N
    wide = there_n[:, None] & there[None, :]
    place = n[:, None] * D + d[None, :]  # in [N, D]
    a2 = tl.load(a + place, mask=wide, other=0.0).to(tl.float32) * LOG2E
    d_skip, d_bias = _vector(skip, d, there, HAS_SKIP, BLOCK), _vector(bias, d, there, HAS_BIAS, BLOCK)
    if HAS_H0:
        h = tl.load(h0 + row * N * D + place, mask=wide, other=0.0).to(tl.float32)
    else:
        h = tl.zeros([STATES, BLOCK], tl.float32)
    u += row * u_b + d
    delta += row * delta_b + d
    z += row * z_b + d
    b += row * b_b + n
    c += row * c_b + n
    y += row * L * D + d
    chunks = tl.cdiv(L, K)
    for chunk in range(chunks):
        if KEEP:
            tl.store(kept + (row * chunks + chunk) * N * D + place, h, mask=wide)
        for i in tl.static_range(K):
            step = chunk * K + i
            t = L - 1 - step if REVERSE else step
            now, now_n = there & ((d * 0 + step) < L), there_n & ((n * 0 + step) < L)
            u_now, raw, dt, b_now = _step(u, delta, b, u_t, delta_t, b_t, t, now, now_n, d_bias, SOFTPLUS)
            c_now = tl.load(c + t * c_t, mask=now_n, other=0.0).to(tl.float32)
            h = tl.exp2(dt[None, :] * a2) * h + (dt * u_now)[None, :] * b_now[:, None]
            out = tl.sum(h * c_now[:, None], axis=0) + d_skip * u_now
            if HAS_Z:
                gate = tl.load(z + t * z_t, mask=now, other=0.0).to(tl.float32)
                out = out * gate * sigmoid(gate)
            tl.store(y + t * D, out.to(y.dtype.element_ty), mask=now)
    tl.store(last + row * N * D + place, h, mask=wide)


@triton.jit
def scan_backward_kernel(
    gy, glast, u, delta, z, a, b, c, skip, bias, kept,
    gu, gdelta, gz, ga, gb, gc, gskip, gbias, gh0,
    gy_b, gy_t, u_b, u_t, delta_b, delta_t, z_b, z_t, b_b, b_t, c_b, c_t,
    L, D, ROWS,
    N: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, HAS_Z: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GLAST: tl.constexpr,
):  # fmt: skip
    """ga, gh0 and glast [B, N, D]; gb and gc [blocks, B, L, N]; gskip and gbias [B, D]; kept from the forward kernel.

    ga, gb, gc, gskip and gbias are partial sums, which the caller adds up over their first axis.
    """
    blocks = tl.cdiv(D, BLOCK)
    block, row = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    d, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    there, there_n = d < D, n < N
    wide = there_n[:, None] & there[None, :]
    place = n[:, None] * D + d[None, :]
    a1 = tl.load(a + place, mask=wide, other=0.0).to(tl.float32)
    d_skip, d_bias = _vector(skip, d, there, HAS_SKIP, BLOCK), _vector(bias, d, there, HAS_BIAS, BLOCK)
    if HAS_GLAST:
        gh = tl.load(glast + row * N * D + place, mask=wide, other=0.0).to(tl.float32)
    else:
        gh = tl.zeros([STATES, BLOCK], tl.float32)
    u += row * u_b + d
    delta += row * delta_b + d
    z += row * z_b + d
    gy += row * gy_b + d
    b += row * b_b + n
    c += row * c_b + n
    gu += row * L * D + d
    gdelta += row * L * D + d
    gz += row * L * D + d
    gb += (block * ROWS + row) * L * N + n
    gc += (block * ROWS + row) * L * N + n
    ga_sum = tl.zeros([STATES, BLOCK], tl.float32)
    gskip_sum, gbias_sum = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    chunks = tl.cdiv(L, K)
    for back in range(chunks):
        chunk = chunks - 1 - back
        h = tl.load(kept + (row * chunks + chunk) * N * D + place, mask=wide, other=0.0)
        states = (h,)  # the states before each step of the chunk
        for i in tl.static_range(K - 1):
            step = chunk * K + i
            t = L - 1 - step if REVERSE else step
            now, now_n = there & ((d * 0 + step) < L), there_n & ((n * 0 + step) < L)
            u_now, raw, dt, b_now = _step(u, delta, b, u_t, delta_t, b_t, t, now, now_n, d_bias, SOFTPLUS)
            h = tl.exp2(dt[None, :] * (a1 * LOG2E)) * h + (dt * u_now)[None, :] * b_now[:, None]
            states = states + (h,)
        for i in tl.static_range(K):
            step = chunk * K + K - 1 - i
            t = L - 1 - step if REVERSE else step
            now, now_n = there & ((d * 0 + step) < L), there_n & ((n * 0 + step) < L)
            u_now, raw, dt, b_now = _step(u, delta, b, u_t, delta_t, b_t, t, now, now_n, d_bias, SOFTPLUS)
            c_now = tl.load(c + t * c_t, mask=now_n, other=0.0).to(tl.float32)
            g = tl.load(gy + t * gy_t, mask=now, other=0.0).to(tl.float32)
            decay = tl.exp2(dt[None, :] * (a1 * LOG2E))
            decayed = decay * states[K - 1 - i]
            h_now = decayed + (dt * u_now)[None, :] * b_now[:, None]
            if HAS_Z:
                gate = tl.load(z + t * z_t, mask=now, other=0.0).to(tl.float32)
                sig = sigmoid(gate)
                plain = tl.sum(h_now * c_now[:, None], axis=0) + d_skip * u_now
                tl.store(gz + t * D, (g * plain * sig * (1.0 + gate * (1.0 - sig))).to(gz.dtype.element_ty), mask=now)
                g = g * gate * sig
            gskip_sum += g * u_now
            tl.store(gc + t * N, tl.sum(h_now * g[None, :], axis=1), mask=now_n)
            gh += g[None, :] * c_now[:, None]
            tl.store(gb + t * N, tl.sum(gh * (dt * u_now)[None, :], axis=1), mask=now_n)
            through = tl.sum(gh * b_now[:, None], axis=0)  # the gradient of dt * u
            felt = gh * decayed  # the gradient of dt * a
            ga_sum += felt * dt[None, :]
            gdt = u_now * through + tl.sum(felt * a1, axis=0)
            tl.store(gu + t * D, (g * d_skip + dt * through).to(gu.dtype.element_ty), mask=now)
            gdt = tl.where(now, gdt * sigmoid(raw) if SOFTPLUS else gdt, 0.0)
            gbias_sum += gdt
            tl.store(gdelta + t * D, gdt.to(gdelta.dtype.element_ty), mask=now)
            gh = gh * decay
    tl.store(ga + row * N * D + place, ga_sum, mask=wide)
    tl.store(gh0 + row * N * D + place, gh, mask=wide)
    tl.store(gskip + row * D + d, gskip_sum, mask=there)
    tl.store(gbias + row * D + d, gbias_sum, mask=there)
