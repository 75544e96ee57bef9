"""Decoding pictures: any rate, size and state of health in, the right pictures out."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from helpers.grey_video import STEP, newest, noise, numbers, regular, write_video
from helpers.paths import SHARED_DATA
from utils.faces.video_crops import load_video_frames
from utils.media import decode, frame_grid
from utils.media import sound as media
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError, probe_media
from utils.media.frame_grid import MOST_UNSEEN_SEC, grid_frames, video_size
from utils.media.sound import load_audio

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
    shown = next(frame_grid.grid_frames(tmp_path / "turned.mp4"))
    assert shown.shape == (96, 64, 3)
    assert video_size(tmp_path / "a.mp4") == (96, 64) and video_size(tmp_path / "turned.mp4") == (64, 96)
    assert shown[4, -4].mean() > 200 and shown[4, 4].mean() < 50


def test_large_pictures_are_reduced_before_anything_else(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(2, 25), size=(1080, 1920))
    assert next(frame_grid.grid_frames(path)).shape == (540, 960, 3) and video_size(path) == (1920, 1080)


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
    silent, sound_only = probe_media(mute), probe_media(tmp_path / "a.flac")
    assert silent.has_video and not silent.has_audio
    assert sound_only.has_audio and not sound_only.has_video
    assert media.media_duration_sec(tmp_path / "a.flac") == 0.5


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data is not here")
def test_grid_clips_as_distributed() -> None:
    path = sorted((SHARED_DATA / "grid" / "raw" / "s2").glob("*.mpg"))[0]
    frames, mask = load_video_frames(path, face_size=48, face_crop="center")
    assert frames.shape == (75, 48, 48, 3) and mask.all()
    assert 47000 < len(load_audio(path)) <= 48000


@pytest.mark.parametrize("jump_sec", [100.0, 1e6])
def test_a_timestamp_far_ahead_asks_for_no_endless_video(tmp_path: Path, jump_sec: float) -> None:
    times = [*regular(10, 25), *regular(10, 25, jump_sec)]
    path = write_video(tmp_path / "a.mkv", times, sound=noise(1.0))
    frames, mask = load_video_frames(path, face_size=32, face_crop="none")
    assert len(frames) == 10 and mask.all()
    frames, mask = load_video_frames(path, 0.0, 110.0, face_size=32, face_crop="none")  # so much is wanted
    assert len(frames) == 2750 and mask[:10].all() and mask[2500:2510].all() == (jump_sec == 100.0)


def cover(path: Path) -> bytes:
    """A small PNG."""
    with av.open(str(path), "w", format="image2") as target:
        stream = target.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
        target.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8))))
        target.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_cover_image_is_never_taken_for_the_film(tmp_path: Path, first: bool, marked: bool) -> None:
    film = write_video(tmp_path / "film.mp4", regular(25, 25), sound=noise(1.0))
    cover(tmp_path / "cover.png")
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as target, av.open(str(film)) as source, av.open(str(tmp_path / "cover.png")) as image:
        kept = {}
        for which in ("image", "film") if first else ("film", "image"):
            for stream in (image if which == "image" else source).streams:
                kept[which, stream.index] = target.add_stream_from_template(stream)
        if marked:
            kept["image", 0].disposition = av.stream.Disposition.attached_pic
        packets = [(("image", 0), packet) for packet in image.demux() if packet.dts is not None]
        packets += [(("film", packet.stream.index), packet) for packet in source.demux() if packet.dts is not None]
        for key, packet in packets:
            packet.stream = kept[key]
            target.mux(packet)
    info = probe_media(path)
    assert (info.width, info.height) == (64, 64) and video_size(path) == (64, 64)
    frames, mask = load_video_frames(path, face_size=32, face_crop="none")
    assert mask.all() and numbers(frames)[:25] == list(range(25))


def test_a_frame_that_a_damaged_header_lets_last_for_hours_ends_the_video(tmp_path: Path) -> None:
    """The header of this AVI states a frame every six hours: the crops of a week would have filled the memory."""
    path = write_video(tmp_path / "a.avi", regular(25, 25), codec="mpeg1video")
    content = bytearray(path.read_bytes())
    scale = content.index(b"vids") + 20  # of AVISTREAMHEADER: dwScale, then dwRate; a frame lasts their quotient
    content[scale : scale + 8] = (21_600).to_bytes(4, "little") + (1).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(list(grid_frames(path))) <= 25 * (MOST_UNSEEN_SEC + 1)
