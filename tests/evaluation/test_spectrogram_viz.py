"""The figure of an enhancement: levels in dB on one scale, the difference, and files of which none is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluation import spectrogram_viz
from evaluation.reporting.spectrograms import spectrogram_db, spectrogram_figure
from helpers.tiny import all_files, only_line, tiny_model, voice
from models.inference.results import EnhanceResult


def image_of(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_levels_are_in_db() -> None:
    _, cfg = tiny_model()
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    loud, soft = (spectrogram_db(wave, cfg["stft_cfg"]) for wave in (tone, 0.1 * tone))
    assert loud.shape == (201, 161) and int(loud[:, 80].argmax()) == 25  # bins of 40 Hz
    assert (loud[25] - soft[25])[5:-5] == pytest.approx(20, abs=0.01)


def test_the_difference_is_white_where_nothing_differs(tmp_path: Path) -> None:
    _, cfg = tiny_model()
    wav = voice(1.0)
    result = EnhanceResult(wav=wav, sample_rate=16000, duration_sec=1.0, seconds=0.1)
    same, other = ({"noisy": 2 * wav, "enhanced": enhanced, "clean": wav} for enhanced in (wav, 0.2 * wav))
    spectrogram_figure(tmp_path / "same.png", "a", same, result, cfg["stft_cfg"])
    spectrogram_figure(tmp_path / "other.png", "a", other, result, cfg["stft_cfg"])
    one, two = image_of(tmp_path / "same.png"), image_of(tmp_path / "other.png")
    assert one.shape == two.shape
    # The light blue of "quieter by 14 dB" is a colour that only the difference has.
    blue = [((image[..., 2] > 0.7) & (image[..., 0] < 0.6)).mean() for image in (one, two)]
    assert blue[0] < 0.001 and blue[1] > 0.02  # the colour bar holds some


def command(checkpoint: Path, output: Path, **files: Path) -> list[str]:
    given = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    return ["--checkpoint_file", str(checkpoint), "--output", str(output), "--device", "cpu", *given]


def test_with_and_without_clean_sound_and_difference(
    causal_checkpoint: Path, semamba_checkpoint: Path, talking_clip: Path, tmp_path: Path, capsys
) -> None:
    soundfile.write(tmp_path / "noisy.wav", voice(1.0, seed=1), 16000)
    soundfile.write(tmp_path / "clean.wav", voice(1.0)[:-12], 16000)
    files = {"noisy_audio": tmp_path / "noisy.wav", "video": talking_clip, "clean_audio": tmp_path / "clean.wav"}
    assert spectrogram_viz.main(command(causal_checkpoint, tmp_path / "a.png", **files)) == 0
    assert spectrogram_viz.main([*command(causal_checkpoint, tmp_path / "b.png", **files), "--no_diff"]) == 0
    assert spectrogram_viz.main(command(causal_checkpoint, tmp_path / "c.png", video=talking_clip)) == 0
    assert spectrogram_viz.main(command(semamba_checkpoint, tmp_path / "d.pdf", **files)) == 0
    heights = [image_of(tmp_path / f"{name}.png").shape[0] for name in "abc"]
    assert heights[0] > heights[1] == heights[2]  # one panel less without the difference, or without the clean sound
    assert (tmp_path / "d.pdf").read_bytes().startswith(b"%PDF")


def test_an_output_that_cannot_be_drawn_is_refused_before_the_work(
    causal_checkpoint: Path, talking_clip: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrogram_viz.Enhancer, "from_checkpoint", lambda *_: pytest.fail("the work was begun"))
    assert spectrogram_viz.main(command(causal_checkpoint, tmp_path / "a.bmp", video=talking_clip)) == 2
    line = only_line(capsys.readouterr().err)
    assert "a.bmp" in line and ".png, .pdf, .svg" in line


def test_mistakes_are_one_line(causal_checkpoint: Path, talking_clip: Path, tmp_path: Path, capsys) -> None:
    soundfile.write(tmp_path / "long.wav", voice(2.0), 16000)
    for files, word in (
        ({}, "--noisy_audio"),
        ({"noisy_audio": tmp_path / "absent.wav"}, "absent.wav"),
        ({"video": talking_clip, "clean_audio": tmp_path / "long.wav"}, "32000"),
    ):
        before = all_files(tmp_path)
        assert spectrogram_viz.main(command(causal_checkpoint, tmp_path / "a.png", **files)) == 2
        assert word in only_line(capsys.readouterr().err)
        assert all_files(tmp_path) == before
