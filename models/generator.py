"""SEMamba (Chao et al., SLT 2024) and LiteAVSEMamba, which adds the speaker's face behind two gates.

Letters in shapes, here and in all of models/:
    B clips or streams of a batch    C channels    D features    N state-space states    K taps of a kernel
    L samples, or the length of a sequence    T STFT frames    F frequency bins    F' bins after the encoder
    V video frames    S side of a face crop in pixels    small t, v: as T, V, in one call of many
Rates of the recipes: sound 16000 Hz, an STFT frame every 100 samples (160 frames/s), video 25 frames/s.
Words: *video* is a file or a tensor, *crops* are arrays of the face, *valid* means that a frame shows a face. *alpha* says
how far the video is trusted at a moment, the *gate* at which frequencies. A *state* is what a layer carries from one piece
of a stream to the next. *causal* means that no output depends on later input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.agreement import AgreementVCE
from models.codec_module import (
    DenseEncoder,
    LiteDenseEncoder,
    LiteMagDecoder,
    LitePhaseDecoder,
    MagDecoder,
    PhaseDecoder,
)
from models.distilled_encoder import LiteVisualEncoderC, load_encoder_weights
from models.fsvg import FSVG, FSVGWithPrior
from models.layers import full_precision, widened
from models.lite_visual_encoder import LiteVisualEncoderA, LiteVisualEncoderB
from models.mamba_block import CausalTFMambaBlock, TFMambaBlock
from models.timing import shown_frames
from models.vce import VCE, VCEWithTemporalSmoothing
from models.visual_projection import RunningNorm, VisualProjection
from utils.config import complete_config

VISUAL_ENCODERS = {"mobilenet": LiteVisualEncoderA, "custom3d": LiteVisualEncoderB, "distilled": LiteVisualEncoderC}
VISUAL_PREFIXES = ("visual_encoder.", "visual_norm.", "visual_projection.", "vce.", "fsvg.")  # the visual branch


class Enhanced(NamedTuple):
    """The outputs of LiteAVSEMamba; the first three are SEMamba's too."""

    mag: torch.Tensor  # [B, F, T] compressed magnitude
    pha: torch.Tensor  # [B, F, T] radians
    com: torch.Tensor  # [B, F, T, 2] compressed real and imaginary part
    alpha: torch.Tensor | None  # [B, T, 1] trust in the video, 0 where it shows no face; None without video
    alpha_logits: torch.Tensor | None  # [B, T, 1] before sigmoid, smoothing and mask
    gate: torch.Tensor | None  # [B, 1, T, F'] which frequencies the video helps


class Lesson(NamedTuple):
    """What training tells the model of a batch's videos, beside the videos themselves."""

    trust: torch.Tensor | None = None  # [B, T] fused with in the place of alpha; NaN: alpha
    features: torch.Tensor | None = None  # [B, V, D] of faces that were made and not filmed (dataloaders.dubbing)
    filmed: torch.Tensor | None = None  # bool [B] on the CPU: the clips whose features are those of the video


class ModelState(NamedTuple):
    """What a model carries from one piece of a stream to the next, part by part; the visual encoder keeps its own state."""

    encoder: Any
    blocks: list[Any]  # one for each Mamba block
    mask: Any
    phase: Any
    vce: torch.Tensor | None = None  # None in a model without a confidence estimator
    visual_norm: torch.Tensor | None = None  # None in a model without visual_cfg.visual_norm: running


