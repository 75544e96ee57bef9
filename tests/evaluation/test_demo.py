"""`make demo`: clips in; scores, sound and a figure out."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluation import demo
from evaluation.reporting import figures
from helpers.paths import ROOT
from helpers.tiny import all_files, face_crops, only_line, tiny_model, voice
from models.inference.enhancer import Enhancer
from utils.media.clip_writer import write_clip
from utils.scores.metrics import si_sdr

ROWS = ("noisy", "audio only", "audio-visual")


def make_sample(folder: Path, name: str, seed: int) -> None:
    """One second of a noisy NAME.mp4 and its NAME_clean.flac."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = voice(1.0, seed=seed)
    noisy = clean + 0.02 * np.random.default_rng(seed).standard_normal(len(clean)).astype(np.float32)
    soundfile.write(folder / f"{name}_clean.flac", clean, 16000)
    write_clip(folder / f"{name}.mp4", face_crops(25, seed=seed), noisy)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_sample(folder, "first", 1)
    make_sample(folder, "second", 2)
    (folder / "README.md").write_text("not a clip")
    shutil.copy(folder / "first.mp4", folder / "no_reference.mp4")
    return folder


def run(checkpoint: Path, clips: Path, output: Path, *more: str) -> int:
    common = ["--checkpoint_file", str(checkpoint), "--samples", str(clips), "--output_dir", str(output), "--device", "cpu"]
    return demo.main([*common, *more])


def scores_in(text: str) -> dict[tuple[str, str], list[float]]:
    """{(clip, row): the numbers of that line} of the printed table."""
    found, clip = {}, ""
    for line in text.splitlines():
        match = re.fullmatch(rf"(\w*) +({'|'.join(ROWS)}) +([-\d. ]+)", line)
        if match:
            clip = match[1] or clip
            found[clip, match[2]] = [math.nan if number == "-" else float(number) for number in match[3].split()]
    return found


