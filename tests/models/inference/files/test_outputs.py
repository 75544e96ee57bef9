"""What comes back: at which rate, with how much of the noise, with or without the picture, drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

import inference
import inference_av
from helpers.packets import packets, same_picture, sound_header
from helpers.tiny import all_files, broken_inputs, bytes_file, face_crops, only_line, tiny_model, voice, wav_file, write_mpg
from models.inference.enhancer import Enhancer
from models.inference.files import enhance_file as enhance_files
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import Job
from models.inference.streaming import StreamingEnhancer
from models.inference.waveform import noisy_share
from utils.media.clip_writer import write_clip
from utils.media.sound import load_audio, resample


@pytest.fixture
def run_av(causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """inference_av.main with the tiny causal checkpoint, in a folder of its own; gives the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, checkpoint: Path = causal_checkpoint) -> int:
        try:
            return inference_av.main([str(a) for a in (*arguments, "--checkpoint_file", checkpoint, "--device", "cpu")])
        except SystemExit as stop:
            return int(stop.code)

    return call


# A limit to attenuation


def test_the_share_is_the_limit() -> None:
    assert noisy_share(None) == noisy_share(math.inf) == 0.0 and noisy_share(0) == 1.0
    assert 20 * math.log10(noisy_share(12)) == pytest.approx(-12)  # what is wholly taken away is left at -12 dB
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="attenuation_limit_db"):
            noisy_share(wrong)


@pytest.mark.parametrize("causal", [True, False])
def test_noise_is_mixed_back_sample_by_sample(causal: bool) -> None:
    enhancer = Enhancer(*tiny_model(model_cfg={"causal": causal}))
    wav = voice(0.5, 44100)
    free = enhancer.enhance(wav, 44100).wav
    assert np.abs(free - wav).max() > 0.01
    np.testing.assert_array_equal(enhancer.enhance(wav, 44100, attenuation_limit_db=0).wav, wav)
    np.testing.assert_array_equal(enhancer.enhance(wav, 44100, attenuation_limit_db=math.inf).wav, free)
    half = enhancer.enhance(wav, 44100, attenuation_limit_db=20 * math.log10(2)).wav
    np.testing.assert_allclose(half, 0.5 * free + 0.5 * wav, atol=1e-6)


def test_a_stream_mixes_back_what_belongs_to_its_samples() -> None:
    enhancer, wav = Enhancer(*tiny_model(model_cfg={"causal": True})), voice(0.5)
    for limit_db in (0.0, 6.0, None):
        stream = StreamingEnhancer(enhancer, attenuation_limit_db=limit_db)
        stream.feed(voice(0.1, seed=5))
        stream.reset()  # half way through another sound
        parts = [stream.feed(wav[first : first + 333]) for first in range(0, len(wav), 333)] + [stream.flush()]
        whole = enhancer.enhance(wav, 16000, attenuation_limit_db=limit_db).wav
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    with pytest.raises(ValueError, match="-3"):
        StreamingEnhancer(enhancer, attenuation_limit_db=-3)


@pytest.mark.parametrize("stream", [[], ["--stream"]])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_files_at_their_own_rate_with_noise_mixed_back(run_av, tmp_path, rate: int, stream: list[str], capsys) -> None:
    """At 0 dB the input comes back to the sample, all of its band; in between it is the mean that it should be."""
    wav = voice(0.7, rate)[:-7]
    source, narrow = wav_file(tmp_path / "a.wav", wav, rate), ["--band", "16k"]
    for name, limit in (("free", []), ("same", ["--attenuation_limit_db", 0]), ("half", ["--attenuation_limit_db", 6.0206])):
        assert run_av("--input_audio", source, "--output", f"{name}.wav", "--keep_sample_rate", *narrow, *limit, *stream) == 0
    assert "are empty above 8 kHz" in capsys.readouterr().out
    free, same, half = (soundfile.read(f"{name}.wav", dtype="int16") for name in ("free", "same", "half"))
    given = soundfile.read(source, dtype="int16")[0].astype(int)
    assert free[1] == same[1] == half[1] == rate and len(free[0]) == len(given)
    np.testing.assert_array_equal(same[0], given)
    assert np.abs(free[0] - given).max() > 300
    assert np.abs(half[0] - (free[0].astype(int) + given) / 2).max() <= 2
    if rate == 44100:
        high = np.abs(np.fft.rfft(free[0] * np.hanning(len(given))))[round(8400 * len(given) / rate) :]
        assert high.max() < 1e-3 * np.abs(np.fft.rfft(given * np.hanning(len(given)))).max()


