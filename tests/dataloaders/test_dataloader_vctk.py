"""Pairs of clean and noisy recordings: matched by name, windowed by seed and epoch; lists with validation held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data import make_dataset_json
from dataloaders.clip_dataset import ListError
from dataloaders.dataloader_vctk import VCTKDemandDataset
from helpers.tiny import bytes_file, only_line, voice, wav_file
from models.pcs400 import cal_pcs
from utils.util import write_json


def make_pairs(folder: Path, n: int = 3, seconds: float = 1.0, rate: int = 16000) -> tuple[Path, Path]:
    """clean.json and noisy.json (the other way round) over `n` pairs."""
    for i in range(n):
        clean = voice(seconds, rate, seed=i)
        wav_file(folder / "clean" / f"p1_{i}.wav", clean, rate)
        wav_file(folder / "noisy" / f"p1_{i}.wav", clean + 0.02 * np.random.default_rng(i).standard_normal(len(clean)), rate)
    for kind in ("clean", "noisy"):
        order = range(n) if kind == "clean" else reversed(range(n))
        write_json(folder / f"{kind}.json", [f"{kind}/p1_{i}.wav" for i in order])
    return folder / "clean.json", folder / "noisy.json"


def test_pairs_are_matched_by_name_and_levelled(tmp_path) -> None:
    data = VCTKDemandDataset(*make_pairs(tmp_path), split=False, shuffle=False, compress_factor=0.3)
    for index, number in enumerate((2, 1, 0)):
        item = data[index]
        assert data.name(index).endswith(f"p1_{number}.wav")
        np.testing.assert_allclose(item.clean_audio / item.gain, voice(1.0, seed=number), atol=1e-4)
        assert float(item.noisy_audio.square().mean()) == pytest.approx(1.0, rel=1e-3)
        assert item.clean_mag.shape == item.noisy_mag.shape == (201, 161) and item.clean_com.shape == (201, 161, 2)
        assert item.video.shape[1] == 0


def test_windows_follow_from_seed_and_epoch_and_change_with_both(tmp_path) -> None:
    lists = make_pairs(tmp_path)

    def windows(epoch: int, seed: int = 1) -> torch.Tensor:
        data = VCTKDemandDataset(*lists, segment_size=4000, seed=seed, shuffle=False)
        data.set_epoch(epoch)
        return torch.stack([data[i].noisy_audio for i in range(3)])

    assert torch.equal(windows(0), windows(0)) and windows(0).shape == (3, 4000)
    assert not torch.equal(windows(0), windows(1)) and not torch.equal(windows(0), windows(0, seed=2))


def test_clean_and_noisy_windows_are_the_same_stretch(tmp_path) -> None:
    make_pairs(tmp_path)
    data = VCTKDemandDataset(tmp_path / "clean.json", tmp_path / "clean.json", segment_size=4000)
    item = data[0]
    assert torch.equal(item.clean_audio, item.noisy_audio) and float(item.clean_audio.abs().max()) > 0.1


def test_shuffling_changes_the_order_alone(tmp_path) -> None:
    lists = make_pairs(tmp_path, 6, 0.1)
    plain, shuffled = (VCTKDemandDataset(*lists, shuffle=on) for on in (False, True))
    names = [[data.name(i) for i in range(6)] for data in (plain, shuffled)]
    assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])


def test_short_clips_are_padded_and_other_rates_resampled(tmp_path) -> None:
    item = VCTKDemandDataset(*make_pairs(tmp_path, 1, 0.2, 48000), segment_size=4000)[0]
    assert item.clean_audio.shape == item.gain.shape == (4000,)
    assert np.corrcoef(item.clean_audio[:3200], voice(0.2, 48000)[::3])[0, 1] > 0.95
    assert bool((item.clean_audio[3200:] == 0).all()) and bool((item.noisy_audio[3200:] == 0).all())


def test_silence_is_finite(tmp_path) -> None:
    lists = make_pairs(tmp_path, 1)
    for kind in ("clean", "noisy"):
        wav_file(tmp_path / kind / "p1_0.wav", np.zeros(16000))
    for pcs in (False, True):
        item = VCTKDemandDataset(*lists, segment_size=4000, pcs=pcs)[0]
        assert all(bool(torch.isfinite(field).all()) for field in item)


def test_pcs_stretches_the_whole_clean_clip_and_nothing_else(tmp_path) -> None:
    lists = make_pairs(tmp_path, 1)
    plain, stretched = (VCTKDemandDataset(*lists, split=False, pcs=pcs)[0] for pcs in (False, True))
    assert torch.equal(plain.noisy_audio, stretched.noisy_audio)
    expected = cal_pcs((plain.clean_audio / plain.gain).numpy())
    np.testing.assert_allclose(stretched.clean_audio / stretched.gain, expected, atol=1e-4)
    with pytest.raises(ValueError, match="16000 Hz"):
        VCTKDemandDataset(*lists, sampling_rate=8000, pcs=True)


def test_lists_that_do_not_match_are_refused(tmp_path) -> None:
    clean, noisy = make_pairs(tmp_path)
    write_json(clean, ["clean/p1_0.wav", "clean/p1_1.wav"])
    with pytest.raises(ValueError, match=r"1 of 3 files in .*noisy\.json have no file of the same name .*p1_2\.wav"):
        VCTKDemandDataset(clean, noisy)
    write_json(clean, ["clean/p1_0.wav", "noisy/p1_0.wav"])
    with pytest.raises(ValueError, match="two clean files of one name"):
        VCTKDemandDataset(clean, noisy)


def test_pairs_that_cannot_be_used_are_replaced_and_named(tmp_path) -> None:
    lists = make_pairs(tmp_path, 6)
    wav_file(tmp_path / "clean" / "p1_0.wav", voice(0.5))  # half as long as its noisy one
    bytes_file(tmp_path / "noisy" / "p1_1.wav", b"nothing")
    data = VCTKDemandDataset(*lists, segment_size=4000, shuffle=False)
    assert len([data[i] for i in range(6)]) == 6
    assert {Path(path).name for path in data.failures} == {"p1_0.wav", "p1_1.wav"}
    assert "hardly the same recording" in next(text for path, text in data.failures.items() if "p1_0" in path)
    for i in range(6):
        bytes_file(tmp_path / "noisy" / f"p1_{i}.wav", b"nothing")
    with pytest.raises(ListError):
        [VCTKDemandDataset(*lists)[i] for i in range(6)]


# Lists ---------------------------------------------------------------------------------------------------------------


def make_corpus(root: Path, tail: str = "", nested: bool = False) -> Path:
    """VoiceBank-DEMAND's folders with a few samples in each file."""
    for kind in ("clean", "noisy"):
        for part, speakers in (("trainset_28spk", ("p226", "p227", "p287")), ("testset", ("p232", "p257"))):
            folder = root / f"{kind}_{part}_wav{tail}"
            for speaker in speakers:
                for number in (1, 2):
                    wav_file((folder / folder.name if nested else folder) / f"{speaker}_{number:03d}.wav", np.zeros(10), 48000)
    return root


