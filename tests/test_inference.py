"""inference_av.py as a user meets them: files in, files and one-line messages out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import inference_av
from helpers.paths import ROOT
from helpers.tiny import (
    all_files,
    broken_inputs,
    bytes_file,
    face_crops,
    only_line,
    save_tiny_checkpoint,
    tiny_config,
    tiny_model,
    voice,
    wav_file,
    write_mpg,
)
from models.inference.files import enhance_file as enhance_files
from utils.checkpoint import save_checkpoint
from utils.media.clip_writer import write_clip


@pytest.fixture
def run_av(av_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """inference_av.main with the tiny checkpoint, in a folder of its own; gives the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, checkpoint: Path = av_checkpoint) -> int:
        try:
            return inference_av.main([str(a) for a in (*arguments, "--checkpoint_file", checkpoint, "--device", "cpu")])
        except SystemExit as stop:
            return int(stop.code)

    return call


def test_sound_alone(run_av, tmp_path, capsys) -> None:
    source = wav_file(tmp_path / "a.wav", voice(0.5)[:7777])
    assert run_av("--input_audio", source) == 0
    info = soundfile.info(tmp_path / "results" / "a_enhanced.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (7777, 16000, 1, "PCM_16")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 recording, 0.5 s of sound, 15.6 kB"
    assert lines[1] == "  a.wav (0.5 s, 15.6 kB, 16 kHz): sound only -> results/a_enhanced.wav"
    assert "LiteAVSEMamba" in lines[2] and "scan" in lines[2]
    assert lines[3].startswith("a.wav: 0.49 s, ") and lines[3].endswith(" x real time -> results/a_enhanced.wav")
    assert len(lines) == 4


def test_sound_with_video_and_a_chosen_output(run_av, tmp_path, talking_clip, capsys) -> None:
    source, target = wav_file(tmp_path / "a.wav", voice(1.0)), tmp_path / "out" / "clean.wav"
    assert run_av("--input_audio", source, "--input_video", talking_clip, "--output", target) == 0
    line = capsys.readouterr().out.splitlines()[3]
    assert line.startswith("a.wav + talk.mp4: 1.00 s, ") and "mean alpha 0." in line and "masked 0 %" in line
    with_video = soundfile.read(target)[0]
    run_av("--input_audio", source, "--output", target)
    assert np.abs(with_video - soundfile.read(target)[0]).max() > 1e-4


def test_video_alone_brings_its_own_sound(run_av, tmp_path, talking_clip, capsys) -> None:
    assert run_av("--input_video", talking_clip, "--output", tmp_path) == 0
    assert soundfile.info(tmp_path / "talk_enhanced.wav").frames == 16000
    assert "mean alpha" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "suffix"),
    [(8000, 1, "PCM_U8", ".wav"), (44100, 2, "PCM_24", ".wav"), (48000, 1, "FLOAT", ".wav"), (16000, 2, "PCM_16", ".flac"),
     (22050, 1, "VORBIS", ".ogg"), (44100, 2, "MPEG_LAYER_III", ".mp3")],
)
def test_rates_depths_and_channels(run_av, tmp_path, rate: int, channels: int, subtype: str, suffix: str) -> None:
    samples = np.repeat(voice(0.5, rate)[:, None], channels, axis=1)
    source = wav_file(tmp_path / f"in{suffix}", samples, rate, subtype)
    for band, wanted in (("full", max(16000, rate)), ("16k", 16000)):
        assert run_av("--input_audio", source, "--output", tmp_path / "o.wav", "--band", band) == 0
        written, out_rate = soundfile.read(tmp_path / "o.wav")
        exact = soundfile.info(source).frames * wanted / rate
        assert out_rate == wanted and abs(len(written) - exact) <= 0.5 and np.abs(written).max() > 0.001


def test_loud_output_is_turned_down_not_clipped(tmp_path) -> None:
    loud = 3.0 * np.sin(np.arange(800) / 5).astype(np.float32)
    assert enhance_files.write_wav(tmp_path / "x.wav", loud, 16000) == pytest.approx(-9.54, abs=0.05)
    written = soundfile.read(tmp_path / "x.wav")[0]
    np.testing.assert_allclose(written, loud / np.abs(loud).max(), atol=1e-4)
    assert enhance_files.write_wav(tmp_path / "y.wav", 0.5 * written, 16000) == 0.0
    np.testing.assert_allclose(soundfile.read(tmp_path / "y.wav")[0], 0.5 * written, atol=2e-5)


