"""Weights rearranged for a compiled kernel, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def padded(x: Tensor) -> Tensor:
    """Last axis to a multiple of LANES with zeros."""
    from models.ops.kernels.simd import LANES

    return F.pad(x, (0, -x.shape[-1] % LANES)).contiguous()


class Packed:
    """What `pack(*weights)` makes, made anew whenever a weight was replaced or changed in place."""

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
