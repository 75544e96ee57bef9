"""Decoding: any rate, size, layout and state of health in, the right samples and the right pictures out."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from utils import decode, media
from utils.media import MediaError, load_audio, load_video_frames, probe_media, write_clip

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
STEP = 4  # grey levels between neighbouring source frames


def write_video(
    path: Path, times_sec: list[float], size: tuple[int, int] = (64, 64), codec: str = "libx264",
    sound: np.ndarray | None = None, sound_at_sec: float = 0.0, sound_codec: str = "flac", fps: float = 25.0,
) -> Path:
    """A video whose k-th frame, shown at times_sec[k], is grey with the level 20 + STEP * k; sound at 16 kHz."""
    height, width = size
    rate = Fraction(fps).limit_denominator(1001)
    clock = 1 / rate if codec == "mpeg1video" else Fraction(1, 90000)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = clock
        if codec == "libx264":
            video.options = {"crf": "4", "bf": "0", "g": "10"}
        else:
            video.bit_rate = 2_000_000
        audio = container.add_stream(sound_codec, rate=16000) if sound is not None else None
        if audio is not None:
            audio.layout = "mono"
        for index, at in enumerate(times_sec):
            picture = np.full((height, width, 3), min(250, 20 + STEP * index), np.uint8)
            if codec == "mpeg1video":  # something to spend bits on, so that pictures and sound alternate in the file
                grain = np.random.default_rng(index).integers(-15, 16, (height, width, 1))
                picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base, frame.pts = clock, round(at / clock)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            samples = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
            block = audio.codec_context.frame_size or 1024
            for first in range(0, len(samples), block):
                frame = av.AudioFrame.from_ndarray(samples[None, first : first + block], format="s16", layout="mono")
                frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
                frame.pts = round(sound_at_sec * 16000) + first
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def regular(count: int, fps: float, first_sec: float = 0.0) -> list[float]:
    return [first_sec + k / fps for k in range(count)]


def numbers(frames: np.ndarray) -> list[int]:
    """Source frame numbers that grey frames [V, S, S, 3] show."""
    return [round((float(frame.mean()) - 20) / STEP) for frame in frames]


def newest(times_sec: list[float], at_sec: float) -> int:
    return max(k for k, t in enumerate(times_sec) if t <= at_sec + 0.0021)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(16000 * seconds)).astype(np.float32)


# sound


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
    monkeypatch.setattr(decode, "_said_end", lambda *arguments: 5000)
    assert np.abs(load_audio(path) - sound).max() < 2 / 32768
    monkeypatch.setattr(decode, "_said_end", lambda *arguments: 15990)  # in the last frame: what comes after is padding
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


# pictures on the 25 fps grid


@pytest.mark.parametrize("fps", [10.0, 23.976, 25.0, 29.97, 50.0])
def test_each_grid_frame_is_the_newest_source_frame(tmp_path: Path, fps: float) -> None:
    times = regular(min(55, int(1.6 * fps)), fps)
    path = write_video(tmp_path / "a.mp4", times, fps=fps, sound=noise(times[-1]))
    frames, mask = load_video_frames(path, face_size=32, face_crop="none")
    assert mask.all()
    assert abs(len(frames) - (times[-1] + 1 / fps) * 25) <= 1.01
    assert numbers(frames) == [newest(times, k / 25) for k in range(len(frames))]


def test_variable_rate_and_a_freeze_are_followed_by_timestamp(tmp_path: Path) -> None:
    times = [0.0, 0.03, 0.09, 0.1, 0.12, 0.25, 0.31, 0.7, 0.74, 0.8]
    path = write_video(tmp_path / "a.mkv", times, sound=noise(1.0))
    frames, mask = load_video_frames(path, 0.0, 0.84, face_size=32, face_crop="none")
    at = np.arange(21) / 25
    shown = [newest(times, t) for t in at]
    fresh = np.array([t - times[k] < 0.201 for t, k in zip(at, shown, strict=True)])
    assert np.array_equal(mask, fresh) and not mask.all()
    assert numbers(frames[mask]) == [k for k, seen in zip(shown, fresh, strict=True) if seen]
    assert not frames[~mask].any()


@pytest.mark.parametrize(("picture_sec", "sound_sec", "first_shown"), [(0.12, 0.0, 3), (0.0, 0.12, None), (0.4, 0.4, 0)])
def test_time_zero_is_where_the_sound_begins(
    tmp_path: Path, picture_sec: float, sound_sec: float, first_shown: int | None
) -> None:
    path = write_video(tmp_path / "a.mkv", regular(25, 25, picture_sec), sound=noise(1.0), sound_at_sec=sound_sec)
    frames, mask = load_video_frames(path, face_size=32, face_crop="none")
    if first_shown is None:  # the picture began 3 frames before the sound: those are not shown
        assert mask.all() and numbers(frames) == list(range(3, 25))
    else:
        assert list(np.flatnonzero(mask)) == list(range(first_shown, first_shown + 25))
        assert numbers(frames[mask]) == list(range(25))


def test_mpeg_clock_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mpg", regular(50, 25), (64, 64), "mpeg1video", noise(2.0), sound_codec="mp2"
    )
    frames, mask = load_video_frames(path, face_size=32, face_crop="none")
    # mp2 delays the sound by under one of its frames (36 ms)
    assert mask.sum() >= 48 and abs(numbers(frames[mask])[10] - np.flatnonzero(mask)[10]) <= 1


def test_after_its_end_a_picture_is_held_for_a_fifth_of_a_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(10, 25), sound=noise(2.0))
    frames, mask = load_video_frames(path, 0.0, 1.0, face_size=32, face_crop="none")
    assert frames.shape == (25, 32, 32, 3)
    assert mask[:15].all() and not mask[15:].any() and not frames[15:].any()
    assert set(numbers(frames[9:15])) == {9}


@pytest.mark.parametrize("with_sound", [True, False])
def test_windows_of_a_long_video_are_parts_of_the_whole(tmp_path: Path, with_sound: bool) -> None:
    times = regular(57, 5.0)  # 11.4 s, every frame shown for 0.2 s
    path = write_video(tmp_path / "a.mp4", times, fps=5.0, sound=noise(11.4) if with_sound else None)
    whole, _ = load_video_frames(path, face_size=32, face_crop="none")
    assert len(whole) == 285
    for first in (0, 33, 150, 271):
        part, mask = load_video_frames(path, first / 25, 0.52, face_size=32, face_crop="none")
        assert len(part) == 13 and mask.all()
        assert numbers(part) == numbers(whole[first : first + 13])


def test_a_video_of_face_size_is_taken_as_crops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (10, 12, 12, 3), np.uint8), 8, 1), 8, 2)
    write_clip(tmp_path / "a.mp4", frames, noise(0.4))
    crops, mask = load_video_frames(tmp_path / "a.mp4")
    assert crops.shape == frames.shape and mask.all()
    assert np.abs(crops.astype(int) - frames).mean() < 12  # chroma is halved, nothing is moved
    haar, mask = load_video_frames(tmp_path / "a.mp4", face_crop="haar")
    assert not mask.any() and not haar.any()


def test_written_clips_read_back(tmp_path: Path) -> None:
    frames = np.stack([np.full((96, 96, 3), 20 + STEP * k, np.uint8) for k in range(40)])
    sound = noise(1.55)
    for name in ("a.mp4", "a.mkv"):
        write_clip(tmp_path / name, frames, sound)
        assert np.abs(load_audio(tmp_path / name) - sound).max() < 1e-4
        crops, mask = load_video_frames(tmp_path / name)
        assert mask.all() and numbers(crops) == list(range(40))


def test_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    frames = np.zeros((5, 64, 96, 3), np.uint8)
    frames[:, :16, :24] = 250  # stored at the top left; shown clockwise it is at the top right
    write_clip(tmp_path / "a.mp4", frames, noise(0.2))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    shown = next(media.grid_frames(tmp_path / "turned.mp4"))
    assert shown.shape == (96, 64, 3)
    assert shown[4, -4].mean() > 200 and shown[4, 4].mean() < 50


def test_large_pictures_are_reduced_before_anything_else(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(2, 25), size=(1080, 1920))
    assert next(media.grid_frames(path)).shape == (540, 960, 3)


# health


def test_truncated_and_damaged_mpegs_give_what_decodes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mpg", regular(55, 25), (64, 64), "mpeg1video", noise(2.2), sound_codec="mp2")
    data = path.read_bytes()
    (tmp_path / "cut.mpg").write_bytes(data[: len(data) * 6 // 10])
    frames, mask = load_video_frames(tmp_path / "cut.mpg", face_size=32, face_crop="none")
    assert 10 < mask.sum() < 50 and 5000 < len(load_audio(tmp_path / "cut.mpg")) < 33000
    assert numbers(frames[1:9]) == pytest.approx(list(range(8)), abs=1)
    rng = np.random.default_rng(3)
    damaged = bytearray(data)
    for place in rng.integers(len(data) // 4, len(data), 200):
        damaged[place] = rng.integers(256)
    (tmp_path / "bad.mpg").write_bytes(damaged)
    frames, mask = load_video_frames(tmp_path / "bad.mpg", 0.0, 2.0, face_size=32, face_crop="none")
    assert len(frames) == 50 and mask.sum() > 20
    assert len(load_audio(tmp_path / "bad.mpg")) > 16000


class Surprising:
    """A container that meets a stream its header did not name, after each packet."""

    def __init__(self, packets: list[str]) -> None:
        self.packets = packets

    def demux(self, stream):
        if self.packets:
            yield self.packets.pop(0)
            raise IndexError("list index out of range")


def test_streams_that_the_header_does_not_know_stop_nothing() -> None:
    decoder = decode.Decoder(Surprising([f"{k}" for k in range(100)]), None)
    assert list(decoder.packets()) == [f"{k}" for k in range(100)] and decoder.damaged == 0


def test_files_without_a_usable_picture_are_refused_by_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(0.5), 16000)
    (tmp_path / "text.mp4").write_text("hello " * 100)
    whole = write_video(tmp_path / "whole.mp4", regular(10, 25)).read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: len(whole) // 3])
    for name in ("a.flac", "text.mp4", "headless.mp4"):
        with pytest.raises(MediaError, match=name) as caught:
            load_video_frames(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        load_video_frames(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="sideways"):
        load_video_frames(tmp_path / "whole.mp4", face_crop="sideways")


def test_probe_and_stream_queries(tmp_path: Path) -> None:
    both = write_video(tmp_path / "both.mp4", regular(25, 25), sound=noise(1.0))
    mute = write_video(tmp_path / "mute.mp4", regular(25, 25))
    soundfile.write(tmp_path / "a.flac", noise(0.5), 16000)
    info = probe_media(both, full=True)
    assert info.has_audio and info.has_video and (info.width, info.height, info.fps) == (64, 64, 25.0)
    assert info.duration_sec == pytest.approx(1.0, abs=0.05) and info.damaged_packets == 0
    assert media.has_video(mute) and not media.has_audio(mute)
    assert media.has_audio(tmp_path / "a.flac") and not media.has_video(tmp_path / "a.flac")
    assert not media.has_audio(tmp_path / "gone.mp4") and not media.has_video(tmp_path / "gone.mp4")
    assert media.media_duration_sec(tmp_path / "a.flac") == 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
def test_grid_clips_as_distributed() -> None:
    path = sorted((SHARED / "grid" / "raw" / "s2").glob("*.mpg"))[0]
    frames, mask = load_video_frames(path, face_size=48, face_crop="center")
    assert frames.shape == (75, 48, 48, 3) and mask.all()
    assert 47000 < len(load_audio(path)) <= 48000
