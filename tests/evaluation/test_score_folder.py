"""evaluation/score_folder.py: two folders in, a CSV and a table out, and a plain word about whatever does not fit."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluation import score_folder
from helpers.tiny import all_files, bytes_file, only_line, voice, wav_file
from models.pcs400 import cal_pcs
from utils.scores.dnsmos import DNSMOS, mel_features
from utils.scores.metrics import ALL_METRICS, score_clip


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """clean/ and out/ with a.wav (5 samples shorter in out/), b.flac (48 kHz in clean/)."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(16000)
    wav_file(tmp_path / "clean" / "a.wav", voice(1.0))
    wav_file(tmp_path / "out" / "a.wav", (voice(1.0) + noise)[:-5])
    wav_file(tmp_path / "clean" / "b.flac", voice(1.0, 48000, seed=1), 48000)
    wav_file(tmp_path / "out" / "b.wav", voice(1.0, 16000, seed=1) + noise)
    return tmp_path


def run(place: Path, *arguments: str) -> int:
    return score_folder.main([
        "--clean_folder", str(place / "clean"), "--enhanced_folder", str(place / "out"),
        "--output_csv", str(place / "scores.csv"), "--workers", "1", *arguments,
    ])  # fmt: skip


def test_scores_are_those_of_the_clips(folders, capsys) -> None:
    assert run(folders) == 0
    a, b = rows(folders / "scores.csv")
    assert (a["sample_id"], b["sample_id"]) == ("a", "b")
    clean, enhanced = (soundfile.read(folders / folder / "a.wav", dtype="float32")[0] for folder in ("clean", "out"))
    expected = score_clip(clean, enhanced, metrics=ALL_METRICS, align=True)
    for metric in ALL_METRICS:
        assert float(a[metric]) == pytest.approx(expected[metric], abs=1e-6)
    said = capsys.readouterr().out
    assert "1 of 2 enhanced files differ in length by -5 samples" in said and a["length_difference_samples"] == "-5"
    assert "PESQ-WB" in said and "95 %" in said and "Hu & Loizou 2008" in said
    assert "Student's t over 2 files; says nothing about other speakers" in said
    mean = (float(a["si_sdr"]) + float(b["si_sdr"])) / 2
    line = next(line for line in said.splitlines() if line.startswith("SI-SDR in dB"))
    assert float(line.split()[3]) == pytest.approx(mean, abs=0.006) and line.split()[-2:] == ["2", "0"]


def test_two_processes_give_the_scores_of_one(folders) -> None:
    assert run(folders) == 0
    one = (folders / "scores.csv").read_text()
    assert run(folders, "--workers", "2") == 0
    assert (folders / "scores.csv").read_text() == one


def test_clips_that_cannot_be_scored_are_named_and_left_out_of_means(folders, capsys) -> None:
    wav_file(folders / "clean" / "silent.wav", np.zeros(16000))
    wav_file(folders / "out" / "silent.wav", voice(1.0))
    wav_file(folders / "clean" / "broken.wav", voice(1.0))
    bytes_file(folders / "out" / "broken.wav", b"nothing")
    wav_file(folders / "clean" / "other.wav", voice(1.0))
    wav_file(folders / "out" / "other.wav", voice(0.5))
    assert run(folders) == 1
    said = capsys.readouterr().out
    for word in ("silent: the reference is silent", "broken: ", "other: the reference has 16000 samples, the estimate 8000"):
        assert word in said
    assert "1 of 5 enhanced files differ in length by -5 samples" in said  # refused and unreadable ones are not cut
    table = {row["sample_id"]: row for row in rows(folders / "scores.csv")}
    assert table["silent"]["pesq"] == "" and "silent" in table["silent"]["errors"]
    line = next(line for line in said.splitlines() if line.startswith("PESQ-WB"))
    assert line.split()[-2:] == ["2", "3"]
    assert float(line.split()[1]) == pytest.approx((float(table["a"]["pesq"]) + float(table["b"]["pesq"])) / 2, abs=6e-3)


def test_suffix_pairs_what_our_own_scripts_write(folders) -> None:
    for path in list((folders / "out").iterdir()):
        path.rename(path.with_stem(path.stem + "_enhanced"))
    assert run(folders, "--suffix", "_enhanced") == 0
    assert [row["sample_id"] for row in rows(folders / "scores.csv")] == ["a", "b"]


