"""Train SEMamba (sound only) on pairs of clean and noisy speech, against a discriminator that learns to predict PESQ.

    python train.py --config recipes/SEMamba_advanced/SEMamba_advanced.yaml --exp_name SEMamba_advanced

On one GPU or several (env_setting.num_gpus, or torchrun), or on the CPU. Interrupt it at any moment and run the same
command again: it goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, Subset

from dataloaders.clip_dataset import AVItem
from dataloaders.dataloader_vctk import VCTKDemandDataset
from evaluation.reporting.shown_clips import shown_clips
from evaluation.validation import Validation
from models.discriminator import MetricDiscriminator, batch_pesq
from models.generator import SEMamba
from models.inference.enhancer import Enhancer
from models.loss import Signal, discriminator_losses, generator_losses
from models.ops.backend import describe_backend
from models.pretrained import pack_generator, start_from
from models.stfts import mag_phase_istft, stft_options
from utils.checkpoint import latest_pair, load_checkpoint, load_state
from utils.distributed import Group
from utils.scores.metrics import PESQ_RATE_HZ, ScoringPool, require_scorers
from utils.training.launch import launch, training_parser
from utils.training.precision import autocast, choose_precision
from utils.training.trainer import Adversary, Losses, Trainer
from utils.util import initialize_seed


class Made(NamedTuple):
    """A batch and the generator's output for it."""

    item: AVItem  # fields [B, ...]
    estimate: Signal


def enhance_batch(model: SEMamba, item: AVItem, cfg: dict, device: torch.device) -> Made:
    item = AVItem(*(field.to(device, non_blocking=True) for field in item))
    with autocast(choose_precision(cfg["training_cfg"]["precision"], device), device):
        mag, pha, com = model(item.noisy_mag, item.noisy_pha)
    audio = mag_phase_istft(mag, pha, **stft_options(cfg), length=item.clean_audio.shape[1])
    return Made(item, Signal(mag, pha, com, audio))


def compute_losses(made: Made, cfg: dict, discriminator: MetricDiscriminator | None) -> Losses:
    """Losses of the generator: the total that is minimised and its terms."""
    metric_g = None
    if discriminator is not None:
        discriminator.requires_grad_(False)  # it says in which direction PESQ rises, and is not itself moved
        metric_g = discriminator(made.item.clean_mag, made.estimate.mag)
        discriminator.requires_grad_(True)
    item = made.item
    clean = Signal(item.clean_mag, item.clean_pha, item.clean_com, item.clean_audio)
    return generator_losses(cfg["training_cfg"]["loss"], made.estimate, clean, stft_options(cfg), metric_g=metric_g)


