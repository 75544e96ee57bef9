"""Depthwise 3x3 convolution, dilated and causal in time, over a list of channel-last tensors (the sources).

It computes `F.conv2d(torch.cat(sources), groups=channels)` without joining the sources and without a padded copy. On a CPU
these two copies and oneDNN's gradient of a dilated depthwise convolution take most of the time of a light dense block.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.ops.backend import resolve_backend
from models.ops.operators import LIBRARY, operator
from models.ops.packed_weights import padded

PIECE = 16  # of models/ops/kernels/depthwise.py, which is imported only where it is used
_GROUPS = 16  # partial sums of the weights' gradient for any number of threads, so that each machine gives the same bits


def compiled_for(x: Tensor, channels: int) -> bool:
    """Whether `depthwise_rows` takes a tensor like x with so many channels a source."""
    return (
        channels % PIECE == 0 and x.dtype == torch.float32 and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu") and resolve_backend(x.device) == "numba"
    )


@functools.cache
def _kernel(name: str):
    from models.ops.kernels import dense_layer as dense_numba
    from models.ops.kernels import depthwise as depthwise_numba
    from models.ops.kernels.simd import compiled

    module, layout = (dense_numba, dense_numba.DENSE) if name == "dense_forward" else (depthwise_numba, depthwise_numba.ROWS)
    return compiled(getattr(module, name), layout), layout.names


def _rows(x: Tensor) -> Tensor:
    """[B, T, F, C] with contiguous channels."""
    return x if x.stride(3) == 1 else x.contiguous()


def _fields(x: Tensor) -> tuple[int, int, int, int]:
    return x.data_ptr(), *(4 * stride for stride in x.stride()[:3])


def _entry(source: Tensor, before: Tensor | None) -> tuple[int, ...]:
    """The first fields of a source's entry in a kernel's table; the fields for the result follow."""
    past = (*_fields(before), before.shape[1]) if before is not None else (0, 0, 0, 0, 0)
    return *_fields(source), *past


def _launch(
    name: str, entries: Sequence[tuple[int, ...]], like: Tensor, dilation: int, reverse: bool, tasks: int, groups: int,
    w: Tensor | None, gw: Tensor | None,
) -> None:  # fmt: skip
    from models.ops.kernels.depthwise import row_geometry, work_vectors
    from models.ops.kernels.simd import LANES
    from models.ops.kernels.threads import launch

    B, T, F, C = like.shape
    S, period = len(entries), _period(C)
    table = array("q", [number for entry in entries for number in entry])
    kernel, names = _kernel(name)
    fields = {
        **row_geometry(F, C), "table": table.buffer_info()[0], "S": S, "B": B, "T": T, "F": F, "C": C, "period": period,
        "groups": groups, "dilation": dilation, "reverse": reverse, "w": w.data_ptr() if w is not None else 0,
        "gw": gw.data_ptr() if gw is not None else 0,
    }  # fmt: skip
    launch(kernel, names, fields, tasks, work_vectors(F, C, period) * LANES, 9 * S * B * T * F * C)


def _period(C: int) -> int:
    from models.ops.kernels.simd import LANES

    return math.lcm(C, LANES)


def _by_tap(weight: Tensor) -> Tensor:
    """[S C, 3, 3] -> [9, S C]."""
    return weight.flatten(1).t().contiguous()


def pack_layer(
    depthwise: Tensor, pointwise: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, slope: Tensor
) -> list[Tensor]:
    """Weights of a layer of the light dense block as `dense_forward` wants them; depthwise [S C, 1, 3, 3]."""
    return [_by_tap(depthwise.flatten(0, 1)), padded(pointwise.flatten(1).t()), padded(bias), padded(scale), padded(shift),
            padded(slope), padded(torch.ones_like(bias))]  # fmt: skip


@operator("dense_forward")
def dense_forward(
    sources: list[Tensor], before: list[Tensor], packed: list[Tensor], dilation: int, eps: float
) -> Tensor:
    """PReLU(LayerNorm(pointwise(depthwise(sources side by side)))): sources, before as `depthwise_forward` -> [B, T, F, C]."""
    from models.ops.kernels import dense_layer as dense_numba
    from models.ops.kernels.depthwise import SEGMENT, row_geometry
    from models.ops.kernels.simd import LANES
    from models.ops.kernels.threads import launch, threads

    threads.settle()
    sources, before = [_rows(x) for x in sources], [_rows(x) for x in before]
    (B, T, F, C), S = sources[0].shape, len(sources)
    y, small = sources[0].new_empty(B, T, F, C), torch.tensor([eps])
    entries = [(*_entry(x, before[i] if before else None), 0, 0, 0, 0) for i, x in enumerate(sources)]
    table = array("q", [number for entry in entries for number in entry])
    sizes, period = row_geometry(F, C), _period(C)
    wide, c_vectors = -(-F * S * C // LANES), packed[1].shape[1] // LANES
    names = ("w", "w_point", "b_point", "scale", "shift", "slope", "inside")
    fields = dict(zip(names, (w.data_ptr() for w in packed), strict=True)) | sizes | {
        "table": table.buffer_info()[0], "S": S, "B": B, "T": T, "F": F, "C": C, "period": period, "wide": wide,
        "c_vectors": c_vectors, "dilation": dilation, "y": y.data_ptr(), "y_b": 4 * y.stride(0), "y_t": 4 * y.stride(1),
        "eps": small.data_ptr(),
    }  # fmt: skip
    rows = dense_numba.dense_work_rows(sizes, S, period, c_vectors, wide)
    kernel, names = _kernel("dense_forward")
    launch(kernel, names, fields, B * -(-T // SEGMENT), rows * LANES, B * T * F * S * C * (9 + C))
    return y


@torch.library.register_fake(dense_forward, lib=LIBRARY)
def _(sources, before, packed, dilation, eps):
    return sources[0].new_empty(sources[0].shape)


def _units(B: int, T: int) -> int:
    from models.ops.kernels.depthwise import SEGMENT

    return B * -(-T // SEGMENT)


@operator("depthwise_forward")
def depthwise_forward(sources: list[Tensor], before: list[Tensor], weight: Tensor, dilation: int) -> Tensor:
    """sources, S of [B, T, F, C]; before, S of [B, R >= 2 dilation, F, C] or none; weight [S C, 3, 3] -> [B, T, F, S C]."""
    from models.ops.kernels.threads import threads

    threads.settle()
    sources, before = [_rows(x) for x in sources], [_rows(x) for x in before]
    (B, T, F, C), S = sources[0].shape, len(sources)
    y = sources[0].new_empty(B, T, F, S * C)
    results = y.split(C, dim=3)
    entries = [(*_entry(x, before[i] if before else None), *_fields(results[i])) for i, x in enumerate(sources)]
    _launch("rows_forward", entries, sources[0], dilation, False, S * _units(B, T), 0, _by_tap(weight), None)
    return y


@torch.library.register_fake(depthwise_forward, lib=LIBRARY)
def _(sources, before, weight, dilation):
    B, T, F, C = sources[0].shape
    return sources[0].new_empty(B, T, F, len(sources) * C)


@operator("depthwise_backward")
def depthwise_backward(gy: Tensor, sources: list[Tensor], weight: Tensor, dilation: int) -> list[Tensor]:
    """Gradients of the sources (no frames before them), then of the weight."""
    from models.ops.kernels.threads import threads

    threads.settle()
    gy, sources = _rows(gy), [_rows(x) for x in sources]
    (B, T, F, C), S = sources[0].shape, len(sources)
    units, period = _units(B, T), _period(C)
    gradients = gy.split(C, dim=3)
    gx = [x.new_empty(B, T, F, C) for x in sources]
    entries = [(*_entry(g, None), *_fields(x)) for g, x in zip(gradients, gx, strict=True)]
    _launch("rows_forward", entries, sources[0], dilation, True, S * units, 0, _by_tap(weight), None)
    groups = min(_GROUPS, units)
    gw = gy.new_empty(groups, S, 9, period)
    entries = [(*_entry(x, None), *_fields(g)) for x, g in zip(sources, gradients, strict=True)]
    _launch("rows_weight_gradient", entries, sources[0], dilation, False, S * groups, groups, None, gw)
    gw = gw.sum(0).reshape(S, 9, period // C, C).sum(2).transpose(1, 2)  # [S, C, 9]
    return [*gx, gw.reshape(S * C, 3, 3)]


@torch.library.register_fake(depthwise_backward, lib=LIBRARY)
def _(gy, sources, weight, dilation):
    return [*(x.new_empty(x.shape) for x in sources), weight.new_empty(weight.shape)]


def _save(ctx, inputs, output) -> None:
    sources, before, weight, ctx.dilation = inputs
    assert not before, "a convolution that is differentiated starts at its first frame"
    ctx.save_for_backward(*sources, weight)


def _gradient(ctx, gy):
    *sources, weight = ctx.saved_tensors
    *gx, gw = depthwise_backward(gy, sources, weight, ctx.dilation)
    return gx, [], gw, None


torch.library.register_autograd(depthwise_forward, _gradient, setup_context=_save, lib=LIBRARY)


def depthwise_rows(
    sources: Sequence[Tensor], before: Sequence[Tensor] | None, weight: Tensor, dilation: int
) -> Tensor:
    """Causal depthwise 3x3 convolution of all sources side by side, in time dilated, in frequency padded by a bin of zeros.

    sources: S tensors [B, T, F, C]; before: their frames before the first, S of [B, R >= 2 dilation, F, C], or None for
    zeros; weight [S C, 1, 3, 3], the sources' channels one after the other -> [B, T, F, S C]. float32 on a CPU, C a
    multiple of 16 (see `compiled_for`).
    """
    weight = weight.flatten(0, 1)
    if before is None:
        return depthwise_forward(list(sources), [], weight, dilation)
    reach = 2 * dilation
    before = [x[:, x.shape[1] - reach :] for x in before]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*sources, *before, weight)):
        joined = [torch.cat(pair, dim=1) for pair in zip(before, sources, strict=True)]
        return depthwise_forward(joined, [], weight, dilation)[:, reach:]
    return depthwise_forward(list(sources), before, weight, dilation)


def dense_layer(
    sources: Sequence[Tensor], before: Sequence[Tensor] | None, packed: list[Tensor], dilation: int, eps: float
) -> Tensor:
    """A whole layer of the light dense block, without gradients; sources and before as `depthwise_rows` -> [B, T, F, C]."""
    before = [x[:, x.shape[1] - 2 * dilation :] for x in before or ()]
    return dense_forward(list(sources), before, packed, dilation, eps)


# Multiply-adds count as two, as everywhere in torch's counter.
@register_flop_formula(torch.ops.liteavse.depthwise_forward)
def _(source_shapes, before_shapes, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 9 * sum(torch.Size(shape).numel() for shape in source_shapes)


@register_flop_formula(torch.ops.liteavse.dense_forward)
def _(source_shapes, before_shapes, packed_shapes, *args, out_shape=None, **kwargs) -> int:
    return 2 * (9 + source_shapes[0][3]) * sum(torch.Size(shape).numel() for shape in source_shapes)


@register_flop_formula(torch.ops.liteavse.depthwise_backward)
def _(gy_shape, source_shapes, *args, out_shape=None, **kwargs) -> int:
    return 2 * 2 * 9 * torch.Size(gy_shape).numel()
