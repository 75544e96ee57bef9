"""Light visual encoders: video of a face -> one feature vector per video frame, held for the STFT frames.

Each has two parts. The first looks at single frames (encoder A: a frozen MobileNetV3-Small; encoder B: a small 3-D CNN that
is trained with the rest), the second follows movement (`_TemporalHead`). All norms are per video frame, so a frame's
features do not depend on the other clips of the batch nor, in a causal model, on later frames. `cfg` is a complete recipe.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import TimeConv1d, TimeConv3d
from models.mobilenet import OUT_CHANNELS, STRIDE, MobileNetV3SmallFeatures, load_backbone_weights
from models.timing import kept_frame_index

_WIDTH = 256  # channels of the temporal head
_LEAST_SPREAD = 0.02  # of full scale: the noise of a black frame is not amplified
_LEAST_CHANGE = 0.1  # of a feature: a smaller change does not count as movement
_FRAMES_PER_PASS = 64  # video frames the frozen backbone takes at once: bounds its memory

State = list[torch.Tensor]  # every tensor has the batch first, so the states of streams can be joined and split


class _MeanRemoval(nn.Module):
    """Subtracts from the features their mean over the last `frames` frames (all frames, if not causal) that show a face.

    The features of a frame without a face become 0. Who speaks and how the head is held stays the same for seconds and is
    most of what an image encoder sees: without this the norms that follow would make the movement of the lips very small.
    """

    def __init__(self, frames: int, causal: bool) -> None:
        super().__init__()
        self.frames, self.causal = frames, causal

    def init_state(self, x: torch.Tensor) -> torch.Tensor:
        """Zeros [B, frames - 1, D + 1], x [B, ., D]: past features, and in the last channel whether they show a face."""
        return x.new_zeros(x.shape[0], max(0, self.frames - 1), x.shape[2] + 1)

    def step(
        self, x: torch.Tensor, state: torch.Tensor, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, v, D], seen bool [B, v] (None: all) -> (x without its mean [B, v, D], next state)."""
        if not self.frames:
            return x, state
        weight = torch.ones_like(x[..., :1]) if seen is None else seen[..., None].to(x.dtype)
        counted = torch.cat((x * weight, weight), dim=2)
        if self.causal:
            joined = torch.cat((state, counted), dim=1)
            means = F.avg_pool1d(joined.transpose(1, 2), self.frames, stride=1).transpose(1, 2)  # [B, v, D + 1]
            state = joined[:, joined.shape[1] - self.frames + 1 :]
        else:
            means = counted.mean(1, keepdim=True)
        # If no frame counts, this frame's weight is 0 too, and the divisor does not matter.
        return (x - means[..., :-1] / means[..., -1:].clamp(min=1e-6)) * weight, state


