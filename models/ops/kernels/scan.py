"""Compiled CPU kernels (float32) of the selective scan, forward and backward.

A task computes LANES neighbouring channels of a sequence. The values of a step then stay in vector registers, and a batch of
one sequence has several tasks for several threads. Each task writes its part of a sum over the batch to a place of its own,
and the parts are added afterwards in a fixed order. The results therefore do not depend on the number of threads.

A tensor is given by its address and its strides in bytes (the last axis is contiguous), so a slice of a wider projection is
not copied. Address 0 stands for no tensor. States are [B, N, D]: the channels lie side by side. Steps i are counted in the
order of reading: t = i, or L-1-i when reverse. `work` is a thread's own scratch.
"""

from __future__ import annotations

from numba import njit

from models.ops.kernels.simd import (
    LANES,
    LOG2E,
    ROW,
    block_of,
    broadcast,
    exp2,
    f32,
    inlined,
    load,
    load_full,
    parameter_block,
    peek,
    poke,
    prefetch,
    run_tasks,
    sigmoid,
    softplus,
    store,
    store_full,
    total,
)  # fmt: skip

AHEAD = 8  # steps between the prefetch of a row and its use; the rows lie too far apart for the processor's own prefetching

SCAN = parameter_block(
    *("counter", "worker", "work", "work_size", "tasks", "groups", "chunk", "B", "L", "D", "N", "softplus", "reverse"),
    *("u", "u_b", "u_t", "delta", "delta_b", "delta_t", "z", "z_b", "z_t", "b", "b_b", "b_t", "c", "c_b", "c_t"),
    *("a", "skip", "bias", "h0", "y", "last", "chunks"),  # a [N, D]; skip, bias [D]; chunks [B, ceil(L/chunk), N, D]
    *("gy", "gy_b", "gy_t", "glast", "gu", "gdelta", "gz", "ga", "gb", "gc", "gskip", "gbias", "gh0"),
)


def scan_work_rows(N: int, chunk: int, backward: bool) -> int:
    """Vectors of scratch that a thread needs."""
    return 1 + 3 * N + (2 * chunk + 1) * N + 4 * chunk if backward else 1 + 2 * N


@inlined
def _load_step(p, b, t, d0, width, bias, spare):
    """A step's inputs u and step sizes dt = softplus(delta + bias)."""
    u_row = p.u + b * p.u_b + t * p.u_t + 4 * d0
    delta_row = p.delta + b * p.delta_b + t * p.delta_t + 4 * d0
    ahead = -AHEAD if p.reverse else AHEAD
    prefetch(u_row + ahead * p.u_t)
    prefetch(delta_row + ahead * p.delta_t)
    dt = load(delta_row, width, spare) + bias
    if p.softplus:
        dt = softplus(dt)
    return load(u_row, width, spare), dt


@inlined
def _vector_of(address, d0, width, spare):
    """A task's channels of a parameter [D], or zeros if the address is 0."""
    return load(address + 4 * d0 if address else 0, width, spare)


@inlined
def _load_states(address, row, p, d0, width, scale, out, spare):
    """Copies a task's channels [N, LANES] of a row of a tensor [*, N, D], times scale; zeros if the address is 0."""
    for n in range(p.N):
        x = load(address + 4 * ((row * p.N + n) * p.D + d0) if address else 0, width, spare)
        store_full(out + n * ROW, x * scale)


@inlined
def _store_states(address, row, p, d0, width, states, spare):
    for n in range(p.N):
        store(address + 4 * ((row * p.N + n) * p.D + d0), width, load_full(states + n * ROW), spare)


