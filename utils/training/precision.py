"""The number format of a training step: training_cfg.precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

TENSOR_CORES = (8, 0)  # compute capability of the first GPUs that have TF32 and bfloat16


def choose_precision(wanted: str | None, device: torch.device) -> str:
    """What `wanted`, the value of training_cfg.precision, means on a device: fp32, tf32 or bf16.

    None stands for tf32 on a GPU that has it, and for fp32 elsewhere. ValueError where the device has no such format.
    """
    cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES
    if wanted is None:
        return "tf32" if cores else "fp32"
    if wanted == "tf32" and not cores or wanted == "bf16" and device.type == "cuda" and not cores:
        have = "fp32 and bf16" if device.type == "cpu" else "fp32"
        name = device if device.type != "cuda" else torch.cuda.get_device_name(device)
        raise ValueError(f"training_cfg.precision is {wanted}, but {name} has only {have}; change the key or leave it out")
    return wanted


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Inside the `with` block float32 products and convolutions on a GPU use TF32 if `precision` says so, else float32.

    It belongs around the forward and the backward pass.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Inside the `with` block a network computes its products in bfloat16 if `precision` is bf16.

    It belongs around the forward pass of a network alone: losses and spectra need float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
