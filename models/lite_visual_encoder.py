"""Light visual encoders: video of a face in, one feature vector per STFT frame out.

Both have two parts: what a frame shows (encoder A: frozen MobileNetV3-Small; encoder B: a small 3-D CNN trained with the
rest) and how it moves (`_TemporalHead`). Normalisation is per video frame, so the features of a frame depend neither on
the batch nor, when causal, on later frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import TimeConv1d, TimeConv3d
from models.mobilenet import OUT_CHANNELS, STRIDE, MobileNetV3SmallFeatures, load_backbone_weights
from models.timing import video_frame_index
from utils.config import complete_config

_WIDTH = 256  # channels of the temporal head
_LEAST_SPREAD = 0.02  # of full scale: a black frame stays black instead of becoming its own noise
_LEAST_CHANGE = 0.1  # of a feature: less than this is no movement
_FRAMES_PER_PASS = 64  # video frames the frozen backbone takes at once: bounds its memory

State = list[torch.Tensor]  # every tensor has the batch first, so streams can be joined and taken apart


class _MeanRemoval(nn.Module):
    """What changed: features less their mean over those of the last `frames` frames (of the whole clip when not causal)
    that showed a face; 0 where there was none.

    Who speaks and how the head is held stays the same for seconds and is most of what an image encoder sees; the norms
    behind would scale by it, and the movement of the lips would be lost in the rest.
    """

    def __init__(self, frames: int, causal: bool) -> None:
        super().__init__()
        self.frames, self.causal = frames, causal

    def init_state(self, x: torch.Tensor) -> torch.Tensor:
        """No frames yet: [B, frames - 1, D + 1] zeros, the last channel counting those that were seen; x [B, ., D]."""
        return x.new_zeros(x.shape[0], max(0, self.frames - 1), x.shape[2] + 1)

    def step(
        self, x: torch.Tensor, state: torch.Tensor | None, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, v, D], seen bool [B, v] (None: all) -> (the same less the mean, next state)."""
        if not self.frames:
            return x, state
        weight = torch.ones_like(x[..., :1]) if seen is None else seen[..., None].to(x.dtype)
        counted = torch.cat((x * weight, weight), dim=2)
        if self.causal:
            joined = torch.cat((self.init_state(x) if state is None else state, counted), dim=1)
            means = F.avg_pool1d(joined.transpose(1, 2), self.frames, stride=1).transpose(1, 2)  # [B, v, D + 1]
            state = joined[:, joined.shape[1] - self.frames + 1 :]
        else:
            means = counted.mean(1, keepdim=True)
        # Where no frame counts, weight is 0, too; what it is divided by does not matter.
        return (x - means[..., :-1] / means[..., -1:].clamp(min=1e-6)) * weight, state


