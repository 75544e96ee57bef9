"""Teaching the small encoder: the drawing of faces, the readout that measures it, and a run from list to weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.teach_encoder import TEACHER_PREFIX, Teacher, main
from evaluation.teaching.face_variety import another_face, paced, worse_camera
from evaluation.teaching.visual_readout import band_energies_db, readout_correlation
from helpers.paths import ROOT
from helpers.tiny import tiny_model, voice
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.media.clip_writer import write_clip
from utils.util import write_json


def test_a_clip_becomes_one_other_face() -> None:
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 256, (96, 96, 3)).astype(np.float32)
    faces = another_face(np.stack([crop] * 5), rng)
    assert faces.shape == (5, 96, 96, 3) and faces.dtype == np.float32 and faces.min() >= 0 and faces.max() <= 1
    assert np.abs(faces[0] - faces[1]).mean() < 0.5 * np.abs(faces[0] - crop / 255).mean()  # a slow drift, no flicker
    assert worse_camera(faces, rng).shape == faces.shape


def test_pace_reads_between_frames() -> None:
    assert paced(np.arange(5.0)[:, None], 0.5, 1.5, 3)[:, 0].tolist() == [0.5, 2.0, 3.5]
    assert paced(np.arange(5.0), 3.0, 1.0, 3).tolist() == [3.0, 4.0, 4.0]


def test_band_energies_rise_where_and_when_the_tone_is() -> None:
    t = np.arange(16000) / 16000
    energies = band_energies_db(np.sin(2 * np.pi * 1000 * t) * (t >= 0.52), 25, 25, 16000)
    assert energies.shape == (25, 4)
    assert energies[14:24].argmax(1).tolist() == [1] * 10
    assert energies[14:24, 1].min() > energies[:12, 1].max() + 30


def test_the_readout_finds_what_is_there_at_its_delay() -> None:
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(12):
        sound = rng.standard_normal((60, 4))
        noise = rng.standard_normal((60, 7))
        features = np.concatenate([np.roll(sound, 2, axis=0) + 0.1 * noise[:, :4], noise[:, 4:]], axis=1)
        clips.append((features + 5 * rng.standard_normal(7), sound))
    assert readout_correlation(clips[:8], clips[8:], later=2) > 0.9
    assert abs(readout_correlation(clips[:8], clips[8:], later=0)) < 0.2


def _teacher_file(path: Path) -> Path:
    """Random weights of the teacher's shape, under its own names."""
    torch.manual_seed(0)
    state = {}
    for block, (before, after) in enumerate(((1, 32), (32, 64), (64, 128)), 1):
        shapes = {"s_1": (after // 2, before, 1, 5, 5), "s_2": (after, after // 2, 1, 3, 3),
                  "t_1": (after, after, 5, 1, 1), "t_2": (after, after, 3, 1, 1)}  # fmt: skip
        for name, shape in shapes.items():
            state[f"{TEACHER_PREFIX}block{block}.{name}.weight"] = torch.randn(shape) / np.prod(shape[1:]) ** 0.5
            norm = f"{TEACHER_PREFIX}block{block}.{name[0]}_norm_{name[2]}"
            for key, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                state[f"{norm}.{key}"] = torch.full((shape[0],), value)
            state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    save_checkpoint(path, state)
    return path


def test_the_teacher_gives_128_numbers_a_frame_and_no_others_weights_will_do(tmp_path: Path) -> None:
    teacher = Teacher(str(_teacher_file(tmp_path / "teacher.pth")))
    video = torch.rand(1, 3, 24, 96, 96)
    said = teacher(video)
    assert said.shape == (1, 24, 128) and float(said.std()) > 0
    edited = video.clone()
    edited[:, :, 20:] = 0
    change = (teacher(edited) - said).abs().amax((0, 2))
    assert float(change[:11].max()) == 0 and float(change[12:].min()) > 0  # 9 frames ahead
    save_checkpoint(tmp_path / "other.pth", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not hold LR-ASD's visual encoder"):
        Teacher(str(tmp_path / "other.pth"))


def test_a_run_writes_weights_that_a_model_starts_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    entries = []
    for number in range(2):
        crops = rng.integers(0, 256, (30, 96, 96, 3), np.uint8)
        write_clip(tmp_path / f"{number}.mp4", crops, voice(1.2, seed=number), 16000, 25)
        entries.append({"video": str(tmp_path / f"{number}.mp4"), "speaker": f"p{number}"})
    write_json(tmp_path / "list.json", entries)
    config = ROOT / "recipes" / "LiteAVSE" / "LiteAVSE_encoder.yaml"
    code = main([
        "--config", str(config), "--teacher_weights", str(_teacher_file(tmp_path / "teacher.pth")),
        "--output", str(tmp_path / "out" / "encoder.pth"), "--override", f"data_cfg.train_data_json={tmp_path}/list.json",
        f"data_cfg.valid_data_json={tmp_path}/list.json", "training_cfg.max_steps=2", "training_cfg.batch_size=2",
        "visual_cfg.visual_dim=32",
    ])  # fmt: skip
    assert code == 0 and "readout {0:" in capsys.readouterr().out
    held = load_checkpoint(tmp_path / "out" / "encoder.pth")
    assert held["meta"]["step"] == 2
    model, _ = tiny_model(
        visual_cfg={"encoder_weights": str(tmp_path / "out" / "encoder.pth"), "visual_dim": 32},
        lite_cfg={"visual_encoder_type": "distilled"}, model_cfg={"causal": True},
    )  # fmt: skip
    assert torch.equal(model.visual_encoder.stem.weight, held["visual_encoder"]["stem.weight"].float())
