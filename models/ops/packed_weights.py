"""Weights in the order that a compiled kernel reads them in. They are rearranged again when one of them changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def padded(x: Tensor) -> Tensor:
    """x with zeros at the end of its last axis, up to a multiple of LANES."""
    from models.ops.kernels.simd import LANES

    return F.pad(x, (0, -x.shape[-1] % LANES)).contiguous()


class Packed:
    """Keeps the result of `pack(*weights)`, and calls `pack` again when a weight was replaced or changed in place."""

    def __init__(self, pack: Callable[..., list[Tensor]]) -> None:
        self.pack = pack
        self._key: list[tuple[int, int]] = []
        self._tensors: list[Tensor] = []

    def __call__(self, *weights: Tensor) -> list[Tensor]:
        key = [(weight.data_ptr(), weight._version) for weight in weights]
        if key != self._key:
            with torch.no_grad():
                self._key, self._tensors = key, self.pack(*weights)
        return self._tensors
