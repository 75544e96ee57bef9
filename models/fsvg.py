"""Frequency-selective visual gate (FSVG): at which time-frequency bins the video may help."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_BAND_HZ = (300.0, 3000.0)  # where lips tell most about the sound: the first two formants
_EDGE_OCTAVES = 0.25  # softness of the band's edges
_START_LOGIT = 1.5  # gate about 0.8 in the band and 0.2 far from it


class FSVG(nn.Module):
    """A gate per time-frequency bin, from the audio and visual features of that bin: [B, C, T, F'] twice -> [B, 1, T, F'].

    Both convolutions are 1x1, so the gate needs no context in time and no state.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        hidden = max(1, in_channels // 2)
        self.hidden = nn.Conv2d(2 * in_channels, hidden, 1)
        self.output = nn.Conv2d(hidden, 1, 1)

    def _logits(self, audio_feat: torch.Tensor, visual_feat: torch.Tensor) -> torch.Tensor:
        """Gate logits, [B, C, T, F'] twice -> [B, 1, T, F']."""
        return self.output(F.silu(self.hidden(torch.cat((audio_feat, visual_feat), dim=1))))

    def forward(self, audio_feat: torch.Tensor, visual_feat: torch.Tensor) -> torch.Tensor:
        """audio_feat and visual_feat [B, C, T, F'] -> gate [B, 1, T, F'] in (0, 1)."""
        return torch.sigmoid(self._logits(audio_feat, visual_feat))


class FSVGWithPrior(FSVG):
    """FSVG with a learnable logit per frequency, which at first favours 300 Hz to 3 kHz.

    n_freq: number of encoded bins F', evenly spread over 0 Hz .. sampling_rate / 2. ValueError for features with another F'.
    """

    def __init__(self, in_channels: int, n_freq: int, sampling_rate: int = 16000) -> None:
        super().__init__(in_channels)
        self.prior = nn.Parameter(speech_band_prior(n_freq, sampling_rate))

    def _logits(self, audio_feat: torch.Tensor, visual_feat: torch.Tensor) -> torch.Tensor:
        if audio_feat.shape[-1] != self.prior.numel():
            raise ValueError(
                f"features have {audio_feat.shape[-1]} frequency bins, the gate was built for {self.prior.numel()} "
                "(lite_cfg.n_freq_enc)"
            )
        return super()._logits(audio_feat, visual_feat) + self.prior


def speech_band_prior(n_freq: int, sampling_rate: int = 16000) -> torch.Tensor:
    """Logits [n_freq]: +1.5 inside 300 Hz .. 3 kHz, -1.5 far outside, with edges that are smooth in log-frequency."""
    centre_hz = (torch.arange(n_freq) + 0.5) * (sampling_rate / 2 / n_freq)
    low, high = _BAND_HZ
    inside = torch.sigmoid(torch.log2(centre_hz / low) / _EDGE_OCTAVES) * torch.sigmoid(
        torch.log2(high / centre_hz) / _EDGE_OCTAVES
    )
    return _START_LOGIT * (2 * inside - 1)
