"""The mixers against a recurrence written out step by step, and against themselves in pieces and backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.mamba import Mamba, Mamba2, MambaState, ssd_scan

MIXERS = {"mamba": lambda: Mamba(16, d_state=5, d_conv=4, expand=2), "mamba2": lambda: Mamba2(16, d_state=8, headdim=8)}


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def _conv(weights: dict, x: np.ndarray) -> np.ndarray:
    """Causal depthwise convolution and silu, [L, D]."""
    kernel, bias = weights["conv1d.weight"][:, 0], weights["conv1d.bias"]  # [D, K], [D]
    padded = np.vstack([np.zeros((kernel.shape[1] - 1, x.shape[1])), x])
    return _silu(np.stack([(padded[t : t + kernel.shape[1]].T * kernel).sum(1) + bias for t in range(len(x))]))


def _mamba_by_steps(w: dict, x: np.ndarray) -> np.ndarray:
    """Gu & Dao 2023, Algorithm 2, one frame after the other in float64: x [L, C] -> y [L, C]."""
    u, z = np.split(x @ w["in_proj.weight"].T, 2, axis=1)
    u = _conv(w, u)
    A = -np.exp(w["A_log"])
    rank, n = w["dt_proj.weight"].shape[1], A.shape[1]
    h, out = np.zeros_like(A), []
    for t in range(len(x)):
        dt, B, C = np.split(w["x_proj.weight"] @ u[t], [rank, rank + n])
        dt = _softplus(w["dt_proj.weight"] @ dt + w["dt_proj.bias"])
        h = np.exp(dt[:, None] * A) * h + dt[:, None] * B[None] * u[t][:, None]
        out.append(w["out_proj.weight"] @ ((h @ C + w["D"] * u[t]) * _silu(z[t])))
    return np.stack(out)


def _mamba2_by_steps(w: dict, x: np.ndarray, mixer: Mamba2) -> np.ndarray:
    """Dao & Gu 2024, equation 1 with a scalar decay per head, one frame after the other."""
    inner, n, heads, p = mixer.d_inner, mixer.d_state, mixer.nheads, mixer.headdim
    z, xbc, dt = np.split(x @ w["in_proj.weight"].T, [inner, 2 * inner + 2 * n], axis=1)
    u, B, C = np.split(_conv(w, xbc), [inner, inner + n], axis=1)
    A = -np.exp(w["A_log"])
    h, out = np.zeros((heads, p, n)), []
    for t in range(len(x)):
        step = _softplus(dt[t] + w["dt_bias"])
        ut = u[t].reshape(heads, p)
        h = np.exp(step * A)[:, None, None] * h + (step[:, None] * ut)[:, :, None] * B[t]
        y = (h @ C[t] + w["D"][:, None] * ut).reshape(-1) * _silu(z[t])
        y = y / np.sqrt(np.mean(y**2) + mixer.norm.eps) * w["norm.weight"]
        out.append(w["out_proj.weight"] @ y)
    return np.stack(out)


@pytest.mark.parametrize("kind", MIXERS)
def test_mixer_equals_the_recurrence_written_out(kind):
    torch.manual_seed(0)
    mixer = MIXERS[kind]()
    x = torch.randn(2, 70, 16)  # longer than one chunk of the state space dual
    weights = {name: value.detach().double().numpy() for name, value in mixer.state_dict().items()}
    by_steps = _mamba_by_steps if kind == "mamba" else lambda w, v: _mamba2_by_steps(w, v, mixer)
    expected = np.stack([by_steps(weights, clip.double().numpy()) for clip in x])
    with torch.no_grad():
        got = mixer(x).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("kind", MIXERS)
def test_pieces_with_carried_state_equal_the_whole(kind):
    torch.manual_seed(1)
    mixer = MIXERS[kind]()
    x = torch.randn(3, 90, 16)
    with torch.no_grad():
        whole = mixer(x)
        state, pieces = MambaState(), []
        for piece in x.split([1, 1, 2, 3, 64, 19], dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", MIXERS)
def test_reverse_is_flip_run_flip(kind):
    torch.manual_seed(2)
    mixer = MIXERS[kind]()
    x = torch.randn(2, 33, 16)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, reverse=True), mixer(x.flip(1)).flip(1), atol=1e-5, rtol=1e-4)


def test_ssd_scan_gradients_survive_strong_decay():
    """A decay of exp(-1000) inside a chunk must give zeros, not inf * 0."""
    x = torch.randn(1, 40, 2, 4, requires_grad=True)
    dt = torch.full((1, 40, 2), 50.0, requires_grad=True)
    B = torch.randn(1, 40, 3)
    y, state = ssd_scan(x, dt, torch.tensor([-20.0, -1e-3]), B, torch.randn(1, 40, 3))
    (y.sum() + state.sum()).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(dt.grad).all()


@pytest.mark.parametrize(("build", "names"), [
    (lambda: Mamba(64, 16, 4, 4), {
        "A_log": [256, 16], "D": [256], "in_proj.weight": [512, 64], "conv1d.weight": [256, 1, 4], "conv1d.bias": [256],
        "x_proj.weight": [36, 256], "dt_proj.weight": [256, 4], "dt_proj.bias": [256], "out_proj.weight": [64, 256],
    }),
    (lambda: Mamba2(64, 128, 4, 4), {
        "dt_bias": [4], "A_log": [4], "D": [4], "in_proj.weight": [772, 64], "conv1d.weight": [512, 1, 4],
        "conv1d.bias": [512], "norm.weight": [256], "out_proj.weight": [64, 256],
    }),
])  # fmt: skip
def test_parameters_are_named_and_shaped_as_in_mamba_ssm(build, names):
    assert {name: list(value.shape) for name, value in build().state_dict().items()} == names