def test_silence_and_very_short_sounds(run_av, tmp_path) -> None:
    wav_file(tmp_path / "in" / "silent.wav", np.zeros(4000))
    wav_file(tmp_path / "in" / "short.wav", voice(1.0)[:37])
    assert run_av("--input_folder", tmp_path / "in", "--output", tmp_path / "out") == 0
    silent = soundfile.read(tmp_path / "out" / "silent_enhanced.wav")[0]
    assert len(silent) == 4000 and not silent.any()
    assert soundfile.info(tmp_path / "out" / "short_enhanced.wav").frames == 37


@pytest.mark.parametrize("words", ["no samples", "NaN", "noise.wav", "0 bytes", "sound"])
def test_a_broken_sound_is_one_line_and_exit_code_1(run_av, tmp_path, capsys, words: str) -> None:
    source = broken_inputs(tmp_path)[words]
    option = "--input_video" if source.suffix == ".mpg" else "--input_audio"
    assert run_av(option, source, "--output", tmp_path / "out" / "o.wav") == 1
    line = only_line(capsys.readouterr().err)
    assert line.startswith("failed: ") and source.name in line and words in line
    assert not (tmp_path / "out").exists() or not all_files(tmp_path / "out")


def test_one_bad_file_never_stops_a_folder(run_av, tmp_path, talking_clip, capsys) -> None:
    folder = tmp_path / "in"
    wav_file(folder / "a.wav")
    wav_file(folder / "z.flac")
    shutil.copy(talking_clip, folder / "own.mp4")
    wav_file(folder / "pair.WAV", voice(1.0))
    shutil.copy(talking_clip, folder / "pair.mp4")
    (folder / "notes.txt").write_text("not a recording")
    (folder / "._a.wav").write_bytes(b"what a Mac leaves behind")
    broken = broken_inputs(folder)
    assert run_av("--input_folder", folder, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert all_files(tmp_path / "out") == {"enhanced.csv"} | {f"{stem}_enhanced.wav" for stem in ("a", "z", "own", "pair")}
    assert "pair.WAV + pair.mp4" in captured.out
    lines = captured.err.strip().splitlines()
    assert "5 of 9 recordings failed" in lines[-1] and len(lines) == 6
    assert "1 file is left out" in captured.out and "notes.txt" in captured.out
    assert all(any(path.name in line for line in lines) for path in broken.values())


def test_folder_defaults_to_results(run_av, tmp_path) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    assert run_av("--input_folder", "in") == 0
    assert all_files(tmp_path / "results") == {"a_enhanced.wav", "enhanced.csv"}


def test_sounds_of_one_name_do_not_overwrite_each_other(run_av, tmp_path) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    wav_file(tmp_path / "in" / "a.flac")
    assert run_av("--input_folder", "in", "--output", "out") == 0
    assert all_files(tmp_path / "out") == {"a_wav_enhanced.wav", "a_flac_enhanced.wav", "enhanced.csv"}


def test_missing_or_broken_video_means_sound_alone_and_is_said(run_av, tmp_path, capsys) -> None:
    source = wav_file(tmp_path / "a.wav")
    run_av("--input_audio", source, "--output", "alone.wav")
    expected = soundfile.read("alone.wav")[0]
    broken, empty = bytes_file(tmp_path / "junk.mp4", b"no video" * 100), bytes_file(tmp_path / "nil.mp4", b"")
    for video in (tmp_path / "missing.mp4", broken, empty, source):
        capsys.readouterr()
        assert run_av("--input_audio", source, "--input_video", video, "--output", "o.wav") == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if "note:" in line]
        assert len(notes) == 1 and video.name in notes[0] and "audio only" in notes[0]
        np.testing.assert_array_equal(soundfile.read("o.wav")[0], expected)


def test_video_without_a_face_is_said(run_av, tmp_path, capsys) -> None:
    write_clip(tmp_path / "wall.mp4", np.full((15, 120, 160, 3), 90, np.uint8), voice(0.6))
    assert run_av("--input_video", tmp_path / "wall.mp4") == 0
    assert "no face in" in capsys.readouterr().out


def test_video_shorter_and_longer_than_the_sound(run_av, tmp_path, talking_clip, capsys) -> None:
    long, short = wav_file(tmp_path / "long.wav", voice(2.0)), wav_file(tmp_path / "short.wav", voice(0.3))
    assert run_av("--input_audio", long, "--input_video", talking_clip, "--output", "l.wav") == 0
    assert run_av("--input_audio", short, "--input_video", talking_clip, "--output", "s.wav") == 0
    assert soundfile.info("l.wav").frames == 32000 and soundfile.info("s.wav").frames == 4800
    masked = [int(share) for share in re.findall(r"masked (\d+) %", capsys.readouterr().out)]
    assert 40 <= masked[0] <= 50 and masked[1] == 0  # the last crop may be held for 0.2 s


