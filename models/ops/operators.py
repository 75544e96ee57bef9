"""Kernels as torch operators: what autograd, torch.compile and the flop counter see of them.

The operators are defined in a `torch.library.Library`. `torch.library.custom_op` does the same with fewer words, but its first
call imports torch._dynamo (1 s of CPU time at each start of a program), and each call costs 58 us in the place of 21 us.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("liteavse", "FRAGMENT")  # its operators are torch.ops.liteavse.NAME


def cpu_operator(name: str) -> Callable[[Callable], torch._ops.OpOverload]:
    """Make an operator of a function that reads CPU tensors and returns new ones; its type hints are the operator's schema."""

    def define(function: Callable) -> torch._ops.OpOverload:
        LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        LIBRARY.impl(name, function, "CPU")
        return getattr(torch.ops.liteavse, name).default

    return define