def lists_of(folder: Path) -> dict[str, list[str]]:
    return {path.stem: [Path(item).stem for item in json.loads(path.read_text())] for path in folder.glob("*.json")}


@pytest.mark.parametrize(("tail", "nested"), [("", False), ("_16k", False), ("", True)])
def test_validation_is_held_out_of_training_and_test_is_for_testing(tmp_path, tail: str, nested: bool) -> None:
    make_corpus(tmp_path / "vbd", tail, nested)
    assert make_dataset_json.main(["--prefix_path", str(tmp_path / "vbd"), "--output_dir", str(tmp_path / "lists")]) == 0
    made = lists_of(tmp_path / "lists")
    assert made["train_clean"] == made["train_noisy"] == ["p227_001", "p227_002"]
    assert made["valid_clean"] == made["valid_noisy"] == ["p226_001", "p226_002", "p287_001", "p287_002"]
    assert made["test_clean"] == made["test_noisy"] == ["p232_001", "p232_002", "p257_001", "p257_002"]
    VCTKDemandDataset(tmp_path / "lists" / "train_clean.json", tmp_path / "lists" / "train_noisy.json")


def test_files_without_a_partner_are_left_out_and_named(tmp_path, capsys) -> None:
    make_corpus(tmp_path)
    (tmp_path / "noisy_testset_wav" / "p232_002.wav").unlink()
    arguments = ["--prefix_path", str(tmp_path), "--output_dir", str(tmp_path), "--valid_speakers", "p227"]
    assert make_dataset_json.main(arguments) == 0
    assert "p232_002" in capsys.readouterr().out
    made = lists_of(tmp_path)
    assert made["test_clean"] == ["p232_001", "p257_001", "p257_002"] and made["valid_clean"] == ["p227_001", "p227_002"]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--valid_speakers", "p999"], "p999 not in the training set; it has p226, p227, p287"),
    (["--valid_speakers", "p226", "p227", "p287"], "leave some to train on"),
    (["--prefix_path", "nowhere"], "nowhere is not a folder"),
    (["--output_dir", "vbd/clean_testset_wav/p232_001.wav"], "p232_001.wav"),
    (["--prefix_path", "empty"], "no folder such as clean_trainset_28spk_wav"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, said) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_corpus(tmp_path / "vbd")
    assert make_dataset_json.main(["--prefix_path", "vbd", "--output_dir", "lists", *arguments]) == 2
    assert said in only_line(capsys.readouterr().err)
    assert not (tmp_path / "lists").exists()


def test_two_copies_are_not_chosen_between(tmp_path, capsys) -> None:
    make_corpus(tmp_path)
    make_corpus(tmp_path, "_16k")
    assert make_dataset_json.main(["--prefix_path", str(tmp_path), "--output_dir", str(tmp_path)]) == 2
    assert "several clean train sets" in only_line(capsys.readouterr().err)