@pytest.mark.parametrize("rate", [7999, 11025, 44100, 48000])
def test_lengths_are_kept_to_the_sample(run_av, tmp_path, rate: int) -> None:
    for n_samples in (3001, 3002, 4444):
        source = wav_file(tmp_path / "a.wav", voice(1.0, rate)[:n_samples], rate)
        assert run_av("--input_audio", source, "--output", "o.flac", "--keep_sample_rate") == 0
        info = soundfile.info("o.flac")
        assert (info.frames, info.samplerate, info.format, info.subtype) == (n_samples, rate, "FLAC", "PCM_16")


def test_the_audio_only_script_gives_the_rate_back_too(semamba_checkpoint, tmp_path) -> None:
    wav_file(tmp_path / "in" / "a.wav", voice(0.4, 22050)[:8001], 22050)
    command = ["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"), "--device", "cpu",
               "--checkpoint_file", str(semamba_checkpoint)]  # fmt: skip
    assert inference.main([*command, "--keep_sample_rate", "--attenuation_limit_db", "0"]) == 0
    given, back = (soundfile.read(tmp_path / folder / "a.wav", dtype="int16") for folder in ("in", "out"))
    assert back[1] == 22050
    np.testing.assert_array_equal(given[0], back[0])


# The picture with it


def test_a_video_comes_back_as_a_video(run_av, tmp_path, talking_clip, capsys) -> None:
    assert run_av("--input_video", talking_clip, "--output", "o.wav") == 0
    for name, codec, error in (("o.mkv", "flac", 2 / 32768), ("o.mp4", "aac", 0.2)):
        assert run_av("--input_video", talking_clip, "--output", name) == 0
        assert same_picture(talking_clip, tmp_path / name) and sound_header(tmp_path / name)[:2] == (codec, 16000)
        wav, back = load_audio("o.wav"), load_audio(tmp_path / name)
        assert len(wav) == len(back) and np.abs(wav - back).max() < error and np.corrcoef(wav, back)[0, 1] > 0.98
    assert "mean alpha" in capsys.readouterr().out and all_files(tmp_path) == {"o.wav", "o.mkv", "o.mp4"}


def test_sound_of_one_file_under_the_picture_of_another(run_av, tmp_path, talking_clip) -> None:
    source = wav_file(tmp_path / "a.wav", voice(1.3, seed=4))
    assert run_av("--input_audio", source, "--input_video", talking_clip, "--output", "o.mkv", "--stream") == 0
    assert same_picture(talking_clip, tmp_path / "o.mkv") and len(load_audio("o.mkv")) == 20800


