"""Train LiteAVSEMamba from a recipe: python train_lite.py --config recipes/LiteAVSE/LiteAVSE.yaml --exp_name my_run.

Interrupt it at any moment and run the same command again: it goes on as if it had never stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from dataloaders.augment_rir import RIRAugmentor
from dataloaders.dataloader_av import AVDataset, AVItem
from dataloaders.degrade import VisualDegradation
from evaluation.validation import Validation
from models.enhancer import Enhancer
from models.generator import LiteAVSEMamba, pack_generator, start_from, third_party_keys
from models.loss import generator_losses
from models.scan import describe_backend
from models.stfts import mag_phase_istft
from models.timing import video_frame_index
from utils.checkpoint import latest_pair
from utils.config import load_config
from utils.console import EXIT_INTERRUPTED, Parser, run
from utils.training import Losses, Trainer, record_run
from utils.util import initialize_seed, pick_device


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("train_lite.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/LiteAVSE/LiteAVSE.yaml", help="recipe (YAML)")
    parser.add_argument("--exp_folder", default="exp", help="where runs are kept")
    parser.add_argument("--exp_name", default=None, help="name of this run; default: the recipe's file name")
    parser.add_argument("--override", nargs="*", default=[], metavar="section.key=value", help="change keys of the recipe")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def make_train_set(cfg: dict) -> AVDataset:
    data, training = cfg["data_cfg"], cfg["training_cfg"]
    rooms = None
    if data["train_rir_json"]:
        rooms = RIRAugmentor(data["train_rir_json"], prob=training["rir_prob"], target_sr=cfg["stft_cfg"]["sampling_rate"])
    degradation = VisualDegradation() if training["visual_degradation"] else None
    return AVDataset(data["train_data_json"], data["train_noise_json"], cfg, "train", degradation, rooms)


def make_valid_set(cfg: dict) -> AVDataset:
    return AVDataset(cfg["data_cfg"]["valid_data_json"], cfg["data_cfg"]["valid_noise_json"], cfg, "valid")


def compute_losses(model: LiteAVSEMamba, item: AVItem, cfg: dict, device: torch.device) -> Losses:
    """Losses of one batch (fields [B, ...]): the total that is minimised and its terms."""
    item = AVItem(*(field.to(device, non_blocking=True) for field in item))
    stft = {key: cfg["stft_cfg"][key] for key in ("n_fft", "hop_size", "win_size")}
    stft["compress_factor"] = cfg["model_cfg"]["compress_factor"]
    out = model.forward_with_gates(item.noisy_mag, item.noisy_pha, item.video, item.video_mask)
    audio = mag_phase_istft(out.mag, out.pha, **stft, length=item.clean_audio.shape[1])
    trust = trust_mask = None
    if out.alpha_logits is not None:
        index = video_frame_index(out.mag.shape[2], **model.timing).to(device)
        shown = index.clamp(max=item.video.shape[2] - 1)  # past the last picture there is none, as in encode_video
        trust, trust_mask = 1.0 - item.corruption[:, shown], item.video_mask[:, shown] & (index < item.video.shape[2])
    return generator_losses(
        cfg["training_cfg"]["loss"], mag_g=out.mag, pha_g=out.pha, com_g=out.com, audio_g=audio,
        clean_mag=item.clean_mag, clean_pha=item.clean_pha, clean_com=item.clean_com, clean_audio=item.clean_audio,
        stft=stft, alpha_logits=out.alpha_logits, trust=trust, trust_mask=trust_mask,
    )


def refuse_adversarial(cfg: dict) -> None:
    """ValueError for keys of SEMamba's adversarial recipe: better than training as if they were not there."""
    training = cfg["training_cfg"]
    for key in ("use_discriminator", "use_PCS400", "use_pretrainedD"):
        if training[key]:
            raise ValueError(f"training_cfg.{key}: true is not something train_lite.py does; set it to false")
    if training["loss"]["metric"] > 0:
        raise ValueError("training_cfg.loss.metric needs a discriminator, which train_lite.py does not train; set it to 0")


def build_trainer(cfg: dict, exp_path: Path, device: torch.device) -> Trainer:
    """Model, data and loop of a recipe; `resume` brings it to the newest checkpoint in `exp_path`."""
    refuse_adversarial(cfg)
    initialize_seed(cfg["env_setting"]["seed"])
    model = LiteAVSEMamba(cfg).to(device)
    start = cfg["training_cfg"]["init_checkpoint"]
    if start is not None and latest_pair(exp_path) is None:
        print(start_from(model, cfg, start, cfg["training_cfg"]["init_parts"]))
    validation = Validation(make_valid_set(cfg), cfg["env_setting"]["num_workers"])
    enhancer = Enhancer(model, cfg, device)
    return Trainer(
        cfg, exp_path, model, pack=lambda meta: pack_generator(model, cfg, meta), dataset=make_train_set(cfg),
        compute_losses=lambda item: compute_losses(model, item, cfg, device),
        validate=lambda: validation(enhancer), may_miss=third_party_keys(model),
    )


def train(args: argparse.Namespace) -> int:
    cfg = load_config(args.config, args.override)
    device = pick_device(args.device)
    exp_path = Path(args.exp_folder) / (args.exp_name or Path(args.config).stem)
    trainer = build_trainer(cfg, exp_path, device)
    record_run(exp_path, cfg)
    resumed = trainer.resume()
    trainable, parameters = (sum(p.numel() for p in ps) for ps in (trainer.parameters, trainer.generator.parameters()))
    print(
        f"{exp_path}: {trainable:,} trainable of {parameters:,} parameters on {device}; {describe_backend(device)}; "
        f"{len(trainer.dataset)} clips" + (f"; goes on from step {trainer.step}" if resumed else "")
    )
    outcome = trainer.run()
    best = trainer.best
    said = f"best PESQ {best['pesq']:.3f} at step {best['step']}" if best["step"] >= 0 else "no validation gave a PESQ yet"
    print(f"{outcome} at step {trainer.step}; {said}")
    return 0 if outcome == "finished" else EXIT_INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("train_lite.py", lambda: train(args))


if __name__ == "__main__":
    raise SystemExit(main())
