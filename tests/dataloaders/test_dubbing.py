"""Faces made for voices that were never filmed: they say what the voice says, as clearly as real ones do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dataloaders.augment_video import VisualDegradation
from dataloaders.dataloader_av import AVDataset
from dataloaders.dubbing import CONTEXT_FRAMES, Dubber, context_energies
from evaluation.make_dubbing_bank import Take, main, make_bank
from helpers.corpus import make_corpus
from helpers.tiny import tiny_config

RATE, FPS, DIM = 16000, 25.0, 12


def babble(seconds: float, seed: int) -> np.ndarray:
    """Noise whose loudness goes up and down a few times a second."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    knots = np.interp(np.arange(n), np.linspace(0, n, int(6 * seconds)), rng.random(int(6 * seconds)))
    return (0.3 * knots**3 * rng.standard_normal(n)).astype(np.float32)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of made-up people whose features are a map of the sound's energies, a place of their own, and as much noise."""
    rng = np.random.default_rng(0)
    takes = []
    mixing = None
    for k in range(12):
        energies = context_energies(babble(4.0, k), 100, FPS, RATE)
        mixing = rng.standard_normal((energies.shape[1], DIM)) * 0.3 if mixing is None else mixing
        said = (energies - energies.mean(0)) @ mixing
        features = said + said.std() * rng.standard_normal(said.shape) + 5 * rng.standard_normal(DIM)
        takes.append(Take(features, energies, f"p{k // 2}"))
    arrays, explained = make_bank(takes)
    assert 0.4 < explained < 0.65
    path = tmp_path_factory.mktemp("bank") / "bank.npz"
    np.savez(path, **arrays)
    return path


def test_a_click_is_seen_in_the_frame_in_which_it_is_heard() -> None:
    sound = np.zeros(RATE, np.float32)
    sound[int(10.5 * RATE / FPS)] = 1.0  # the middle of frame 10
    energies = context_energies(sound, 25, FPS, RATE).reshape(25, 2 * CONTEXT_FRAMES + 1, -1)
    assert energies[:, CONTEXT_FRAMES].sum(1).argmax() == 10
    assert energies[:, 0].sum(1).argmax() == 10 + CONTEXT_FRAMES and energies[:, -1].sum(1).argmax() == 10 - CONTEXT_FRAMES