@njit
def _forward_task(p, task, work):
    b, d0 = block_of(p, task)
    width = min(LANES, p.D - d0)
    spare, a, h = work, work + ROW, work + (1 + p.N) * ROW
    bias, skip = _vector_of(p.bias, d0, width, spare), _vector_of(p.skip, d0, width, spare)
    _load_states(p.a, 0, p, d0, width, LOG2E, a, spare)
    _load_states(p.h0, b, p, d0, width, f32(1), h, spare)
    n_chunks = (p.L + p.chunk - 1) // p.chunk
    for i in range(p.L):
        t = p.L - 1 - i if p.reverse else i
        if p.chunks and i % p.chunk == 0:
            _store_states(p.chunks, b * n_chunks + i // p.chunk, p, d0, width, h, spare)
        u, dt = _load_step(p, b, t, d0, width, bias, spare)
        b_row = p.b + b * p.b_b + t * p.b_t
        c_row = p.c + b * p.c_b + t * p.c_t
        y = u * skip
        du = u * dt
        for n in range(p.N):
            state = exp2(load_full(a + n * ROW) * dt) * load_full(h + n * ROW) + du * peek(b_row + 4 * n)
            store_full(h + n * ROW, state)
            y = y + state * peek(c_row + 4 * n)
        if p.z:
            z_row = p.z + b * p.z_b + t * p.z_t + 4 * d0
            prefetch(z_row + (-AHEAD if p.reverse else AHEAD) * p.z_t)
            z = load(z_row, width, spare)
            y = y * z * sigmoid(z)
        store(p.y + 4 * ((b * p.L + t) * p.D + d0), width, y, spare)
    _store_states(p.last, b, p, d0, width, h, spare)


def scan_forward(params):
    run_tasks(_forward_task, params)


@inlined
def _recompute(p, b, d0, width, first, steps, bias, skip, a, states, decays, us, dts, ys, spare):
    """Computes a chunk again from states[0]: states[s + 1] after step s, its decays, u, dt, and y before the gate."""
    for s in range(steps):
        t = p.L - 1 - first - s if p.reverse else first + s
        u, dt = _load_step(p, b, t, d0, width, bias, spare)
        store_full(us + s * ROW, u)
        store_full(dts + s * ROW, dt)
        b_row = p.b + b * p.b_b + t * p.b_t
        c_row = p.c + b * p.c_b + t * p.c_t
        y = u * skip
        du = u * dt
        for n in range(p.N):
            at = (s * p.N + n) * ROW
            decay = exp2(load_full(a + n * ROW) * LOG2E * dt)
            state = decay * load_full(states + at) + du * peek(b_row + 4 * n)
            store_full(decays + at, decay)
            store_full(states + at + p.N * ROW, state)
            y = y + state * peek(c_row + 4 * n)
        store_full(ys + s * ROW, y)


@inlined
def _gate_backward(p, b, t, d0, width, y, gy, spare):
    """The gradient of y from gy, that of y * silu(z); writes the gradient of z."""
    z = load(p.z + b * p.z_b + t * p.z_t + 4 * d0, width, spare)
    gate = sigmoid(z)
    gz = gy * y * gate * (z * (f32(1) - gate) + f32(1))
    store(p.gz + 4 * ((b * p.L + t) * p.D + d0), width, gz, spare)
    return gy * z * gate


@inlined
def _reverse_states(p, b, t, d0, s, gy, u, dt, a, states, decays, g, ga):
    """One step back through the states; returns dLoss/d(u dt) and the part of dLoss/d dt that comes from the decays.

    g is the gradient of the state after this step that comes from the later steps. It is replaced by the gradient of the
    state before this step.
    """
    du = u * dt
    gdu, gdt = broadcast(f32(0)), broadcast(f32(0))
    b_row = p.b + b * p.b_b + t * p.b_t
    c_row = p.c + b * p.c_b + t * p.c_t
    out = 4 * (((d0 // LANES * p.B + b) * p.L + t) * p.N)
    for n in range(p.N):
        at = (s * p.N + n) * ROW
        gh = load_full(g + n * ROW) + gy * peek(c_row + 4 * n)
        poke(p.gc + out + 4 * n, total(gy * load_full(states + at + p.N * ROW)))
        poke(p.gb + out + 4 * n, total(gh * du))
        gdu = gdu + gh * peek(b_row + 4 * n)
        gh = gh * load_full(decays + at)
        store_full(g + n * ROW, gh)
        w = gh * load_full(states + at)  # dLoss/d(dt * A)
        gdt = gdt + w * load_full(a + n * ROW)
        store_full(ga + n * ROW, load_full(ga + n * ROW) + w * dt)
    return gdu, gdt


@njit
def _backward_task(p, task, work):
    group, d0 = block_of(p, task)
    width = min(LANES, p.D - d0)
    spare, a, g, ga = work, work + ROW, work + (1 + p.N) * ROW, work + (1 + 2 * p.N) * ROW
    states = ga + p.N * ROW
    decays = states + (p.chunk + 1) * p.N * ROW
    us = decays + p.chunk * p.N * ROW
    dts, ys = us + p.chunk * ROW, us + 2 * p.chunk * ROW
    bias, skip = _vector_of(p.bias, d0, width, spare), _vector_of(p.skip, d0, width, spare)
    gskip, gbias = broadcast(f32(0)), broadcast(f32(0))
    _load_states(p.a, 0, p, d0, width, f32(1), a, spare)
    _load_states(0, 0, p, d0, width, f32(1), ga, spare)
    n_chunks = (p.L + p.chunk - 1) // p.chunk
    for b in range(group * p.B // p.groups, (group + 1) * p.B // p.groups):
        _load_states(p.glast, b, p, d0, width, f32(1), g, spare)
        for k in range(n_chunks - 1, -1, -1):
            first = k * p.chunk
            steps = min(p.chunk, p.L - first)
            _load_states(p.chunks, b * n_chunks + k, p, d0, width, f32(1), states, spare)
            _recompute(p, b, d0, width, first, steps, bias, skip, a, states, decays, us, dts, ys, spare)
            for s in range(steps - 1, -1, -1):
                t = p.L - 1 - first - s if p.reverse else first + s
                u, dt = load_full(us + s * ROW), load_full(dts + s * ROW)
                gy = load(p.gy + b * p.gy_b + t * p.gy_t + 4 * d0, width, spare)
                if p.z:
                    gy = _gate_backward(p, b, t, d0, width, load_full(ys + s * ROW), gy, spare)
                gdu, gdt = _reverse_states(p, b, t, d0, s, gy, u, dt, a, states, decays, g, ga)
                gdt = gdt + gdu * u
                if p.softplus:
                    x = load(p.delta + b * p.delta_b + t * p.delta_t + 4 * d0, width, spare) + bias
                    gdt = gdt * sigmoid(x)
                gskip = gskip + gy * u
                gbias = gbias + gdt
                out = 4 * ((b * p.L + t) * p.D + d0)
                store(p.gu + out, width, gy * skip + gdu * dt, spare)
                store(p.gdelta + out, width, gdt, spare)
        if p.gh0:
            _store_states(p.gh0, b, p, d0, width, g, spare)
    _store_states(p.ga, group, p, d0, width, ga, spare)
    store(p.gskip + 4 * (group * p.D + d0), width, gskip, spare)
    store(p.gbias + 4 * (group * p.D + d0), width, gbias, spare)


def scan_backward(params):
    run_tasks(_backward_task, params)
