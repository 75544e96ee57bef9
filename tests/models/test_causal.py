"""Causality layer by layer: no future is seen and the past is, pieces make the whole; symmetric convolutions keep
nn.ConvNd's numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.tiny import save_tiny_checkpoint, tiny_config, tiny_model, voice
from models.codec_module import (
    DenseEncoder,
    LiteDenseEncoder,
    LiteMagDecoder,
    LitePhaseDecoder,
    MagDecoder,
    PhaseDecoder,
)
from models.layers import TimeConv1d, TimeConv2d, TimeConv3d
from models.level import level_gain
from models.lite_visual_encoder import LiteVisualEncoderA, LiteVisualEncoderB
from models.mamba_block import CausalTFMambaBlock, MambaBlock
from models.pretrained import load_generator, pack_generator
from models.stfts import mag_phase_istft, mag_phase_stft
from models.vce import VCE, VCEWithTemporalSmoothing
from utils.checkpoint import load_checkpoint, save_checkpoint


def make(kind: str, causal: bool, **kwargs) -> tuple[torch.nn.Module, torch.Tensor]:
    """A seeded convolution and an input with 23 time frames."""
    torch.manual_seed(0)
    if kind == "1d":
        return TimeConv1d(3, 4, 5, causal, **kwargs), torch.randn(2, 3, 23)
    if kind == "2d":
        return TimeConv2d(3, 4, (3, 3), causal, padding=1, **kwargs), torch.randn(2, 3, 23, 9)
    return TimeConv3d(3, 4, (3, 3, 3), causal, padding=1, **kwargs), torch.randn(2, 3, 23, 6, 7)


KINDS = ["1d", "2d", "3d"]


@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_equal_the_whole(kind: str, dilation: int) -> None:
    spread = dilation if kind == "1d" else (dilation,) + (1,) * (int(kind[0]) - 1)
    conv, x = make(kind, causal=True, dilation=spread)
    whole = conv(x)
    assert whole.shape[2] == x.shape[2]
    for sizes in ([1] * 23, [4, 7, 12], [22, 1]):
        state, pieces = conv.init_state(x), []
        for piece in x.split(sizes, dim=2):
            y, state = conv.step(piece, state)
            assert y.shape[2] == piece.shape[2]
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=2), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_output_ignores_the_future(kind: str) -> None:
    conv, x = make(kind, causal=True)
    changed = x.clone()
    changed[:, :, 11:] += 1
    a, b = conv(x), conv(changed)
    assert torch.equal(a[:, :, :11], b[:, :, :11])
    assert not torch.equal(a[:, :, 11], b[:, :, 11])


def test_symmetric_equals_a_padded_convolution() -> None:
    conv, x = make("2d", causal=False, dilation=(2, 1))
    expected = F.conv2d(x, conv.weight, conv.bias, padding=(2, 1), dilation=(2, 1))
    torch.testing.assert_close(conv(x), expected)
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_only_the_time_axis_is_padded_by_the_layer() -> None:
    conv = TimeConv2d(2, 2, (1, 3), causal=True, stride=(1, 2))
    x = torch.randn(1, 2, 5, 201)
    assert conv(x).shape == (1, 2, 5, 100)
    y, state = conv.step(x[:, :, :2], conv.init_state(x))
    assert y.shape == (1, 2, 2, 100)
    assert state.shape[2] == 0


def test_looking_ahead_carries_nothing() -> None:
    conv, x = make("1d", causal=False)
    assert conv.init_state(x).numel() == 0 and conv.step(x, conv.init_state(x))[1].numel() == 0


def test_time_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="stride"):
        TimeConv1d(2, 2, 3, causal=True, stride=2)


# Every layer that carries time ---------------------------------------------------------------------------------------


def _built(layer: type, **model_cfg: object) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = tiny_config(model_cfg={"causal": True, **model_cfg}, visual_cfg={"face_size": 32, "remove_mean_frames": 5})
    if layer is MambaBlock:
        return layer(8, cfg, bidirectional=False).eval()
    if layer in (VCE, VCEWithTemporalSmoothing):
        return layer(in_dim=16).eval()
    return layer(cfg).eval()


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# name: (layer, input, its axis of time, the output's axis of time)
LAYERS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], int, int]] = {
    "encoder": (lambda: _built(DenseEncoder), (2, 2, 40, 201), 2, 2),
    "light encoder": (lambda: _built(LiteDenseEncoder), (2, 2, 40, 201), 2, 2),
    "Mamba block": (lambda: _built(MambaBlock), (2, 40, 8), 1, 1),
    "Mamba-2 block": (lambda: _built(MambaBlock, mamba_version=2), (2, 40, 8), 1, 1),
    "time-frequency block": (lambda: _built(CausalTFMambaBlock), (2, 8, 40, 20), 2, 2),
    "time-frequency block, Mamba-2": (lambda: _built(CausalTFMambaBlock, mamba_version=2), (2, 8, 40, 20), 2, 2),
    "magnitude decoder": (lambda: _built(MagDecoder), (2, 8, 40, 100), 2, 2),
    "light magnitude decoder": (lambda: _built(LiteMagDecoder), (2, 8, 40, 100), 2, 2),
    "phase decoder": (lambda: _built(PhaseDecoder), (2, 8, 40, 100), 2, 2),
    "light phase decoder": (lambda: _built(LitePhaseDecoder), (2, 8, 40, 100), 2, 2),
    "visual encoder A": (lambda: _built(LiteVisualEncoderA), (1, 3, 40, 32, 32), 2, 2),
    "visual encoder B": (lambda: _built(LiteVisualEncoderB), (1, 3, 40, 32, 32), 2, 2),
    "alpha": (lambda: _built(VCE), (2, 40, 16), 1, 1),
    "smoothed alpha": (lambda: _built(VCEWithTemporalSmoothing), (2, 40, 16), 1, 1),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_no_layer_sees_the_future_and_every_layer_hears_the_present(name: str) -> None:
    make_layer, shape, axis, out_axis = LAYERS[name]
    layer, x, at = make_layer(), _random(*shape), 25
    if isinstance(layer, (LiteVisualEncoderA, LiteVisualEncoderB)):
        x = x.sigmoid()
    changed = x.clone()
    changed.narrow(axis, at, shape[axis] - at).mul_(0.3)
    run = layer.encode_frames if hasattr(layer, "encode_frames") else layer
    one, other = (out[0] if isinstance(out, tuple) else out for out in (run(x), run(changed)))
    change = (one - other).abs().movedim(out_axis, 0).flatten(1).amax(1)  # per frame
    assert len(change) == shape[axis]
    assert float(change[:at].max()) < 1e-6
    assert float(change[at]) > 1e-4


@torch.no_grad()
def test_level_stft_and_its_inverse_look_ahead_by_their_windows_only() -> None:
    wav, at, sizes = voice(0.5), 3456, (400, 100, 400, 0.3)
    other = wav.copy()
    other[at:] *= -0.5
    gains = [level_gain(w, causal=True) for w in (wav, other)]
    assert np.array_equal(gains[0][: at + 1], gains[1][: at + 1]) and not np.array_equal(*gains)
    spectra = [mag_phase_stft(torch.from_numpy(w * g)[None], *sizes) for w, g in zip((wav, other), gains, strict=True)]
    change = (spectra[0][2] - spectra[1][2]).abs().amax((0, 1, 3))  # [T]
    first = (at - 200) // 100 + 1  # the first frame whose 400 samples reach beyond `at`
    assert float(change[:first].max()) < 1e-6 and float(change[first + 1]) > 1e-4
    turned = spectra[0][1].clone()
    turned[..., first:] += 1.0
    back = [mag_phase_istft(spectra[0][0], pha, *sizes, length=len(wav)) for pha in (spectra[0][1], turned)]
    change = (back[0] - back[1]).abs()[0]
    assert float(change[: first * 100 - 200].max()) < 1e-6 and float(change[first * 100 :].max()) > 1e-3


# Kinds are never mixed -----------------------------------------------------------------------------------------------


def test_the_norm_is_recorded_and_kinds_are_not_mixed(tmp_path) -> None:
    for causal, norm in ((True, "channel"), (False, "instance")):
        path = save_tiny_checkpoint(tmp_path / f"{norm}.pth", model_cfg={"causal": causal})
        assert load_checkpoint(path)["config"]["model_cfg"]["norm"] == norm
        other = tiny_config(model_cfg={"causal": not causal})
        with pytest.raises(ValueError, match="model_cfg") as caught:
            load_generator(path, other)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    other = tiny_config(model_cfg={"norm": "channel"})
    with pytest.raises(ValueError, match=r"model_cfg\.norm: instance.*channel"):
        load_generator(tmp_path / "instance.pth", other)


def test_weights_without_a_record_are_semambas_kind(tmp_path) -> None:
    """Both norms have weights of one shape: nothing but the record tells them apart, and SEMamba's files have none."""
    model, cfg = tiny_model("SEMamba")
    path = tmp_path / "g_00000001.pth"
    save_checkpoint(path, {"generator": pack_generator(model, cfg)["generator"]})
    assert not load_generator(path, cfg)[0].causal
    with pytest.raises(ValueError, match="norm: instance"):
        load_generator(path, tiny_config(model_cfg={"norm": "channel"}))
    with pytest.raises(ValueError, match="norm: instance"):
        load_generator(path, tiny_config(model_cfg={"causal": True}))


def test_a_causal_model_with_instance_norm_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="cannot be causal"):
        tiny_config(model_cfg={"causal": True, "norm": "instance"})