def test_a_made_face_goes_with_its_voice_and_with_no_other(bank: Path) -> None:
    dubber, rng = Dubber(bank), np.random.default_rng(1)
    readout = np.linalg.pinv(dubber._map)

    def agreement(features: np.ndarray, sound: np.ndarray) -> float:
        energies = context_energies(sound, len(features), FPS, RATE)
        read = (features - features.mean(0)) @ readout @ dubber._map
        return float(np.corrcoef(read.ravel(), ((energies - energies.mean(0)) @ dubber._map).ravel())[0, 1])

    own, others, moved = [], [], []
    for k in range(8):
        voice, other = babble(3.0, 100 + k), babble(3.0, 200 + k)
        features = dubber(voice, 75, FPS, RATE, rng)
        assert features.shape == (75, DIM) and features.dtype == np.float32
        own.append(agreement(features, voice))
        others.append(agreement(features, other))
        moved.append(agreement(features, np.roll(voice, RATE // 2)))
    assert np.mean(own) > 0.5 and abs(np.mean(others)) < 0.2 and abs(np.mean(moved)) < 0.3


def test_varied_faces_move_less_and_each_in_its_own_way(bank: Path) -> None:
    sound = babble(3.0, 7)
    energies = context_energies(sound, 75, FPS, RATE)

    def gains(variation: float, seed: int) -> np.ndarray:
        """How much each feature moves with the sound, as a share of what it does without variation."""
        plain, varied = (Dubber(bank, v)(sound, 75, FPS, RATE, np.random.default_rng(seed)) for v in (0.0, variation))
        explained = (energies - energies.mean(0)) @ Dubber(bank)._map
        return ((varied - plain) * explained).sum(0) / np.square(explained).sum(0) + 1.0

    assert gains(0.0, 0) == pytest.approx(1.0)
    several = np.stack([gains(0.6, seed) for seed in range(20)])
    assert several.min() >= 0.4 * 0.4 - 1e-4 and several.max() <= 1.6 + 1e-4
    assert several.std(1).min() > 0.1 and several.mean(1).std() > 0.05  # over features, and over faces
    assert 0.7 < several.mean() < 0.9


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The corpus with voices that nobody filmed."""
    folder = tmp_path_factory.mktemp("voices")
    clips, noises = make_corpus(folder, clips_per_speaker=2, duration_sec=1.4)
    entries = json.loads(Path(clips).read_text())
    unseen = []
    for k in range(4):
        unseen.append(str(folder / f"unseen{k}" / "voice.wav"))
        Path(unseen[-1]).parent.mkdir()
        soundfile.write(unseen[-1], babble(2.0, k), RATE)
    (folder / "all.json").write_text(json.dumps(entries + [{"audio": path} for path in unseen]))
    return folder / "all.json", noises, unseen


def dataset(lists: tuple[Path, Path, list[str]], bank: Path, shares: dict[str, float], **scene: object) -> AVDataset:
    cfg = tiny_config(
        training_cfg={"segment_size": 12800, "rir_prob": 0.0, "scene": {"pair_share": 1.0, **scene}},
        visual_cfg={"face_size": 32, "visual_dim": DIM, "face_crop": "none"},
        data_cfg={"train_dubbing_bank": str(bank)},
    )
    return AVDataset(*lists[:2], cfg, "train", visual_augmentation=VisualDegradation(shares))


def test_clips_without_video_are_given_a_face_and_are_paired_like_the_others(lists, bank) -> None:
    data = dataset(lists, bank, {"none": 1.0})
    made = [data[index].features for index in range(len(data))]
    assert all(features.shape == (20, DIM) for features in made)
    assert {bool(features.isnan().all()) for features in made} == {True, False}
    for index in range(len(data) - 8, len(data)):  # the voices that nobody filmed, as the first voice of a pair
        item = data[index]
        assert torch.equal(item.noisy_audio, data[index ^ 1].noisy_audio)
        if not index % 2:
            assert item.features.isfinite().all() and item.video_mask.all() and not item.corruption.any()
            assert not item.video.any()
    last = len(data) - 2
    assert torch.equal(data[last].features, data[last].features)
    varied = dataset(lists, bank, {"none": 1.0}, dubbing_variation=0.5)[last]
    assert torch.equal(varied.noisy_audio, data[last].noisy_audio) and not torch.equal(varied.features, data[last].features)


def test_a_made_face_that_says_something_else_is_labelled_and_everybody_is_wanted(lists, bank) -> None:
    for kind in ("other", "shift"):
        data = dataset(lists, bank, {kind: 1.0}, pair_share=0.0, talker_shares=[0, 1])
        item = data[len(data) - 1]
        assert item.corruption.all() and item.features.isfinite().all()


def test_the_bank_of_a_list_is_made_by_one_command(lists, tmp_path, capsys) -> None:
    folder = Path(lists[0]).parent
    cfg = {
        "visual_cfg": {"face_size": 96, "visual_dim": 128, "encoder_weights": "ckpts/visual_encoder.pth"},
        "lite_cfg": {"visual_encoder_type": "distilled"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(cfg))
    listed = [entry for entry in json.loads(Path(lists[0]).read_text()) if entry.get("video")]
    (folder / "faces.json").write_text(json.dumps(listed))
    command = ["--config", str(tmp_path / "recipe.yaml"), "--list", str(folder / "faces.json")]
    assert main(command + ["--output", str(tmp_path / "b.npz"),"--override", "visual_cfg.face_crop=none"]) == 0
    assert "sound explains" in capsys.readouterr().out
    features = Dubber(tmp_path / "b.npz")(babble(1.0, 3), 25, FPS, RATE, np.random.default_rng(0))
    assert features.shape == (25, 128) and np.isfinite(features).all()
    assert main(command[:2] + ["--list", lists[0].as_posix() + "x", "--output", str(tmp_path / "c.npz")]) == 2
    assert not (tmp_path / "c.npz").exists()
