"""MobileNetV3-Small features: structure, numbers against an independent float64 computation, and where weights come from."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.paths import GOLDEN, SHARED
from models import mobilenet
from models.mobilenet import MobileNetV3SmallFeatures, load_backbone_weights, published_weights

SHARED_WEIGHTS = SHARED / "data/weights/mobilenet_v3_small_features.pth"

# Howard et al. 2019, Table 2, once more: kernel, stride, squeeze-excitation, hardswish, residual. Channels are read from
# the weights.
ROWS = (
    (3, 2, True, False, False),
    (3, 2, False, False, False),
    (3, 1, False, False, True),
    (5, 2, True, True, False),
    (5, 1, True, True, True),
    (5, 1, True, True, True),
    (5, 1, True, True, False),
    (5, 1, True, True, True),
    (5, 2, True, True, False),
    (5, 1, True, True, True),
    (5, 1, True, True, True),
)


def _reference_features(weights: dict[str, torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """The network as plain float64 arithmetic on the state dict: [N, 3, H, W] -> [N, 576, H/32, W/32]."""
    weights = {key: value.double() for key, value in weights.items()}

    def convolve(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.0.weight"]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        mean, variance, scale, shift = (
            weights[f"{name}.1.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 0.001) * scale + shift

    def hardsigmoid(x):
        return (x + 3).clamp(0, 6) / 6

    def activate(x, hardswish):
        return x * hardsigmoid(x) if hardswish else x.clamp(min=0)

    def excite(x, name):
        pooled = x.flatten(2).mean(-1)
        hidden = (pooled @ weights[f"{name}.fc1.weight"][:, :, 0, 0].T + weights[f"{name}.fc1.bias"]).clamp(min=0)
        gate = hidden @ weights[f"{name}.fc2.weight"][:, :, 0, 0].T + weights[f"{name}.fc2.bias"]
        return x * hardsigmoid(gate)[:, :, None, None]

    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
    x = activate(convolve((frames.double() - mean) / std, "0", 2), True)
    for number, (kernel, stride, squeeze, hardswish, residual) in enumerate(ROWS, start=1):
        y, part = x, 0
        if number > 1:  # the first bottleneck does not expand
            y, part = activate(convolve(y, f"{number}.block.0"), hardswish), 1
        assert weights[f"{number}.block.{part}.0.weight"].shape[-1] == kernel
        y = activate(convolve(y, f"{number}.block.{part}", stride, y.shape[1]), hardswish)
        part += 1
        if squeeze:
            y, part = excite(y, f"{number}.block.{part}"), part + 1
        y = convolve(y, f"{number}.block.{part}")
        x = x + y if residual else y
    return activate(convolve(x, "12"), True)


def _pattern(n_frames: int = 2, size: int = 96) -> torch.Tensor:
    """A deterministic image in [0, 1], [N, 3, S, S]."""
    values = torch.sin(torch.arange(n_frames * 3 * size * size, dtype=torch.float64) * 0.0137)
    return (values.view(n_frames, 3, size, size) + 1) / 2


@pytest.fixture
def random_backbone() -> MobileNetV3SmallFeatures:
    """Random weights with BatchNorm statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = MobileNetV3SmallFeatures().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    return model


def test_names_and_shapes_are_torchvisions():
    pinned = json.loads((GOLDEN / "mobilenet_keys.json").read_text(encoding="utf-8"))
    model = MobileNetV3SmallFeatures()
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == pinned
    assert len(pinned) == 240
    assert sum(parameter.numel() for parameter in model.parameters()) == 927_008


@torch.no_grad()
def test_features_equal_plain_float64_arithmetic(random_backbone):
    frames = _pattern()
    expected = _reference_features(random_backbone.state_dict(), frames)
    got = random_backbone(frames.float())
    assert got.shape == (2, 576, 3, 3)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@torch.no_grad()
def test_features_of_the_published_weights_are_the_pinned_ones():
    if not SHARED_WEIGHTS.is_file():
        pytest.skip(f"no published weights at {SHARED_WEIGHTS}")
    model = MobileNetV3SmallFeatures().eval()
    weights = load_backbone_weights(str(SHARED_WEIGHTS))
    model.load_state_dict(weights)
    frames = _pattern()
    pinned = np.load(GOLDEN / "mobilenet_features.npz")
    got = model(frames.float())
    reference = _reference_features(weights, frames)
    for values in (got, reference):
        np.testing.assert_allclose(values.mean((2, 3)), pinned["channel_means"], atol=2e-5)
        np.testing.assert_allclose(values[:, ::48], pinned["maps"], atol=1e-4)
    assert float(got.std()) > 0.1


@torch.no_grad()
def test_every_frame_stands_alone(random_backbone):
    frames = torch.rand(5, 3, 64, 64)
    together = random_backbone(frames)
    alone = torch.cat([random_backbone(frame[None]) for frame in frames])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together.shape == (5, 576, 2, 2)


