"""Compiled CPU kernel (float32) of a whole Mamba layer: norm, projections, convolution, scan, residual. It has no gradient.

models/mamba.py calls one operator after the other. Each writes megabytes to memory which the next reads again, and in a
stream, whose calls have four frames, most of the time goes into calling operators. Here a thread takes a sequence through
all of them, STEPS steps at a time: the values between them stay in its first two caches, and the weights in the second.

The weights are packed by models/ops/mamba_layer.py: a row for each element of the sum, and columns padded with zeros to a
multiple of LANES. Steps i are counted in the order of reading: t = i, or L-1-i when reverse.
"""

from __future__ import annotations

from numba import njit

from models.ops.kernels.simd import (
    LANES,
    ROW,
    broadcast,
    exp2,
    f32,
    inlined,
    load,
    load_full,
    parameter_block,
    peek,
    root,
    run_tasks,
    sigmoid,
    softplus,
    store,
    store_full,
    total,
)  # fmt: skip

STEPS = 4  # rows of a matrix product for which a weight is loaded once; their sums fill half of the registers

MIXER = parameter_block(
    *("counter", "worker", "work", "work_size", "tasks", "B", "L", "C", "D", "N", "K", "rank", "reverse"),
    *("c_vectors", "d_vectors", "p_vectors", "eps"),  # padded widths of C, D and rank + 2 N; eps: address of a float
    *("x", "x_b", "x_t", "y", "conv0", "conv", "h0", "h"),  # conv [B, K-1, D]; h [B, N, D]
    *("w_in", "w_conv", "b_conv", "w_x", "w_dt", "b_dt", "a", "skip", "w_out"),
)


def mixer_work_rows(d_vectors: int, p_vectors: int, N: int, K: int) -> int:
    """Vectors of scratch that a thread needs."""
    return 2 + STEPS * p_vectors + d_vectors * (N + K - 1 + 4 * STEPS)


@inlined
def products(first, second, third, fourth, length, w, w_row, to, to_row):
    """Products of four rows of `length` floats with a column of LANES weights; the results lie to_row bytes apart."""
    a, b = broadcast(f32(0)), broadcast(f32(0))
    c, d = broadcast(f32(0)), broadcast(f32(0))
    for k in range(length):
        x = load_full(w + k * w_row)
        a = a + x * peek(first + 4 * k)
        b = b + x * peek(second + 4 * k)
        c = c + x * peek(third + 4 * k)
        d = d + x * peek(fourth + 4 * k)
    store_full(to, a)
    store_full(to + to_row, b)
    store_full(to + 2 * to_row, c)
    store_full(to + 3 * to_row, d)


@inlined
def _inverse_rms(p, x, spare):
    squares = broadcast(f32(0))
    for j in range(p.c_vectors):
        v = load(x + j * ROW, min(LANES, p.C - j * LANES), spare)
        squares = squares + v * v
    return f32(1) / root(total(squares) / f32(p.C) + peek(p.eps))


@inlined
def _token(p, b, i):
    """Address of the input at step i. After the end it is that of the last step, whose result is not used then."""
    i = min(i, p.L - 1)
    return p.x + b * p.x_b + (p.L - 1 - i if p.reverse else i) * p.x_t


@inlined
def _project_in(p, b, i, window, z, spare):
    """in_proj of the normalised inputs: one half goes behind the earlier inputs in `window`, the other, the gate, to `z`."""
    first, second, third, fourth = _token(p, b, i), _token(p, b, i + 1), _token(p, b, i + 2), _token(p, b, i + 3)
    one, two = _inverse_rms(p, first, spare), _inverse_rms(p, second, spare)
    three, four = _inverse_rms(p, third, spare), _inverse_rms(p, fourth, spare)
    row = p.d_vectors * ROW
    fresh = window + (p.K - 1) * row
    for j in range(2 * p.d_vectors):
        to = fresh + j * ROW if j < p.d_vectors else z + (j - p.d_vectors) * ROW
        products(first, second, third, fourth, p.C, p.w_in + j * ROW, 2 * row, to, row)
        store_full(to, load_full(to) * one)
        store_full(to + row, load_full(to + row) * two)
        store_full(to + 2 * row, load_full(to + 2 * row) * three)
        store_full(to + 3 * row, load_full(to + 3 * row) * four)


@inlined
def _convolve(p, window, u):
    row = p.d_vectors * ROW
    for j in range(p.d_vectors):
        for s in range(STEPS):
            y = load_full(p.b_conv + j * ROW)
            for k in range(p.K):
                y = y + load_full(p.w_conv + k * row + j * ROW) * load_full(window + (s + k) * row + j * ROW)
            store_full(u + s * row + j * ROW, y * sigmoid(y))


@inlined
def _keep_window(p, window, steps):
    """Moves the newest K - 1 inputs of the convolution to the front of the window."""
    row = p.d_vectors * ROW
    for k in range(p.K - 1):
        for j in range(p.d_vectors):
            at = window + k * row + j * ROW
            store_full(at, load_full(at + steps * row))


@inlined
def _step_size(p, j, dbc):
    """dt of one step for a vector of channels: softplus of dt_proj, whose inputs are the first `rank` numbers of x_proj."""
    dt = load_full(p.b_dt + j * ROW)
    for i in range(p.rank):
        dt = dt + load_full(p.w_dt + (i * p.d_vectors + j) * ROW) * peek(dbc + 4 * i)
    return softplus(dt)


@inlined
def _advance(h, decay, du, dbc, p, n):
    return decay * h + du * peek(dbc + 4 * (p.rank + n))


