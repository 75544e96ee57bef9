"""Runs the Triton kernels in their interpreter and prints what was found, as a line of JSON.

    TRITON_INTERPRET=1 python -m helpers.triton_properties
"""

from __future__ import annotations

import json
import os

import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluation.benchmarks.scan_errors import all_errors
from helpers.autocast_errors import mamba_errors
from helpers.scans import conv_inputs, scan_inputs, single
from models.ops import scan_triton
from models.ops.backend import available_backends, resolve_backend
from models.ops.scan import causal_conv1d, selective_scan

ALONG_TIME = ("u", "delta", "B", "C", "z")
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def scan(tensors):
    return selective_scan(**tensors, backend="triton")


def gradients(tensors):
    return torch.autograd.grad(scan(tensors)[0].sum(), list(tensors.values()))


def difference(a, b) -> float:
    return (a - b).abs().max().item()


def check_operators(tensors, conv) -> None:
    """Raises where the operators' fakes or their autograd do not fit what they do."""
    args = [tensors["u"], tensors["delta"], tensors["A"].t(), *(tensors[k] for k in ("B", "C", "D", "z", "delta_bias"))]
    args += [tensors["initial_state"].transpose(1, 2), True, False, True]
    torch.library.opcheck(scan_triton.scan_forward, args, test_utils=CHECKS)
    args = [conv[k].requires_grad_() for k in ("x", "weight", "bias", "initial_state")]
    torch.library.opcheck(scan_triton.conv_forward, [*args, True], test_utils=CHECKS)


def autocast_errors() -> dict[str, float]:
    os.environ["LITEAVSE_SCAN"] = "triton"
    try:
        return mamba_errors()
    finally:
        del os.environ["LITEAVSE_SCAN"]


def main() -> None:
    tensors = {name: x.requires_grad_() for name, x in single(scan_inputs(2, 7, 40, 4)).items()}
    conv = single(conv_inputs(2, 7, 40, 4))
    first, second = gradients(tensors), gradients(tensors)
    with FlopCounterMode(display=False) as counter:
        gradients(tensors)
        causal_conv1d(**conv, backend="triton")
    check_operators(tensors, conv)

    plain = {name: x.detach() for name, x in tensors.items()}
    whole, end = scan(plain)
    head, tail = ({k: x[:, s] if k in ALONG_TIME else x for k, x in plain.items()} for s in (slice(0, 3), slice(3, 7)))
    y_head, state = scan(head)
    y_tail, last = scan({**tail, "initial_state": state})

    wide = torch.cat([plain["z"], plain["u"]], -1)
    transposed = plain["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    sliced = {**plain, "z": wide[..., :40], "u": wide[..., 40:], "delta": transposed}

    spoilt = {**plain, "u": plain["u"].clone()}
    spoilt["u"][0, 3, 2] = float("nan")
    y_nan = scan(spoilt)[0].isnan()
    print(json.dumps({
        "errors": all_errors("triton", "cpu"), "default": resolve_backend("cpu"), "available": available_backends(),
        "same bits": all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
        "pieces": max(difference(torch.cat([y_head, y_tail], 1), whole), difference(last, end)),
        "flops": counter.get_total_flops(), "sliced": difference(scan(sliced)[0], whole),
        "nan before": y_nan[:, :3].any().item(), "nan from there": y_nan[0, 3:, 2].all().item(),
        "nan elsewhere": y_nan[0, :, 3].any().item(), "autocast": autocast_errors(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
