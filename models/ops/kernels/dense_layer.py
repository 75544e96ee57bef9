"""Compiled CPU kernel (float32) of a layer of the light dense block: depthwise and pointwise convolution, norm, PReLU.

It has no gradient. The depthwise result of one frame, with all sources side by side, stays in the second-level cache. Four
of its bins at a time go through the pointwise product and the norm over channels in registers.
models/ops/kernels/depthwise.py says how rows are read.
"""

from __future__ import annotations

from numba import njit

from models.ops.kernels.depthwise import SEGMENT, TABLE, convolve_row, pad_ends, row_of, scatter, tile_weights
from models.ops.kernels.mamba_layer import products
from models.ops.kernels.simd import (
    LANES,
    ROW,
    broadcast,
    f32,
    inlined,
    load_full,
    parameter_block,
    peek,
    positive,
    root,
    run_tasks,
    store,
    store_full,
    total,
)  # fmt: skip

BINS = 4  # bins for which a weight is loaded once

DENSE = parameter_block(
    *("counter", "worker", "work", "work_size", "tasks", "table", "S", "B", "T", "F", "C", "period"),
    *("vectors", "left", "right", "edge", "wide", "c_vectors"),  # see row_geometry; wide: vectors of a frame of S C channels
    *("dilation", "reverse", "w", "y", "y_b", "y_t"),  # w [9, S C]; y [B, T, F, C]
    *("w_point", "b_point", "scale", "shift", "slope", "inside", "eps"),  # w_point [S C, C]; inside: 1 in the first C lanes
)


def dense_work_rows(sizes: dict[str, int], S: int, period: int, c_vectors: int, wide: int) -> int:
    """Vectors of scratch that a thread needs."""
    return S * 9 * period // LANES + 5 * sizes["vectors"] + 3 * sizes["edge"] + wide + BINS * c_vectors + 1


@inlined
def _frame(p, b, t, w, buffers, frame):
    """The depthwise result of frame t, [F, S C] floats."""
    size, edges = p.vectors * ROW, p.edge * ROW
    zeros, out, pads = buffers + 3 * size, buffers + 4 * size, buffers + 5 * size
    for s in range(p.S):
        entry = p.table + 8 * TABLE * s
        oldest = row_of(p, entry, b, t - 2 * p.dilation, zeros, buffers)
        middle = row_of(p, entry, b, t - p.dilation, zeros, buffers + size)
        newest = row_of(p, entry, b, t, zeros, buffers + 2 * size)
        pad_ends(p, oldest, pads)
        pad_ends(p, middle, pads + edges)
        pad_ends(p, newest, pads + 2 * edges)
        convolve_row(p, w + 4 * 9 * p.period * s, oldest, middle, newest, pads, pads + edges, pads + 2 * edges, out)
        scatter(p, out, frame + 4 * p.C * s, 4 * p.C * p.S)


@inlined
def _normalise(p, x, to, spare):
    """LayerNorm over the C channels at x, then PReLU; the result goes to `to` [C]."""
    whole = broadcast(f32(0))
    for j in range(p.c_vectors):
        whole = whole + load_full(x + j * ROW) + load_full(p.b_point + j * ROW)
    mean = total(whole) / f32(p.C)
    squares = broadcast(f32(0))
    for j in range(p.c_vectors):
        v = (load_full(x + j * ROW) + load_full(p.b_point + j * ROW) - mean) * load_full(p.inside + j * ROW)
        squares = squares + v * v
        store_full(x + j * ROW, v)
    factor = f32(1) / root(total(squares) / f32(p.C) + peek(p.eps))
    for j in range(p.c_vectors):
        v = load_full(x + j * ROW) * factor * load_full(p.scale + j * ROW) + load_full(p.shift + j * ROW)
        above = positive(v)
        store(to + j * ROW, min(LANES, p.C - j * LANES), above + (v - above) * load_full(p.slope + j * ROW), spare)


@inlined
def _mix(p, frame, y, mixed, spare):
    """Pointwise product, norm and PReLU of the bins of a frame; y is the address of its row in the result."""
    wide, row = 4 * p.S * p.C, p.c_vectors * ROW
    for f in range(0, p.F, BINS):
        last = p.F - 1
        first, second = frame + f * wide, frame + min(f + 1, last) * wide
        third, fourth = frame + min(f + 2, last) * wide, frame + min(f + 3, last) * wide
        for j in range(p.c_vectors):
            products(first, second, third, fourth, p.S * p.C, p.w_point + j * ROW, row, mixed + j * ROW, row)
        for g in range(min(BINS, p.F - f)):
            _normalise(p, mixed + g * row, y + 4 * p.C * (f + g), spare)


@njit
def _segment(p, task, work):
    segments = (p.T + SEGMENT - 1) // SEGMENT
    b, first = task // segments, task % segments * SEGMENT
    w, buffers = work, work + p.S * 9 * 4 * p.period
    zeros = buffers + 3 * p.vectors * ROW
    frame = buffers + (5 * p.vectors + 3 * p.edge) * ROW
    mixed = frame + p.wide * ROW
    spare = mixed + BINS * p.c_vectors * ROW
    for s in range(p.S):
        tile_weights(p, s, w + 4 * 9 * p.period * s)
    for v in range(p.vectors):
        store_full(zeros + v * ROW, broadcast(f32(0)))
    for t in range(first, min(p.T, first + SEGMENT)):
        _frame(p, b, t, w, buffers, frame)
        _mix(p, frame, p.y + b * p.y_b + t * p.y_t, mixed, spare)


def dense_forward(params):
    run_tasks(_segment, params)
