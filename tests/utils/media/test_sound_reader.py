"""The reader gives all samples that a recording holds, none that was not decoded, and says what was not as it should be."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from helpers.bad_media import BAD_MEDIA, RIGHT
from helpers.tiny import bytes_file, voice, wav_file
from utils.media import sound_reader
from utils.media.decode import MediaError
from utils.media.sound import load_audio, media_duration_sec, own_rate_pieces, resample, sound_pieces, to_mono


def encode(
    path: Path, sound: np.ndarray, codec: str, rate: int = 16000, container: str | None = None, at_sec: tuple = ((0, 0.0),),
    tracks: tuple[int, ...] = (),
) -> Path:
    """Write sound [n, ch] as one track, or each channel in `tracks` as its own. at_sec: (first sample, time) of each part."""
    if codec == "vorbis":
        soundfile.write(path, sound, rate, format="OGG", subtype="VORBIS")
        return path
    sound = sound[:, None] if sound.ndim == 1 else sound
    groups = [sound[:, [k]] for k in tracks] or [sound]
    with av.open(str(path), "w", format=container) as target:
        streams = [target.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo"}[group.shape[1]]) for group in groups]
        for stream, group in zip(streams, groups, strict=True):
            begins = [*(first for first, _ in at_sec), len(group)]
            for (first, at), stop in zip(at_sec, begins[1:], strict=True):
                resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or 1024)
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(group[first:stop].T, np.float32), format="fltp", layout=stream.layout.name
                )
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(at * rate)
                for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                    target.mux(stream.encode(piece))
            target.mux(stream.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    return bytes_file(path, b"".join(part.read_bytes() for part in parts))


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    n = min(len(one), len(other))
    return float(np.corrcoef(one[:n], other[:n])[0, 1])


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """A file's sound and notes, which are the same in one piece and in many."""
    notes, notes_of_pieces = [], []
    whole = load_audio(path, notes=notes)
    assert np.array_equal(whole, np.concatenate(list(sound_pieces(path, 16000, notes_of_pieces))))
    assert notes == notes_of_pieces
    return whole, notes


