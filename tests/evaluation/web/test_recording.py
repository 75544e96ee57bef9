"""What visitors give: refused in a sentence that names no folder, or made ready as they wished."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av import VideoFrame

from dataloaders.mixing import snr_db
from evaluation.web.enhance import answer, codec_container, loudness_gain_db
from evaluation.web.recording import CORRUPTIONS, OFF, Complaint, Limits, Wish, read_recording, sample_noise
from helpers.paths import ROOT
from helpers.tiny import broken_inputs, bytes_file, face_crops, voice, wav_file, write_mpg
from models.inference.enhancer import Enhancer
from utils.media.clip_writer import write_clip
from utils.media.decode import Decoder, probe_media
from utils.media.frame_grid import grid_frames
from utils.media.sound import load_audio

SAMPLES = ROOT / "samples"


@pytest.fixture(scope="module")
def enhancer(causal_checkpoint: Path) -> Enhancer:
    return Enhancer.from_checkpoint(causal_checkpoint, "cpu")


def refusal(enhancer: Enhancer, wish: Wish, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    with pytest.raises(Complaint) as refused:
        read_recording(enhancer, wish, limits)
    text = str(refused.value)
    assert "/" not in text.replace("sound/", "") and "Traceback" not in text and "\n" not in text and text.endswith(".")
    return text


def test_nothing_given_is_told(enhancer: Enhancer) -> None:
    assert "example" in refusal(enhancer, Wish())


def test_broken_files_are_told_by_name_and_without_folders(enhancer: Enhancer, tmp_path: Path) -> None:
    for path in broken_inputs(tmp_path).values():
        assert path.name in refusal(enhancer, Wish(audio=path))


def test_a_type_is_known_by_content_not_by_name(enhancer: Enhancer, tmp_path: Path) -> None:
    text = bytes_file(tmp_path / "letter.wav", b"Dear all, this is no sound.\n" * 50)
    assert "neither sound nor video" in refusal(enhancer, Wish(audio=text))
    renamed = wav_file(tmp_path / "real.wav").rename(tmp_path / "real.mp4")
    assert len(read_recording(enhancer, Wish(video=renamed), Limits()).noisy) == 6400


def test_a_list_of_the_servers_files_is_not_followed(enhancer: Enhancer, tmp_path: Path) -> None:
    wav_file(tmp_path / "secret.wav")
    listed = bytes_file(tmp_path / "list.mp4", b"ffconcat version 1.0\nfile secret.wav\n")
    assert "neither sound nor video" in refusal(enhancer, Wish(video=listed))


def test_silence_is_told(enhancer: Enhancer, tmp_path: Path) -> None:
    quiet = wav_file(tmp_path / "quiet.wav", np.zeros(8000))
    assert "quiet.wav is silent" in refusal(enhancer, Wish(audio=quiet))


def test_too_long_is_told_by_header_and_where_the_header_lies(
    enhancer: Enhancer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = wav_file(tmp_path / "long.wav", voice(3.0))
    assert "long.wav lasts 3 seconds; up to 2 seconds" in refusal(enhancer, Wish(audio=long), Limits(longest_sec=2.0))
    honest = probe_media(long)
    monkeypatch.setattr("evaluation.web.recording.probe_media", lambda path, **_: type(honest)(None, True, False))
    assert "too long" in refusal(enhancer, Wish(audio=long), Limits(longest_sec=2.0))


def test_frames_too_large_are_told_before_they_are_decoded(
    enhancer: Enhancer, talking_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.web.recording.MOST_PIXELS", 95 * 96)
    decoded = []
    original = Decoder.__iter__
    monkeypatch.setattr(
        Decoder, "__iter__", lambda self: (decoded.append(type(frame)) or frame for frame in original(self))
    )
    assert "96 x 96 pixels" in refusal(enhancer, Wish(video=talking_clip))
    assert VideoFrame not in decoded


def test_too_large_is_told(enhancer: Enhancer, tmp_path: Path) -> None:
    large = wav_file(tmp_path / "large.wav", voice(40.0))
    assert "1 MB" in refusal(enhancer, Wish(audio=large), Limits(largest_mb=1))


def test_a_video_without_sound_asks_for_one_and_takes_it(enhancer: Enhancer, tmp_path: Path) -> None:
    mute = write_mpg(tmp_path / "mute.mpg", face_crops(10), None)
    assert "no sound: add" in refusal(enhancer, Wish(video=mute))
    recording = read_recording(enhancer, Wish(video=mute, audio=wav_file(tmp_path / "a.wav")), Limits())
    assert recording.crops is not None and len(recording.crops) == 10


def test_what_is_no_face_is_told_and_enhanced_by_sound(enhancer: Enhancer, tmp_path: Path) -> None:
    wall = tmp_path / "wall.mp4"
    write_clip(wall, np.full((25, 120, 160, 3), 90, np.uint8), voice(1.0))
    recording = read_recording(enhancer, Wish(video=wall), Limits())
    assert recording.crops is None and "No face was found in wall.mp4" in recording.notes[0] and recording.has_video


def test_of_several_faces_the_one_asked_for_is_followed_and_told(enhancer: Enhancer, tmp_path: Path) -> None:
    left, right = (np.stack(list(grid_frames(SAMPLES / f"{name}.mp4", 0, 1.5))) for name in ("cafe_slt", "hum_kal16"))
    two = tmp_path / "two.mp4"
    write_clip(two, np.concatenate([left, right], axis=2), voice(1.5))
    first, second = (read_recording(enhancer, Wish(video=two, face=face), Limits()) for face in (1, 2))
    assert first.faces.startswith("2 faces") and "as asked for" in first.notes[0]
    assert np.abs(first.crops.astype(int) - second.crops).mean() > 10
    nobody = read_recording(enhancer, Wish(video=two, face=3), Limits())
    assert nobody.crops is None and "there are 2" in nobody.notes[0]


def test_the_face_is_withheld_or_spoilt_as_wished(enhancer: Enhancer, talking_clip: Path) -> None:
    plain = read_recording(enhancer, Wish(video=talking_clip), Limits())
    assert read_recording(enhancer, Wish(video=talking_clip, video_mode=OFF), Limits()).crops is None
    for kind in CORRUPTIONS:
        spoilt = read_recording(enhancer, Wish(video=talking_clip, video_mode=kind), Limits())
        assert spoilt.crops.shape == plain.crops.shape and (spoilt.crops != plain.crops).any(), kind
        assert np.array_equal(spoilt.noisy, plain.noisy)


def test_noise_is_added_at_the_snr_and_the_sound_before_is_the_reference(enhancer: Enhancer, tmp_path: Path) -> None:
    noise = sample_noise(SAMPLES / "hum_kal16.mp4", SAMPLES / "hum_kal16_clean.flac", 16000)
    sound = wav_file(tmp_path / "talk.wav", voice(2.0))
    recording = read_recording(enhancer, Wish(audio=sound, noise=noise, snr_db=-3.0), Limits())
    assert snr_db(recording.reference, recording.noisy - recording.reference) == pytest.approx(-3.0, abs=0.1)
    assert "before noise" in recording.reference_name


def test_the_noise_of_an_example_is_what_is_not_its_voice() -> None:
    video, clean = SAMPLES / "pink_rms.mp4", SAMPLES / "pink_rms_clean.flac"
    noise, speech = sample_noise(video, clean, 16000), load_audio(clean)
    assert np.abs(load_audio(video) - speech - noise).max() < 1e-6 and noise.std() > 0.001


def test_a_reference_of_another_length_is_told(enhancer: Enhancer, tmp_path: Path) -> None:
    wish = Wish(audio=wav_file(tmp_path / "a.wav", voice(1.0)), reference=wav_file(tmp_path / "b.wav", voice(2.0)))
    assert "hardly the same recording" in refusal(enhancer, wish)


def test_loudness_is_matched_where_there_is_speech() -> None:
    speech = np.concatenate([voice(1.0), np.zeros(16000, np.float32)])
    assert loudness_gain_db(speech, speech / 4) == pytest.approx(12.04, abs=0.01)
    noisy = speech + 0.02 * np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    assert loudness_gain_db(noisy, speech) < 0  # pauses that are now silent do not count
    assert loudness_gain_db(np.zeros(100), speech) == 0.0 and loudness_gain_db(speech, 1e-4 * speech) == 20.0


def test_an_answer_comes_in_steps_and_is_what_the_enhancer_gives(
    enhancer: Enhancer, talking_clip: Path, tmp_path: Path
) -> None:
    clean = wav_file(tmp_path / "clean.wav", voice(1.0))
    told: list[tuple[float, str]] = []
    out = tmp_path / "out"
    out.mkdir()
    wish = Wish(video=talking_clip, reference=clean)
    steps = list(answer(enhancer, wish, Limits(), out, lambda share, what: told.append((share, what))))
    assert [(step.figure is not None, step.scores is not None) for step in steps] == [
        (False, False), (True, False), (True, True),
    ]  # fmt: skip
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and {"reading the sound", "enhancing", "drawing", "scoring"} <= {what for _, what in told}
    last = steps[-1]
    assert last.size == (96, 96) and last.before.suffix == ".mp4"
    crops, mask = enhancer.load_video(talking_clip, 1.0)
    expected = enhancer.enhance(load_audio(talking_clip), 16000, crops, mask).wav
    assert np.abs(soundfile.read(last.enhanced)[0] - expected).max() < 1e-4
    # Both recordings that are played are equally loud.
    assert loudness_gain_db(load_audio(last.before), load_audio(last.after)) == pytest.approx(0.0, abs=0.3)
    assert last.scores["si_sdr"][0] > 20 and last.scored_against == "the clean reference"
    for video in (last.crops, last.video, last.before, last.after):
        info = probe_media(video, full=True)
        assert info.has_audio and info.has_video and info.duration_sec == pytest.approx(1.0, abs=0.15)


def test_some_noise_is_left_as_wished(enhancer: Enhancer, tmp_path: Path) -> None:
    noisy = wav_file(tmp_path / "a.wav", voice(1.0))
    (first, _) = answer(enhancer, Wish(audio=noisy, limit_db=0.0), Limits(), tmp_path)
    assert np.abs(soundfile.read(first.enhanced)[0] - load_audio(noisy)).max() < 1e-4


def hiss(level: float, seconds: float, rate: int) -> np.ndarray:
    return level * np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32)


def level_above_8_khz(wav: np.ndarray, rate: int) -> float:
    """The share of the power that lies above 8 kHz."""
    power = np.abs(np.fft.rfft(wav)) ** 2
    return float(power[np.fft.rfftfreq(len(wav), 1 / rate) > 8200].sum() / power.sum())


def test_sound_above_the_models_rate_comes_back_at_its_own(enhancer: Enhancer, tmp_path: Path) -> None:
    wide = voice(1.0, 48000) + hiss(0.01, 1.0, 48000)
    video = write_mpg(tmp_path / "wide.mpg", face_crops(25), wide, 48000)
    sound, clean = wav_file(tmp_path / "wide.wav", wide, 48000), wav_file(tmp_path / "clean.wav", voice(1.0))
    *_, last = answer(enhancer, Wish(video=video, audio=sound, reference=clean), Limits(), tmp_path)
    enhanced, rate = soundfile.read(last.enhanced)
    assert rate == 48000 and len(enhanced) == 48000 and level_above_8_khz(enhanced, rate) > 0.01
    crops, mask = enhancer.load_video(video, 1.0)
    expected = enhancer.enhance(soundfile.read(sound, dtype="float32")[0], 48000, crops, mask).wav  # as inference_av.py does
    assert np.abs(enhanced - expected).max() < 1e-4
    for video in (last.video, last.before, last.after):
        assert level_above_8_khz(load_audio(video, 48000), 48000) > 0.01, video.name
    assert np.isfinite(last.scores["si_sdr"]).all() and not last.unscored  # at the model's rate
    *_, low = answer(enhancer, Wish(audio=wav_file(tmp_path / "low.wav", voice(1.0, 8000), 8000)), Limits(), tmp_path)
    assert soundfile.info(low.enhanced).samplerate == 16000


def test_noise_is_added_to_wide_sound_at_the_snr(enhancer: Enhancer, tmp_path: Path) -> None:
    sound = wav_file(tmp_path / "wide.wav", voice(1.0, 44100), 44100)
    recording = read_recording(enhancer, Wish(audio=sound, noise=hiss(0.1, 2.0, 16000), snr_db=5.0), Limits())
    assert recording.rate == 44100 and len(recording.noisy) == 44100 and len(recording.heard) == 16000
    # What the voice has above 8 kHz counts as well.
    assert snr_db(recording.reference, recording.heard - recording.reference) == pytest.approx(5.0, abs=0.5)


def test_what_progress_raises_ends_the_work(enhancer: Enhancer, tmp_path: Path) -> None:
    class Left(Exception):
        pass

    def leave(share: float, what: str) -> None:
        if what == "enhancing":
            raise Left

    steps = answer(enhancer, Wish(audio=wav_file(tmp_path / "a.wav", voice(3.0))), Limits(), tmp_path, leave)
    with pytest.raises(Left):
        next(steps)


def test_a_video_that_browsers_do_not_play_is_shown_small_and_given_back_as_it_was(enhancer: Enhancer, tmp_path: Path) -> None:
    frames = np.repeat(np.repeat(face_crops(30), 6, axis=1), 6, axis=2)
    video = write_mpg(tmp_path / "old.mpg", frames, voice(1.2, 44100))
    assert codec_container(video) is None
    first, _ = answer(enhancer, Wish(video=video), Limits(), tmp_path)
    played, given = (probe_media(path, full=True) for path in (first.after, first.video))
    assert codec_container(first.before) == codec_container(first.after) == ".mp4"
    assert (played.width, played.height) == (480, 480) and (given.width, given.height) == (576, 576)
    assert played.duration_sec == pytest.approx(1.2, abs=0.15) and played.has_audio


def growing_film(path: Path, sides: tuple[int, ...] = (64, 4200)) -> Path:
    """A small file whose frames grow midway, as broadcasts may: MPEG-TS, one stream after the other."""
    joined = b""
    for side in sides:
        part = path.with_name(f"part_{side}.ts")
        with av.open(str(part), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=25, width=side, height=side, pix_fmt="yuv420p")
            stream.options = {"preset": "ultrafast"}
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 90, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        joined += part.read_bytes()
        part.unlink()
    return bytes_file(path, joined)


def test_a_film_that_grows_after_it_was_checked_is_refused(enhancer: Enhancer, tmp_path: Path) -> None:
    film = growing_film(tmp_path / "growing.ts")
    assert film.stat().st_size < 3e6 and probe_media(film).width == 64
    recording = read_recording(enhancer, Wish(video=film, audio=wav_file(tmp_path / "a.wav", voice(1.0))), Limits())
    assert recording.crops is None and "growing.ts grows to 4200 x 4200 pixels" in recording.notes[0]
    assert len(list(grid_frames(growing_film(tmp_path / "small.ts", (64, 96)), 0.0, 0.4))) == 10  # a change is no growth
