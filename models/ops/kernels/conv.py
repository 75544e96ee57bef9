"""Compiled CPU kernels (float32) of silu(causal depthwise convolution); built like those in models/ops/kernels/scan.py.

A thread moves a window of inputs along the sequence, CHUNK steps at a time. The K-1 inputs before the first step come from
the state, and no padded copy of the sequence is needed.
"""

from __future__ import annotations

from numba import njit

from models.ops.kernels.simd import (
    LANES,
    ROW,
    block_of,
    broadcast,
    f32,
    inlined,
    load,
    load_full,
    parameter_block,
    run_tasks,
    sigmoid,
    store,
    store_full,
)  # fmt: skip

CHUNK = 16

CONV = parameter_block(
    *("counter", "worker", "work", "work_size", "tasks", "groups", "B", "L", "D", "K", "reverse"),
    *("x", "x_b", "x_t", "w", "bias", "s0", "y", "last"),  # w [K, D]; s0, last, gs0 [B, K-1, D]
    *("gy", "gy_b", "gy_t", "gx", "gw", "gbias", "gs0"),
)


def conv_work_rows(K: int) -> int:
    """Vectors of scratch that a thread needs."""
    return 1 + 2 * K + 2 * (CHUNK + K)


@inlined
def _load_window(p, b, d0, width, first, steps, window, spare):
    """Copies the inputs of steps first - (K-1) ... first + steps - 1; those before step 0 come from the state."""
    for j in range(p.K - 1 + steps):
        i = first - (p.K - 1) + j
        if i >= 0:
            address = p.x + b * p.x_b + (p.L - 1 - i if p.reverse else i) * p.x_t + 4 * d0
        elif p.s0:
            address = p.s0 + 4 * ((b * (p.K - 1) + p.K - 1 + i) * p.D + d0)
        else:
            address = 0
        store_full(window + j * ROW, load(address, width, spare))


@inlined
def _weights(p, d0, width, w, spare):
    for k in range(p.K):
        store_full(w + k * ROW, load(p.w + 4 * (k * p.D + d0), width, spare))
    return load(p.bias + 4 * d0 if p.bias else 0, width, spare)


@inlined
def _convolve(p, s, window, w, bias):
    y = bias
    for k in range(p.K):
        y = y + load_full(w + k * ROW) * load_full(window + (s + k) * ROW)
    return y


@njit
def _forward_task(p, task, work):
    b, d0 = block_of(p, task)
    width = min(LANES, p.D - d0)
    spare, w, window = work, work + ROW, work + (1 + p.K) * ROW
    bias = _weights(p, d0, width, w, spare)
    for first in range(0, p.L, CHUNK):
        steps = min(CHUNK, p.L - first)
        _load_window(p, b, d0, width, first, steps, window, spare)
        for s in range(steps):
            y = _convolve(p, s, window, w, bias)
            t = p.L - 1 - first - s if p.reverse else first + s
            store(p.y + 4 * ((b * p.L + t) * p.D + d0), width, y * sigmoid(y), spare)
    _load_window(p, b, d0, width, p.L, 0, window, spare)
    for k in range(p.K - 1):
        store(p.last + 4 * ((b * (p.K - 1) + k) * p.D + d0), width, load_full(window + k * ROW), spare)


def conv_forward(params):
    run_tasks(_forward_task, params)


@inlined
def _input_gradient(p, s, w, gpre):
    """Gradient of the input at step s of a chunk: the sum over its own step and the K-1 after it, which it went into."""
    gx = broadcast(f32(0))
    for k in range(p.K):
        gx = gx + load_full(w + k * ROW) * load_full(gpre + (s + p.K - 1 - k) * ROW)
    return gx


@njit
def _backward_task(p, task, work):
    group, d0 = block_of(p, task)
    width = min(LANES, p.D - d0)
    K = p.K
    spare, w, gw, window = work, work + ROW, work + (1 + K) * ROW, work + (1 + 2 * K) * ROW
    gpre = window + (CHUNK + K) * ROW  # dLoss/d(value before silu) of a chunk's steps and the K-1 after them
    bias = _weights(p, d0, width, w, spare)
    zero = broadcast(f32(0))
    gbias = zero
    for k in range(K):
        store_full(gw + k * ROW, zero)
    for b in range(group * p.B // p.groups, (group + 1) * p.B // p.groups):
        for j in range(CHUNK + K):
            store_full(gpre + j * ROW, zero)
        for chunk in range((p.L + CHUNK - 1) // CHUNK - 1, -1, -1):
            first = chunk * CHUNK
            steps = min(CHUNK, p.L - first)
            for j in range(K - 2, -1, -1):
                store_full(gpre + (steps + j) * ROW, load_full(gpre + j * ROW))
            _load_window(p, b, d0, width, first, steps, window, spare)
            for s in range(steps):
                t = p.L - 1 - first - s if p.reverse else first + s
                pre = _convolve(p, s, window, w, bias)
                gate = sigmoid(pre)
                g = load(p.gy + b * p.gy_b + t * p.gy_t + 4 * d0, width, spare)
                g = g * gate * (pre * (f32(1) - gate) + f32(1))
                gbias = gbias + g
                store_full(gpre + s * ROW, g)
                for k in range(K):
                    store_full(gw + k * ROW, load_full(gw + k * ROW) + g * load_full(window + (s + k) * ROW))
            for s in range(steps):
                t = p.L - 1 - first - s if p.reverse else first + s
                store(p.gx + 4 * ((b * p.L + t) * p.D + d0), width, _input_gradient(p, s, w, gpre), spare)
        for j in range(K - 1):  # row j of the state reached step s through weight j - s
            g = zero
            for s in range(j + 1):
                g = g + load_full(w + (j - s) * ROW) * load_full(gpre + s * ROW)
            store(p.gs0 + 4 * ((b * (K - 1) + j) * p.D + d0), width, g, spare)
    for k in range(K):
        store(p.gw + 4 * ((group * K + k) * p.D + d0), width, load_full(gw + k * ROW), spare)
    store(p.gbias + 4 * (group * p.D + d0), width, gbias, spare)


def conv_backward(params):
    run_tasks(_backward_task, params)
