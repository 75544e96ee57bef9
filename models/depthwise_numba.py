"""Compiled CPU kernels (float32) of the dense block's depthwise 3x3 convolution, dilated and causal in time.

Tensors are [B, T, F, C] in memory. A row of one frame, F * C floats, is read as it lies: a tap in frequency is the same row
C floats further on, and the weights repeat every C floats. So vectors are full whatever C is, as long as it is a multiple of
PIECE. Rows are copied once into scratch with a bin of zeros on either side; three of them, one dilation apart, make a
frame. The block's inputs are read where they are, one after the other, instead of being concatenated first.

`rows_forward` also gives the gradient of the inputs: time reversed, taps in frequency reversed.
"""

from __future__ import annotations

from numba import carray, njit

from models.lanes import (
    LANES,
    ROW,
    broadcast,
    copy_piece,
    f32,
    inlined,
    load_full,
    parameter_block,
    peek_int,
    store_full,
    take,
)  # fmt: skip

PIECE = 16  # floats that are moved at once
SEGMENT = 32  # frames a task takes on: independent of the number of threads

# Per source, in `table`: address and strides in bytes of its rows (batch, frame, bin); the same of the frames before its
# first (0: zeros) and how many there are; then of where the result goes.
TABLE = 13

ROWS = parameter_block(
    *("counter", "worker", "work", "work_size", "tasks", "groups", "table", "S", "B", "T", "F", "C", "row", "period"),
    *("dilation", "reverse", "w", "gw"),  # w [S, 9, period]; gw [groups, S, 9, period]
)


