"""Another sound under the same picture: its packets stay as they are, and both stay in time."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.grey_video import regular, write_video
from helpers.packets import packets, same_picture, sound_header
from helpers.tiny import all_files, bytes_file, face_crops, only_line, voice, wav_file, write_mpg
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError, open_media, sound_start_sec
from utils.media.frame_grid import grid_frames
from utils.media.replace_sound import replace_sound
from utils.media.sound import load_audio


def snr_db(reference: np.ndarray, other: np.ndarray) -> float:
    error = other[: len(reference)] - reference[: len(other)]
    return 10 * float(np.log10(np.sum(reference**2) / np.sum(error**2)))


@pytest.mark.parametrize(
    ("suffix", "rate", "codec", "best_db"),
    [(".mp4", 16000, "aac", 15), (".m4v", 44100, "aac", 15), (".mov", 48000, "aac", 15), (".mkv", 16000, "flac", 60),
     (".mkv", 44100, "flac", 60)],
)  # fmt: skip
def test_the_picture_is_untouched_and_the_sound_as_long_as_it_was(tmp_path, talking_clip, suffix, rate, codec, best_db) -> None:
    wav, output = voice(0.97, rate, seed=3)[:-5], tmp_path / f"o{suffix}"
    assert replace_sound(talking_clip, wav, rate, output) == []
    assert same_picture(talking_clip, output)
    name, written_rate, seconds = sound_header(output)
    assert (name, written_rate) == (codec, rate)
    assert seconds is None or seconds == pytest.approx(len(wav) / rate, abs=1e-9)
    back = load_audio(output, rate)
    assert len(back) == len(wav) and sound_start_sec(output) == sound_start_sec(talking_clip) == 0
    assert snr_db(wav, back) > best_db
    assert all_files(tmp_path) == {f"o{suffix}"}


def test_webm_takes_opus(tmp_path) -> None:
    source = write_video(tmp_path / "a.webm", regular(25, 25.0), codec="libvpx", sound=voice(1.0), sound_codec="libopus")
    wav = voice(1.0)[:15777]
    assert replace_sound(source, wav, 16000, tmp_path / "o.webm") == []
    assert same_picture(source, tmp_path / "o.webm") and sound_header(tmp_path / "o.webm")[:2] == ("opus", 48000)
    back = load_audio(tmp_path / "o.webm")
    assert abs(len(back) - len(wav)) <= 1 and snr_db(wav, back) > 10
    mute = write_video(tmp_path / "mute.webm", regular(25, 25.0), codec="libvpx")
    replace_sound(mute, wav, 16000, tmp_path / "o.webm")  # the encoder's delay comes before 0, the picture stays where it was
    assert same_picture(mute, tmp_path / "o.webm") and sound_start_sec(tmp_path / "o.webm") == 0


def test_an_aac_track_that_is_replaced_is_no_longer_than_its_header_says(tmp_path) -> None:
    source = write_video(tmp_path / "a.mp4", regular(25, 25.0), sound=voice(1.0)[:15520], sound_codec="aac")
    wav = load_audio(source)
    assert len(wav) == 15520  # of the last AAC frame's 1024 samples 864 are padding
    replace_sound(source, wav, 16000, tmp_path / "o.mp4")
    assert sound_header(tmp_path / "o.mp4") == sound_header(source) == ("aac", 16000, 15520 / 16000)


@pytest.mark.parametrize(("picture_sec", "sound_sec"), [(0.12, 0.0), (0.0, 0.12), (0.2, 0.36)])
def test_what_began_later_begins_as_much_later(tmp_path, picture_sec: float, sound_sec: float) -> None:
    wav = voice(1.0)
    for name in ("a.mkv", "a.mp4"):
        source = write_video(tmp_path / name, regular(25, 25.0, picture_sec), sound=wav, sound_at_sec=sound_sec)
        target = tmp_path / f"o_{name}"
        notes = replace_sound(source, wav, 16000, target)
        assert same_picture(source, target)
        late = round(16000 * sound_sec)
        if name == "a.mkv" or not late:
            assert notes == [] and sound_start_sec(target) == pytest.approx(sound_sec, abs=1e-3)
            assert len(load_audio(target)) == len(wav)
        else:  # an AAC track begins with the clock: silence comes before the sound
            assert f"{1e3 * sound_sec:.0f} ms" in only_line("\n".join(notes))
            back = load_audio(target)
            assert sound_start_sec(target) == 0 and len(back) == late + len(wav)
            assert np.abs(back[: late - 1024]).max(initial=0) < 1e-3 and snr_db(wav, back[late:]) > 15


def test_mpg_as_grid_is_distributed_goes_into_mkv_and_mp4(tmp_path) -> None:
    source = write_mpg(tmp_path / "a.mpg", face_crops(50), voice(2.0, 44100))
    wav = load_audio(source)
    begins_sec = min(sound_start_sec(source), float(packets(source)[0][1]))
    for suffix in (".mkv", ".mp4"):
        replace_sound(source, wav, 16000, tmp_path / f"o{suffix}")
        one, other = packets(source), packets(tmp_path / f"o{suffix}")
        assert [packet[0] for packet in one] == [packet[0] for packet in other]
        # That clock began anywhere; now it begins at 0, with the same distance between picture and sound.
        assert max(abs(float(a[1] - b[1]) - begins_sec) for a, b in zip(one, other, strict=True)) < 1e-3
        assert snr_db(wav, load_audio(tmp_path / f"o{suffix}")) > 15 or sound_start_sec(source) > begins_sec


def test_a_phone_video_keeps_rotation_and_metadata(tmp_path) -> None:
    frames = np.zeros((5, 64, 96, 3), np.uint8)
    frames[:, :16, :24] = 250
    write_clip(tmp_path / "a.mp4", frames, voice(0.2))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    turned = bytes_file(tmp_path / "turned.mp4", bytes(data))
    for suffix in (".mp4", ".mov", ".mkv"):
        output = tmp_path / f"o{suffix}"
        replace_sound(turned, voice(0.2), 16000, output)
        shown = next(grid_frames(output))
        assert shown.shape == (96, 64, 3) and shown[4, -4].mean() > 200 and same_picture(turned, output)


def test_title_chapters_and_pixel_shape_are_kept_and_other_streams_named(tmp_path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(16, 11)
        sounds = [container.add_stream("flac", rate=16000, layout="mono") for _ in range(2)]
        container.metadata["title"] = "A talk"
        chapter = {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
        container.set_chapters([chapter])
        for k in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * k, np.uint8))
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for sound in sounds:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 6400), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    for suffix in (".mp4", ".mkv"):
        notes = replace_sound(tmp_path / "a.mkv", voice(0.4), 16000, tmp_path / f"o{suffix}")
        assert "a.mkv" in notes[0] and "second sound" in notes[0] and len(notes) == 1
        with open_media(tmp_path / f"o{suffix}") as container:
            assert container.metadata.get("title", container.metadata.get("TITLE")) == "A talk"
            assert [entry["metadata"]["title"] for entry in container.chapters()] == ["One"]
            assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
    data = bytearray((tmp_path / "o.mp4").read_bytes())
    at = data.index(b"pasp") + 4  # the container's word, other than the picture's own
    data[at : at + 8] = struct.pack(">2I", 64, 45)
    wide = bytes_file(tmp_path / "wide.mp4", bytes(data))
    assert replace_sound(wide, voice(0.4), 16000, tmp_path / "o.mov") == []
    with open_media(tmp_path / "o.mov") as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(64, 45)
    assert "64/45" in only_line("\n".join(replace_sound(wide, voice(0.4), 16000, tmp_path / "o.mkv")))


def test_pieces_are_joined_turned_down_and_clipped(tmp_path, talking_clip) -> None:
    wav = 3.0 * voice(1.0)
    replace_sound(talking_clip, (wav[k : k + 999] for k in range(0, len(wav), 999)), 16000, tmp_path / "o.mkv", gain=0.5)
    back = load_audio(tmp_path / "o.mkv")
    assert np.abs(back - np.clip(0.5 * wav, -1, 1)).max() < 1e-4


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, talking_clip) -> None:
    sound, junk = wav_file(tmp_path / "a.wav"), bytes_file(tmp_path / "junk.mp4", b"no video" * 100)
    webm = write_video(tmp_path / "a.webm", regular(5, 25.0), codec="libvpx")
    wmv = write_video(tmp_path / "a.wmv", regular(5, 25.0), codec="wmv2")
    (tmp_path / "out").mkdir()
    for video, name, words in (
        (talking_clip, "o.avi", ".mkv"), (talking_clip, "o", ".mkv"), (talking_clip, "o.webm", "choose .mkv"),
        (webm, "o.mov", "vp8.*choose .mkv"), (wmv, "o.mp4", "wmv2.*as .wav"),
        (sound, "o.mp4", "no video"), (junk, "o.mp4", "junk.mp4"), (tmp_path / "gone.mp4", "o.mp4", "gone.mp4"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
            replace_sound(video, voice(1.0), 16000, tmp_path / "out" / name)
        only_line(str(caught.value))
        assert not all_files(tmp_path / "out")


def test_a_sound_that_fails_half_way_leaves_what_was_there(tmp_path, talking_clip) -> None:
    replace_sound(talking_clip, voice(1.0), 16000, tmp_path / "o.mp4")
    before = (tmp_path / "o.mp4").read_bytes()

    def breaks():
        yield voice(0.5)
        raise MediaError("the second half is not there")

    with pytest.raises(MediaError, match="second half"):
        replace_sound(talking_clip, breaks(), 16000, tmp_path / "o.mp4")
    assert all_files(tmp_path) == {"o.mp4"} and (tmp_path / "o.mp4").read_bytes() == before


def test_a_cut_off_video_keeps_what_is_left_of_its_picture(tmp_path) -> None:
    whole = write_video(
        tmp_path / "a.mpg", regular(50, 25.0), codec="mpeg1video", sound=voice(2.0), sound_codec="mp2"
    )
    cut = bytes_file(tmp_path / "cut.mpg", whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    wav = load_audio(cut)
    replace_sound(cut, wav, 16000, tmp_path / "o.mkv")
    assert 10 < len(packets(tmp_path / "o.mkv")) < 50 and len(load_audio(tmp_path / "o.mkv")) == len(wav)


def test_real_clips(tmp_path, shared_data) -> None:
    clips = [next(iter(sorted((shared_data / "grid" / kind / "s1").glob(f"*{suffix}"))))
             for kind, suffix in (("raw", ".mpg"), ("compact", ".mp4"))]  # fmt: skip
    for clip in clips:
        wav = load_audio(clip)
        for suffix in (".mp4", ".mkv"):
            output = tmp_path / f"{clip.stem}{suffix}"
            replace_sound(clip, wav, 16000, output)
            assert same_picture(clip, output, 1e-3) and len(load_audio(output)) == len(wav)


def test_a_sound_that_begins_after_a_million_seconds_asks_for_no_silence(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mkv", regular(25, 25), sound=voice(1.0), sound_at_sec=1e6)
    heard = load_audio(source)
    assert len(heard) == 16000
    for suffix in (".mp4", ".mkv"):
        notes = replace_sound(source, heard, 16000, tmp_path / f"o{suffix}")
        assert any("begins with the video instead" in note for note in notes)
        assert abs(len(load_audio(tmp_path / f"o{suffix}")) - 16000) < 1100
        assert sound_start_sec(tmp_path / f"o{suffix}") == 0 and same_picture(source, tmp_path / f"o{suffix}", 0.001)