class PesqAdversary(Adversary):
    """The metric discriminator, taught the PESQ of each batch; estimates whose PESQ fails are left out and counted."""

    def __init__(self, model: SEMamba, cfg: dict, device: torch.device, group: Group) -> None:
        require_scorers(("pesq",))
        super().__init__(MetricDiscriminator().to(device))
        self._model, self._cfg, self._device, self._group = model, cfg, device, group
        workers = min(cfg["env_setting"]["num_workers"], cfg["training_cfg"]["batch_size"] // group.size)
        self._pool = ScoringPool(workers) if workers > 0 else None
        self.report = {"pesq_failed": 0}

    def forward(self, batch: AVItem) -> Made:
        return enhance_batch(self._model, batch, self._cfg, self._device)

    def compute_losses(self, made: Made) -> Losses:
        scores, scored = batch_pesq(made.item.clean_audio, made.estimate.audio, pool=self._pool)
        counts = self._group.total(torch.tensor([float(scored.sum()), float(len(scored))], device=self._device)).tolist()
        self.report["pesq_failed"] += round(counts[1] - counts[0])
        metric_r = self.module(made.item.clean_mag, made.item.clean_mag)
        metric_g = self.module(made.item.clean_mag, made.estimate.mag.detach())
        # Over the mean number of scored clips, so that the mean of all processes' gradients is that of the whole batch.
        n_scored = counts[0] / self._group.size
        return discriminator_losses(metric_r, metric_g, scores.to(self._device), scored.to(self._device), n_scored)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def make_set(cfg: dict, split: str) -> Dataset:
    """Pairs of a split, "train" (windows) or "valid" (whole clips, never contrast stretched: PESQ is against what was said)."""
    data, training, stft = cfg["data_cfg"], cfg["training_cfg"], stft_options(cfg)
    keys = (f"{split}_clean_json", f"{split}_noisy_json")
    pairs = VCTKDemandDataset(
        data[keys[0]], data[keys[1]], cfg["stft_cfg"]["sampling_rate"], training["segment_size"], **stft,
        split=split == "train", shuffle=False, pcs=training["use_PCS400"] and split == "train",
        seed=cfg["env_setting"]["seed"], causal=cfg["model_cfg"]["causal"], max_sec=training["valid_max_sec"],
        keys=(f"data_cfg.{keys[0]}", f"data_cfg.{keys[1]}"),
    )
    if split == "train" or training["valid_clips"] is None or training["valid_clips"] >= len(pairs):
        return pairs
    return Subset(pairs, [i * len(pairs) // training["valid_clips"] for i in range(training["valid_clips"])])


def check_recipe(cfg: dict) -> None:
    """Raise ValueError for keys that train.py would ignore."""
    training = cfg["training_cfg"]
    if cfg["stft_cfg"]["sampling_rate"] != PESQ_RATE_HZ:
        raise ValueError(f"train.py learns from PESQ-WB: stft_cfg.sampling_rate must be {PESQ_RATE_HZ}")
    for key in ("use_discriminator", "use_pretrainedD"):
        if training[key] and not training["loss"]["metric"] > 0:
            raise ValueError(f"training_cfg.{key}: true, but training_cfg.loss.metric is 0; SEMamba's recipe has 0.05")
    if training["loss"]["confidence"] > 0:
        raise ValueError("training_cfg.loss.confidence needs video, which train.py does not use; set it to 0")


def start_discriminator(discriminator: MetricDiscriminator, path: str) -> str:
    """Load a pretrained discriminator, SEMamba's file or one of ours; a sentence that says so."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"training_cfg.pretrained_discriminator: {path} does not exist; it comes with SEMamba (ckpts/ there), "
            "or set training_cfg.use_pretrainedD to false"
        )
    state = load_checkpoint(path)
    load_state(discriminator, state.get("discriminator", state), f"training_cfg.pretrained_discriminator {path}")
    return f"discriminator starts from {path}"


def build_trainer(cfg: dict, exp_path: Path, device: torch.device, group: Group | None = None) -> Trainer:
    """Models, data and loop of a recipe; `resume` brings it to the newest checkpoint in `exp_path`."""
    check_recipe(cfg)
    group, training = group or Group(), cfg["training_cfg"]
    initialize_seed(cfg["env_setting"]["seed"])
    model = SEMamba(cfg).to(device)
    train_set, valid_set = make_set(cfg, "train"), make_set(cfg, "valid")
    adversary = PesqAdversary(model, cfg, device, group) if training["loss"]["metric"] > 0 else None
    if latest_pair(exp_path) is None:  # never over the weights of a run that goes on
        if training["init_checkpoint"] is not None:
            group.say(start_from(model, cfg, training["init_checkpoint"], training["init_parts"]))
        if training["use_pretrainedD"]:
            group.say(start_discriminator(adversary.module, training["pretrained_discriminator"]))
    validation, enhancer = Validation(valid_set, cfg["env_setting"]["num_workers"], group=group), Enhancer(model, cfg, device)
    torch.manual_seed(cfg["env_setting"]["seed"] + group.rank)  # the weights are alike, dropout in each process is not

    def losses(batch: AVItem | Made) -> Losses:
        if adversary is None:
            return compute_losses(enhance_batch(model, batch, cfg, device), cfg, None)
        return compute_losses(batch, cfg, adversary.module)

    return Trainer(
        cfg, exp_path, model, pack=lambda meta: pack_generator(model, cfg, meta), dataset=train_set, compute_losses=losses,
        validate=lambda: validation(enhancer), adversary=adversary, group=group, about=describe_backend(device),
        show=lambda: shown_clips(valid_set, enhancer, cfg["env_setting"]["shown_clips"]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = training_parser("train.py", __doc__, "recipes/SEMamba_advanced/SEMamba_advanced.yaml").parse_args(argv)
    return launch("train.py", args, build_trainer)


if __name__ == "__main__":
    raise SystemExit(main())