def padded_row_vectors(F: int, C: int) -> int:
    """Vectors of LANES floats that a frame takes in scratch, with a bin on either side; a thread needs four such rows."""
    whole = -(-F * C // LANES) * LANES
    return -(-(whole + 2 * C) // LANES)


@inlined
def _zero(address, vectors):
    for v in range(vectors):
        store_full(address + v * ROW, broadcast(f32(0)))


@inlined
def _gather(p, address, stride, to):
    """A row of F bins, `stride` bytes apart, side by side."""
    for _ in range(p.F):
        for c in range(0, 4 * p.C, 4 * PIECE):
            copy_piece(to + c, address + c)
        address += stride
        to += 4 * p.C


@inlined
def _scatter(p, source, address, stride):
    for _ in range(p.F):
        for c in range(0, 4 * p.C, 4 * PIECE):
            copy_piece(address + c, source + c)
        address += stride
        source += 4 * p.C


@inlined
def _load_row(p, entry, b, t, row):
    """Frame t of a source into a padded row; those before the first come from the state or are zero."""
    inside = row + 4 * p.C
    if 0 <= t < p.T:
        _gather(p, peek_int(entry) + b * peek_int(entry + 8) + t * peek_int(entry + 16), peek_int(entry + 24), inside)
    elif t < 0 and peek_int(entry + 32):
        at = peek_int(entry + 32) + b * peek_int(entry + 40) + (peek_int(entry + 64) + t) * peek_int(entry + 48)
        _gather(p, at, peek_int(entry + 56), inside)
    else:
        _zero(row, p.row)


@inlined
def _convolve_rows(p, w, oldest, middle, newest, out):
    vectors = (p.F * p.C + LANES - 1) // LANES
    bin_ = 4 * p.C
    for j in range(p.period // LANES):
        at = w + j * ROW
        next_tap = 4 * p.period
        for v in range(j, vectors, p.period // LANES):
            x = v * ROW
            y = load_full(at) * load_full(oldest + x)
            y = y + load_full(at + next_tap) * load_full(oldest + x + bin_)
            y = y + load_full(at + 2 * next_tap) * load_full(oldest + x + 2 * bin_)
            y = y + load_full(at + 3 * next_tap) * load_full(middle + x)
            y = y + load_full(at + 4 * next_tap) * load_full(middle + x + bin_)
            y = y + load_full(at + 5 * next_tap) * load_full(middle + x + 2 * bin_)
            y = y + load_full(at + 6 * next_tap) * load_full(newest + x)
            y = y + load_full(at + 7 * next_tap) * load_full(newest + x + bin_)
            y = y + load_full(at + 8 * next_tap) * load_full(newest + x + 2 * bin_)
            store_full(out + x, y)


@njit
def _forward_task(p, s, b, first, work):
    size = p.row * ROW
    entry = p.table + 8 * TABLE * s
    out = work + 3 * size
    w = p.w + 4 * 9 * p.period * s
    _zero(work, 3 * p.row)
    end = min(p.T, first + SEGMENT)
    for phase in range(min(p.dilation, end - first)):
        i = first + phase  # in reading order: frame i, or T - 1 - i when reverse
        step = -p.dilation if p.reverse else p.dilation
        t = p.T - 1 - i if p.reverse else i
        _load_row(p, entry, b, t - 2 * step, work)
        _load_row(p, entry, b, t - step, work + size)
        turn = 0
        while i < end:
            oldest, middle, newest = work + turn * size, work + (turn + 1) % 3 * size, work + (turn + 2) % 3 * size
            _load_row(p, entry, b, t, newest)
            _convolve_rows(p, w, oldest, middle, newest, out)
            to = peek_int(entry + 72) + b * peek_int(entry + 80) + t * peek_int(entry + 88)
            _scatter(p, out, to, peek_int(entry + 96))
            turn = (turn + 1) % 3
            i += p.dilation
            t += step


def rows_forward(params):
    p = carray(params, 1)[0]
    segments = (p.T + SEGMENT - 1) // SEGMENT
    work = p.work + take(p.worker) * p.work_size
    while True:
        task = take(p.counter)
        if task >= p.tasks:
            break
        unit = task // p.S
        _forward_task(p, task % p.S, unit // segments, unit % segments * SEGMENT, work)


@inlined
def _correlate_rows(p, gw, row, g):
    """gw [3, period] of one frame of the window += sum over bins of g times the input at each of the three taps."""
    vectors = (p.F * p.C + LANES - 1) // LANES
    bin_ = 4 * p.C
    for j in range(p.period // LANES):
        left, centre, right = gw + j * ROW, gw + j * ROW + 4 * p.period, gw + j * ROW + 8 * p.period
        a, b, c = load_full(left), load_full(centre), load_full(right)
        for v in range(j, vectors, p.period // LANES):
            x = row + v * ROW
            y = load_full(g + v * ROW)
            a = a + y * load_full(x)
            b = b + y * load_full(x + bin_)
            c = c + y * load_full(x + 2 * bin_)
        store_full(left, a)
        store_full(centre, b)
        store_full(right, c)


@njit
def _weight_task(p, s, b, first, gw, work):
    size = p.row * ROW
    entry = p.table + 8 * TABLE * s
    g = work + 3 * size
    _zero(work, 4 * p.row)
    end = min(p.T, first + SEGMENT)
    for phase in range(min(p.dilation, end - first)):
        t = first + phase
        _load_row(p, entry, b, t - 2 * p.dilation, work)
        _load_row(p, entry, b, t - p.dilation, work + size)
        turn = 0
        while t < end:
            oldest, middle, newest = work + turn * size, work + (turn + 1) % 3 * size, work + (turn + 2) % 3 * size
            _load_row(p, entry, b, t, newest)
            at = peek_int(entry + 72) + b * peek_int(entry + 80) + t * peek_int(entry + 88)
            _gather(p, at, peek_int(entry + 96), g)
            _correlate_rows(p, gw, oldest, g)
            _correlate_rows(p, gw + 12 * p.period, middle, g)
            _correlate_rows(p, gw + 24 * p.period, newest, g)
            turn = (turn + 1) % 3
            t += p.dilation


def rows_weight_gradient(params):
    """gw from the sources and, where the forward kernel has its result, the gradient of that."""
    p = carray(params, 1)[0]
    segments = (p.T + SEGMENT - 1) // SEGMENT
    units = p.B * segments
    work = p.work + take(p.worker) * p.work_size
    while True:
        task = take(p.counter)
        if task >= p.tasks:
            break
        group, s = task // p.S, task % p.S
        gw = p.gw + 4 * 9 * p.period * task
        _zero(gw, 9 * p.period // LANES)
        for unit in range(group * units // p.groups, (group + 1) * units // p.groups):
            _weight_task(p, s, unit // segments, unit % segments * SEGMENT, gw, work)
