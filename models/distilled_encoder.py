"""Visual encoder C: a small, causal network that was taught by a costlier one, which had seen thousands of faces.

Its input is the brightness of the lower three quarters of the face. It follows movement place by place at every resolution
and takes the maximum over all places only at the end, so it does not matter where in the crop the mouth is, nor whose it is.
`evaluation/teach_encoder.py` teaches it and writes the file that `visual_cfg.encoder_weights` names.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import TimeConv3d, full_precision
from models.lite_visual_encoder import State, _even_light, _LiteVisualEncoder, _TemporalHead
from utils.checkpoint import load_checkpoint, load_state

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: the brightness of an RGB pixel
_TOP, _LEFT, _SIDE = 20 / 96, 12 / 96, 72 / 96  # as shares of a crop's side: from below the brows to the chin


@functools.lru_cache(maxsize=16)
def _kept_luma(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # what inference makes first, training must be able to use
        return torch.tensor(_LUMA, device=device, dtype=dtype)


def mouth_light(video: torch.Tensor) -> torch.Tensor:
    """The luma of the part of each crop that holds the mouth: video [B, 3, V, S, S] -> [B, V, s, s], s = 3/4 S."""
    top, left, side = (round(video.shape[-1] * share) for share in (_TOP, _LEFT, _SIDE))
    luma = _kept_luma(video.device, video.dtype)
    with full_precision(video):
        return torch.einsum("bcvhw,c->bvhw", video[..., top : top + side, left : left + side], luma)


class _MotionBlock(nn.Module):
    """A convolution in space, then one in time for each place and channel: [B, C, V, H, W] -> [B, C', V, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, causal: bool, separable: bool) -> None:
        super().__init__()
        if separable:
            self.space = nn.Sequential(
                nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
            )
        else:
            self.space = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, out_channels)
        self.time = TimeConv3d(out_channels, out_channels, (3, 1, 1), causal, groups=out_channels)

    def step(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, C, v, H, W] -> ([B, C', v, H, W], next state)."""
        batch = x.shape[0]
        frames = F.relu(self.norm(self.space(x.transpose(1, 2).flatten(0, 1))))  # [B*v, C', H, W]
        x = frames.unflatten(0, (batch, -1)).transpose(1, 2)  # [B, C', v, H, W]
        y, state = self.time.step(x, state)
        return F.relu(x + y), state


def stays_as_taught(visual: Mapping) -> bool:
    """Whether training with this visual_cfg leaves the weights of a LiteVisualEncoderC as they were taught before it."""
    return visual["freeze_visual_encoder"] and visual["encoder_weights"] is not None


class LiteVisualEncoderC(_LiteVisualEncoder):
    """Small motion network, distilled from one that takes 20 times the 7 M multiply-accumulates of a frame of 96 x 96 pixels.

    With `visual_cfg.encoder_weights` and `freeze_visual_encoder` its weights stay as they were taught: no gradients.
    """

    STEM_CHANNELS = 16
    BLOCKS = ((48, False), (64, False), (128, True))  # (out channels, separable)

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        visual = cfg["visual_cfg"]
        self.stem = TimeConv3d(1, self.STEM_CHANNELS, (3, 5, 5), self.causal, padding=2, stride=(1, 2, 2), bias=False)
        self.stem_norm = nn.GroupNorm(1, self.STEM_CHANNELS)
        blocks, channels = [], self.STEM_CHANNELS
        for out_channels, separable in self.BLOCKS:
            blocks.append(_MotionBlock(channels, out_channels, self.causal, separable))
            channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = _TemporalHead(2 * channels, self.visual_dim, self.causal, self.mean_frames)
        self.frozen: bool = stays_as_taught(visual)
        self.requires_grad_(not self.frozen)

    def _sizes(self) -> list[int]:
        """The side of each block's maps, in pixels."""
        side = -(-round(self.face_size * _SIDE) // 2)
        sizes = []
        for _ in self.blocks:
            side = -(-side // 2) if len(sizes) < 2 else side  # a maximum over 3 x 3 halves the side before blocks 0 and 1
            sizes.append(side)
        return sizes

    def _first_state(self, batch: int) -> State:
        side = round(self.face_size * _SIDE)
        state = [self.stem.init_state(self.stem.weight.new_zeros(batch, 1, 0, side, side))]
        for block, size in zip(self.blocks, self._sizes(), strict=True):
            state.append(block.time.init_state(self.stem.weight.new_zeros(batch, block.time.in_channels, 0, size, size)))
        return state + self.head.init_state(batch)

    def _light(self, video: torch.Tensor) -> torch.Tensor:
        """[B, 3, V, S, S] -> brightness of the part with the mouth, normalised in each frame: [B, 1, V, s, s]."""
        return _even_light(mouth_light(video)[:, None])

    def _encode(self, video: torch.Tensor, state: State, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._features(video, state, seen)

    def _features(self, video: torch.Tensor, state: State, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        x, past = self.stem.step(self._light(video), state[0])  # [B, 16, v, s/2, s/2]
        after = [past]
        batch = x.shape[0]
        frames = F.relu(self.stem_norm(x.transpose(1, 2).flatten(0, 1)))
        x = frames.unflatten(0, (batch, -1)).transpose(1, 2)
        for position, block in enumerate(self.blocks):
            if position < 2:
                x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
            x, past = block.step(x, state[1 + position])
            after.append(past)
        pooled = torch.cat((x.amax((3, 4)), x.mean((3, 4))), dim=1).transpose(1, 2)  # [B, v, 256]
        features, head_state = self.head.step(pooled, state[1 + len(self.blocks) :], seen)
        return features, after + head_state


def load_encoder_weights(encoder: _LiteVisualEncoder, path: str | os.PathLike) -> None:
    """Load all weights of an encoder from a file that evaluation/teach_encoder.py wrote; ValueError says what is wrong."""
    name = f"visual_cfg.encoder_weights {path}"
    weights = load_checkpoint(path).get("visual_encoder")
    if not isinstance(weights, Mapping):
        raise ValueError(f"{name} holds no visual_encoder; evaluation/teach_encoder.py makes such a file")
    load_state(encoder, weights, name, may_miss=set(encoder.third_party_keys()))
