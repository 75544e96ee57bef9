"""inference.py: folders of sound through SEMamba checkpoints, its authors' or ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import inference
from helpers.tiny import all_files, broken_inputs, only_line, save_tiny_checkpoint, tiny_config, tiny_model, voice, wav_file
from utils.checkpoint import save_checkpoint


def semamba_style(path: Path, **sections: dict) -> Path:
    """A file as SEMamba's own training writes it: weights and nothing else."""
    model, _ = tiny_model("SEMamba", **sections)
    save_checkpoint(path, {"generator": model.state_dict()})
    return path


FULL_SIZE = {"model_cfg": {"hid_feature": 64, "num_tfmamba": 4, "d_state": 16, "expand": 4}}


def test_published_style_checkpoint_needs_no_config(tmp_path, capsys) -> None:
    """SEMamba's own size, weights alone, on the CPU."""
    wav_file(tmp_path / "in" / "p232_001.wav", voice(0.2)[:3111])
    checkpoint = semamba_style(tmp_path / "g_00587000.pth", **FULL_SIZE)
    code = inference.main(["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"),
                           "--checkpoint_file", str(checkpoint), "--device", "cpu"])
    assert code == 0 and "2.26 M parameters" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "out" / "p232_001.wav").frames == 3111


@pytest.fixture
def run_semamba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """inference.main on tmp_path/in with a small weights-only checkpoint and the recipe that fits it."""
    monkeypatch.chdir(tmp_path)
    semamba_style(tmp_path / "g_00000007.pth")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"model_cfg": tiny_config()["model_cfg"]}))

    def call(*arguments: str, config: str = "small.yaml") -> int:
        return inference.main(["--input_folder", "in", "--config", config, "--checkpoint_file", "g_00000007.pth",
                               "--device", "cpu", *arguments])

    return call


def test_audio_only_folder_with_recipe(run_semamba, tmp_path, talking_clip) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    wav_file(tmp_path / "in" / "b.flac", voice(0.3, 48000), 48000)
    shutil.copy(talking_clip, tmp_path / "in" / "c.mp4")
    assert run_semamba("--output_folder", "out") == 0
    assert all_files(tmp_path / "out") == {"a.wav", "b.wav", "enhanced.csv"}


@pytest.mark.parametrize(("option", "changes"), [
    ([], False), (["--post_processing_PCS", "False"], False),
    (["--post_processing_PCS", "True"], True), (["--post_processing_PCS"], True),
])
def test_contrast_stretching(run_semamba, tmp_path, option: list[str], changes: bool) -> None:
    wav_file(tmp_path / "in" / "a.wav", voice(0.5)[:7777])
    assert run_semamba("--output_folder", "plain") == 0
    assert run_semamba("--output_folder", "out", *option) == 0
    plain, out = (soundfile.read(f"{folder}/a.wav")[0] for folder in ("plain", "out"))
    assert len(out) == 7777 and (np.abs(plain - out).max() > 1e-3) == changes


def test_contrast_stretching_at_another_rate_is_refused(tmp_path, capsys) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    checkpoint = save_tiny_checkpoint(tmp_path / "g.pth", "SEMamba", stft_cfg={"sampling_rate": 8000})
    command = ["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"), "--device", "cpu",
               "--checkpoint_file", str(checkpoint)]  # fmt: skip
    assert inference.main([*command, "--post_processing_PCS"]) == 2
    assert "16000 Hz" in only_line(capsys.readouterr().err)
    assert inference.main(command) == 0


def test_audio_only_script_refuses_what_does_not_fit(run_semamba, tmp_path, capsys) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    assert run_semamba("--output_folder", "in") == 2
    assert "never overwritten" in only_line(capsys.readouterr().err)
    (tmp_path / "wide.yaml").write_text("model_cfg: {hid_feature: 16}\n")
    assert run_semamba(config="wide.yaml") == 2
    assert "does not fit SEMamba" in only_line(capsys.readouterr().err)
    (tmp_path / "typo.yaml").write_text("model_cfg: {hid_features: 8}\n")
    assert run_semamba(config="typo.yaml") == 2
    assert "did you mean hid_feature?" in only_line(capsys.readouterr().err)
    with pytest.raises(SystemExit) as stop:
        run_semamba("--post_processing_PCS", "perhaps")
    assert stop.value.code == 2 and "True or False" in only_line(capsys.readouterr().err)


def test_one_bad_file_never_stops_the_audio_only_script(run_semamba, tmp_path, capsys) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    broken = broken_inputs(tmp_path / "in")
    assert run_semamba("--output_folder", "out") == 1
    assert all_files(tmp_path / "out") == {"a.wav", "enhanced.csv"}
    assert f"{len(broken) - 1} of {len(broken)} recordings failed" in capsys.readouterr().err  # the .mpg is not sound


def test_audiovisual_checkpoint_enhances_sound_alone(tmp_path, av_checkpoint, capsys) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    assert inference.main(["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"),
                           "--checkpoint_file", str(av_checkpoint), "--device", "cpu"]) == 0
    assert "mean alpha" not in capsys.readouterr().out
