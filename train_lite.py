"""Train LiteAVSEMamba from a recipe: python train_lite.py --config recipes/LiteAVSE/LiteAVSE.yaml --exp_name my_run.

Interrupt it at any moment and run the same command again: it goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dataloaders.clip_dataset import UnreadableClip
from dataloaders.dataloader_av import AVDataset, AVItem
from dataloaders.local_shards import with_local_shards
from evaluation.reporting.shown_clips import shown_clips
from evaluation.validation import Validation
from models.generator import Lesson, LiteAVSEMamba
from models.inference.enhancer import Enhancer
from models.loss import Signal, Trust, generator_losses
from models.ops.backend import describe_backend
from models.pretrained import pack_generator, start_from, third_party_keys
from models.stfts import mag_phase_istft, stft_options
from models.timing import shown_frames
from utils.checkpoint import latest_pair
from utils.distributed import Group
from utils.scores.metrics import PESQ_RATE_HZ
from utils.training.launch import launch, training_parser
from utils.training.precision import autocast, choose_precision
from utils.training.trainer import Losses, Trainer
from utils.util import initialize_seed


def make_train_set(cfg: dict) -> AVDataset:
    return AVDataset(cfg["data_cfg"]["train_data_json"], cfg["data_cfg"]["train_noise_json"], cfg, "train")


def make_valid_set(cfg: dict) -> AVDataset:
    return AVDataset(cfg["data_cfg"]["valid_data_json"], cfg["data_cfg"]["valid_noise_json"], cfg, "valid")


def make_lesson(
    model: LiteAVSEMamba, label: torch.Tensor, filmed: torch.Tensor, item: AVItem, forced_share: float
) -> Lesson:
    """What the model is told of a batch: the label [B, T] in the place of alpha, and the features of made faces."""
    lesson = Lesson()
    if model.training and forced_share:
        # alpha learns from its own loss alone, and what follows the fusion from videos that are rightly trusted or not.
        chosen = torch.rand(label.shape[0], 1, device=label.device) < forced_share
        lesson = lesson._replace(trust=torch.where(chosen, label, torch.nan))
    if item.features.shape[1]:
        lesson = lesson._replace(features=item.features, filmed=filmed)
    return lesson


def compute_losses(
    model: LiteAVSEMamba, item: AVItem, cfg: dict, device: torch.device, precision: str = "fp32"
) -> Losses:
    """Losses of one batch (fields [B, ...]): the total that is minimised and its terms."""
    # Asked of the CPU, before the batch goes to a GPU: whether there is a face, and which ones were filmed.
    has_face, filmed = bool(item.video_mask.any()), item.features[:, :1, :1].isnan().flatten()
    item = AVItem(*(field.to(device, non_blocking=True) for field in item))
    stft = stft_options(cfg)
    label = valid = lesson = trust = None
    if model.use_visual and item.video_mask.shape[1]:
        index, valid = shown_frames(item.video_mask, item.noisy_mag.shape[2], **model.timing)  # as in encode_video
        label = 1.0 - item.corruption.gather(1, index)  # [B, T]
        lesson = make_lesson(model, label, filmed, item, cfg["training_cfg"]["trust_forcing"])
    with autocast(precision, device):
        out = model.forward_with_gates(
            item.noisy_mag, item.noisy_pha, item.video if has_face else None, item.video_mask, lesson
        )
    audio = mag_phase_istft(out.mag, out.pha, **stft, length=item.clean_audio.shape[1])
    if out.alpha_logits is not None:
        trust = Trust(out.alpha_logits, label, valid)
    estimate = Signal(out.mag, out.pha, out.com, audio)
    clean = Signal(item.clean_mag, item.clean_pha, item.clean_com, item.clean_audio)
    return generator_losses(
        cfg["training_cfg"]["loss"], estimate, clean, stft, trust=trust, noisy_audio=item.noisy_audio
    )


def validation_losses(
    model: LiteAVSEMamba, dataset: AVDataset, cfg: dict, device: torch.device, group: Group
) -> dict[str, float]:
    """Mean of each loss over the validation clips that can be read, as {"loss": total, "loss_magnitude": ...}.

    The processes of the group share the clips out, and each gets the means over all of them. A term that a clip does not
    have, such as the confidence where it shows no face, counts as 0.
    """
    own: dict[int, dict[str, float]] = {}
    with torch.no_grad():
        for index in range(group.rank, len(dataset), group.size):
            try:
                item = dataset[index]
            except UnreadableClip:  # Validation has said so
                continue
            total, terms = compute_losses(model, AVItem(*(field[None] for field in item)), cfg, device)
            values = torch.stack([total, *terms.values()]).tolist()
            own[index] = dict(zip(("loss", *(f"loss_{term}" for term in terms)), values, strict=True))
    clips = dict(sorted(pair for one in group.gather(own) for pair in one.items()))  # the order of a single process
    names = dict.fromkeys(name for clip in clips.values() for name in clip)
    return {name: sum(clip.get(name, 0.0) for clip in clips.values()) / len(clips) for name in names}


def train_only(model: LiteAVSEMamba, parts: Sequence[str] | None) -> None:
    """Keep all parts of the model as they are but these (None: train all); ValueError for one that it does not have."""
    names = [name for name, _ in model.named_children()]
    for part in parts or ():
        if part not in names:
            raise ValueError(f"training_cfg.train_only: the model has no part {part!r}; it has {', '.join(names)}")
    for name, child in model.named_children():
        if parts is not None and name not in parts:
            child.requires_grad_(False)


def check_recipe(cfg: dict) -> None:
    """Raise ValueError for keys that train_lite.py would ignore, such as those of SEMamba's adversarial recipe."""
    training = cfg["training_cfg"]
    if cfg["stft_cfg"]["sampling_rate"] != PESQ_RATE_HZ:
        raise ValueError(f"the best checkpoint is chosen by PESQ-WB: stft_cfg.sampling_rate must be {PESQ_RATE_HZ}")
    for key in ("use_discriminator", "use_PCS400", "use_pretrainedD"):
        if training[key]:
            raise ValueError(f"training_cfg.{key}: true is for train.py; train_lite.py has no such training: set it to false")
    if training["loss"]["metric"] > 0:
        raise ValueError("training_cfg.loss.metric needs a discriminator, which train_lite.py does not train; set it to 0")