def test_scores_sound_and_figure(causal_checkpoint: Path, clips: Path, tmp_path: Path, capsys) -> None:
    assert run(causal_checkpoint, clips, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "LiteAVSEMamba (causal, with video)" in said.splitlines()[0]
    assert "PESQ-WB" in said and "ESTOI" in said and "RTF" in said
    table = scores_in(said)
    assert set(table) == {(clip, row) for clip in ("first", "second", "mean") for row in ROWS}
    for (clip, row), numbers in table.items():
        assert len(numbers) == 4 and not any(map(math.isnan, numbers)), (clip, row)
    for row in ROWS:
        np.testing.assert_allclose(table["mean", row], (np.array(table["first", row]) + table["second", row]) / 2, atol=0.006)
    expected = {f"{clip}_{row}.wav" for clip in ("first", "second") for row in ("noisy", "audio_only", "audio_visual")}
    assert all_files(tmp_path / "out") == expected | {"second.png"}
    assert str(tmp_path / "out" / "*.wav") in said and str(tmp_path / "out" / "second.png") in said


def test_what_is_written_is_what_is_scored_and_the_video_counts(
    causal_checkpoint: Path, clips: Path, tmp_path: Path, capsys
) -> None:
    assert run(causal_checkpoint, clips, tmp_path) == 0
    table = scores_in(capsys.readouterr().out)
    clean, noisy = soundfile.read(clips / "first_clean.flac")[0], soundfile.read(tmp_path / "first_noisy.wav")[0]
    enhancer = Enhancer.from_checkpoint(causal_checkpoint, "cpu")
    alone = enhancer.enhance(noisy, 16000).wav
    seen = enhancer.enhance(noisy, 16000, video=clips / "first.mp4").wav
    assert np.abs(alone - seen).max() > 1e-4
    for row, wav in zip(ROWS, (noisy, alone, seen), strict=True):
        written, rate = soundfile.read(tmp_path / f"first_{row.replace(' ', '_').replace('-', '_')}.wav")
        assert rate == 16000
        np.testing.assert_allclose(written, wav, atol=2e-4)  # 16-bit
        assert table["first", row][-1] == pytest.approx(si_sdr(clean, wav), abs=0.02)


def image_of(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_the_figure_shows_what_went_in(tmp_path: Path) -> None:
    model, cfg = tiny_model()
    wav = voice(1.0)
    sample = demo.Sample(Path("clip.mp4"), wav, wav)
    result = Enhancer(model, cfg).enhance(wav, 16000, face_crops(25), return_details=True)
    demo.draw(tmp_path / "a.png", sample, result, cfg)
    image = image_of(tmp_path / "a.png")
    assert image.shape[:2] == pytest.approx((8.7 * figures.DPI, 7.2 * figures.DPI), abs=1)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    louder = demo.Sample(Path("clip.mp4"), wav, np.zeros_like(wav))
    demo.draw(tmp_path / "b.png", louder, result, cfg)
    assert np.abs(image_of(tmp_path / "b.png") - image).mean() > 0.01  # the clean spectrogram went black


def test_an_audio_only_model_has_no_third_row(semamba_checkpoint: Path, clips: Path, tmp_path: Path, capsys) -> None:
    assert run(semamba_checkpoint, clips, tmp_path, "--figure", "first") == 0
    said = capsys.readouterr().out
    assert "audio only" in said and "audio-visual" not in said
    assert (tmp_path / "first.png").is_file()


@pytest.mark.parametrize(("absent", "left_out"), [("pesq", "PESQ-WB"), ("pystoi", "STOI"), ("matplotlib", None)])
def test_it_goes_on_without_a_package(
    absent: str, left_out: str | None, causal_checkpoint: Path, clips: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda what, *rest: None if what == absent else find_spec(what, *rest))
    assert run(causal_checkpoint, clips, tmp_path) == 0
    said = capsys.readouterr().out
    assert any(line.startswith("note: ") and f"pip install {absent}" in line for line in said.splitlines())
    assert "SI-SDR" in said and (left_out is None or left_out not in said.split("\n\n")[1])
    assert (tmp_path / "second.png").exists() == (absent != "matplotlib")
    assert ("mean", "audio-visual") in scores_in(said)


def test_a_clip_that_cannot_be_scored_is_named_and_left_out_of_the_mean(
    causal_checkpoint: Path, clips: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    write_clip(folder / "hush.mp4", face_crops(25), 0.1 * voice(1.0))
    soundfile.write(folder / "hush_clean.flac", np.zeros(16000), 16000)
    assert run(causal_checkpoint, folder, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "not scored: hush, noisy, si_sdr: the reference is silent" in said
    table = scores_in(said)
    assert all(map(math.isnan, table["hush", "noisy"]))
    np.testing.assert_allclose(
        table["mean", "noisy"], (np.array(table["first", "noisy"]) + table["second", "noisy"]) / 2, atol=0.006
    )


def test_means_are_over_the_clips_that_every_row_has() -> None:
    def scored(pesq: float) -> dict:
        return {"pesq": pesq, "errors": {} if pesq == pesq else {"pesq": "no reason"}}

    clips = {"a": (1.0, 2.0), "b": (5.0, math.nan), "c": (math.nan, 7.0)}
    scores = {clip: {"noisy": scored(one), "audio only": scored(two)} for clip, (one, two) in clips.items()}
    found = scores_in(demo.table(scores, ["pesq"]))
    assert found["mean", "noisy"] == [1.0] and found["mean", "audio only"] == [2.0]


def test_it_fails_when_no_clip_could_be_scored(causal_checkpoint: Path, tmp_path: Path, capsys) -> None:
    make_sample(tmp_path / "clips", "hush", 1)
    soundfile.write(tmp_path / "clips" / "hush_clean.flac", np.zeros(16000), 16000)
    assert run(causal_checkpoint, tmp_path / "clips", tmp_path / "out") == 1
    assert all(map(math.isnan, scores_in(capsys.readouterr().out)["mean", "noisy"]))


def test_mistakes_are_one_line_and_leave_nothing(causal_checkpoint: Path, clips: Path, tmp_path: Path, capsys) -> None:
    empty, uneven, output = tmp_path / "empty", tmp_path / "uneven", tmp_path / "out"
    empty.mkdir()
    make_sample(uneven, "clip", 3)
    soundfile.write(uneven / "clip_clean.flac", voice(0.5), 16000)
    for arguments, words in (
        ((tmp_path / "none.pth", clips), ("none.pth does not exist", "--checkpoint_file")),
        ((causal_checkpoint, tmp_path / "nowhere"), ("samples folder", "nowhere does not exist")),
        ((causal_checkpoint, empty), ("holds no pair", "_clean.flac")),
        ((causal_checkpoint, uneven), ("16000 samples", "8000")),
        ((causal_checkpoint, clips, "--figure", "third"), ("--figure third", "first, second")),
    ):
        checkpoint, folder, *more = arguments
        assert run(checkpoint, folder, output, *more) == 2
        captured = capsys.readouterr()
        line = only_line(captured.err)
        assert line.startswith("evaluation.demo: ") and all(word in line for word in words), line
    assert not output.exists()


def test_the_samples_that_ship_can_be_scored() -> None:
    samples = demo.load_samples(ROOT / "samples", 16000)
    assert len(samples) >= 3
    for sample in samples:
        assert f"`{sample.name}.mp4`" in (ROOT / "samples" / "README.md").read_text(encoding="utf-8")
        assert 2 < len(sample.noisy) / 16000 < 10
        assert -10 < si_sdr(sample.clean, sample.noisy) < 10  # a mixture of the clean sound, in step with it
    assert sum(path.stat().st_size for path in (ROOT / "samples").iterdir()) < 2e6