def test_a_folder_of_videos(run_av, tmp_path, talking_clip, capsys) -> None:
    """Each container as it was, .mkv for those that are not written; a sound without a video is .wav."""
    folder = tmp_path / "in"
    wav_file(folder / "alone.wav")
    write_mpg(folder / "grid.mpg", face_crops(25), voice(1.0, 44100))
    for name in ("talk.mp4", "talk.mov", "pair.mp4"):
        bytes_file(folder / name, talking_clip.read_bytes())
    wav_file(folder / "pair.flac", voice(1.0))
    with av.open(str(folder / "sound.mp4"), "w") as container:  # no picture, though its name says so
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(voice(0.5)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    broken_inputs(folder)
    assert run_av("--input_folder", "in", "--output", "out", "--output_format", "video") == 1
    written = {"alone_enhanced.wav", "grid_enhanced.mkv", "talk_mp4_enhanced.mp4", "talk_mov_enhanced.mov", "pair_enhanced.mp4"}
    assert all_files(tmp_path / "out") == written | {"enhanced.csv"}
    assert [name for name, *_ in packets(folder / "grid.mpg")] == [name for name, *_ in packets(Path("out/grid_enhanced.mkv"))]
    errors = capsys.readouterr().err
    assert "sound.mp4 has no video to keep; write the sound alone, as .wav" in errors and "6 of 11" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_video", "talk.mp4", "--output", "o.avi"], ".mkv"),
        (["--input_video", "talk.mp4", "--output", "talk.mp4"], "input itself"),
        (["--input_audio", "a.wav", "--output", "o.mp4"], "--input_video"),
        (["--input_audio", "a.wav", "--attenuation_limit_db", "-1"], "attenuation_limit_db"),
        (["--input_audio", "a.wav", "--attenuation_limit_db", "some"], "attenuation_limit_db"),
        (["--input_audio", "a.wav", "--output_format", "mp3"], "mp3"),
        (["--input_audio", "a.wav", "--plot", "--stream"], "--stream"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_begun(run_av, tmp_path, talking_clip, capsys, arguments, words) -> None:
    wav_file(tmp_path / "a.wav")
    bytes_file(tmp_path / "talk.mp4", talking_clip.read_bytes())
    before = all_files(tmp_path)
    assert run_av(*arguments) == 2
    assert words in only_line(capsys.readouterr().err) and all_files(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "output", "words"),
    [("h264.mp4", "o.webm", "choose .mkv"), ("a.wav", "o.mp4", "no video"), ("gone.mp4", "o.mp4", "gone")],
)
def test_a_picture_that_cannot_be_kept_is_said_before_anything_is_enhanced(
    run_av, tmp_path, talking_clip, capsys, monkeypatch, name: str, output: str, words: str
) -> None:
    wav_file(tmp_path / "a.wav")
    bytes_file(tmp_path / "h264.mp4", talking_clip.read_bytes())
    monkeypatch.setattr(enhance_files, "recording", None)  # not even decoded
    assert run_av("--input_audio", "a.wav", "--input_video", name, "--output", output) == 1
    assert words in only_line(capsys.readouterr().err) and not (tmp_path / output).exists()


# Drawn


def test_a_recording_is_drawn_beside_its_output(run_av, tmp_path, talking_clip, av_checkpoint, monkeypatch) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs it")
    wav_file(tmp_path / "in" / "sound.wav")
    bytes_file(tmp_path / "in" / "talk.mp4", talking_clip.read_bytes())
    assert run_av("--input_folder", "in", "--output", "out", "--plot") == 0
    assert all_files(tmp_path / "out") == {
        "sound_enhanced.wav", "sound_enhanced.png", "talk_enhanced.wav", "talk_enhanced.png", "enhanced.csv",
    }  # fmt: skip
    assert (tmp_path / "out" / "talk_enhanced.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("causal", [True, False])
def test_what_is_drawn_is_the_beginning_of_what_was_written(tmp_path, monkeypatch, causal: bool) -> None:
    monkeypatch.setattr(enhance_files, "LOOKED_AT_SEC", 1)
    write_clip(tmp_path / "a.mkv", face_crops(40), voice(1.6, 44100), 44100)
    enhancer, seen = Enhancer(*tiny_model(model_cfg={"causal": causal})), []
    job = Job(tmp_path / "a.mkv", tmp_path / "a.mkv", tmp_path / "o.wav")
    outcome = enhance_file(enhancer, job, keep_sample_rate=True, band="16k", look=lambda *args: seen.append(args))
    (_, noisy, result), = seen
    assert len(noisy) == len(result.wav) == 16000 and result.duration_sec == 1.0
    np.testing.assert_allclose(noisy, load_audio(tmp_path / "a.mkv")[:16000], atol=1e-5)
    written, rate = soundfile.read(tmp_path / "o.wav", dtype="float32")
    np.testing.assert_allclose(result.wav[:15000], resample(written, rate, 16000)[:15000], atol=1e-3)
    details = enhancer.enhance(load_audio(tmp_path / "a.mkv"), 16000, face_crops(40), return_details=True)
    assert outcome.mean_alpha == pytest.approx(details.mean_alpha, abs=0.02)
    assert len(result.alpha) == len(result.gate) == 161
    np.testing.assert_allclose(result.gate, details.gate[:161], atol=0.05)
