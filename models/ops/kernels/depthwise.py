"""Compiled CPU kernels (float32) of the dense block's depthwise 3x3 convolution, which is dilated and causal in time.

Tensors are [B, T, F, C] in memory. A frame is a row of F * C floats, which is read in place: the next bin of a channel lies
C floats further on, and the weights repeat every C floats. Vectors are therefore full for every C that is a multiple of
PIECE. Only the ends of a row are copied into scratch, with zeros beside them, because the taps there reach beyond the row.
A row whose bins do not lie side by side is gathered into scratch first. The block's inputs, its sources, are read where
they are and never concatenated.

`rows_forward` also computes the gradient of the inputs, with the time and the taps in frequency reversed.
"""

from __future__ import annotations

from numba import njit

from models.ops.kernels.simd import (
    LANES,
    ROW,
    broadcast,
    copy_piece,
    f32,
    inlined,
    load_full,
    parameter_block,
    peek_int,
    run_tasks,
    store_full,
    zero_piece,
)  # fmt: skip

PIECE = 16  # floats that are copied at once
SEGMENT = 32  # frames of a task; the number of threads does not change it

# `table` has TABLE numbers for each source: the address of its frames and their strides in bytes (batch, frame, bin); the
# same for the frames before the first (address 0: zeros), and how many these are; the same for the result.
TABLE = 13

ROWS = parameter_block(
    *("counter", "worker", "work", "work_size", "tasks", "groups", "table", "S", "B", "T", "F", "C", "period"),
    *("vectors", "left", "right", "edge"),  # see row_geometry
    *("dilation", "reverse", "w", "gw"),  # w [9, S C]; gw [groups, S, 9, period]
)