def build_trainer(cfg: dict, exp_path: Path, device: torch.device, group: Group | None = None) -> Trainer:
    """Model, data and loop of a recipe; `resume` brings it to the newest checkpoint in `exp_path`."""
    check_recipe(cfg)
    group = group or Group()
    initialize_seed(cfg["env_setting"]["seed"])
    model = LiteAVSEMamba(cfg).to(device)
    start = cfg["training_cfg"]["init_checkpoint"]
    if start is not None and latest_pair(exp_path) is None:
        group.say(start_from(model, cfg, start, cfg["training_cfg"]["init_parts"]))
    train_only(model, cfg["training_cfg"]["train_only"])
    valid_set = make_valid_set(cfg)
    validation = Validation(valid_set, cfg["env_setting"]["num_workers"], cfg["training_cfg"], group)
    enhancer, precision = Enhancer(model, cfg, device), choose_precision(cfg["training_cfg"]["precision"], device)

    def validate() -> dict[str, float]:
        return validation(enhancer) | validation_losses(model, valid_set, cfg, device, group)

    train_set = make_train_set(with_local_shards(cfg, group))
    torch.manual_seed(cfg["env_setting"]["seed"] + group.rank)  # the weights are alike, what is drawn in training is not
    return Trainer(
        cfg, exp_path, model, pack=lambda meta: pack_generator(model, cfg, meta), dataset=train_set,
        compute_losses=lambda item: compute_losses(model, item, cfg, device, precision),
        validate=validate, may_miss=third_party_keys(model), group=group,
        show=lambda: shown_clips(valid_set, enhancer, cfg["env_setting"]["shown_clips"]),
        about=f"{'causal' if model.causal else 'not causal'}; {describe_backend(device)}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = training_parser("train_lite.py", __doc__, "recipes/LiteAVSE/LiteAVSE.yaml").parse_args(argv)
    return launch("train_lite.py", args, build_trainer)


if __name__ == "__main__":
    raise SystemExit(main())