@pytest.fixture
def published(random_backbone) -> dict[str, torch.Tensor]:
    """A file of torchvision's form: features.* and a classifier."""
    state = {f"features.{key}": value for key, value in random_backbone.state_dict().items()}
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture
def address(published, tmp_path, monkeypatch) -> Path:
    """The published file served from a file:// address, and an empty cache folder."""
    served = tmp_path / "served" / "mobilenet_v3_small-fake.pth"
    served.parent.mkdir()
    torch.save(published, served)
    monkeypatch.setattr(mobilenet, "WEIGHTS_URL", served.as_uri())
    monkeypatch.setattr(mobilenet, "WEIGHTS_SHA256_PREFIX", hashlib.sha256(served.read_bytes()).hexdigest()[:8])
    monkeypatch.setenv("LITEAVSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LITEAVSE_OFFLINE")  # nothing leaves this machine: addresses are file:// or 127.0.0.1
    return served


def test_none_means_random_weights():
    assert load_backbone_weights("none") is None


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_file_is_taken_with_or_without_torchvisions_prefix(published, random_backbone, tmp_path, prefixed):
    state = published if prefixed else random_backbone.state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    loaded = load_backbone_weights(str(path))
    MobileNetV3SmallFeatures().load_state_dict(loaded)
    for key, value in random_backbone.state_dict().items():
        assert torch.equal(loaded[key], value)


def _one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unusable_files_are_named(published, tmp_path):
    missing = tmp_path / "absent.pth"
    with pytest.raises(ValueError) as caught:
        load_backbone_weights(str(missing))
    assert str(missing) in _one_line(caught) and "backbone_weights" in _one_line(caught)

    path = tmp_path / "weights.pth"
    for content in (b"", b"no weights at all", b"PK\x03\x04 broken zip"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a PyTorch weights file") as caught:
            load_backbone_weights(str(path))
        assert str(path) in _one_line(caught)

    key = "features.12.0.weight"
    for state, word in (
        ({**published, key: torch.zeros(3)}, "has shape"),
        ({k: v for k, v in published.items() if k != key}, "is missing"),
        ({**published, "features.13.0.weight": torch.zeros(3)}, "13.0.weight"),
        ([1, 2], "is missing"),
    ):
        torch.save(state, path)
        with pytest.raises(ValueError, match=word) as caught:
            load_backbone_weights(str(path))
        assert "not MobileNetV3-Small" in _one_line(caught)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"0.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="not a PyTorch weights file"):
        load_backbone_weights(str(tmp_path / "trap.pth"))
    assert not (tmp_path / "ran").exists()


def test_auto_fetches_once_and_keeps_the_file(address, random_backbone):
    first = load_backbone_weights("auto")
    assert published_weights().path.read_bytes() == address.read_bytes()
    assert [path.name for path in published_weights().path.parent.iterdir()] == [published_weights().path.name]
    address.unlink()  # from now on there is no network
    again = load_backbone_weights("auto")
    for key, value in random_backbone.state_dict().items():
        assert torch.equal(first[key], value) and torch.equal(again[key], value)


def test_the_real_address_carries_the_checksum_in_its_name():
    assert mobilenet.WEIGHTS_URL.endswith(f"-{mobilenet.WEIGHTS_SHA256_PREFIX}.pth")


def test_what_cannot_be_fetched_says_where_from_and_what_to_do(address):
    address.unlink()
    with pytest.raises(ValueError) as caught:
        load_backbone_weights("auto")
    for part in (mobilenet.WEIGHTS_URL, str(published_weights().path), "visual_cfg.backbone_weights: none"):
        assert part in _one_line(caught)


def test_a_server_that_never_answers_times_out(address, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(mobilenet, "FETCH_TIMEOUT_SEC", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(mobilenet, "WEIGHTS_URL", f"http://127.0.0.1:{port}/weights.pth")
        with pytest.raises(ValueError, match="timed out") as caught:
            load_backbone_weights("auto")
    assert "backbone_weights: none" in _one_line(caught)
    assert not published_weights().path.exists()


def test_offline_nothing_is_asked_for(address, monkeypatch):
    monkeypatch.setenv("LITEAVSE_OFFLINE", "1")
    with pytest.raises(ValueError, match="LITEAVSE_OFFLINE") as caught:
        load_backbone_weights("auto")
    assert str(published_weights().path) in _one_line(caught) and not published_weights().path.exists()


def test_a_damaged_download_is_refused_and_not_kept(address):
    address.write_bytes(address.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged") as caught:
        load_backbone_weights("auto")
    assert mobilenet.WEIGHTS_URL in _one_line(caught)
    assert not published_weights().path.exists()


def test_a_foreign_file_in_the_cache_is_named(address):
    published_weights().path.parent.mkdir()
    published_weights().path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="remove the file") as caught:
        load_backbone_weights("auto")
    assert str(published_weights().path) in _one_line(caught)


def test_a_cache_that_cannot_be_written_says_so(address, monkeypatch):
    blocked = address.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("LITEAVSE_CACHE", str(blocked / "cache"))
    with pytest.raises(ValueError, match="LITEAVSE_CACHE") as caught:
        load_backbone_weights("auto")
    assert mobilenet.WEIGHTS_URL in _one_line(caught)