def row_geometry(F: int, C: int) -> dict[str, int]:
    """Numbers of vectors: a row; before and up to the end of its inside, whose taps are all in it; scratch for its ends."""
    vectors = -(-F * C // LANES)
    left = min(vectors, -(-C // LANES))
    right = max(left, (F * C - C) // LANES)
    return {"vectors": vectors, "left": left, "right": right, "edge": left + vectors - right + 2 * -(-2 * C // LANES)}


def work_vectors(F: int, C: int, period: int) -> int:
    """Vectors of scratch that a thread needs: weights, three gathered rows, a row of zeros, a result, and the ends."""
    sizes = row_geometry(F, C)
    return 9 * period // LANES + 5 * sizes["vectors"] + 3 * sizes["edge"]


@inlined
def _zero(address, vectors):
    for v in range(vectors):
        store_full(address + v * ROW, broadcast(f32(0)))


@inlined
def _gather(p, address, stride, to):
    """Copies F bins, which lie `stride` bytes apart, to a row in which they lie side by side."""
    for _ in range(p.F):
        for c in range(0, 4 * p.C, 4 * PIECE):
            copy_piece(to + c, address + c)
        address += stride
        to += 4 * p.C


@inlined
def scatter(p, source, address, stride):
    for _ in range(p.F):
        for c in range(0, 4 * p.C, 4 * PIECE):
            copy_piece(address + c, source + c)
        address += stride
        source += 4 * p.C


@inlined
def row_of(p, entry, b, t, zeros, buffer):
    """The address of the row of frame t. Frames before the first come from the state, or are zeros without one."""
    if 0 <= t < p.T:
        at = peek_int(entry) + b * peek_int(entry + 8) + t * peek_int(entry + 16)
        stride = peek_int(entry + 24)
    elif t < 0 and peek_int(entry + 32):
        at = peek_int(entry + 32) + b * peek_int(entry + 40) + (peek_int(entry + 64) + t) * peek_int(entry + 48)
        stride = peek_int(entry + 56)
    else:
        return zeros
    if stride == 4 * p.C:
        return at
    _gather(p, at, stride, buffer)
    return buffer


@inlined
def _pad(p, row, first, end, to):
    """Copies the floats first ... end - 1 of a row, with zeros for those beyond its ends."""
    for i in range(first, end, PIECE):
        if 0 <= i < p.F * p.C:
            copy_piece(to, row + 4 * i)
        else:
            zero_piece(to)
        to += 4 * PIECE


@inlined
def _right_edge(p, edge):
    """The address that float 0 of the row would have if the scratch of its right end went on to the left."""
    return edge + (p.left + (2 * p.C + LANES - 1) // LANES) * ROW + 4 * p.C - p.right * ROW


@inlined
def pad_ends(p, row, edge):
    """Copies both ends of a row into the scratch `edge`, with zeros beside them."""
    _pad(p, row, -p.C, p.left * LANES + p.C, edge)
    _pad(p, row, p.right * LANES - p.C, p.vectors * LANES + p.C, _right_edge(p, edge) + p.right * ROW - 4 * p.C)


@inlined
def tile_weights(p, s, w):
    """w [9, period] of source s: the channels are repeated, and for the gradient the taps in frequency are reversed."""
    for tap in range(9):
        source = p.w + 4 * ((tap // 3 * 3 + (2 - tap % 3 if p.reverse else tap % 3)) * p.S * p.C + s * p.C)
        for i in range(0, p.period, PIECE):
            copy_piece(w + 4 * (tap * p.period + i), source + 4 * (i % p.C))


@inlined
def _convolve(p, w, first, end, oldest, middle, newest, out):
    """Computes the vectors first ... end - 1 of a row. The addresses are those of float 0 of each row."""
    bin_, tap = 4 * p.C, 4 * p.period
    at, wrap = w + first % (p.period // LANES) * ROW, w + tap
    for v in range(first, end):
        x = v * ROW
        y = load_full(at) * load_full(oldest + x - bin_)
        y = y + load_full(at + tap) * load_full(oldest + x)
        y = y + load_full(at + 2 * tap) * load_full(oldest + x + bin_)
        y = y + load_full(at + 3 * tap) * load_full(middle + x - bin_)
        y = y + load_full(at + 4 * tap) * load_full(middle + x)
        y = y + load_full(at + 5 * tap) * load_full(middle + x + bin_)
        y = y + load_full(at + 6 * tap) * load_full(newest + x - bin_)
        y = y + load_full(at + 7 * tap) * load_full(newest + x)
        y = y + load_full(at + 8 * tap) * load_full(newest + x + bin_)
        store_full(out + x, y)
        at += ROW
        if at == wrap:
            at = w


@inlined
def convolve_row(p, w, oldest, middle, newest, l, m, n, out):
    """A row of the result from the rows of three frames and the scratch with their ends."""
    _convolve(p, w, 0, p.left, l + 4 * p.C, m + 4 * p.C, n + 4 * p.C, out)
    _convolve(p, w, p.left, p.right, oldest, middle, newest, out)
    _convolve(p, w, p.right, p.vectors, _right_edge(p, l), _right_edge(p, m), _right_edge(p, n), out)


@njit
def _forward_task(p, task, work):
    segments = (p.T + SEGMENT - 1) // SEGMENT
    s, unit = task % p.S, task // p.S
    b, first = unit // segments, unit % segments * SEGMENT
    entry = p.table + 8 * TABLE * s
    size, edges = p.vectors * ROW, p.edge * ROW
    w = work
    buffers = w + 9 * 4 * p.period
    zeros, out = buffers + 3 * size, buffers + 4 * size
    pads = buffers + 5 * size
    tile_weights(p, s, w)
    _zero(zeros, p.vectors)
    end = min(p.T, first + SEGMENT)
    step = -p.dilation if p.reverse else p.dilation
    for phase in range(min(p.dilation, end - first)):
        i = first + phase  # steps in the order of reading: frame i, or T - 1 - i when reverse
        t = p.T - 1 - i if p.reverse else i
        oldest = row_of(p, entry, b, t - 2 * step, zeros, buffers)
        middle = row_of(p, entry, b, t - step, zeros, buffers + size)
        pad_ends(p, oldest, pads)
        pad_ends(p, middle, pads + edges)
        turn = 0
        while i < end:
            last = (turn + 2) % 3
            newest = row_of(p, entry, b, t, zeros, buffers + last * size)
            pad_ends(p, newest, pads + last * edges)
            l, m, n = pads + turn * edges, pads + (turn + 1) % 3 * edges, pads + last * edges
            convolve_row(p, w, oldest, middle, newest, l, m, n, out)
            to = peek_int(entry + 72) + b * peek_int(entry + 80) + t * peek_int(entry + 88)
            scatter(p, out, to, peek_int(entry + 96))
            oldest, middle = middle, newest
            turn = (turn + 1) % 3
            i += p.dilation
            t += step


def rows_forward(params):
    run_tasks(_forward_task, params)


@inlined
def _correlate(p, gw, first, end, row, g):
    """Adds to gw [3, period], the weights of one frame in time, the sum over bins of g times the input at each tap."""
    bin_, tap, turn = 4 * p.C, 4 * p.period, p.period // LANES
    for j in range(turn):
        at = gw + j * ROW
        a, b, c = load_full(at), load_full(at + tap), load_full(at + 2 * tap)
        for v in range(first + (j - first) % turn, end, turn):
            x = row + v * ROW
            y = load_full(g + v * ROW)
            a = a + y * load_full(x - bin_)
            b = b + y * load_full(x)
            c = c + y * load_full(x + bin_)
        store_full(at, a)
        store_full(at + tap, b)
        store_full(at + 2 * tap, c)


@inlined
def _correlate_row(p, gw, row, pad, g):
    _correlate(p, gw, 0, p.left, pad + 4 * p.C, g)
    _correlate(p, gw, p.left, p.right, row, g)
    _correlate(p, gw, p.right, p.vectors, _right_edge(p, pad), g)


@njit
def _weight_segment(p, s, b, first, gw, work):
    entry = p.table + 8 * TABLE * s
    size, edges = p.vectors * ROW, p.edge * ROW
    zeros, g = work + 3 * size, work + 4 * size
    pads = work + 5 * size
    _zero(zeros, p.vectors)
    _zero(g, p.vectors)
    end = min(p.T, first + SEGMENT)
    for phase in range(min(p.dilation, end - first)):
        t = first + phase
        oldest = row_of(p, entry, b, t - 2 * p.dilation, zeros, work)
        middle = row_of(p, entry, b, t - p.dilation, zeros, work + size)
        pad_ends(p, oldest, pads)
        pad_ends(p, middle, pads + edges)
        turn = 0
        while t < end:
            last = (turn + 2) % 3
            newest = row_of(p, entry, b, t, zeros, work + last * size)
            pad_ends(p, newest, pads + last * edges)
            at = peek_int(entry + 72) + b * peek_int(entry + 80) + t * peek_int(entry + 88)
            _gather(p, at, peek_int(entry + 96), g)
            _correlate_row(p, gw, oldest, pads + turn * edges, g)
            _correlate_row(p, gw + 12 * p.period, middle, pads + (turn + 1) % 3 * edges, g)
            _correlate_row(p, gw + 24 * p.period, newest, pads + last * edges, g)
            oldest, middle = middle, newest
            turn = (turn + 1) % 3
            t += p.dilation


@njit
def _weight_task(p, task, work):
    segments = (p.T + SEGMENT - 1) // SEGMENT
    units, group, s = p.B * segments, task // p.S, task % p.S
    gw = p.gw + 4 * 9 * p.period * task
    _zero(gw, 9 * p.period // LANES)
    for unit in range(group * units // p.groups, (group + 1) * units // p.groups):
        _weight_segment(p, s, unit // segments, unit % segments * SEGMENT, gw, work)


def rows_weight_gradient(params):
    """gw from the sources and from the gradient of the result; `table` has its address in place of the result's."""
    run_tasks(_weight_task, params)
