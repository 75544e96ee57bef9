"""Training losses of the generator and the discriminator, and scores with the names that SEMamba gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.stfts import mag_phase_stft
from utils.scores.metrics import SILENCE_POWER, mean_score, score_many

# The si_sdr term is -SI-SDR in dB, limited to +-30 dB. The norm of each weighted term's gradient was measured on a small
# SEMamba with the weights magnitude .9 and si_sdr .03. Before training, when the phases are random: magnitude 1.1, si_sdr 575
# without the limit and 13 with it. After 100 steps: magnitude .12, phase .3 to .7, si_sdr 1.4. With a weight of .3 the si_sdr
# term is ten times as large, and the other terms have next to no effect: our own recipes have weights of .03 to .1.
SI_SDR_LIMIT_DB = 30.0
SILENCE_LIMIT_DB = 30.0  # an output this far below the input is silent enough


class Signal(NamedTuple):
    """A batch of sounds in the forms that the losses compare, with gradients or without."""

    mag: torch.Tensor  # [B, F, T] compressed magnitude
    pha: torch.Tensor  # [B, F, T] radians
    com: torch.Tensor  # [B, F, T, 2] compressed real and imaginary part
    audio: torch.Tensor  # [B, L]


class Trust(NamedTuple):
    """How far the model trusts the video, and how far it should."""

    alpha_logits: torch.Tensor  # [B, T, 1]
    target: torch.Tensor  # [B, T] in [0, 1], the share of the video that was left undamaged
    valid: torch.Tensor | None = None  # [B, T] False: the frame shows no face and does not count


def anti_wrapping(angle: torch.Tensor) -> torch.Tensor:
    """Distance of an angle (radians) to the nearest multiple of 2 pi (Ai & Ling, ICASSP 2023)."""
    return torch.abs(angle - 2 * torch.pi * torch.round(angle / (2 * torch.pi)))


def phase_losses(
    phase_r: torch.Tensor, phase_g: torch.Tensor, cfg: Mapping
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Instantaneous-phase, group-delay and instantaneous-angular-frequency loss (Ai & Ling, ICASSP 2023).

    phase_r, phase_g [B, F, T] in radians -> three scalars. ValueError when F does not fit the n_fft of `cfg`.
    """
    bins = cfg["stft_cfg"]["n_fft"] // 2 + 1
    if phase_r.shape != phase_g.shape or phase_r.shape[-2] != bins:
        raise ValueError(f"phases are {list(phase_r.shape)} and {list(phase_g.shape)}; n_fft asks for [B, {bins}, T]")
    # Both differences are linear, so each is taken once, of the error. The first bin and the first frame are counted as
    # they are, as in SEMamba's difference matrices: hence the zero before them.
    error = phase_r - phase_g
    group_delay = torch.diff(error, dim=-2, prepend=torch.zeros_like(error[..., :1, :]))
    angular_frequency = torch.diff(error, dim=-1, prepend=torch.zeros_like(error[..., :1]))
    return (
        anti_wrapping(error).mean(),
        anti_wrapping(group_delay).mean(),
        anti_wrapping(angular_frequency).mean(),
    )


def si_sdr_loss(
    reference: torch.Tensor, estimation: torch.Tensor, zero_mean: bool = False, limit_db: float = 80.0
) -> torch.Tensor:
    """Negative mean SI-SDR in dB (Le Roux et al., ICASSP 2019, equation 3), with a soft limit at +-limit_db.

    reference, estimation [B, L] or [L] -> scalar. Without limits the gradient of SI-SDR grows without bound near a perfect
    estimate and near one that contains nothing of the reference; the upper limit is that of Wisdom et al., NeurIPS 2020.
    Clips with a silent reference have no SI-SDR: they add nothing to the value or the gradient. `zero_mean` subtracts each
    signal's mean first. ValueError for shapes that differ.
    """
    if reference.shape != estimation.shape:
        raise ValueError(f"reference {list(reference.shape)} and estimation {list(estimation.shape)} differ in shape")
    reference, estimation = reference.float(), estimation.float()
    if zero_mean:
        reference = reference - reference.mean(dim=-1, keepdim=True)
        estimation = estimation - estimation.mean(dim=-1, keepdim=True)
    power_r = reference.square().sum(dim=-1)
    heard = power_r > SILENCE_POWER * reference.shape[-1]
    power_r = torch.where(heard, power_r, 1.0)
    scale = (reference * estimation).sum(dim=-1) / power_r
    target = scale.square() * power_r
    noise = (estimation - scale[..., None] * reference).square().sum(dim=-1)
    limit = 10.0 ** (-limit_db / 10)
    ratio = target / (noise + limit * target + 1e-20 * power_r)  # the last term is for a silent estimate
    loss_db = torch.where(heard, -10 * torch.log10(ratio + limit), 0.0)
    return loss_db.sum() / heard.sum().clamp(min=1)