def test_truncated_mpg_gives_what_is_left(run_av, tmp_path) -> None:
    whole = write_mpg(tmp_path / "whole.mpg", face_crops(50), voice(2.0, 44100))
    cut = bytes_file(tmp_path / "cut.mpg", whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    assert run_av("--input_video", whole, "--output", "whole.wav") == 0
    assert run_av("--input_video", cut, "--output", "cut.wav") == 0
    assert 1.95 < soundfile.info("whole.wav").duration < 2.1
    assert 0.5 < soundfile.info("cut.wav").duration < soundfile.info("whole.wav").duration


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--input_folder"),
        (["--input_audio", "a.wav", "--input_folder", "in"], "--input_folder"),
        (["a.wav", "--input_folder", "in"], "by position"),
        (["gone.wav"], "gone.wav does not exist"),
        (["a.wav", "gone.wav", "in"], "gone.wav does not exist"),
        (["a.wav", "-o", "a.wav"], "input itself"),
        (["a.wav", "-o", "link.wav"], "input itself"),
        (["a.wav", "a_enhanced.wav", "-o", "."], "a_enhanced.wav is one of the inputs"),
        (["in", "-o", "in"], "never overwritten"),
        (["-r", "in", "-o", "in/out"], "inside the input folder in; with -r choose one outside of it, e.g. -o 'in_enhanced'"),
        (["-r", ".", "-o", "results"], "e.g. -o '../"),
        (["a.wav", "-o", "a.mp3"], "a sound cannot be written as .mp3; choose .wav or .flac"),
        (["*.ogg"], "*.ogg does not exist"),
        (["a.wav", "in", "-o", "all.wav"], "name of one file"),
        (["a.wav", "in", "-o", "a.wav"], "is a file"),
        (["-r", "void"], "void holds no sound or video files"),
        (["--input_audio", "gone.wav"], "gone.wav does not exist"),
        (["--input_video", "gone.mp4"], "gone.mp4 does not exist"),
        (["--input_folder", "gone"], "gone does not exist"),
        (["--input_folder", "a.wav"], "is a file"),
        (["--input_folder", "void"], "holds no sound or video"),
        (["--input_folder", "in", "--output", "in"], "never overwritten"),
        (["--input_folder", "in", "--output", "a.wav"], "is a file"),
        (["--input_audio", "in"], "is a folder"),
        (["--input_audio", "a.wav", "--output", "a.wav"], "input itself"),
        (["--input_audio", "a.wav", "--output", "link.wav"], "input itself"),
        (["--input_audio", "a.wav", "--output", "b.mp3"], ".wav"),
        (["--input_audio", "a.wav", "--speed", "2"], "--speed"),
        (["--input_audio", "a.wav", "--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run_av, tmp_path, capsys, arguments: list[str], words: str) -> None:
    source = wav_file(tmp_path / "a.wav")
    wav_file(tmp_path / "in" / "b.wav")
    (tmp_path / "void" / "sub").mkdir(parents=True)
    (tmp_path / "link.wav").symlink_to(source)
    wav_file(tmp_path / "a_enhanced.wav")
    before, content = all_files(tmp_path), source.read_bytes()
    assert run_av(*arguments) == 2
    assert words in only_line(capsys.readouterr().err)
    assert all_files(tmp_path) == before and source.read_bytes() == content


def bad_checkpoints(folder: Path) -> dict[str, Path]:
    save_checkpoint(folder / "do_00000001.pth", {"discriminator": {}, "optim_g": {}, "steps": 1})
    save_checkpoint(folder / "plain.pth", {"layer.weight": torch.zeros(3)})
    model, cfg = tiny_model()
    weights = model.state_dict()
    save_checkpoint(folder / "other.pth", {"generator": weights, "config": cfg, "architecture": "SEMamba"})
    save_checkpoint(folder / "unknown.pth", {"generator": weights, "config": cfg, "architecture": "Transformer"})
    smaller = tiny_config(model_cfg={"hid_feature": 4})
    save_checkpoint(folder / "shapes.pth", {"generator": weights, "config": smaller, "architecture": "LiteAVSEMamba"})
    cut = save_tiny_checkpoint(folder / "cut.pth")
    cut.write_bytes(cut.read_bytes()[:20000])
    return {
        "do_*.pth": folder / "do_00000001.pth",
        "no generator": folder / "plain.pth",
        "does not fit SEMamba": folder / "other.pth",
        "'Transformer'": folder / "unknown.pth",
        "shapes differ": folder / "shapes.pth",
        "cannot be read": cut,
        "random.pth": bytes_file(folder / "random.pth", np.random.default_rng(1).bytes(5000)),
        "nil.pth": bytes_file(folder / "nil.pth", b""),
        "does not exist": folder / "gone.pth",
    }


def test_every_wrong_checkpoint_is_one_line(run_av, tmp_path, capsys) -> None:
    wav_file(tmp_path / "a.wav")
    for words, path in bad_checkpoints(tmp_path).items():
        assert run_av("--input_audio", "a.wav", checkpoint=path) == 2, path
        line = only_line(capsys.readouterr().err)
        assert path.name in line, line
        assert words == "do_*.pth" and "discriminator" in line or words in line, line
    assert not (tmp_path / "results").exists()


def junk(seed: int) -> bytes:
    head = (b"", b"PK\x03\x04", b"\x80\x02", b"RIFF\x00\x10\x00\x00WAVEfmt ")[seed % 4]
    return head + np.random.default_rng(seed).bytes(1 + 50 * seed)


def test_random_bytes_are_no_checkpoint_and_one_line(run_av, tmp_path, capsys) -> None:
    wav_file(tmp_path / "a.wav")
    for seed in range(40):
        assert run_av("--input_audio", "a.wav", checkpoint=bytes_file(tmp_path / "x.pth", junk(seed))) == 2, seed
        assert "x.pth" in only_line(capsys.readouterr().err)


def test_random_bytes_are_no_sound_and_one_line(run_av, tmp_path, capsys) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(40):
        bytes_file(tmp_path / "in" / f"{seed}{('.wav', '.mp3', '.mp4')[seed % 3]}", junk(seed))
    assert run_av("--input_folder", "in") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("40 of 40") and all(line.startswith("failed: ") for line in lines[:-1]) and len(lines) == 41


def test_an_unknown_device_is_one_line(run_av, tmp_path, capsys, av_checkpoint) -> None:
    wav_file(tmp_path / "a.wav")
    arguments = ["--input_audio", "a.wav", "--checkpoint_file", str(av_checkpoint), "--device"]
    assert inference_av.main([*arguments, "toaster"]) == 2
    assert "toaster" in only_line(capsys.readouterr().err)
    if not torch.cuda.is_available():
        assert inference_av.main([*arguments, "cuda"]) == 2
        assert "--device cpu" in only_line(capsys.readouterr().err)


def test_a_failed_write_leaves_nothing_and_spares_what_was_there(run_av, tmp_path, capsys, monkeypatch) -> None:
    source = wav_file(tmp_path / "in" / "a.wav")
    assert run_av("--input_audio", source, "--output", "out/a.wav") == 0
    before = (tmp_path / "out" / "a.wav").read_bytes()

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(enhance_files.soundfile.SoundFile, "write", full_disk)
    assert run_av("--input_audio", source, "--output", "out/a.wav") == 1
    assert "No space left" in capsys.readouterr().err
    assert all_files(tmp_path / "out") == {"a.wav"} and (tmp_path / "out" / "a.wav").read_bytes() == before


def test_stopped_by_hand(run_av, tmp_path, capsys, monkeypatch) -> None:
    source = wav_file(tmp_path / "a.wav")

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(enhance_files, "own_rate_pieces", stop)
    assert run_av("--input_audio", source) == 130
    only_line(capsys.readouterr().err)


def test_as_a_program(tmp_path, av_checkpoint) -> None:
    """From another folder, with real exit codes and streams."""
    wav_file(tmp_path / "in" / "a.wav")
    bytes_file(tmp_path / "in" / "b.wav", b"no sound")
    command = [sys.executable, str(ROOT / "inference_av.py"), "--checkpoint_file", str(av_checkpoint), "--input_folder", "in"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "LiteAVSEMamba" in done.stdout and "a.wav: 0.40 s" in done.stdout
    assert "b.wav" in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 2
    assert all_files(tmp_path / "results") == {"a_enhanced.wav", "enhanced.csv"}


def test_semamba_checkpoint_in_the_audiovisual_script(run_av, tmp_path, semamba_checkpoint, talking_clip, capsys) -> None:
    assert run_av("--input_video", talking_clip, checkpoint=semamba_checkpoint) == 0
    assert "video not used" in capsys.readouterr().out


def test_a_real_clip(run_av, shared_data, tmp_path, capsys) -> None:
    clip = next(iter(sorted((shared_data / "grid" / "raw" / "s5").glob("*.mpg"))))
    assert run_av("--input_video", clip, "--output", tmp_path) == 0
    out = capsys.readouterr().out
    assert "mean alpha" in out and "masked 0 %" in out
    assert 2.8 < soundfile.info(tmp_path / f"{clip.stem}_enhanced.wav").duration < 3.2
