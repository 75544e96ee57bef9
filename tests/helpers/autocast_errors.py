"""How far a Mamba layer under bfloat16 autocast is from the same layer in float32."""

from __future__ import annotations

import torch

from models.mamba import Mamba, MambaState

AUTOCAST_WORST = 0.03  # of the largest value; products of bfloat16 numbers are good to 2^-8


def mamba_errors(device: str = "cpu") -> dict[str, float]:
    """Largest error of output, state and each gradient over the largest value in float32, of the default backend.

    Asserts which of them are float32.
    """
    torch.manual_seed(0)
    layer, x = Mamba(24, d_state=4, expand=2).to(device), torch.randn(2, 11, 24, device=device)
    weights = torch.randn(2, 11, 24, device=device)
    found = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
            y, state = layer.step(x, MambaState())
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        assert state.ssm.dtype == state.conv.dtype == torch.float32
        (y.float() * weights).sum().backward()
        found.append({"y": y.detach().float(), "state": state.ssm.detach()} | {n: p.grad for n, p in layer.named_parameters()})
    exact, rounded = found
    return {name: ((exact[name] - rounded[name]).abs().max() / exact[name].abs().max()).item() for name in exact}
