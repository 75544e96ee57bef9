"""Sound files: any rate, layout and state of health in, the right samples out."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from helpers.grey_video import noise, regular, write_video
from utils.media import container_sound
from utils.media import sound as media
from utils.media.decode import MediaError
from utils.media.sound import load_audio


def test_eight_bit_stereo_wav_at_44100_becomes_16k_mono(tmp_path: Path) -> None:
    at = np.arange(44100) / 44100
    left, right = 0.5 * np.sin(2 * np.pi * 440 * at), np.zeros(44100)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44100, subtype="PCM_U8")
    wave = load_audio(tmp_path / "a.wav")
    assert wave.shape == (16000,) and wave.dtype == np.float32
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(wave - expected)[200:-200].max() < 0.01


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_window_of_a_sound_file_is_that_part_of_the_whole(tmp_path: Path, rate: int) -> None:
    rng = np.random.default_rng(1)
    soundfile.write(tmp_path / "a.wav", 0.2 * rng.standard_normal(2 * rate), rate, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav")
    for start_sec, duration_sec in ((0.0, 0.5), (0.28, 0.5), (1.0, 0.04), (1.2346, 0.2), (1.9, 1.0)):
        part = load_audio(tmp_path / "a.wav", 16000, start_sec, duration_sec)
        first = round(start_sec * 16000)
        expected = whole[first : first + round(duration_sec * 16000)]
        assert len(part) == len(expected)
        assert np.abs(part - expected).max() < 2e-3


def test_sound_in_a_container_is_read_exactly_and_in_windows(tmp_path: Path) -> None:
    sound = noise(13.0)
    path = write_video(tmp_path / "a.mp4", regular(13, 1.0), sound=sound)
    whole = load_audio(path)
    assert np.abs(whole - sound).max() < 2 / 32768
    for start_sec in (0.5, 11.0):  # read from the beginning, and sought
        part = load_audio(path, 16000, start_sec, 0.5)
        assert np.array_equal(part, whole[round(start_sec * 16000) :][:8000])


def write_halves(path: Path, second_at_sec: float) -> np.ndarray:
    """Two half seconds of sound, the second one from `second_at_sec` on; their samples in full scale 1, float [16000]."""
    samples = (noise(1.0) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        stream.layout = "mono"
        for first, at_sec in ((0, 0.0), (8000, second_at_sec)):
            frame = av.AudioFrame.from_ndarray(samples[None, first : first + 8000], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), round(at_sec * 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return samples / 32768


def test_sound_missing_in_the_middle_leaves_a_gap_so_that_the_rest_stays_in_time(tmp_path: Path) -> None:
    samples = write_halves(tmp_path / "a.mkv", 1.5)
    wave = load_audio(tmp_path / "a.mkv")
    assert len(wave) == 32000
    assert np.abs(wave[24000:] - samples[8000:]).max() < 1e-4 and not wave[8000:24000].any()


def test_sound_that_begins_before_the_last_ended_is_cut_so_that_the_rest_stays_in_time(tmp_path: Path) -> None:
    samples = write_halves(tmp_path / "a.mkv", 0.4)  # as recordings look that were joined packet by packet
    wave = load_audio(tmp_path / "a.mkv")
    assert len(wave) == 14400
    assert np.abs(wave - np.delete(samples, slice(8000, 9600))).max() < 1e-4


def test_a_header_that_ends_too_soon_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(1.0)
    path = write_video(tmp_path / "a.mp4", regular(5, 5.0), sound=sound)
    monkeypatch.setattr(container_sound, "_said_end", lambda *arguments: 5000)
    assert np.abs(load_audio(path) - sound).max() < 2 / 32768
    monkeypatch.setattr(container_sound, "_said_end", lambda *arguments: 15990)  # in the last frame: padding follows
    assert len(load_audio(path)) == 15990


def test_unusable_sound_is_refused_in_one_line_that_names_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1]), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("not a sound at all\n" * 50)
    (tmp_path / "zero.mp4").write_bytes(b"")
    write_video(tmp_path / "mute.mp4", regular(5, 25))
    (tmp_path / "folder.wav").mkdir()
    for name, said in (
        ("empty.wav", "no samples"), ("nan.wav", "NaN"), ("text.wav", "cannot be opened"), ("zero.mp4", "empty file"),
        ("mute.mp4", "no sound"), ("folder.wav", "folder"),
    ):  # fmt: skip
        with pytest.raises(MediaError, match=name) as caught:
            load_audio(tmp_path / name)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        load_audio(tmp_path / "gone.wav")
    soundfile.write(tmp_path / "short.wav", noise(0.5), 16000)
    with pytest.raises(MediaError, match="ends before 3 s"):
        load_audio(tmp_path / "short.wav", start_sec=3.0, duration_sec=1.0)


def test_stereo_layouts_are_averaged_whichever_axis_they_are_on() -> None:
    stereo = np.random.default_rng(0).standard_normal((100, 2))
    assert np.allclose(media.to_mono(stereo), stereo.mean(1)) and np.allclose(media.to_mono(stereo.T), stereo.mean(1))
    with pytest.raises(ValueError, match="shape"):
        media.to_mono(np.zeros((2, 2, 2)))
