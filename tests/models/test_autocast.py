"""Under bfloat16 autocast the networks compute products in bfloat16, and in float32 what needs it."""

from __future__ import annotations

import pytest
import torch

from helpers.autocast_errors import AUTOCAST_WORST, mamba_errors
from helpers.tiny import tiny_model
from models.codec_module import PhaseDecoder
from models.mamba import Mamba2
from models.ops.backend import available_backends

VARIANTS = {
    "causal": {"model_cfg": {"causal": True, "phase_residual": True}},
    "wide": {"model_cfg": {"causal": True, "hid_feature": 16}},  # a width that the CPU's dense kernels take
    "offline": {"model_cfg": {"causal": False}, "lite_cfg": {"use_lite_dense": False}},
    "mamba2": {"model_cfg": {"mamba_version": 2}},
    "agreement": {"lite_cfg": {"vce_type": "agreement", "visual_encoder_type": "distilled"}},
    "mobilenet": {"lite_cfg": {"visual_encoder_type": "mobilenet"}},
}


def clip() -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    mag, pha = torch.rand(2, 201, 40, generator=rng) + 0.1, (torch.rand(2, 201, 40, generator=rng) - 0.5) * 6
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:5] = False
    return mag, pha, torch.rand(2, 3, 7, 96, 96, generator=rng), mask


@pytest.mark.parametrize("backend", [name for name in ("reference", "numba") if name in available_backends()])
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_are_those_of_float32_to_rounding(name, backend, monkeypatch):
    monkeypatch.setenv("LITEAVSE_SCAN", backend)
    model, _ = tiny_model(**VARIANTS[name])
    inputs, found = clip(), []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model.forward_with_gates(*inputs)
        assert {x.dtype for x in (out.mag, out.pha, out.com, out.alpha, out.alpha_logits)} == {torch.float32}
        (out.mag.square().mean() + out.com.square().mean() + out.alpha_logits.square().mean()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((out.mag.detach(), out.com.detach(), out.alpha.detach(), gradient))
    errors = [((exact - rounded).norm() / exact.norm()).item() for exact, rounded in zip(*found, strict=True)]
    assert min(errors) > 0 and max(errors[:3]) < 0.05 and errors[3] < 0.3


def test_what_is_float32_and_what_is_not():
    model, _ = tiny_model(model_cfg={"causal": True})
    seen, block = {}, model.TSMamba[0].time_mamba.forward_blocks[0]

    def note(name):
        return lambda module, args, out: seen.update({name: (args[0].dtype, out.dtype)})

    watched = {
        "dense": model.dense_encoder.dense_block.dense_block[0][0].pointwise, "residual": block.norm,
        "in_proj": block.mixer.in_proj, "up": model.mask_decoder.mask_conv[0], "mask": model.mask_decoder.mask_conv[1],
        "real": model.phase_decoder.phase_conv_r, "imaginary": model.phase_decoder.phase_conv_i,
        "vce": model.vce.hidden, "gate": model.fsvg.hidden,
    }  # fmt: skip
    for name, module in watched.items():
        module.register_forward_hook(note(name))
    with torch.autocast("cpu", torch.bfloat16):
        model(*clip())
    half, full = torch.bfloat16, torch.float32
    assert {name: out for name, (_, out) in seen.items()} == {
        "dense": half, "in_proj": half, "residual": full, "mask": full, "up": half, "real": full, "imaginary": full,
        "vce": full, "gate": half,
    }  # fmt: skip
    assert all(seen[name][0] == full for name in ("residual", "mask", "real", "imaginary"))


@pytest.mark.parametrize("backend", [name for name in ("reference", "numba") if name in available_backends()])
def test_a_mamba_layer_keeps_its_state_in_float32(backend, monkeypatch):
    monkeypatch.setenv("LITEAVSE_SCAN", backend)
    assert all(error < AUTOCAST_WORST for error in mamba_errors().values())


def test_mamba2_scans_in_float32(monkeypatch):
    import models.mamba

    seen, real = [], models.mamba.ssd_scan

    def noted(*tensors):
        seen.extend(x.dtype for x in tensors if x is not None)
        assert not torch.is_autocast_enabled("cpu")
        return real(*tensors)

    monkeypatch.setattr(models.mamba, "ssd_scan", noted)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = Mamba2(16, d_state=8).step(torch.randn(2, 9, 16), models.mamba.MambaState())
    assert set(seen) == {torch.float32} and y.dtype == torch.bfloat16 and state.ssm.dtype == torch.float32


def test_float64_stays_float64():
    model, _ = tiny_model(model_cfg={"causal": True})
    assert isinstance(model.phase_decoder, PhaseDecoder)
    mag, pha, video, mask = clip()
    assert model.double()(mag.double(), pha.double(), video.double(), mask)[1].dtype == torch.float64
