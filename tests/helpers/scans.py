"""Inputs of the selective scan and of the convolution, and the scan written out step by step."""

from __future__ import annotations

import numpy as np
import torch


def scan_inputs(B, L, D, N, seed=0, without=()):
    """float64 inputs as a mapping of selective_scan's arguments."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    tensors = {
        "u": normal(B, L, D), "delta": normal(B, L, D) - 1, "A": -torch.exp(normal(D, N)),
        "B": normal(B, L, N), "C": normal(B, L, N), "D": normal(D), "z": normal(B, L, D),
        "delta_bias": normal(D), "initial_state": normal(B, D, N),
    }  # fmt: skip
    return {name: x for name, x in tensors.items() if name not in without}


def conv_inputs(B, L, D, K, seed=0, without=()):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"x": (B, L, D), "weight": (D, K), "bias": (D,), "initial_state": (B, K - 1, D)}
    tensors = {name: torch.randn(*shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: x for name, x in tensors.items() if name not in without}


def scan_by_hand(u, delta, A, B, C, D=None, z=None, delta_bias=None, initial_state=None, softplus=True, reverse=False):
    u, delta, A, B, C = (x.numpy() for x in (u, delta, A, B, C))
    y, h = np.zeros_like(u), np.zeros((u.shape[0], *A.shape)) if initial_state is None else initial_state.numpy()
    dt = delta + (0 if delta_bias is None else delta_bias.numpy())
    dt = np.logaddexp(0, dt) if softplus else dt
    for t in range(u.shape[1])[:: -1 if reverse else 1]:
        h = np.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None, :] * u[:, t, :, None]
        y[:, t] = np.einsum("bdn,bn->bd", h, C[:, t])
    y = y + (0 if D is None else D.numpy() * u)
    return torch.from_numpy(y if z is None else y * z.numpy() / (1 + np.exp(-z.numpy()))), torch.from_numpy(h)


def assert_close(actual, expected, tolerance=5e-6):
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


def single(tensors):
    return {name: x.float() for name, x in tensors.items()}
