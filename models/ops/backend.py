"""Which scan backend a device gets, and one line that says so.

`reference`: plain torch, any device and float type; slow, and the definition of the others. `numba`: compiled CPU kernels,
float32. `triton`: kernels for NVIDIA GPUs of compute capability 8.0 and later, float32 and half precision; the default there.
`mamba_ssm`: the CUDA kernels of the mamba-ssm and causal-conv1d packages, float32.
"""

from __future__ import annotations

import functools
import os

import torch

_ENV = "LITEAVSE_SCAN"
_DEVICES = {"reference": None, "mamba_ssm": "cuda", "triton": "cuda", "numba": "cpu"}  # None: any; the fastest comes last


@functools.cache
def _why_not(name: str) -> str:
    """Why this installation cannot use a backend; empty if it can."""
    if name == "numba":
        try:
            import numba  # noqa: F401
        except ImportError as error:
            return f"numba cannot be imported ({error}); pip install numba"
    if name == "mamba_ssm":
        from models.ops.scan_cuda import why_not

        return why_not()
    if name == "triton":
        from models.ops.scan_triton import why_not

        return why_not()
    return ""


def _runs_on(name: str) -> str | None:
    """The device type that a backend is for; None: any."""
    if name == "triton":
        from models.ops.scan_triton import interpreted

        return "cpu" if interpreted() else "cuda"
    return _DEVICES[name]


def available_backends() -> list[str]:
    """Names of the backends that this installation can run, each on the devices it is for."""
    return [name for name in _DEVICES if not _why_not(name)]


def _usable_on(device_type: str) -> list[str]:
    return [name for name in available_backends() if _runs_on(name) in (None, device_type)]


def resolve_backend(device: torch.device | str, backend: str | None = None) -> str:
    """The backend for a device: `backend` if given, else the environment's LITEAVSE_SCAN, else the fastest there is.

    Raises ValueError, naming the alternatives, for one that does not exist, is not installed or is for other devices.
    """
    device_type = torch.device(device).type
    usable = _usable_on(device_type)
    wanted = backend or os.environ.get(_ENV)
    if not wanted:
        return usable[-1]
    if wanted in usable:
        return wanted
    if wanted not in _DEVICES:
        reason = "is not a scan backend"
    else:
        reason = "cannot be used: " + (_why_not(wanted) or f"it runs on {_runs_on(wanted)}, not on {device_type}")
    source = f"backend={wanted!r}" if backend else f"{_ENV}={wanted}"
    raise ValueError(f"{source} {reason}; available on {device_type}: {', '.join(usable)}")


# What torch.compiler.assume_constant_result does: torch.compile takes the answer as it is. The decorator itself would import
# torch._dynamo, which costs every start of a program a second.
resolve_backend._dynamo_marked_constant = True


def describe_backend(device: torch.device | str) -> str:
    """One line for logs: the backend a device gets and, where that is the slow one, why."""
    device_type = torch.device(device).type
    name = resolve_backend(device)
    where = device_type.upper()
    if device_type == "cpu":
        n = torch.get_num_threads()
        where += f", {n} thread{'s' if n > 1 else ''}"
    line = f"selective scan: {name} ({where})"
    if name != "reference":
        return line
    fast = [fast for fast, runs_on in reversed(_DEVICES.items()) if runs_on == device_type]
    if not fast:
        why = f"there is no compiled kernel for {device_type}"
    elif all(_why_not(name) for name in fast):
        why = "; ".join(dict.fromkeys(_why_not(name) for name in fast))
    else:
        why = f"{_ENV} asks for it"
    return f"{line}: the slow path, because {why}"