@pytest.mark.parametrize(("spoil", "arguments", "said"), [
    (lambda place: wav_file(place / "out" / "c.wav"), [], "c.wav"),
    (lambda place: (place / "out" / "a.wav").unlink(), [], "--allow_missing"),
    (lambda place: wav_file(place / "out" / "a.flac"), [], "two files of one name"),
    (lambda place: [path.unlink() for path in (place / "out").iterdir()], [], "no sound files"),
    (lambda place: None, ["--enhanced_folder", "nowhere"], "nowhere is not a folder"),
    (lambda place: None, ["--suffix", "_x"], "do not end so"),
    (lambda place: None, ["--dnsmos_p835", "nowhere.onnx"], "nowhere.onnx does not exist"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_nothing_is_written(folders, capsys, spoil, arguments, said) -> None:
    spoil(folders)
    assert run(folders, *arguments) == 2
    assert said in only_line(capsys.readouterr().err)
    assert "scores.csv" not in all_files(folders)


def test_an_incomplete_folder_is_scored_where_that_is_asked_for(folders) -> None:
    (folders / "out" / "a.wav").unlink()
    assert run(folders, "--allow_missing") == 0
    assert [row["sample_id"] for row in rows(folders / "scores.csv")] == ["b"]


# DNSMOS --------------------------------------------------------------------------------------------------------------


def test_mel_features_have_their_peak_at_a_tone() -> None:
    """1000 Hz lies at 15 of Slaney's mels (3 per 200 Hz), of 15 + ln 8 / (ln 6.4 / 27) = 45.25 in 121 steps: band 39."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    features = mel_features(tone)
    assert features.shape == (100, 120) and features.dtype == np.float32
    assert np.abs(features.mean(axis=0).argmax() - 39) <= 1
    assert features.max() == pytest.approx(1.0) and features.min() >= -1.0
    # librosa 0.11 (melspectrogram, power_to_db) on the same tone, frame 50
    np.testing.assert_allclose(features[50, 36:43:2], [0.332806, 0.509587, 0.627873, -0.104562], atol=1e-5)


def test_dnsmos_without_onnxruntime_is_one_line(folders, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it fails, whether it is installed or not
    bytes_file(tmp_path / "model.onnx", b"")
    assert run(folders, "--dnsmos_p808", str(tmp_path / "model.onnx")) == 2
    assert "pip install onnxruntime" in only_line(capsys.readouterr().err)


def test_dnsmos_ratings_of_a_published_clip(shared_data) -> None:
    pytest.importorskip("onnxruntime", reason="DNSMOS needs onnxruntime, which is not installed")
    dnsmos = DNSMOS(shared_data / "weights" / "sig_bak_ovr.onnx", shared_data / "weights" / "model_v8.onnx")
    noisy, enhanced = (
        dnsmos(soundfile.read(shared_data / "semamba_published" / folder / "p232_005.wav")[0])
        for folder in ("ref_noisy", "SEMamba_advanced")
    )
    assert noisy == pytest.approx(
        {"dnsmos_sig": 3.5474, "dnsmos_bak": 2.5430, "dnsmos_ovr": 2.5077, "dnsmos_p808": 2.8731}, abs=2e-3
    )
    assert enhanced["dnsmos_bak"] > noisy["dnsmos_bak"] + 1 and enhanced["dnsmos_p808"] > noisy["dnsmos_p808"] + 1


# Published clips -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_our_contrast_stretching_of_published_outputs_scores_as_published(shared_data, tmp_path) -> None:
    """SEMamba's own outputs with PCS score 3.906; its outputs without, stretched by us, must too."""
    clips = shared_data / "semamba_published"
    for path in (clips / "SEMamba_advanced").glob("*.wav"):
        wav, rate = soundfile.read(path)
        wav_file(tmp_path / path.name, cal_pcs(wav), rate)
    pairs = score_folder.find_pairs(clips / "ref_clean", tmp_path)
    results, differences = score_folder.score_pairs(pairs, workers=2)
    assert len(results) == 20 and all(-100 < difference < 0 for difference in differences)
    assert np.mean([result["pesq"] for result in results]) == pytest.approx(3.906, abs=0.02)
    assert np.mean([result["si_sdr"] for result in results]) == pytest.approx(8.80, abs=0.1)