class _TemporalHead(nn.Module):
    """Projection, residual temporal convolutions, projection: [B, V, in_dim] -> [B, out_dim, V].

    With two kernels of 3 frames a feature depends on its own frame and 4 others (160 ms at 25 frames/s), all of them earlier
    ones if causal. This part shows how the mouth moves now; the time Mamba blocks after the fusion remember longer.
    """

    def __init__(self, in_dim: int, out_dim: int, causal: bool, mean_frames: int) -> None:
        super().__init__()
        self.input = nn.Linear(in_dim, _WIDTH)
        self.change = _MeanRemoval(mean_frames, causal)
        # A still face changes by rounding errors only: the norms must not scale those to unit variance.
        eps = _LEAST_CHANGE**2 if mean_frames else 1e-5
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH, eps=eps) for _ in range(2))
        self.convs = nn.ModuleList(TimeConv1d(_WIDTH, _WIDTH, 3, causal) for _ in range(2))
        self.output_norm = nn.LayerNorm(_WIDTH, eps=eps)
        self.output = nn.Linear(_WIDTH, out_dim)

    def init_state(self, batch: int) -> State:
        nothing = self.input.weight.new_zeros(batch, _WIDTH, 0)
        return [*(conv.init_state(nothing) for conv in self.convs), self.change.init_state(nothing.transpose(1, 2))]

    def step(self, x: torch.Tensor, state: State, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        """x [B, v, in_dim], seen bool [B, v] or None -> ([B, out_dim, v], next state)."""
        *before, counted = state
        x, counted = self.change.step(self.input(x), counted, seen)
        after = []
        for norm, conv, past in zip(self.norms, self.convs, before, strict=True):
            y, past = conv.step(F.relu(norm(x)).transpose(1, 2), past)  # [B, width, v]
            after.append(past)
            x = x + y.transpose(1, 2)
        return self.output(self.output_norm(x)).transpose(1, 2), [*after, counted]


class _LiteVisualEncoder(nn.Module):
    """What the encoders share: checks, state, and the STFT frames for which a video frame's features are held."""

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
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
        """How many video frames a causal encoder remembers: an earlier one has no effect on a feature."""
        return sum(layer.context for layer in self.modules() if isinstance(layer, (TimeConv1d, TimeConv3d))) + self.mean_frames

    def third_party_keys(self) -> list[str]:
        """Names in this module's state dict whose weights others have published: a checkpoint must not contain them."""
        return []

    def init_state(self, batch: int) -> State:
        """The state before the first frame of `batch` streams, on the parameters' device; ValueError when not causal."""
        if not self.causal:
            raise ValueError("this visual encoder looks ahead (model_cfg.causal: false): it has no streaming state")
        return self._first_state(batch)

    def encode_frames(
        self, video: torch.Tensor, state: State | None = None, seen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Features per video frame: video [B, 3, V, S, S] in [0, 1], seen bool [B, V] (the frame shows a face; None: all do)
        -> ([B, visual_dim, V], next state).

        A clip in pieces, each with the state that the piece before returned, gives the same features as the whole clip.
        `state` None starts a clip; an encoder that is not causal takes whole clips only. ValueError names a wrong shape.
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
            state = self._first_state(video.shape[0])
        elif not self.causal:
            raise ValueError("this visual encoder looks ahead (model_cfg.causal: false): it takes whole clips, no state")
        return self._encode(video, state, seen)

    def hold(self, features: torch.Tensor, T_audio: int) -> torch.Tensor:
        """Features [B, D, V] -> [B, D, T_audio]: those of the newest video frame at each STFT frame, or of the last one."""
        index = kept_frame_index(
            T_audio, self.hop_size, self.sampling_rate, self.video_fps, self.lookahead_ms, features.device
        )
        return features[:, :, index.clamp(max=features.shape[2] - 1)]

    def forward(self, video: torch.Tensor, T_audio: int, seen: torch.Tensor | None = None) -> torch.Tensor:
        """video [B, 3, V, S, S] in [0, 1], seen bool [B, V] or None -> [B, visual_dim, T_audio]."""
        return self.hold(self.encode_frames(video, seen=seen)[0], T_audio)

    def _first_state(self, batch: int) -> State:
        raise AssertionError("set by the subclass")

    def _encode(self, video: torch.Tensor, state: State, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        raise AssertionError("set by the subclass")


class LiteVisualEncoderA(_LiteVisualEncoder):
    """MobileNetV3-Small per frame, a learnt spatial pooling, temporal convolutions.

    `visual_cfg.backbone_weights` names the backbone's weights. With `visual_cfg.freeze_visual_encoder` it runs without
    gradients, `_FRAMES_PER_PASS` frames at a time. Its BatchNorm statistics never change, frozen or not.
    """

    def __init__(self, cfg: Mapping) -> None:
        super().__init__(cfg)
        visual = cfg["visual_cfg"]
        self.frozen: bool = visual["freeze_visual_encoder"]
        self.backbone = MobileNetV3SmallFeatures()
        weights = load_backbone_weights(visual["backbone_weights"])
        self._published = weights is not None
        if weights is not None:
            self.backbone.load_state_dict(weights)
        self.backbone.requires_grad_(not self.frozen).eval()
        # One weight per channel and place, at first those of an average: training may give the mouth's places more weight.
        cells = -(-self.face_size // STRIDE)
        self.pool = nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS, cells, groups=OUT_CHANNELS)
        nn.init.constant_(self.pool.weight, 1 / cells**2)
        nn.init.zeros_(self.pool.bias)
        self.head = _TemporalHead(OUT_CHANNELS, self.visual_dim, self.causal, self.mean_frames)

    def third_party_keys(self) -> list[str]:
        """The backbone's names if its weights are the published ones; random or fine-tuned ones belong in the checkpoint."""
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

    def _first_state(self, batch: int) -> State:
        return self.head.init_state(batch)

    def _encode(self, video: torch.Tensor, state: State, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        batch, _, n_frames = video.shape[:3]
        maps = self._features(video.transpose(1, 2).flatten(0, 1))  # [B*V, 576, S/32, S/32]
        pooled = self.pool(maps).view(batch, n_frames, OUT_CHANNELS)
        return self.head.step(pooled, state, seen)


class _SeparableBlock(nn.Module):
    """3x3 depthwise and 1x1 convolution with per-frame normalisation, and a residual if input and output have one shape."""

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
    """Give each frame zero mean per colour and unit spread, [B, 3, V, S, S], so that lamps and skins do not matter."""
    centred = video - video.mean((3, 4), keepdim=True)
    spread = centred.square().mean((1, 3, 4), keepdim=True).sqrt()  # [B, 1, V, 1, 1]
    return centred / (spread + _LEAST_SPREAD)


class LiteVisualEncoderB(_LiteVisualEncoder):
    """Small 3-D CNN, trained from scratch: under 1 M parameters at the recipe's sizes.

    One 3-D convolution (3 frames, 5x5, stride 4) finds motion at the finest scale. Separable blocks reduce its maps to 1/32
    of the crop's side. Each place of the last map is an input of its own (an average would lose where the lips are).
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

    def _first_state(self, batch: int) -> State:
        nothing = self.stem.weight.new_zeros(batch, self.channels, 0, self.face_size, self.face_size)
        return [self.stem.init_state(nothing), *self.head.init_state(batch)]

    def _encode(self, video: torch.Tensor, state: State, seen: torch.Tensor | None) -> tuple[torch.Tensor, State]:
        batch, _, n_frames = video.shape[:3]
        maps, stem_state = self.stem.step(_even_light(video), state[0])
        frames = maps.transpose(1, 2).flatten(0, 1)  # [B*V, 32, S/4, S/4]
        frames = self.blocks(F.relu(self.stem_norm(frames)))  # [B*V, 128, S/32, S/32]
        flat = frames.reshape(batch, n_frames, -1)
        features, head_state = self.head.step(flat, state[1:], seen)
        return features, [stem_state, *head_state]