# 1: lengths that are not true


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp3", "libmp3lame"), (".flac", "flac"), (".wav", "adpcm_ms"), (".tta", "tta")]
)
@pytest.mark.parametrize("share", [0.15, 0.6])
def test_a_cut_recording_ends_where_it_was_cut(tmp_path: Path, suffix: str, codec: str, share: float) -> None:
    sound = voice(12.0)
    whole = encode(tmp_path / f"whole{suffix}", sound, codec)
    path = bytes_file(tmp_path / f"cut{suffix}", whole.read_bytes()[: round(whole.stat().st_size * share)])
    heard, notes = read(path)
    assert 12 * share - 1.2 < len(heard) / 16000 < 12 * share + 0.5
    assert notes[-1] == f"ends early at {len(heard) / 16000:.2f} s"
    assert max(likeness(heard, sound[shift:]) for shift in (0, 1105, 529)) > 0.99 or suffix == ".mp3"
    assert np.abs(heard[-1600:]).max() < 1.0


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "NMS_ADPCM_32", "G721_32", "MPEG_LAYER_III"])
def test_codings_in_wav_that_cannot_be_entered_anywhere_give_what_they_hold(tmp_path: Path, subtype: str) -> None:
    rate, sound = (8000 if "MPEG" not in subtype else 16000), voice(3.0, 8000 if "MPEG" not in subtype else 16000)
    try:
        path = wav_file(tmp_path / "a.wav", sound, rate, subtype)
    except soundfile.LibsndfileError:
        pytest.skip(f"this libsndfile does not write {subtype}")
    heard, _ = read(path)
    if "MPEG" not in subtype:
        assert likeness(resample(heard, 16000, rate)[:20000], sound) > 0.9
        assert np.abs(load_audio(path, 16000, 2.0, 0.5) - heard[32000:40000]).max() < 0.02
    assert abs(len(heard) / 16000 - 3.0) < 0.15
    cut, notes = read(bytes_file(tmp_path / "cut.wav", path.read_bytes()[: path.stat().st_size // 2]))
    assert 1.0 < len(cut) / 16000 < 1.75 and notes[-1].startswith("ends early")


@pytest.mark.parametrize("said", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_whose_header_was_never_finished_is_read_to_its_end(tmp_path: Path, said: int) -> None:
    sound = voice(2.0)
    content = bytearray(wav_file(tmp_path / "a.wav", sound).read_bytes())
    content[40:44] = struct.pack("<I", said)
    heard, _ = read(bytes_file(tmp_path / "b.wav", bytes(content)))
    assert np.abs(heard - sound).max() < 1e-4 and len(heard) == 32000


@pytest.mark.parametrize("suffix", [".w64", ".au", ".caf", ".aiff"])
@pytest.mark.parametrize("said", [0, 1 << 36])
def test_other_headers_with_an_untrue_length_give_no_more_than_there_is(tmp_path: Path, suffix: str, said: int) -> None:
    sound = voice(2.0)
    content = bytearray(wav_file(tmp_path / f"a{suffix}", sound).read_bytes())
    at, kind = {".w64": (96, "<Q"), ".au": (8, ">I"), ".caf": (None, ">Q"), ".aiff": (22, ">I")}[suffix]
    if at is None:
        at = content.index(b"data") + 4
    content[at : at + struct.calcsize(kind)] = struct.pack(kind, said & (2 ** (8 * struct.calcsize(kind)) - 1))
    path = bytes_file(tmp_path / f"b{suffix}", bytes(content))
    try:
        heard, _ = read(path)
    except MediaError as refused:
        assert path.name in str(refused)
        return
    assert len(heard) <= 32100 and np.abs(heard[:30000] - sound[: len(heard)][:30000]).max() < 1e-4


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    sound = voice(3.0)
    content = bytearray(wav_file(tmp_path / "a.flac", sound).read_bytes())
    content[21] &= 0xF0  # STREAMINFO: 36 bits of total samples
    content[22:26] = bytes(4)
    heard, notes = read(bytes_file(tmp_path / "b.flac", bytes(content)))
    assert np.abs(heard - sound).max() < 1e-4 and len(heard) == 48000 and notes == []


def test_a_flac_that_is_damaged_midway_goes_on_behind_the_damage(tmp_path: Path) -> None:
    sound = voice(12.0)
    content = bytearray(wav_file(tmp_path / "a.flac", sound).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path = bytes_file(tmp_path / "b.flac", bytes(content))
    heard, _ = read(path)
    assert abs(len(heard) - len(sound)) < 200
    for part in (slice(0, 70000), slice(-60000, None)):
        assert np.abs(heard[part] - sound[part]).max() < 1e-3
    window = load_audio(path, 16000, 10.0, 1.0)  # behind the damage
    assert np.abs(window - sound[160000:176000]).max() < 1e-3


def test_a_damaged_ogg_keeps_its_length_and_says_so(tmp_path: Path) -> None:
    sound = voice(6.0)
    content = bytearray(encode(tmp_path / "a.ogg", sound, "vorbis", 16000).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    heard, notes = read(bytes_file(tmp_path / "b.ogg", bytes(content)))
    assert abs(len(heard) / 16000 - 6.0) < 0.2 or any("ends early" in note or "damaged" in note for note in notes)
    assert likeness(heard[-16000:], sound[-16000:]) > 0.9 or notes


class ShortFile:
    """A file of which soundfile reads less than it promised, and leaves the rest of a buffer as it was."""

    samplerate, channels, frames, format, subtype, extra_info = 16000, 1, 48000, "WAV", "PCM_16", ""

    def __init__(self) -> None:
        self._given = False

    def __enter__(self) -> ShortFile:
        return self

    def __exit__(self, *error: object) -> None: ...

    def seek(self, first: int) -> None: ...

    def read(self, wanted: int, **_: object) -> np.ndarray:
        given, self._given = self._given, True
        return np.full((0 if given else 10000, 1), 0.25, np.float32)


def test_what_soundfile_did_not_read_comes_from_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wav_file(tmp_path / "a.wav", np.full(30000, 0.5, np.float32))
    monkeypatch.setattr(sound_reader, "open_plain", lambda path: ShortFile())
    heard, notes = read(path)
    assert len(heard) == 30000 and (heard[:10000] == 0.25).all() and np.allclose(heard[10000:], 0.5, atol=1e-4)
    assert notes == ["ends early at 1.88 s"]


def test_a_wav_shorter_than_its_header_says_so(tmp_path: Path) -> None:
    whole = wav_file(tmp_path / "a.wav", voice(3.0)).read_bytes()
    heard, notes = read(bytes_file(tmp_path / "b.wav", whole[: 44 + 2 * 20000]))
    assert len(heard) == 20000 and notes == ["ends early at 1.25 s"]
    assert media_duration_sec(tmp_path / "b.wav") == 1.25


@pytest.mark.parametrize("rate", [1, 999, 4_000_000_000])
def test_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    content = bytearray(wav_file(tmp_path / "a.wav", voice(1.0)).read_bytes())
    content[24:28] = struct.pack("<I", rate)
    with pytest.raises(MediaError, match=r"b\.wav"):
        load_audio(bytes_file(tmp_path / "b.wav", bytes(content)))


def test_whatever_a_library_raises_becomes_one_line_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wav_file(tmp_path / "a.wav", voice(1.0))
    for error in (MemoryError(), RuntimeError("inside"), av.InvalidDataError(1, "bad"), IndexError()):
        def fail(data: np.ndarray, error: Exception = error) -> np.ndarray:
            raise error

        monkeypatch.setattr(sound_reader, "mix_down", fail)
        with pytest.raises(MediaError, match=r"a\.wav") as caught:
            load_audio(path)
        assert "\n" not in str(caught.value)


# 2: recordings that were joined


@pytest.mark.parametrize(
    ("suffix", "codec", "container"),
    [(".mp3", "libmp3lame", None), (".ogg", "vorbis", None), (".opus", "libopus", "ogg"), (".flac", "flac", None),
     (".aac", "aac", "adts"), (".ts", "aac", "mpegts"), (".mp2", "mp2", None)],
)  # fmt: skip
@pytest.mark.parametrize("seconds", [(0.6, 2.0), (2.0, 0.6), (3.0, 3.0)])
def test_a_recording_of_two_files_is_heard_whole(
    tmp_path: Path, suffix: str, codec: str, container: str | None, seconds: tuple[float, float]
) -> None:
    sounds = voice(seconds[0], 48000), voice(seconds[1], 48000, seed=1)
    parts = [encode(tmp_path / f"{k}{suffix}", sound, codec, 48000, container) for k, sound in enumerate(sounds)]
    heard, _ = read(joined(tmp_path / f"joined{suffix}", *parts))
    alone = [load_audio(part) for part in parts]
    assert abs(len(heard) - sum(map(len, alone))) < 0.13 * 16000
    tail = alone[1][-8000:]
    assert max(likeness(heard[len(heard) - 8000 - shift :][:8000], tail) for shift in range(0, 2200, 1)) > 0.98


@pytest.mark.parametrize("second", [(44100, 1), (48000, 2), (24000, 1)])
@pytest.mark.parametrize(("suffix", "codec", "container"), [(".mp3", "libmp3lame", None), (".aac", "aac", "adts")])
def test_the_second_file_may_have_another_rate_or_other_channels(
    tmp_path: Path, suffix: str, codec: str, container: str | None, second: tuple[int, int]
) -> None:
    rate, channels = second
    first = encode(tmp_path / f"0{suffix}", voice(2.0, 48000), codec, 48000, container)
    tone = 0.1 * np.sin(2 * np.pi * 500 * np.arange(3 * rate) / rate).astype(np.float32)
    other = encode(tmp_path / f"1{suffix}", np.stack([tone] * channels, 1), codec, rate, container)
    path = joined(tmp_path / f"joined{suffix}", first, other)
    assert own_rate_pieces(path)[0] == 48000
    heard, _ = read(path)
    assert abs(len(heard) / 16000 - 5.0) < 0.2
    spectrum = np.abs(np.fft.rfft(heard[-32000:-4000] * np.hanning(28000)))
    assert abs(spectrum.argmax() * 16000 / 28000 - 500) < 2 and 0.05 < np.abs(heard[-20000:-8000]).max() < 0.15


# 3: gaps


@pytest.mark.parametrize(("gap_sec", "kept"), [(0.5, True), (70.0, True), (600.0, True), (3000.0, False), (1e6, False)])
def test_what_comes_after_a_gap_stays_in_its_place_within_reason(tmp_path: Path, gap_sec: float, kept: bool) -> None:
    sound = voice(2.0)
    path = encode(tmp_path / "a.mkv", sound, "pcm_s16le", at_sec=((0, 0.0), (16000, 1.0 + gap_sec)))
    heard, notes = read(path)
    assert len(heard) == round(16000 * (2 + gap_sec if kept else 2))
    assert np.abs(heard[-16000:] - sound[16000:]).max() < 1e-4 and np.abs(heard[:16000] - sound[:16000]).max() < 1e-4
    assert (notes == []) is kept and (kept or f"a gap of {gap_sec:.0f} s at 1.00 s is left out" in notes[0])


# 4: several tracks


def test_of_several_tracks_the_default_one_is_heard_and_named(tmp_path: Path) -> None:
    sound = np.stack([voice(1.0), voice(1.0, seed=1)], 1)
    path = encode(tmp_path / "a.mkv", sound, "pcm_s16le", tracks=(0, 1))
    heard, notes = read(path)
    assert np.abs(heard - sound[:, 0]).max() < 1e-4 and notes[0].startswith("of 2 sound tracks the first is heard")
    content = path.read_bytes()
    with av.open(str(tmp_path / "b.mkv"), "w") as target, av.open(str(path)) as source:
        streams = [target.add_stream_from_template(stream) for stream in source.streams.audio]
        streams[1].disposition = av.stream.Disposition.default
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    heard, notes = read(tmp_path / "b.mkv")
    assert np.abs(heard - sound[:, 1]).max() < 1e-4
    assert notes == ["of 2 sound tracks the second is heard (flagged as the default)"] and content


def test_a_track_that_does_not_decode_is_passed_over(tmp_path: Path) -> None:
    sound = np.stack([voice(1.0), voice(1.0, seed=1)], 1)
    content = encode(tmp_path / "a.mkv", sound, "flac", tracks=(0, 1)).read_bytes()
    assert content.count(b"A_FLAC") == 2
    path = bytes_file(tmp_path / "b.mkv", content.replace(b"A_FLAC", b"A_NONE", 1))  # a codec that nobody knows
    heard, notes = read(path)
    assert np.abs(heard - sound[:, 1]).max() < 1e-4 and notes == ["of 2 sound tracks the second is heard"]


# 5: channels


@pytest.mark.parametrize("suffix", [".wav", ".mka"])
def test_where_channels_cancel_each_other_the_loudest_is_heard(tmp_path: Path, suffix: str) -> None:
    sound = voice(2.0)
    for other, kept in ((-0.9 * sound, True), (0 * sound, False), (sound, False)):
        stereo = np.stack([sound, other], 1)
        path = encode(tmp_path / f"a{suffix}", stereo, "pcm_s16le")
        heard, notes = read(path)
        assert np.abs(heard - (sound if kept else stereo.mean(1))).max() < 1e-4
        assert np.abs(heard - to_mono(stereo)).max() < 1e-4
        assert notes == (["its 2 channels cancel each other: channel 1, the loudest, is heard alone"] if kept else [])
        window = load_audio(path, 16000, 1.0, 0.5)
        assert np.abs(window - heard[16000:24000]).max() < 1e-4
        path.unlink()
    film = np.zeros((32000, 8), np.float32)
    film[:, 2] = sound
    soundfile.write(tmp_path / "film.wav", film, 16000, subtype="FLOAT")
    heard, notes = read(tmp_path / "film.wav")
    assert np.array_equal(heard, sound) and "channel 3" in notes[0]


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.skipif(not BAD_MEDIA.is_dir(), reason="shared/bad_media is not here")
def test_recordings_from_bug_reports_have_their_right_length(name: str) -> None:
    seconds, said = RIGHT[name]
    heard, notes = read(BAD_MEDIA / name)
    assert len(heard) / 16000 == pytest.approx(seconds, abs=0.06)
    assert (said is None) or any(said in note for note in notes)
    level = np.sqrt(np.mean(heard[-len(heard) // 2 :] ** 2))
    assert level > 0.01
