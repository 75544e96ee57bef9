"""A confidence estimator that compares the movement of the mouth with the sound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import latest_means, running_mean
from models.vce import VCE

_TRAITS = 16  # numbers per frame in which sound and video are compared
_BANDS = 8  # parts of the spectrum over which the sound is averaged
_SMOOTH_SEC = 0.04  # one video frame: the sound changes faster than the video can
_LAGS_SEC = (0.0, 0.08, 0.16, 0.24, 0.32, 0.4)  # in both directions: a shifted video correlates best at another lag than 0
_LEAST_SPREAD = 0.05  # of a trait: a smaller spread is no movement, and gives no correlation
DEAD_ZONE = 0.2  # up to this confidence alpha is 0, and the frame adds nothing to the sound


class AgreementVCE(VCE):
    """Causal confidence alpha from the visual features and the encoded sound of the last `window_sec`.

    Two projections reduce sound and video to a few traits. A small perceptron reads the traits' normalised correlations over a
    running window, at lags of up to 0.4 s in both directions, and their spreads; the logits of `VCE`, which sees
    single frames, are added. A confidence p gives alpha = max(0, (p - DEAD_ZONE) / (1 - DEAD_ZONE)), in training as in use. No
    gradient reaches the sound's encoder. The state is [B, H, 2 * traits + 1]: sound, video, valid of the past H STFT frames.
    """

    def __init__(self, in_dim: int, audio_channels: int, frames_per_sec: float, window_sec: float = 1.0) -> None:
        super().__init__(in_dim)
        self.window = max(2, round(window_sec * frames_per_sec))
        self.smooth = max(1, round(_SMOOTH_SEC * frames_per_sec))
        self.lags = [round(lag * frames_per_sec) for lag in _LAGS_SEC]
        self.sight_norm = nn.LayerNorm(in_dim)
        self.sight = nn.Linear(in_dim, _TRAITS)
        self.hearing = nn.Sequential(nn.Linear(_BANDS * audio_channels, 32), nn.SiLU(), nn.Linear(32, _TRAITS))
        n_inputs = (2 * len(self.lags) - 1) * _TRAITS + 2 * _TRAITS + 1
        self.verdict = nn.Sequential(nn.Linear(n_inputs, 32), nn.SiLU(), nn.Linear(32, 1))

    @property
    def _history(self) -> int:
        return self.window - 1 + self.lags[-1] + self.smooth - 1

    def init_state(self, batch: int) -> torch.Tensor:
        """The state before the first frame, [B, H, 2 * traits + 1]: silence, and no valid frame."""
        return self.output.weight.new_zeros(batch, self._history, 2 * _TRAITS + 1)

    def judge(
        self, feat: torch.Tensor, audio: torch.Tensor, state: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """feat [B, t, in_dim], audio [B, C, t, F'], valid bool [B, t] (None: all) -> (alpha, logits [B, t, 1], state)."""
        if valid is None:
            valid = torch.ones(feat.shape[:2], dtype=torch.bool, device=feat.device)
        feat = torch.where(valid[..., None], feat, 0.0)
        heard = self._heard(audio)
        seen = self.sight(self.sight_norm(feat)) * valid[..., None]
        now = torch.cat((heard, seen, valid[..., None].to(heard.dtype)), dim=2)
        joined = torch.cat((state, now), dim=1)  # [B, H + t, .]
        logits = self._logits(feat) + self.verdict(self._evidence(joined, feat.shape[1]))
        alpha = ((torch.sigmoid(logits) - DEAD_ZONE) / (1 - DEAD_ZONE)).clamp(min=0.0)
        alpha = torch.where(valid[..., None], alpha, torch.zeros_like(alpha))
        return alpha, logits, joined[:, joined.shape[1] - self._history :]

    def look_away(self, audio: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The state after frames without a face: what was heard counts once there is a face again."""
        heard = F.pad(self._heard(audio), (0, _TRAITS + 1))
        return torch.cat((state, heard), dim=1)[:, heard.shape[1] :]

    def _heard(self, audio: torch.Tensor) -> torch.Tensor:
        """The sound's traits [B, t, traits]."""
        bands = F.adaptive_avg_pool2d(audio.detach(), (audio.shape[2], _BANDS))  # [B, C, t, 8]
        return self.hearing(bands.permute(0, 2, 1, 3).flatten(2))

    def _evidence(self, joined: torch.Tensor, count: int) -> torch.Tensor:
        """Correlations, spreads and the share of valid frames for each of the last `count` frames, [B, count, n]."""
        heard, seen, valid = joined.split((_TRAITS, _TRAITS, 1), dim=2)
        heard = running_mean(heard, self.smooth)  # [B, window - 1 + longest lag + count, traits]
        seen, valid = (part[:, part.shape[1] - heard.shape[1] :] for part in (seen, valid))
        reach, n_frames = self.lags[-1], heard.shape[1]
        # (how much earlier the sound is taken, how much earlier the video): all in one go, since a live stream takes two frames
        # at a time, in which the number of calls counts.
        pairs = [(0, 0), *(pair for lag in self.lags[1:] for pair in ((lag, 0), (0, lag)))]

        def shifted(values: torch.Tensor, lags: Sequence[int]) -> torch.Tensor:
            """[B, n_frames, D] -> [B * pairs, n_frames - reach, D]."""
            return torch.stack([values[:, reach - lag : n_frames - lag] for lag in lags], dim=1).flatten(0, 1)

        early_sound, early_video = zip(*pairs, strict=True)
        sound, video, there = shifted(heard, early_sound), shifted(seen, early_video), shifted(valid, early_video)
        both = torch.cat((sound * there, video, sound.square() * there, video.square(), sound * video, there), dim=2)
        sums = latest_means(both, self.window, count)
        share = sums[..., -1:].clamp(min=1e-6)
        s, v, ss, vv, sv = (part / share for part in sums[..., :-1].split(_TRAITS, dim=2))
        floor = _LEAST_SPREAD**2
        s_var, v_var = (ss - s.square()).clamp(min=0.0) + floor, (vv - v.square()).clamp(min=0.0) + floor
        found = (sv - s * v) * (s_var * v_var).rsqrt()  # [B * pairs, count, traits]
        found = found.unflatten(0, (-1, len(pairs))).transpose(1, 2).flatten(2)  # [B, count, pairs * traits]
        spreads = [var[:: len(pairs)].sqrt().log() for var in (s_var, v_var)]  # of the pair without a shift
        return torch.cat((found, *spreads, sums[:: len(pairs), :, -1:]), dim=2)