def silence_loss(reference: torch.Tensor, estimation: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Level of the output relative to the input, in bels, of clips that should be silent, with a soft limit at -30 dB.

    reference, estimation, noisy [B, L] -> scalar: the mean over the clips whose reference is silent, 0 if there are none.
    These clips have no SI-SDR, and this loss takes its place.
    """
    silent = reference.square().sum(dim=-1) <= SILENCE_POWER * reference.shape[-1]
    power_in = noisy.float().square().mean(dim=-1).clamp(min=SILENCE_POWER)
    power_out = estimation.float().square().mean(dim=-1)
    loss = torch.log10(power_out / power_in + 10 ** (-SILENCE_LIMIT_DB / 10))
    return torch.where(silent, loss, 0.0).sum() / silent.sum().clamp(min=1)


def confidence_loss(
    alpha_logits: torch.Tensor, trust: torch.Tensor, trust_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy between alpha and the share of the video that was left undamaged.

    alpha_logits [B, T, 1], trust [B, T] in [0, 1], trust_mask [B, T] (False: no face, does not count) -> scalar.
    """
    logits = alpha_logits.squeeze(-1)
    loss = F.binary_cross_entropy_with_logits(logits, trust.to(logits.dtype), reduction="none")
    if trust_mask is None:
        return loss.mean()
    return torch.where(trust_mask, loss, 0.0).sum() / trust_mask.sum().clamp(min=1)


def generator_losses(
    weights: Mapping[str, float], estimate: Signal, clean: Signal, stft: Mapping, trust: Trust | None = None,
    metric_g: torch.Tensor | None = None, noisy_audio: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The generator's loss: (weighted total, {term: its value before weighting}).

    `stft` holds n_fft, hop_size, win_size and compress_factor. SEMamba's terms are magnitude (MSE), phase (IP + GD + IAF),
    complex (2 MSE), time (L1), consistancy (2 MSE between the estimate's com and the spectrum of its audio) and metric
    (MSE between 1, the best score, and metric_g [B, 1], the discriminator's score of the estimate). The others are si_sdr
    (-SI-SDR in dB, means removed), silence (`silence_loss`, needs noisy_audio [B, L]) and confidence (`confidence_loss` of
    `trust`, which is None for a batch without video). A term is left out if its weight is 0 or missing, or without its input.
    """

    def consistancy() -> torch.Tensor:
        sizes = (stft["n_fft"], stft["hop_size"], stft["win_size"], stft["compress_factor"])
        return 2 * F.mse_loss(estimate.com, mag_phase_stft(estimate.audio, *sizes, addeps=True)[2])

    recipe = {
        "magnitude": lambda: F.mse_loss(estimate.mag, clean.mag),
        "phase": lambda: torch.stack(phase_losses(clean.pha, estimate.pha, {"stft_cfg": stft})).sum(),
        "complex": lambda: 2 * F.mse_loss(estimate.com, clean.com),
        "time": lambda: F.l1_loss(estimate.audio, clean.audio),
        "consistancy": consistancy,
        "si_sdr": lambda: si_sdr_loss(clean.audio, estimate.audio, zero_mean=True, limit_db=SI_SDR_LIMIT_DB),
    }
    if trust is not None:
        recipe["confidence"] = lambda: confidence_loss(*trust)
    if noisy_audio is not None:
        recipe["silence"] = lambda: silence_loss(clean.audio, estimate.audio, noisy_audio)
    if metric_g is not None:
        recipe["metric"] = lambda: F.mse_loss(metric_g, torch.ones_like(metric_g))
    terms = {name: term() for name, term in recipe.items() if weights.get(name, 0.0) > 0}
    total = estimate.mag.new_zeros(())
    for name, value in terms.items():
        total = total + weights[name] * value
    return total, terms


def discriminator_losses(
    metric_r: torch.Tensor, metric_g: torch.Tensor, scores: torch.Tensor, scored: torch.Tensor,
    n_scored: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The metric discriminator's loss, as in SEMamba: (total, {"clean": MSE of metric_r to 1, "estimate": to the scores}).

    metric_r, metric_g [B, 1]; scores [B], 0 to 1, and scored [B] bool, as `models.discriminator.batch_pesq` gives them.
    Estimates without a score are left out; the mean is over n_scored estimates (default: those with a score here).
    """
    error = torch.where(scored, metric_g.flatten() - scores, 0.0)
    n_scored = float(scored.sum()) if n_scored is None else n_scored
    terms = {
        "clean": F.mse_loss(metric_r, torch.ones_like(metric_r)), "estimate": error.square().sum() / max(n_scored, 1e-9),
    }
    return terms["clean"] + terms["estimate"], terms


def _mean_over_clips(
    metric: str, utts_r: Sequence[torch.Tensor], utts_g: Sequence[torch.Tensor], cfg: Mapping
) -> float:
    pairs = [
        (r.detach().cpu().numpy().squeeze(), g.detach().cpu().numpy().squeeze())
        for r, g in zip(utts_r, utts_g, strict=True)
    ]
    workers = max(1, cfg.get("env_setting", {}).get("num_workers", 1))
    rate = cfg["stft_cfg"]["sampling_rate"]
    return mean_score(score_many(pairs, workers=workers, sample_rate=rate, metrics=(metric,)), metric)


def si_sdr_score(utts_r: Sequence[torch.Tensor], utts_g: Sequence[torch.Tensor]) -> float:
    """Mean SI-SDR in dB over the clips that can be scored (NaN: none can); lists of references and estimates [L]."""
    cfg = {"stft_cfg": {"sampling_rate": 16000}}  # SI-SDR does not depend on the rate
    return _mean_over_clips("si_sdr", utts_r, utts_g, cfg)


def stoi_score(utts_r: Sequence[torch.Tensor], utts_g: Sequence[torch.Tensor], cfg: Mapping) -> float:
    """Mean STOI over the clips that can be scored (NaN: none can); lists of references and estimates [L]."""
    return _mean_over_clips("stoi", utts_r, utts_g, cfg)


def pesq_score(utts_r: Sequence[torch.Tensor], utts_g: Sequence[torch.Tensor], cfg: Mapping) -> float:
    """Mean wide-band PESQ (MOS-LQO) over the clips that can be scored (NaN: none can); failed clips are left out."""
    return _mean_over_clips("pesq", utts_r, utts_g, cfg)
