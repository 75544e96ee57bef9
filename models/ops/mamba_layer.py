"""A whole Mamba layer in one compiled call without gradients. Enhancing and streaming on a CPU use it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.ops.backend import resolve_backend
from models.ops.operators import LIBRARY, operator
from models.ops.packed_weights import padded

PACKED = ("w_in", "w_conv", "b_conv", "w_x", "w_dt", "b_dt", "a", "skip", "w_out")


def usable(x: Tensor) -> bool:
    """Whether `mixer_forward` can run a Mamba-1 layer on x: x is float32, on the CPU, and needs no gradient."""
    return (
        x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu") and x.shape[1] > 0 and resolve_backend(x.device) == "numba"
    )


@functools.cache
def _kernel():
    from models.ops.kernels.mamba_layer import MIXER, mixer_forward
    from models.ops.kernels.simd import compiled

    return compiled(mixer_forward, MIXER), MIXER.names


def pack_weights(
    norm: Tensor, in_proj: Tensor, conv: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor,
    A_log: Tensor, D: Tensor, out_proj: Tensor,
) -> list[Tensor]:  # fmt: skip
    """A layer's weights (names and shapes of mamba-ssm; norm: RMSNorm's scale) as `mixer_forward` wants them."""
    from models.ops.kernels.simd import LOG2E

    into, gate = (in_proj * norm).chunk(2)  # [D, C] each; scaling the weights has the same effect as scaling the input
    return [
        torch.cat((padded(into.t()), padded(gate.t())), dim=1).contiguous(),  # [C, 2 D]
        padded(conv.squeeze(1).t()),  # [K, D]
        padded(conv_bias),
        # The channels that padding adds to D are always 0, so x_proj and out_proj need no rows of zeros for them.
        padded(x_proj.t()),  # [D, rank + 2 N]
        padded(dt_proj.t()),  # [rank, D]
        padded(dt_bias),
        padded(-torch.exp(A_log.float()).t() * float(LOG2E)),  # [N, D], for powers of 2
        padded(D),
        padded(out_proj.t()),  # [D, C]
    ]


@operator("mixer_forward")
def mixer_forward(
    x: Tensor, packed: list[Tensor], conv0: Tensor | None, h0: Tensor | None, d_inner: int, d_state: int, eps: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x [B, L, C] -> x + mixer(norm(x)), last inputs of the convolution [B, K-1, D], last state [B, N, D]; like conv0, h0."""
    from models.ops.kernels.mamba_layer import mixer_work_rows
    from models.ops.kernels.simd import LANES
    from models.ops.kernels.threads import launch, threads

    threads.settle()
    x = x if x.stride(-1) == 1 else x.contiguous()
    conv0, h0 = (None if s is None else s.contiguous() for s in (conv0, h0))
    B, L, C = x.shape
    fields = dict(zip(PACKED, (w.data_ptr() for w in packed), strict=True))
    w_conv, w_x, w_dt, w_out = (packed[PACKED.index(name)] for name in ("w_conv", "w_x", "w_dt", "w_out"))
    K, rank = w_conv.shape[0], w_dt.shape[0]
    sizes = {"c_vectors": w_out.shape[1] // LANES, "d_vectors": w_conv.shape[1] // LANES, "p_vectors": w_x.shape[1] // LANES}
    y, conv, h = _outputs(x, K, d_inner, d_state)
    small = torch.tensor([eps])
    fields |= sizes | {
        "B": B, "L": L, "C": C, "D": d_inner, "N": d_state, "K": K, "rank": rank, "reverse": reverse,
        "eps": small.data_ptr(), "x": x.data_ptr(), "x_b": 4 * x.stride(0), "x_t": 4 * x.stride(1), "y": y.data_ptr(),
        "conv": conv.data_ptr(), "h": h.data_ptr(),
        "conv0": 0 if conv0 is None else conv0.data_ptr(), "h0": 0 if h0 is None else h0.data_ptr(),
    }  # fmt: skip
    rows = mixer_work_rows(sizes["d_vectors"], sizes["p_vectors"], d_state, K)
    kernel, names = _kernel()
    launch(kernel, names, fields, B, rows * LANES, B * L * _multiply_adds(C, d_inner, d_state, K, rank))
    return y, conv, h


def _outputs(x: Tensor, K: int, D: int, N: int) -> tuple[Tensor, Tensor, Tensor]:
    B, L, C = x.shape
    return x.new_empty(B, L, C), x.new_empty(B, K - 1, D), x.new_empty(B, N, D)


def _multiply_adds(C: int, D: int, N: int, K: int, rank: int) -> int:
    """Per step: the four projections, the convolution, and three a state update, as in models/ops/scan_cpu.py."""
    return C * 2 * D + D * (rank + 2 * N) + rank * D + D * C + D * K + 3 * D * N


@torch.library.register_fake(mixer_forward, lib=LIBRARY)
def _(x, packed, conv0, h0, d_inner, d_state, eps, reverse):
    return _outputs(x, packed[PACKED.index("w_conv")].shape[0], d_inner, d_state)


# Multiply-adds count as two, as everywhere in torch's counter.
@register_flop_formula(torch.ops.liteavse.mixer_forward)
def _(x_shape, packed_shapes, conv0_shape, h0_shape, d_inner, d_state, *args, out_shape=None, **kwargs) -> int:
    B, L, C = x_shape
    K, rank = (packed_shapes[PACKED.index(name)][0] for name in ("w_conv", "w_dt"))
    return 2 * B * L * _multiply_adds(C, d_inner, d_state, K, rank)
