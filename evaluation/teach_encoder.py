"""Teaches the small visual encoder (lite_cfg.visual_encoder_type: distilled) what a costlier network says of moving mouths.

    python evaluation/teach_encoder.py --config recipes/LiteAVSE/LiteAVSE_encoder.yaml --teacher_weights PATH --output PATH

The teacher is LR-ASD's visual encoder (Liao et al., "LR-ASD: Lightweight and Robust Network for Active Speaker Detection",
IJCV 2025; its weights, MIT, are given by path and never stored). It labels any face video, so few people become many by
bending, lighting and mixing their faces. The student sees video up to frame v and says what the teacher, who sees 360 ms
further, says of v, v - 3 and v - 6: so it has something to say with and without visual_lookahead_ms. The clean sound's band
energies at the same moments are a second lesson.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dataloaders.clip_sources import open_clips
from evaluation.teaching.face_variety import PACES, another_face, paced, worse_camera
from evaluation.teaching.visual_readout import band_energies_db, readout_correlation
from models.distilled_encoder import LiteVisualEncoderC, mouth_light
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import load_config
from utils.console import Parser, run
from utils.util import initialize_seed, load_json_file

TEACHER_PREFIX = "model.visualEncoder."
TEACHER_SIDE, TEACHER_DIM = 112, 128
DELAYS = (0, 3, 6)  # video frames
EDGE = 7  # frames at both ends of a stretch that are not used: the teacher lacks the frames beyond
STRETCH = 48  # frames
LESSON_EDGES_HZ = (80, 250, 500, 900, 1500, 2300, 3500, 5500, 8000)
MIXED_SHARE = 0.15  # share of the stretches that show two faces, one shining through the other


class _TeacherBlock(nn.Module):
    """Two convolutions in space and two in time, each without bias, then BatchNorm and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        layers = {
            "s_1": (in_channels, half, (1, 5, 5), (1, stride, stride)), "s_2": (half, channels, (1, 3, 3), 1),
            "t_1": (channels, channels, (5, 1, 1), 1), "t_2": (channels, channels, (3, 1, 1), 1),
        }  # fmt: skip
        self.names = tuple(layers)
        for name, (before, after, kernel, step) in layers.items():
            padding = tuple((size - 1) // 2 for size in kernel)
            self.add_module(name, nn.Conv3d(before, after, kernel, step, padding, bias=False))
            self.add_module(f"{name[0]}_norm_{name[2]}", nn.BatchNorm3d(after, eps=1e-3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = F.relu(getattr(self, f"{name[0]}_norm_{name[2]}")(getattr(self, name)(x)))
        return x


class Teacher(nn.Module):
    """LR-ASD's visual encoder: crops [B, 3, V, S, S] in [0, 1] -> [B, V, 128]. It looks 9 frames ahead."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = _TeacherBlock(1, 32, 2), _TeacherBlock(32, 64, 1), _TeacherBlock(64, 128, 1)
        stored = load_checkpoint(path)
        own = {key.removeprefix(TEACHER_PREFIX): value for key, value in stored.items() if key.startswith(TEACHER_PREFIX)}
        try:
            self.load_state_dict(own)
        except RuntimeError:
            raise ValueError(f"--teacher_weights {path} does not hold LR-ASD's visual encoder ({TEACHER_PREFIX}*)") from None
        self.eval().requires_grad_(False)
        self.to(torch.bfloat16, memory_format=torch.channels_last_3d)  # differs from float32 by 0.7 %

    @torch.inference_mode()
    def forward(self, video: torch.Tensor) -> torch.Tensor:
        grey = F.interpolate(mouth_light(video), (TEACHER_SIDE, TEACHER_SIDE), mode="bilinear")
        x = ((grey - 0.4161) / 0.1688)[:, None].to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
        x = F.max_pool3d(self.block1(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        x = F.max_pool3d(self.block2(x), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        return self.block3(x).amax((3, 4)).transpose(1, 2).float()


@dataclass(frozen=True)
class Face:
    """A clip in memory."""

    speaker: str
    crops: np.ndarray  # uint8 [V, S, S, 3]
    lesson_db: np.ndarray  # [V, 8]
    bands_db: np.ndarray  # [V, 4]


def load_faces(cfg: Mapping, split: str) -> list[Face]:
    """All clips of the recipe's list; the crops are those of data/prepare_faces.py."""
    key = f"{split}_data_json"
    clips = open_clips(cfg["data_cfg"][key], f"data_cfg.{key}", cfg)
    entries = load_json_file(cfg["data_cfg"][key], f"data_cfg.{key}")
    rate, fps = cfg["stft_cfg"]["sampling_rate"], cfg["visual_cfg"]["video_fps"]
    faces = []
    for clip, entry in zip(clips, entries, strict=True):
        sound = clip.sound()
        count = int(len(sound) / rate * fps)
        crops, _ = clip.frames(0, count)
        lesson = band_energies_db(sound, count, fps, rate, LESSON_EDGES_HZ)
        faces.append(Face(entry.get("speaker", ""), crops, lesson, band_energies_db(sound, count, fps, rate)))
    return faces


class Draw:
    """Draws stretches of clips, each with a varied face. A speaker's weight is the square root of the number of their clips."""

    def __init__(self, faces: Sequence[Face], seed: int) -> None:
        self.faces, self.rng = faces, np.random.default_rng(seed)
        counts = {face.speaker: sum(other.speaker == face.speaker for other in faces) for face in faces}
        weights = np.array([counts[face.speaker] ** -0.5 for face in faces])
        self.shares = weights / weights.sum()

    def _stretch(self) -> tuple[np.ndarray, np.ndarray]:
        face = self.faces[int(self.rng.choice(len(self.faces), p=self.shares))]
        pace = float(np.exp(self.rng.uniform(*np.log(PACES))))
        first = self.rng.uniform(0, max(0.0, len(face.crops) - 1 - pace * (STRETCH - 1)))
        return (another_face(paced(face.crops, first, pace, STRETCH), self.rng),
                paced(face.lesson_db - face.lesson_db.mean(0), first, pace, STRETCH))

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Videos for teacher and pupil [B, 3, V, S, S], the sound's energies [B, V, 8], and whether these count [B]."""
        clear, poor, lessons, told = [], [], [], []
        for _ in range(size):
            face, lesson = self._stretch()
            mixed = self.rng.random() < MIXED_SHARE
            if mixed:
                share = np.float32(self.rng.uniform(0.3, 0.7))
                face = share * face + (1 - share) * self._stretch()[0]
            clear.append(face)
            poor.append(worse_camera(face, self.rng))
            lessons.append(lesson)
            told.append(not mixed)
        videos = (torch.from_numpy(np.stack(part)).permute(0, 4, 1, 2, 3).contiguous() for part in (clear, poor))
        return *videos, torch.from_numpy(np.stack(lessons)) / 12.0, torch.tensor(told)


class Pupil(nn.Module):
    """The encoder, and the layers that predict what it is taught; only the encoder is kept."""

    def __init__(self, cfg: Mapping) -> None:
        super().__init__()
        self.encoder = LiteVisualEncoderC(cfg)
        dim, bands = self.encoder.visual_dim, len(LESSON_EDGES_HZ) - 1
        self.answers = nn.ModuleList(nn.Linear(dim, TEACHER_DIM + bands) for _ in DELAYS)

    def losses(
        self, said: torch.Tensor, video: torch.Tensor, lesson: torch.Tensor, told: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """said [B, V, 128]: the teacher's features, normalised; the others as Draw.batch gives them."""
        features = self.encoder.encode_frames(video)[0].transpose(1, 2)  # [B, V, D]
        terms = {"teacher": [], "sound": []}
        for delay, answer in zip(DELAYS, self.answers, strict=True):
            first, stop = max(EDGE, 12 - delay), STRETCH - max(EDGE, delay)
            guess = answer(features[:, first + delay : stop + delay])
            terms["teacher"].append((guess[..., :TEACHER_DIM] - said[:, first:stop]).square().mean())
            error = (guess[..., TEACHER_DIM:] - lesson[:, first:stop]).square().mean((1, 2))
            terms["sound"].append((error * told).sum() / told.sum().clamp(min=1))
        return {name: torch.stack(values).mean() for name, values in terms.items()}


@torch.inference_mode()
def measure(encoder: LiteVisualEncoderC, train: Sequence[Face], valid: Sequence[Face]) -> dict[int, float]:
    """Correlation of a linear readout on `valid`, fitted on `train`, {frames of look-ahead: correlation}."""

    def told(face: Face) -> tuple[np.ndarray, np.ndarray]:
        video = torch.from_numpy(face.crops).permute(3, 0, 1, 2)[None].float() / 255
        return encoder.encode_frames(video)[0][0].t().numpy(), face.bands_db

    before, after = [told(face) for face in train], [told(face) for face in valid]
    return {delay: round(readout_correlation(before, after, delay), 3) for delay in DELAYS}


def teach(cfg: Mapping, teacher: Teacher, output: Path) -> dict[int, float]:
    """Train by the recipe's training_cfg and write the encoder's averaged weights to `output`; returns the last measure."""
    training = cfg["training_cfg"]
    initialize_seed(cfg["env_setting"]["seed"])
    train, valid = load_faces(cfg, "train"), load_faces(cfg, "valid")
    some = [face for k, face in enumerate(train) if k % max(1, len(train) // 100) == 0]  # enough for a linear readout
    pupil, draw = Pupil(cfg), Draw(train, cfg["env_setting"]["seed"])
    probe = torch.cat([teacher(draw.batch(training["batch_size"])[0]) for _ in range(4)])
    spread = (probe - probe.mean(1, keepdim=True)).std((0, 1)) + 1e-3  # [128]
    optimizer = torch.optim.AdamW(pupil.parameters(), training["learning_rate"], (training["adam_b1"], training["adam_b2"]))
    average = {key: value.clone() for key, value in pupil.encoder.state_dict().items()}
    steps, sums, started, found = training["max_steps"], {}, time.perf_counter(), {}
    for step in range(1, steps + 1):
        rate = training["learning_rate"] * min(1.0, step / max(1, training["warmup_steps"]))
        rate *= 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = rate
        clear, poor, lesson, told = draw.batch(training["batch_size"])
        said = teacher(clear)
        terms = pupil.losses((said - said.mean(1, keepdim=True)) / spread, poor, lesson, told)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(pupil.parameters(), training["grad_clip"] or math.inf)
        optimizer.step()
        decay = min(training["ema_decay"], 1 - 1 / step)
        for key, value in pupil.encoder.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        sums = {name: sums.get(name, 0.0) + value.item() for name, value in terms.items()}
        if step % cfg["env_setting"]["validation_interval"] == 0 or step == steps:
            every = step % cfg["env_setting"]["validation_interval"] or cfg["env_setting"]["validation_interval"]
            last = LiteVisualEncoderC(cfg)
            last.load_state_dict(average)
            found = measure(last, some, valid)
            line = ", ".join(f"{name} {value / every:.3f}" for name, value in sums.items())
            print(f"step {step}, {(time.perf_counter() - started) / 60:.1f} min: {line}; readout {found}", flush=True)
            sums = {}
            meta = {"step": step, "readout": {str(delay): value for delay, value in found.items()}}
            save_checkpoint(output, pack_encoder(average, cfg, meta))
    return found


def pack_encoder(weights: Mapping[str, torch.Tensor], cfg: Mapping, meta: Mapping) -> dict:
    """Contents of a file for `visual_cfg.encoder_weights`; half precision is enough."""
    return {
        "visual_encoder": {key: value.half() for key, value in weights.items()},
        "visual_encoder_type": "distilled", "meta": dict(meta),
        "config": {name: keys for name, keys in cfg.items() if name != "data_cfg"},  # data_cfg names private folders
    }  # fmt: skip


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("teach_encoder.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/LiteAVSE/LiteAVSE_encoder.yaml", help="recipe (YAML)")
    parser.add_argument("--teacher_weights", required=True, help="LR-ASD's published weights (finetuning_TalkSet.model)")
    parser.add_argument("--output", required=True, help="where the encoder's weights go")
    parser.add_argument("--override", nargs="*", action="extend", default=[], metavar="section.key=value")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)

    def work() -> int:
        cfg = load_config(args.config, args.override)
        if cfg["training_cfg"]["max_steps"] is None:
            raise ValueError("training_cfg.max_steps: say how many steps of teaching there are, e.g. 2000")
        teacher = Teacher(args.teacher_weights)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        cv2.setNumThreads(1)
        teach(cfg, teacher, Path(args.output))
        print(f"{args.output}: written")
        return 0

    return run("teach_encoder", work)


if __name__ == "__main__":
    sys.exit(main())
