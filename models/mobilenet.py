"""MobileNetV3-Small feature extractor (Howard et al. 2019, "Searching for MobileNetV3", Table 2) and its public weights.

Parameter names are torchvision's, without the `features.` prefix, so that the file it publishes can be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from utils.checkpoint import check_weights
from utils.fetch import PublishedFile

WEIGHTS_URL = "https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth"
WEIGHTS_SHA256_PREFIX = "047dcff4"
FETCH_TIMEOUT_SEC = 20.0
OUT_CHANNELS = 576
STRIDE = 32

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_NORM_EPS = 1e-3


class _Row(NamedTuple):
    """One bottleneck of Table 2: kernel, expanded and output channels, squeeze-excitation, hardswish or ReLU, stride."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hardswish: bool
    stride: int


_TABLE_2 = (
    _Row(3, 16, 16, True, False, 2),
    _Row(3, 72, 24, False, False, 2),
    _Row(3, 88, 24, False, False, 1),
    _Row(5, 96, 40, True, True, 2),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 120, 48, True, True, 1),
    _Row(5, 144, 48, True, True, 1),
    _Row(5, 288, 96, True, True, 2),
    _Row(5, 576, 96, True, True, 1),
    _Row(5, 576, 96, True, True, 1),
)


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=_NORM_EPS, momentum=0.01),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


def _squeeze_channels(expanded: int) -> int:
    """A quarter of the expanded channels as a multiple of 8, rounded to nearest but never down by more than 10 %."""
    quarter = expanded / 4
    rounded = max(8, int(quarter + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * quarter else rounded


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # On one pixel a 1x1 convolution is a matrix product, and torch computes F.linear far faster.
        squeezed = F.relu(F.linear(x.mean((2, 3)), self.fc1.weight.flatten(1), self.fc1.bias))
        gate = F.hardsigmoid(F.linear(squeezed, self.fc2.weight.flatten(1), self.fc2.bias))  # [N, C]
        return x * gate[:, :, None, None]


class _Bottleneck(nn.Module):
    def __init__(self, in_channels: int, row: _Row) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hardswish else nn.ReLU
        layers: list[nn.Module] = []
        if row.expanded != in_channels:
            layers.append(_conv_norm(in_channels, row.expanded, 1, activation=activation))
        layers.append(_conv_norm(row.expanded, row.expanded, row.kernel, row.stride, row.expanded, activation))
        if row.squeeze:
            layers.append(_SqueezeExcitation(row.expanded, _squeeze_channels(row.expanded)))
        layers.append(_conv_norm(row.expanded, row.out, 1))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and in_channels == row.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3SmallFeatures(nn.Sequential):
    """MobileNetV3-Small up to its last 1x1 convolution, with the ImageNet normalisation inside.

    [N, 3, H, W] RGB in [0, 1] -> [N, 576, ceil(H / 32), ceil(W / 32)].
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = [_conv_norm(3, 16, 3, 2, activation=nn.Hardswish)]
        channels = 16
        for row in _TABLE_2:
            layers.append(_Bottleneck(channels, row))
            channels = row.out
        layers.append(_conv_norm(channels, OUT_CHANNELS, 1, activation=nn.Hardswish))
        super().__init__(*layers)
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Scaled by fan-in, so that random features do not vanish: the BatchNorm layers were never fitted.
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x - self.mean) / self.std)


def published_weights() -> PublishedFile:
    """The file that torchvision publishes; it is kept in the cache folder."""
    return PublishedFile(
        "backbone weights", WEIGHTS_URL, WEIGHTS_SHA256_PREFIX,
        "name a copy in visual_cfg.backbone_weights, or set visual_cfg.backbone_weights: none", FETCH_TIMEOUT_SEC,
    )  # fmt: skip


def _read_features(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, with this module's names; ValueError when it is not such a file."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler trip over anything
        problem = str(error).strip().split("\n")[0][:120]
        raise ValueError(f"visual_cfg.backbone_weights: {path} is not a PyTorch weights file ({problem})") from None
    items = stored.items() if isinstance(stored, dict) else ()
    found = {str(key).removeprefix("features."): value for key, value in items if not str(key).startswith("classifier.")}
    with torch.device("meta"):
        wanted = MobileNetV3SmallFeatures().state_dict()
    for key, like in wanted.items():
        value = found.get(key)
        if not isinstance(value, torch.Tensor) or value.shape != like.shape:
            got = f"has shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "is missing"
            raise ValueError(
                f"visual_cfg.backbone_weights: {path} is not MobileNetV3-Small: {key} {got}, it should be {tuple(like.shape)}"
            )
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise ValueError(f"visual_cfg.backbone_weights: {path} is not MobileNetV3-Small: it also holds {extra[0]:.80}")
    check_weights(found, f"visual_cfg.backbone_weights: {path}")
    return found


def load_backbone_weights(spec: str) -> dict[str, torch.Tensor] | None:
    """Return the state dict that `visual_cfg.backbone_weights` names, or None for "none" (random weights).

    spec: "none", "auto" (torchvision's published file, fetched once and cached) or a path. The file's keys may have the
    `features.` prefix or not; `classifier.*` is ignored. ValueError, one line, says what is wrong and what to do.
    """
    if spec == "none":
        return None
    if spec == "auto":
        return _read_features(published_weights().get())
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ValueError(f"visual_cfg.backbone_weights: {spec} is not a file; give a weights file, auto or none")
    return _read_features(path)
