"""The metric discriminator (Fu et al., MetricGAN+, Interspeech 2021), with SEMamba's names, and its target, PESQ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from models.lsigmoid import LearnableSigmoid1D
from utils.scores.metrics import ScoringPool, score_many

# PESQ-WB from 1 to 4.5 is 0 to 1 on the discriminator's scale.
_PESQ_LOWEST, _PESQ_RANGE = 1.0, 3.5


class MetricDiscriminator(nn.Module):
    """Predicts the PESQ of an estimate from its magnitude and that of its clean reference.

    Layer names and spectral norm (weight_orig, weight_u, weight_v) are SEMamba's, so that its files load strictly.
    """

    def __init__(self, dim: int = 16, in_channel: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (in_channel, dim, 2 * dim, 4 * dim, 8 * dim)
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [
                spectral_norm(nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1, bias=False)),
                nn.InstanceNorm2d(wide, affine=True),
                nn.PReLU(wide),
            ]
        layers += [
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            spectral_norm(nn.Linear(8 * dim, 4 * dim)),
            nn.Dropout(0.3),
            nn.PReLU(4 * dim),
            spectral_norm(nn.Linear(4 * dim, 1)),
            LearnableSigmoid1D(1),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, reference: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
        """Compressed magnitudes, reference and estimate [B, F, T] -> predicted PESQ [B, 1] in (0, 1).

        Four convolutions halve F and T and drop an odd last bin, so each must be at least 32.
        """
        return self.layers(torch.stack((reference, estimate), dim=1))


def normalized_pesq(pesq: np.ndarray | float) -> np.ndarray | float:
    """PESQ-WB (MOS-LQO) -> the discriminator's scale: 1 is 0, 4.5 is 1."""
    return (pesq - _PESQ_LOWEST) / _PESQ_RANGE


def batch_pesq(
    clean: Sequence[torch.Tensor] | torch.Tensor, estimate: Sequence[torch.Tensor] | torch.Tensor,
    sample_rate: int = 16000, workers: int = 1, pool: ScoringPool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PESQ-WB of each clip of a batch, in parallel: (normalised scores [B], scored [B] bool).

    clean, estimate [B, L] or lists of [L]. `scored` is False where PESQ failed (a segment without speech, for example): the
    score there is 0 and must not be used. A `utils.scores.metrics.ScoringPool` makes repeated calls faster. ValueError for
    rates other than 16 kHz.
    """
    pairs = [(c.detach().cpu().numpy(), e.detach().cpu().numpy()) for c, e in zip(clean, estimate, strict=True)]
    results = score_many(pairs, workers=workers, sample_rate=sample_rate, metrics=("pesq",), pool=pool)
    scores = np.array([result["pesq"] for result in results], dtype=np.float32)
    scored = np.isfinite(scores)
    return torch.from_numpy(np.where(scored, normalized_pesq(scores), np.float32(0))), torch.from_numpy(scored)