@inlined
def _scan_whole(p, j, dbc, u, z, h):
    """Four steps of the scan for a vector of channels; each state stays in a register for all four."""
    row, dbc_row = p.d_vectors * ROW, p.p_vectors * ROW
    t0, t1 = _step_size(p, j, dbc), _step_size(p, j, dbc + dbc_row)
    t2, t3 = _step_size(p, j, dbc + 2 * dbc_row), _step_size(p, j, dbc + 3 * dbc_row)
    at = u + j * ROW
    skip = load_full(p.skip + j * ROW)
    u0, u1, u2, u3 = load_full(at), load_full(at + row), load_full(at + 2 * row), load_full(at + 3 * row)
    y0, y1, y2, y3 = u0 * skip, u1 * skip, u2 * skip, u3 * skip
    u0, u1, u2, u3 = u0 * t0, u1 * t1, u2 * t2, u3 * t3
    for n in range(p.N):
        a = load_full(p.a + (n * p.d_vectors + j) * ROW)
        state = load_full(h + (n * p.d_vectors + j) * ROW)
        c = dbc + 4 * (p.rank + p.N + n)
        state = _advance(state, exp2(a * t0), u0, dbc, p, n)
        y0 = y0 + state * peek(c)
        state = _advance(state, exp2(a * t1), u1, dbc + dbc_row, p, n)
        y1 = y1 + state * peek(c + dbc_row)
        state = _advance(state, exp2(a * t2), u2, dbc + 2 * dbc_row, p, n)
        y2 = y2 + state * peek(c + 2 * dbc_row)
        state = _advance(state, exp2(a * t3), u3, dbc + 3 * dbc_row, p, n)
        y3 = y3 + state * peek(c + 3 * dbc_row)
        store_full(h + (n * p.d_vectors + j) * ROW, state)
    gate = z + j * ROW
    store_full(at, y0 * _silu(gate))
    store_full(at + row, y1 * _silu(gate + row))
    store_full(at + 2 * row, y2 * _silu(gate + 2 * row))
    store_full(at + 3 * row, y3 * _silu(gate + 3 * row))


@inlined
def _silu(address):
    x = load_full(address)
    return x * sigmoid(x)


@inlined
def _scan_one(p, j, dbc, u, z, h):
    """One step of the scan for a vector of channels, for the last steps of a sequence."""
    dt = _step_size(p, j, dbc)
    x = load_full(u + j * ROW)
    y, du = x * load_full(p.skip + j * ROW), x * dt
    for n in range(p.N):
        at = (n * p.d_vectors + j) * ROW
        state = _advance(load_full(h + at), exp2(load_full(p.a + at) * dt), du, dbc, p, n)
        store_full(h + at, state)
        y = y + state * peek(dbc + 4 * (p.rank + p.N + n))
    store_full(u + j * ROW, y * _silu(z + j * ROW))


@inlined
def _project_out(p, b, i, steps, u, to, spare):
    row = p.d_vectors * ROW
    for j in range(p.c_vectors):
        width = min(LANES, p.C - j * LANES)
        products(u, u + row, u + 2 * row, u + 3 * row, p.D, p.w_out + j * ROW, p.c_vectors * ROW, to, ROW)
        for s in range(steps):
            t = p.L - 1 - i - s if p.reverse else i + s
            y = load(_token(p, b, i + s) + j * ROW, width, spare) + load_full(to + s * ROW)
            store(p.y + 4 * ((b * p.L + t) * p.C + j * LANES), width, y, spare)


@inlined
def _load_rows(p, address, b, rows, to, spare):
    """Copies [rows, D] of sequence b from a tensor [B, rows, D] to padded scratch; zeros if the address is 0."""
    for r in range(rows):
        for j in range(p.d_vectors):
            at = address + 4 * ((b * rows + r) * p.D + j * LANES) if address else 0
            store_full(to + (r * p.d_vectors + j) * ROW, load(at, min(LANES, p.D - j * LANES), spare))


@inlined
def _store_rows(p, address, b, rows, source, spare):
    for r in range(rows):
        for j in range(p.d_vectors):
            at = address + 4 * ((b * rows + r) * p.D + j * LANES)
            store(at, min(LANES, p.D - j * LANES), load_full(source + (r * p.d_vectors + j) * ROW), spare)


@njit
def _sequence(p, b, work):
    row, dbc_row = p.d_vectors * ROW, p.p_vectors * ROW
    spare = work
    dbc = work + 2 * ROW
    h = dbc + STEPS * dbc_row
    window = h + p.N * row
    z = window + (p.K - 1 + STEPS) * row
    u = z + STEPS * row
    out = u + STEPS * row
    _load_rows(p, p.h0, b, p.N, h, spare)
    _load_rows(p, p.conv0, b, p.K - 1, window, spare)
    for i in range(0, p.L, STEPS):
        steps = min(STEPS, p.L - i)
        _project_in(p, b, i, window, z, spare)
        _convolve(p, window, u)
        _keep_window(p, window, steps)
        for j in range(p.p_vectors):
            products(u, u + row, u + 2 * row, u + 3 * row, p.D, p.w_x + j * ROW, dbc_row, dbc + j * ROW, dbc_row)
        for j in range(p.d_vectors):
            if steps == STEPS:
                _scan_whole(p, j, dbc, u, z, h)
            else:
                for s in range(steps):
                    _scan_one(p, j, dbc + s * dbc_row, u + s * row, z + s * row, h)
        _project_out(p, b, i, steps, u, out, spare)
    _store_rows(p, p.h, b, p.N, h, spare)
    _store_rows(p, p.conv, b, p.K - 1, window, spare)


def mixer_forward(params):
    run_tasks(_sequence, params)
