"""How far a scan backend is from the plain-torch reference in float64: results, last states and all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.scan import causal_conv1d, selective_scan

SCAN_CASES = {  # sequences, length, channels, states, reverse, without the optional tensors
    "all": (2, 11, 40, 5, False, False), "reverse": (1, 9, 32, 16, True, False), "bare": (2, 6, 5, 4, False, True),
    "empty": (2, 0, 5, 4, False, False), "one step": (1, 1, 33, 1, True, False), "many states": (1, 6, 8, 40, False, False),
}  # fmt: skip
CONV_CASES = {  # sequences, length, channels, width, reverse, without the optional tensors
    "all": (2, 40, 33, 4, False, False), "shorter than the state": (1, 2, 5, 7, True, False), "bare": (2, 9, 5, 3, True, True),
    "empty": (2, 0, 5, 4, False, False), "width 1": (1, 9, 5, 1, False, False), "wide": (1, 35, 8, 20, True, False),
}  # fmt: skip
_SEQUENCES = {"u", "delta", "B", "C", "z", "x"}  # inputs that are in half precision under autocast
_OPTIONAL = {"D", "z", "delta_bias", "initial_state", "bias"}


def _inputs(kind: str, sizes: tuple[int, int, int, int]) -> dict[str, Tensor]:
    batch, length, dim, n = sizes
    rng = torch.Generator().manual_seed(0)
    if kind == "conv":
        shapes = {"x": (batch, length, dim), "weight": (dim, n), "bias": (dim,), "initial_state": (batch, n - 1, dim)}
    else:
        shapes = {
            "u": (batch, length, dim), "delta": (batch, length, dim), "A": (dim, n), "B": (batch, length, n),
            "C": (batch, length, n), "D": (dim,), "z": (batch, length, dim), "delta_bias": (dim,),
            "initial_state": (batch, dim, n),
        }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}
    if kind == "scan":
        tensors["A"], tensors["delta"] = -torch.exp(tensors["A"]), tensors["delta"] - 1
    return tensors


def _relative(actual: Tensor | None, expected: Tensor | None) -> float:
    """The largest difference divided by the largest value."""
    if actual is None or not actual.numel():
        return 0.0
    expected = torch.zeros_like(actual, dtype=torch.float64) if expected is None else expected  # None: it had no effect
    scale = expected.abs().max().clamp(min=1e-9)
    return ((actual.detach().double().cpu() - expected.detach().cpu()).abs().max() / scale.cpu()).item()


def errors(
    kind: str, case: tuple[int, int, int, int, bool, bool], backend: str, device: torch.device | str, dtype: torch.dtype
) -> dict[str, float]:
    """Relative errors of a case of SCAN_CASES (`kind` "scan") or CONV_CASES ("conv"): of y, of last and of each gradient.

    The sequences are given in `dtype`, everything else in float32; the reference gets the same values in float64.
    """
    *sizes, reverse, bare = case
    function = selective_scan if kind == "scan" else causal_conv1d
    given, exact = {}, {}
    for name, x in _inputs(kind, tuple(sizes)).items():
        if bare and name in _OPTIONAL:
            continue
        x = x.to(dtype if name in _SEQUENCES else torch.float32)
        given[name] = x.to(device, copy=True).requires_grad_()
        exact[name] = x.double().requires_grad_()
    y, last = function(**given, reverse=reverse, backend=backend)
    wanted_y, wanted_last = function(**exact, reverse=reverse, backend="reference")
    rng = torch.Generator().manual_seed(1)
    gy, glast = (torch.randn(x.shape, generator=rng).to(x.dtype) for x in (y, last))
    torch.autograd.backward([y, last], [gy.to(device), glast.to(device)])
    torch.autograd.backward([wanted_y, wanted_last], [gy.double(), glast.double()])
    found = {"y": _relative(y, wanted_y), "last": _relative(last, wanted_last)}
    return found | {f"gradient of {name}": _relative(x.grad, exact[name].grad) for name, x in given.items()}


def all_errors(backend: str, device: torch.device | str) -> dict[str, dict[str, float]]:
    """`errors` of every case in float32 and bfloat16, by a name such as "scan reverse bfloat16"."""
    return {
        f"{kind} {name} {str(dtype).removeprefix('torch.')}": errors(kind, case, backend, device, dtype)
        for kind, cases in (("scan", SCAN_CASES), ("conv", CONV_CASES))
        for name, case in cases.items()
        for dtype in (torch.float32, torch.bfloat16)
    }