class _TemporalHead(nn.Module):
    """Projection, residual temporal convolutions, projection: [B, V, in_dim] -> [B, out_dim, V].

    Two kernels of 3: a frame sees itself and 4 others (160 ms at 25 frames/s), all of them past ones when causal. The
    time Mamba blocks behind the fusion see further; what is wanted here is how the mouth is moving now.
    """

    def __init__(self, in_dim: int, out_dim: int, causal: bool, mean_frames: int) -> None:
        super().__init__()
        self.input = nn.Linear(in_dim, _WIDTH)
        self.change = _MeanRemoval(mean_frames, causal)
        # A still face changes by rounding errors alone: those must not be blown up to unit variance.
        eps = _LEAST_CHANGE**2 if mean_frames else 1e-5
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH, eps=eps) for _ in range(2))
        self.convs = nn.ModuleList(TimeConv1d(_WIDTH, _WIDTH, 3, causal) for _ in range(2))
        self.output_norm = nn.LayerNorm(_WIDTH, eps=eps)
        self.output = nn.Linear(_WIDTH, out_dim)

    def init_state(self, batch: int) -> State:
        nothing = self.input.weight.new_zeros(batch, _WIDTH, 0)
        return [*(conv.init_state(nothing) for conv in self.convs), self.change.init_state(nothing.transpose(1, 2))]

    def step(self, x: torch.Tensor, state: State | None, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        """x [B, v, in_dim], seen bool [B, v] or None -> ([B, out_dim, v], next state); state None: the whole clip at once."""
        x, counted = self.change.step(self.input(x), None if state is None else state[-1], seen)
        next_state = []
        for position, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            y = F.relu(norm(x)).transpose(1, 2)  # [B, width, v]
            if state is None:
                y = conv(y)
            else:
                y, past = conv.step(y, state[position])
                next_state.append(past)
            x = x + y.transpose(1, 2)
        return self.output(self.output_norm(x)).transpose(1, 2), next_state + ([] if state is None else [counted])


class _LiteVisualEncoder(nn.Module):
    """What both encoders share: checks, state, and holding video frames onto STFT frames."""

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        cfg = complete_config(cfg)
        visual, stft = cfg["visual_cfg"], cfg["stft_cfg"]
        self.causal: bool = cfg["model_cfg"]["causal"]
        self.channels: int = visual["visual_channels"]
        self.face_size: int = visual["face_size"]
        self.video_fps: float = visual["video_fps"]
        self.visual_dim: int = visual["visual_dim"]
        self.mean_frames: int = visual["remove_mean_frames"]
        self.lookahead_ms: float = visual["visual_lookahead_ms"]
        self.hop_size: int = stft["hop_size"]
        self.sampling_rate: int = stft["sampling_rate"]

    @property
    def memory_frames(self) -> int:
        """Video frames after which an earlier one has no effect left on a feature (causal encoders)."""
        return sum(layer.context for layer in self.modules() if isinstance(layer, (TimeConv1d, TimeConv3d))) + self.mean_frames

    def third_party_keys(self) -> list[str]:
        """Names in this module's state dict that hold weights of others, which a checkpoint must not carry."""
        return []

    def init_state(self, batch: int) -> State:
        """State before the first frame of `batch` streams, on the device of the parameters; ValueError when not causal."""
        if not self.causal:
            raise ValueError("this visual encoder looks ahead (model_cfg.causal: false): it has no streaming state")
        return self._zero_state(batch)

    def encode_frames(
        self, video: torch.Tensor, state: State | None = None, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Features per video frame: video [B, 3, V, S, S] in [0, 1], seen bool [B, V] (a face is there; None: in all)
        -> ([B, visual_dim, V], next state).

        Feeding a clip in pieces, each with the state the last one returned, gives what the whole clip gives. `state` None
        starts a clip; a non-causal encoder takes whole clips only. ValueError names a shape that does not fit.
        """
        size = self.face_size
        if video.dim() != 5 or video.shape[1] != self.channels or tuple(video.shape[3:]) != (size, size):
            raise ValueError(
                f"video has shape {list(video.shape)}, it should be [batch, {self.channels}, frames, {size}, {size}] "
                f"(visual_cfg.visual_channels, visual_cfg.face_size)"
            )
        if not video.shape[2]:
            raise ValueError(f"video has no frames (shape {list(video.shape)}); pass video=None for audio only")
        if state is None:
            state = self._zero_state(video.shape[0]) if self.causal else None
        elif not self.causal:
            raise ValueError("this visual encoder looks ahead (model_cfg.causal: false): it takes whole clips, no state")
        return self._encode(video, state, seen)

    def hold(self, features: torch.Tensor, T_audio: int) -> torch.Tensor:
        """[B, D, V] per video frame -> [B, D, T_audio] per STFT frame: the newest frame shown, the last one once over."""
        index = video_frame_index(T_audio, self.hop_size, self.sampling_rate, self.video_fps, lookahead_ms=self.lookahead_ms)
        return features[:, :, index.clamp(max=features.shape[2] - 1).to(features.device)]

    def forward(self, video: torch.Tensor, T_audio: int, seen: torch.Tensor | None = None) -> torch.Tensor:
        """video [B, 3, V, S, S] in [0, 1], seen bool [B, V] or None -> [B, visual_dim, T_audio]."""
        return self.hold(self.encode_frames(video, seen=seen)[0], T_audio)

    def _zero_state(self, batch: int) -> State:
        raise AssertionError("set by the subclass")

    def _encode(self, video: torch.Tensor, state: State | None, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        raise AssertionError("set by the subclass")


class LiteVisualEncoderA(_LiteVisualEncoder):
    """MobileNetV3-Small per frame, a learnt spatial pooling, temporal convolutions.

    The backbone comes from `visual_cfg.backbone_weights`. With `visual_cfg.freeze_visual_encoder` it runs without
    gradients, `_FRAMES_PER_PASS` frames at a time; its BatchNorm statistics never change, frozen or not.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        visual = complete_config(cfg)["visual_cfg"]
        self.frozen: bool = visual["freeze_visual_encoder"]
        self.backbone = MobileNetV3SmallFeatures()
        weights = load_backbone_weights(visual["backbone_weights"])
        self._published = weights is not None
        if weights is not None:
            self.backbone.load_state_dict(weights)
        self.backbone.requires_grad_(not self.frozen).eval()
        # A weight per channel and place, starting as the average: the mouth's corner of the map may come to count more.
        cells = -(-self.face_size // STRIDE)
        self.pool = nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS, cells, groups=OUT_CHANNELS)
        nn.init.constant_(self.pool.weight, 1 / cells**2)
        nn.init.zeros_(self.pool.bias)
        self.head = _TemporalHead(OUT_CHANNELS, self.visual_dim, self.causal, self.mean_frames)

    def third_party_keys(self) -> list[str]:
        """The backbone's names while it is the published one; random or fine-tuned weights belong into the checkpoint."""
        if not (self._published and self.frozen):
            return []
        return [f"backbone.{key}" for key in self.backbone.state_dict()]

    def train(self, mode: bool = True) -> LiteVisualEncoderA:
        super().train(mode)
        self.backbone.eval()
        return self

    def _features(self, frames: torch.Tensor) -> torch.Tensor:
        if not self.frozen:
            return self.backbone(frames)
        with torch.no_grad():
            return torch.cat([self.backbone(piece) for piece in frames.split(_FRAMES_PER_PASS)])

    def _zero_state(self, batch: int) -> State:
        return self.head.init_state(batch)

    def _encode(self, video: torch.Tensor, state: State | None, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        batch, _, n_frames = video.shape[:3]
        maps = self._features(video.transpose(1, 2).flatten(0, 1))  # [B*V, 576, S/32, S/32]
        pooled = self.pool(maps).view(batch, n_frames, OUT_CHANNELS)
        return self.head.step(pooled, state, seen)


class _SeparableBlock(nn.Module):
    """3x3 depthwise and 1x1 convolution with per-frame normalisation; a residual where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.GroupNorm(1, out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.pointwise(self.depthwise(x)))
        return F.relu(x + y if self.residual else y)


def _even_light(video: torch.Tensor) -> torch.Tensor:
    """Zero mean per colour and unit spread in each frame by itself, [B, 3, V, S, S]: lamps and skins differ, lips matter."""
    centred = video - video.mean((3, 4), keepdim=True)
    spread = centred.square().mean((1, 3, 4), keepdim=True).sqrt()  # [B, 1, V, 1, 1]
    return centred / (spread + _LEAST_SPREAD)


class LiteVisualEncoderB(_LiteVisualEncoder):
    """Small 3-D CNN, trained from scratch: under 1 M parameters at the recipe's sizes.

    One 3-D convolution (3 frames, 5x5, stride 4) catches motion at the finest scale, separable blocks follow what it
    found down to a 1/32 map, which is read place by place (an average would forget where the lips are).
    """

    STEM_CHANNELS = 32
    BLOCKS = ((64, 2), (64, 1), (96, 2), (96, 1), (128, 2))  # (out channels, stride) after the stem's stride of 4

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        self.stem = TimeConv3d(
            self.channels, self.STEM_CHANNELS, (3, 5, 5), self.causal, padding=2, stride=(1, 4, 4), bias=False
        )
        self.stem_norm = nn.GroupNorm(1, self.STEM_CHANNELS)
        blocks, channels = [], self.STEM_CHANNELS
        for out_channels, stride in self.BLOCKS:
            blocks.append(_SeparableBlock(channels, out_channels, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        cells = -(-self.face_size // STRIDE)
        self.head = _TemporalHead(channels * cells**2, self.visual_dim, self.causal, self.mean_frames)

    def _zero_state(self, batch: int) -> State:
        nothing = self.stem.weight.new_zeros(batch, self.channels, 0, self.face_size, self.face_size)
        return [self.stem.init_state(nothing), *self.head.init_state(batch)]

    def _encode(self, video: torch.Tensor, state: State | None, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        batch, _, n_frames = video.shape[:3]
        video = _even_light(video)
        if state is None:
            maps, stem_state = self.stem(video), []
        else:
            maps, past = self.stem.step(video, state[0])
            stem_state = [past]
        frames = maps.transpose(1, 2).flatten(0, 1)  # [B*V, 32, S/4, S/4]
        frames = self.blocks(F.relu(self.stem_norm(frames)))  # [B*V, 128, S/32, S/32]
        flat = frames.reshape(batch, n_frames, -1)
        features, head_state = self.head.step(flat, None if state is None else state[1:], seen)
        return features, stem_state + head_state