def _spectra(mag: torch.Tensor, pha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, 1, T, F] magnitude and phase -> mag, pha [B, F, T] and com [B, F, T, 2]."""
    mag, pha = mag.squeeze(1).transpose(1, 2), pha.squeeze(1).transpose(1, 2)
    return mag, pha, torch.stack((mag * torch.cos(pha), mag * torch.sin(pha)), dim=-1)


class SEMamba(nn.Module):
    """Audio-only enhancer: noisy compressed magnitude and phase in, denoised ones out."""

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        self._build(complete_config(cfg))

    def _build(self, cfg: Mapping, light: bool = False) -> None:
        """Make the parts; `cfg` is a complete recipe, `light` chooses the light codec."""
        self.causal = cfg["model_cfg"]["causal"]
        self.phase_residual = cfg["model_cfg"]["phase_residual"]
        block = CausalTFMambaBlock if self.causal else TFMambaBlock
        self.dense_encoder = (LiteDenseEncoder if light else DenseEncoder)(cfg)
        self.TSMamba = nn.ModuleList([block(cfg) for _ in range(cfg["model_cfg"]["num_tfmamba"])])
        self.mask_decoder = (LiteMagDecoder if light else MagDecoder)(cfg)
        self.phase_decoder = (LitePhaseDecoder if light else PhaseDecoder)(cfg)

    def init_state(self, noisy_mag: torch.Tensor) -> ModelState:
        """The first state for inputs of noisy_mag's batch size and bins [B, F, .]; ValueError when the model is not causal."""
        if not self.causal:
            raise ValueError("this model is not causal (model_cfg.causal: false): it needs the whole input at once")
        return self._first_state(noisy_mag)

    def _first_state(self, noisy_mag: torch.Tensor) -> ModelState:
        """What `forward` starts from, causal or not."""
        wide = noisy_mag.new_empty(noisy_mag.shape[0], 1, 0, noisy_mag.shape[1])  # [B, 1, 0, F]
        narrow = wide[..., : self.dense_encoder.encoded_bins(noisy_mag.shape[1])]  # [B, 1, 0, F']
        return ModelState(
            self.dense_encoder.init_state(wide), [block.init_state(narrow) for block in self.TSMamba],
            self.mask_decoder.init_state(narrow), self.phase_decoder.init_state(narrow),
        )  # fmt: skip

    def _encode(self, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """Magnitude and phase [B, F, T] -> features [B, C, T, F'], channel-last in memory, where all layers are fastest.

        Under autocast too the features are float32: the Mamba blocks add to them, and bfloat16 would lose what they add.
        """
        x = torch.stack((noisy_mag, noisy_pha), dim=-1).permute(0, 3, 2, 1)  # [B, 2, T, F]
        x, state = self.dense_encoder.step(x.contiguous(memory_format=torch.channels_last), state)
        return widened(x), state

    def _decode(
        self, x: torch.Tensor, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor, state: ModelState
    ) -> tuple[torch.Tensor, torch.Tensor, ModelState]:
        """Features [B, C, T, F'] through the Mamba blocks and both decoders -> magnitude and phase [B, 1, T, F], next state."""
        blocks = []
        for block, block_state in zip(self.TSMamba, state.blocks, strict=True):
            x, block_state = block.step(x, block_state)
            blocks.append(block_state)
        mask, mask_state = self.mask_decoder.step(x, state.mask)
        pha, phase_state = self.phase_decoder.step(x, state.phase)
        if self.phase_residual:
            pha = pha + noisy_pha.transpose(1, 2)[:, None]
            pha = pha - 2 * torch.pi * torch.round(pha.detach() / (2 * torch.pi))  # back into [-pi, pi]
        state = state._replace(blocks=blocks, mask=mask_state, phase=phase_state)
        return mask * noisy_mag.transpose(1, 2)[:, None], pha, state

    def step(
        self, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor, state: ModelState
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ModelState]:
        """Any number of further frames [B, F, t] -> (mag, pha, com, next state)."""
        x, encoder_state = self._encode(noisy_mag, noisy_pha, state.encoder)
        mag, pha, state = self._decode(x, noisy_mag, noisy_pha, state._replace(encoder=encoder_state))
        return *_spectra(mag, pha), state

    def forward(
        self, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """noisy_mag, noisy_pha [B, F, T] -> (mag [B, F, T], pha [B, F, T], com [B, F, T, 2])."""
        return self.step(noisy_mag, noisy_pha, self._first_state(noisy_mag))[:3]


def _confidence(cfg: Mapping) -> VCE:
    """The confidence estimator that lite_cfg.vce_type names."""
    dim, lite, stft = cfg["visual_cfg"]["visual_dim"], cfg["lite_cfg"], cfg["stft_cfg"]
    if lite["vce_type"] == "agreement":
        frames_per_sec = stft["sampling_rate"] / stft["hop_size"]
        return AgreementVCE(dim, cfg["model_cfg"]["hid_feature"], frames_per_sec, lite["agreement_window_sec"])
    return VCEWithTemporalSmoothing(dim, lite["smooth_kernel"]) if lite["vce_type"] == "smoothed" else VCE(dim)


class LiteAVSEMamba(SEMamba):
    """SEMamba with a light codec and a face: fused = audio + alpha * gate * visual, before the Mamba blocks.

    alpha [B, T, 1] says how far the video is trusted at each moment, gate [B, 1, T, F'] which frequencies it helps. alpha is
    exactly 0 where a frame shows no face, so a clip without any face gives the audio-only output bit for bit.
    """

    def _build(self, cfg: Mapping, light: bool = False) -> None:
        super()._build(cfg, light or cfg["lite_cfg"]["use_lite_dense"])
        visual, lite, stft = cfg["visual_cfg"], cfg["lite_cfg"], cfg["stft_cfg"]
        self.use_visual = visual["use_visual"]
        self.feature_dropout = visual["feature_dropout"]
        self.vce = self.fsvg = self.visual_norm = None
        self.timing = {
            "hop_size": stft["hop_size"], "sampling_rate": stft["sampling_rate"], "fps": visual["video_fps"],
            "lookahead_ms": visual["visual_lookahead_ms"],
        }
        if not self.use_visual:
            return
        channels, dim, n_freq = cfg["model_cfg"]["hid_feature"], visual["visual_dim"], lite["n_freq_enc"]
        self.visual_encoder = VISUAL_ENCODERS[lite["visual_encoder_type"]](cfg)
        if visual["encoder_weights"] is not None:
            load_encoder_weights(self.visual_encoder, visual["encoder_weights"])
        running = visual["visual_norm"] == "running"
        self.visual_norm = RunningNorm(dim, stft["sampling_rate"] / stft["hop_size"]) if running else None
        self.visual_projection = VisualProjection(dim, channels, n_freq, frame_norm=not running)
        if lite["use_vce"]:
            self.vce = _confidence(cfg)
        if lite["use_fsvg"]:
            prior = lite["fsvg_type"] == "prior"
            self.fsvg = FSVGWithPrior(channels, n_freq, stft["sampling_rate"]) if prior else FSVG(channels)

    def _first_state(self, noisy_mag: torch.Tensor) -> ModelState:
        batch = noisy_mag.shape[0]
        return super()._first_state(noisy_mag)._replace(
            vce=None if self.vce is None else self.vce.init_state(batch),
            visual_norm=None if self.visual_norm is None else self.visual_norm.init_state(batch),
        )

    def encode_video(
        self, video: torch.Tensor, video_mask: torch.Tensor | None, n_frames: int, lesson: Lesson | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """video [B, 3, V, S, S], uint8 or in [0, 1], and its face mask [B, V] -> features [B, T, D] and valid [B, T] per frame.

        STFT frames after the last video frame are not valid. The lesson's features are taken where it says so.
        """
        if video_mask is None:
            video_mask = torch.ones(video.shape[0], video.shape[2], dtype=torch.bool, device=video.device)
        if video_mask.shape != (video.shape[0], video.shape[2]):
            raise ValueError(
                f"video_mask is {list(video_mask.shape)}, should be [B, V] = {[video.shape[0], video.shape[2]]}"
            )
        if lesson is None or lesson.features is None:
            features = self._features(video, video_mask)
        else:
            features = lesson.features.clone()
            if lesson.filmed.any():
                features[lesson.filmed] = self._features(video[lesson.filmed], video_mask[lesson.filmed]).to(features.dtype)
        index, valid = shown_frames(video_mask, n_frames, **self.timing)  # [B, T]
        return features.gather(1, index[..., None].expand(-1, -1, features.shape[2])), valid

    def _features(self, video: torch.Tensor, video_mask: torch.Tensor) -> torch.Tensor:
        """Features [B, V, D] of each video frame."""
        if video.dtype == torch.uint8:
            video = video.float() / 255.0
        # A masked frame must not act on its neighbours through the temporal convolutions.
        video = torch.where(video_mask[:, None, :, None, None], video, 0.0)
        return self.visual_encoder.encode_frames(video, seen=video_mask)[0].transpose(1, 2)

    def _fuse(
        self, audio: torch.Tensor, features: torch.Tensor, valid: torch.Tensor, state: ModelState, lesson: Lesson | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, ModelState]:
        """audio [B, C, T, F'] + alpha * gate * visual; also alpha [B, T, 1], its logits, the gate, and the next state."""
        alpha, logits = valid[..., None].to(audio.dtype), None
        with full_precision(audio):
            features = widened(features)
            if self.vce is not None:
                alpha, logits, judged = self.vce.judge(features, audio, state.vce, valid)
                state = state._replace(vce=judged)
            if self.visual_norm is not None:
                features, seen = self.visual_norm.step(features, valid, state.visual_norm)
                state = state._replace(visual_norm=seen)
        if self.training and self.feature_dropout:
            # Missing for a whole clip: what a feature tells must not rest on a few others, which know the person.
            kept = F.dropout(features.new_ones(features.shape[0], 1, features.shape[2]), self.feature_dropout)
            features = features * kept
        visual = self.visual_projection(features)  # [B, C, T, F']
        gate = self.fsvg(audio, visual) if self.fsvg is not None else None
        used = alpha
        if lesson is not None and lesson.trust is not None:
            given = torch.where(valid, lesson.trust, 0.0)[..., None]  # [B, T, 1]
            used = torch.where(given.isnan(), alpha, given)
        weight = used[:, None] if gate is None else used[:, None] * gate  # [B, 1, T, 1 or F']
        return torch.where(used[:, None] > 0, audio + weight * visual, audio), alpha, logits, gate, state

    def _look_away(self, audio: torch.Tensor, state: ModelState) -> ModelState:
        """The next state where there is no video: time goes on, and what was seen earlier must be forgotten."""
        with full_precision(audio):
            if self.vce is not None:
                state = state._replace(vce=self.vce.look_away(audio, state.vce))
        if self.visual_norm is not None:
            state = state._replace(visual_norm=self.visual_norm.look_away(audio.shape[2], state.visual_norm))
        return state

    def step_with_gates(
        self, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor, features: torch.Tensor | None,
        valid: torch.Tensor | None, state: ModelState, lesson: Lesson | None = None,
    ) -> tuple[Enhanced, ModelState]:
        """Further frames [B, F, t], visual features [B, t, D], valid [B, t] (None: no video) -> (outputs, next state)."""
        x, encoder_state = self._encode(noisy_mag, noisy_pha, state.encoder)
        state = state._replace(encoder=encoder_state)
        alpha = logits = gate = None
        if self.use_visual and features is not None:
            x, alpha, logits, gate, state = self._fuse(x, features, valid, state, lesson)
        elif self.use_visual:
            state = self._look_away(x, state)
        mag, pha, state = self._decode(x, noisy_mag, noisy_pha, state)
        return Enhanced(*_spectra(mag, pha), alpha, logits, gate), state

    def forward_with_gates(
        self, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor, video: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None, lesson: Lesson | None = None,
    ) -> Enhanced:
        """`forward`, with alpha and the gate for losses and plots, and with what training tells the model."""
        features = valid = None
        # A GPU is not asked whether its mask holds a face: that would wait for all that it has still to do.
        if self.use_visual and video is not None and video.shape[2] and (
            video_mask is None or video_mask.device.type != "cpu" or video_mask.any()
        ):  # fmt: skip
            features, valid = self.encode_video(video, video_mask, noisy_mag.shape[2], lesson)
        return self.step_with_gates(noisy_mag, noisy_pha, features, valid, self._first_state(noisy_mag), lesson)[0]

    def forward(
        self, noisy_mag: torch.Tensor, noisy_pha: torch.Tensor,
        video: torch.Tensor | None = None, video_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """noisy_mag, noisy_pha [B, F, T], video [B, 3, V, S, S], uint8 or in [0, 1], video_mask [B, V] (True: the frame shows
        a face) -> (mag [B, F, T], pha [B, F, T], com [B, F, T, 2])."""
        return tuple(self.forward_with_gates(noisy_mag, noisy_pha, video, video_mask)[:3])
