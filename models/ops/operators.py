"""Kernels as torch operators: what autograd, torch.compile and the flop counter see of them.

The operators are defined in a `torch.library.Library`. `torch.library.custom_op` does the same with fewer words, but its first
call imports torch._dynamo (1 s of CPU time at each start of a program), and each call costs 58 us in the place of 21 us.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

LIBRARY = torch.library.Library("liteavse", "FRAGMENT")  # its operators are torch.ops.liteavse.NAME
ANY_DEVICE = "CompositeExplicitAutograd"


def operator(name: str, device: str = "CPU") -> Callable[[Callable], torch._ops.OpOverload]:
    """Make an operator of a function that reads tensors and returns new ones; its type hints are the operator's schema.

    device: torch's dispatch key of the tensors that it is for, "CPU" or ANY_DEVICE.
    """

    def define(function: Callable) -> torch._ops.OpOverload:
        LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        LIBRARY.impl(name, function, device)
        return getattr(torch.ops.liteavse, name).default

    return define


def flat(x: Tensor | None) -> Tensor | None:
    """An optional tensor, contiguous."""
    return x if x is None else x.contiguous()


# The operators of every backend have the same arguments, so that their gradients and operation counts are alike. Multiply-adds
# count as two, as everywhere in torch's counter; exponentials and gates are not counted.


def connect_scan(forward: torch._ops.OpOverload, backward: torch._ops.OpOverload) -> None:
    """Make `backward` the gradient of the selective scan `forward`, and count both."""

    def save(ctx, inputs, output) -> None:
        u, delta, a, b, c, skip, z, bias, h0, ctx.softplus, ctx.reverse, keep = inputs
        assert keep, "a scan that is differentiated must keep its states"
        ctx.absent = [x is None for x in (skip, z, bias, h0)]
        ctx.save_for_backward(u, delta, a, b, c, skip, z, bias, output[2])
        ctx.set_materialize_grads(False)

    def gradient(ctx, gy, glast, _):
        u, *others = ctx.saved_tensors
        gy = torch.zeros_like(u) if gy is None else gy
        gu, gdelta, ga, gb, gc, *rest = backward(gy, glast, u, *others, ctx.softplus, ctx.reverse)
        rest = [None if absent else g for g, absent in zip(rest, ctx.absent, strict=True)]
        return gu, gdelta, ga, gb, gc, *rest, None, None, None

    torch.library.register_autograd(forward, gradient, setup_context=save, lib=LIBRARY)

    @register_flop_formula(forward.overloadpacket)
    def _(u_shape, delta_shape, a_shape, *args, out_shape=None, **kwargs) -> int:
        return 2 * 3 * prod(u_shape) * a_shape[0]

    @register_flop_formula(backward.overloadpacket)
    def _(gy_shape, glast_shape, u_shape, delta_shape, a_shape, *args, out_shape=None, **kwargs) -> int:
        return 2 * 8 * prod(u_shape) * a_shape[0]


def connect_conv(forward: torch._ops.OpOverload, backward: torch._ops.OpOverload) -> None:
    """Make `backward` the gradient of the causal depthwise convolution `forward`, and count both."""

    def save(ctx, inputs, output) -> None:
        *tensors, ctx.reverse = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    def gradient(ctx, gy, glast):
        x, w, bias, s0 = ctx.saved_tensors
        gy = torch.zeros_like(x) if gy is None else gy
        gx, gw, gbias, gs0 = backward(gy, glast, x, w, bias, s0, ctx.reverse)
        return gx, gw, None if bias is None else gbias, None if s0 is None else gs0, None

    torch.library.register_autograd(forward, gradient, setup_context=save, lib=LIBRARY)

    @register_flop_formula(forward.overloadpacket)
    def _(x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
        batch, length, _ = x_shape
        return 2 * batch * length * prod(w_shape)

    @register_flop_formula(backward.overloadpacket)
    def _(gy_shape, glast_shape, x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
        batch, length, _ = x_shape
        return 2 * 3 * batch * length * prod(w_shape)
