"""inference_av.py on recordings of every kind that people have: a defined outcome, one line, nothing lost."""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

import inference_av
from helpers.tiny import all_files, face_crops, only_line, voice, wav_file
from helpers.videos import RATE, Drawings, sped_up, talking, timed_video
from models.inference.crop_stream import CropStream
from models.inference.files.disk_sound import SpooledSound
from models.inference.files.saved_crops import saved_crops
from utils.faces import cropper as faces
from utils.faces.detectors import settle_method
from utils.faces.video_crops import load_video_frames
from utils.media.clip_writer import write_clip
from utils.media.decode import probe_media
from utils.media.sound import load_audio


@pytest.fixture
def run_av(causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """inference_av.main with a tiny causal checkpoint, in a folder of its own; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    settle_method.cache_clear()

    def call(*arguments: object) -> int:
        words = [*arguments, "--checkpoint_file", causal_checkpoint, "--device", "cpu"]
        try:
            return inference_av.main([str(word) for word in words])
        except SystemExit as stop:
            return int(stop.code)

    return call


def person(path: Path, n_frames: int, late_sec: float = 0.0) -> Path:
    """A drawn person for a while."""
    return timed_video(path, talking(0)[0][:n_frames], late_sec + np.arange(n_frames) / 25, talking(0)[1][: n_frames * 640])


def two_people(path: Path, n_frames: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Drawn people beside each other, the right one talks; the detector knows drawings."""
    monkeypatch.setattr(faces, "load_detector", lambda settled: Drawings())
    frames = np.concatenate((talking(0)[0], talking(1)[0]), axis=2)[:n_frames]
    return timed_video(path, frames, np.arange(n_frames) / 25, talking(1)[1][: n_frames * 640])


def notes(text: str) -> list[str]:
    return [line.strip().removeprefix("note: ") for line in text.splitlines() if "note:" in line]


def turned(path: Path, target: Path, width: int) -> Path:
    """The same mp4, to be shown turned by 90 degrees with the clock (display matrix)."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, width << 16, 0, 1 << 30)
    target.write_bytes(data)
    return target


def test_the_detector_and_the_faces_are_said(run_av, tmp_path, monkeypatch, capsys) -> None:
    path = two_people(tmp_path / "two.mp4", 150, monkeypatch)
    assert run_av("--input_video", path, "--face_crop", "haar", "--output", "o.wav") == 0
    out = capsys.readouterr().out
    assert ", 2 faces (drawings) -> o.wav" in out
    (note,) = notes(out)
    assert note.startswith("face 2 of 2 from the left, at 0.75,0.50: its mouth moves with the sound")


def test_saved_crops_without_a_frame_have_the_models_size(tmp_path) -> None:
    with SpooledSound() as sound:
        sound.extend([voice(0.2)])
        with saved_crops(CropStream([], 5), tmp_path / "c.mp4", sound, 16000, 25.0, 48):
            pass
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (48, 48)


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_saved_crops_are_what_was_asked_for(run_av, tmp_path, monkeypatch, stream: tuple) -> None:
    path = two_people(tmp_path / "two.mp4", 40, monkeypatch)
    arguments = ("--face_crop", "haar", "--face", "1", "--av_offset_ms", "-200", "--save_crop", "seen/crop.mp4", *stream)
    assert run_av("--input_video", path, "--output", "o.wav", *arguments) == 0
    crops, mask = load_video_frames("seen/crop.mp4", face_crop="none")
    assert len(crops) == 40 and mask.all() and np.abs(load_audio("seen/crop.mp4") - load_audio(path)).max() < 2e-4
    assert crops[:4].max() < 20  # 200 ms early: shown 5 frames later
    assert np.abs(crops[6:].astype(int) - talking(0)[0][1:35]).mean() < 6
    assert all_files(Path("seen")) == {"crop.mp4"}


def test_crops_of_a_folder(run_av, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    two_people(folder / "a.mp4", 20, monkeypatch)
    wav_file(folder / "b.wav")
    assert run_av("--input_folder", folder, "--output", "out", "--face_crop", "haar", "--save_crop", "seen") == 0
    assert all_files(tmp_path / "seen") == {"a_crop.mp4"}
    assert all_files(tmp_path / "out") == {"a_enhanced.wav", "b_enhanced.wav", "enhanced.csv"}
    with open(tmp_path / "out" / "enhanced.csv", newline="") as file:
        shown, heard = csv.DictReader(file)
    assert (shown["faces"], shown["detector"], shown["av_offset_ms"]) == ("2", "drawings", "0")
    assert "face 2 of 2" in shown["notes"]
    assert heard["faces"] == heard["detector"] == ""


def test_a_late_picture_is_measured_and_taken_back(run_av, tmp_path, capsys) -> None:
    path = person(tmp_path / "late.mp4", 150, late_sec=0.16)
    assert run_av("--input_video", path, "--av_offset", "auto", "--output", "o.wav") == 0
    out = capsys.readouterr().out
    late_ms = int(re.search(r"video (\d+) ms late -> o.wav", out)[1])
    assert abs(late_ms - 160) <= 40 and "taken back" in notes(out)[0] and "confidence" in notes(out)[0]
    assert soundfile.info("o.wav").frames == 150 * 640


def test_a_fallback_is_said_once_for_a_run(run_av, tmp_path, capsys) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / "in" / name, face_crops(10, 144), voice(0.4))
    assert run_av("--input_folder", "in", "--output", "out") == 0
    out = capsys.readouterr().out
    assert sum("YuNet is not to be had" in line for line in notes(out)) == 1
    assert out.count("(Haar cascade)") == 2


def test_a_portrait_from_a_phone_is_upright(run_av, tmp_path) -> None:
    standing = np.pad(talking(0)[0][:20], ((0, 0), (0, 64), (0, 0), (0, 0)))
    path = timed_video(tmp_path / "lying.mp4", np.rot90(standing, 1, axes=(1, 2)), np.arange(20) / 25, talking(0)[1][:12800])
    upright = turned(path, tmp_path / "phone.mp4", 96)
    assert run_av("--input_video", upright, "--output", "o.wav", "--face_crop", "center", "--save_crop", "c.mp4") == 0
    crops, _ = load_video_frames("c.mp4", face_crop="none")
    assert np.abs(crops[:, :64].astype(int) - talking(0)[0][:20, 32:]).mean() < 6  # of 96 x 160 the middle: rows 32 .. 127


def test_one_picture(run_av, tmp_path, capsys) -> None:
    path = timed_video(tmp_path / "one.mp4", talking(0)[0][:1], [0.0], voice(1.0))
    assert run_av("--input_video", path, "--output", "o.wav", "--av_offset", "auto") == 0
    out = capsys.readouterr().out
    assert soundfile.info("o.wav").frames == RATE and "masked 7" in out or "masked 8" in out  # shown for 0.2 s
    assert "left as it is" in notes(out)[0]


@pytest.mark.parametrize(("cut", "least_share"), [(0.5, 0.3), (0.9, 0.7)])
def test_a_corrupt_tail_gives_what_is_before_it(run_av, tmp_path, cut: float, least_share: float) -> None:
    path = person(tmp_path / "whole.mkv", 50)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "bad.mkv").write_bytes(data[: int(cut * len(data))] + rng.bytes(len(data) // 10))
    assert run_av("--input_video", "bad.mkv", "--output", "o.wav") == 0
    assert soundfile.info("o.wav").frames > least_share * 2 * RATE


def test_streams_that_are_missing_or_cannot_be_read(run_av, tmp_path, capsys) -> None:
    frames, sound = talking(0)
    whole = person(tmp_path / "whole.mp4", 50)
    (tmp_path / "codec.mp4").write_bytes(whole.read_bytes().replace(b"avc1", b"zzz1"))
    timed_video(tmp_path / "mute.mp4", frames[:50], np.arange(50) / 25, None)
    (tmp_path / "sound.mp4").write_bytes(sound_only(tmp_path / "only.mp4", sound[: 2 * RATE]))
    assert not probe_media(tmp_path / "codec.mp4").has_video
    for name in ("codec.mp4", "sound.mp4"):
        assert run_av("--input_video", name, "--output", f"{name}.wav") == 0
        (note,) = notes(capsys.readouterr().out)
        assert name in note and note.endswith("audio only")
        assert 2 * RATE <= soundfile.info(f"{name}.wav").frames <= 2 * RATE + 1023  # AAC comes in frames
    assert run_av("--input_video", "mute.mp4", "--output", "mute.wav") == 1
    line = only_line(capsys.readouterr().err)
    assert "mute.mp4" in line and "no sound" in line and not Path("mute.wav").exists()


def sound_only(path: Path, sound: np.ndarray) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.layout = "mono"
        for first in range(0, len(sound), 1024):
            frame = av.AudioFrame.from_ndarray(sound[None, first : first + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_a_4k_video(run_av, tmp_path, capsys) -> None:
    frame = np.kron(talking(0)[0][0], np.ones((20, 20, 1), np.uint8))  # 1920 x 1920
    frame = np.pad(frame, ((120, 120), (960, 960), (0, 0)), constant_values=110)
    path = timed_video(tmp_path / "large.mp4", [frame] * 3, [0.0, 0.1, 0.2], voice(0.3))
    assert frame.shape == (2160, 3840, 3)
    assert run_av("--input_video", path, "--output", "o.wav", "--face_crop", "haar", "--face", "1920,1080") == 0
    assert "1 face (Haar cascade)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--face", "two"], "'two' should be a number"), (["--face", "0"], "should be 1"), (["--face", "1,2,3"], "two numbers"),
        (["--av_offset_ms", "1e9"], "10 s at most"), (["--av_offset", "auto", "--av_offset_ms", "40"], "give either"),
        (["--face_crop", "yunet"], "--face_model"), (["--face_model", "gone.onnx"], "gone.onnx"),
        (["--save_crop", "crop.avi"], ".mp4 or .mkv"), (["--save_crop", "a.mp4"], "input itself"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(run_av, tmp_path, capsys, arguments: list[str], words: str) -> None:
    write_clip(tmp_path / "a.mp4", face_crops(10, 144), voice(0.4))
    before = (tmp_path / "a.mp4").read_bytes()
    assert run_av("--input_video", "a.mp4", "--output", "o.wav", *arguments) == 2
    assert words in only_line(capsys.readouterr().err)
    assert all_files(tmp_path) == {"a.mp4"} and (tmp_path / "a.mp4").read_bytes() == before


def test_one_crop_file_for_many_recordings_is_refused(run_av, tmp_path, capsys) -> None:
    wav_file(tmp_path / "in" / "a.wav")
    wav_file(tmp_path / "in" / "b.wav")
    assert run_av("--input_folder", "in", "--output", "out", "--save_crop", "c.mp4") == 2
    assert "2 recordings" in only_line(capsys.readouterr().err)


def test_sixty_frames_per_second(run_av, tmp_path, capsys) -> None:
    sound = sped_up(talking(0)[1], 60 / 25)
    path = timed_video(tmp_path / "fast.mkv", talking(0)[0], np.arange(150) / 60, sound)
    assert run_av("--input_video", path, "--output", "o.wav") == 0
    assert soundfile.info("o.wav").frames == len(sound) and "masked 0 %" in capsys.readouterr().out
