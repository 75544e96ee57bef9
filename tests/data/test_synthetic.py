"""The synthetic corpus: what is seeded stays, what is heard is seen, and only the video tells the talkers apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from data import make_synthetic
from data.synthesis.clip import SAMPLES, Person, film, generator
from data.synthesis.face import frame_tracks
from data.synthesis.voice import CONTROL_HZ, SAMPLE_RATE, FormantVoice
from helpers.paths import ROOT
from utils.util import load_json_file

FPS = 25
SAMPLES_DIR = ROOT / "samples"


def read_clip(path: str | Path) -> tuple[np.ndarray, np.ndarray, list[float], float]:
    """Frames [V, H, W, 3], sound [L], times of the frames in seconds and time of the first sample."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
        assert container.streams.audio[0].rate == SAMPLE_RATE
    sound = np.concatenate([block.to_ndarray()[0] for block in blocks]).astype(np.float32) / 32768
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    return frames, sound, [frame.time for frame in decoded], blocks[0].time


def loudness(wave: np.ndarray) -> np.ndarray:
    """RMS of the sound heard during each whole video frame."""
    step = SAMPLE_RATE // FPS
    return np.sqrt(np.mean(wave[: wave.size // step * step].reshape(-1, step) ** 2, axis=1))


def mouth_motion(crops: np.ndarray) -> np.ndarray:
    """How far the mouth region of each frame is from how it mostly looks (shut)."""
    size = crops.shape[1]
    mouth = crops[:, size // 2 : size * 9 // 10, size * 3 // 10 : size * 7 // 10].astype(np.float32)
    return np.abs(mouth - np.median(mouth, axis=0)).mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    args = [
        "--output_dir",
        str(root),
        "--speakers",
        "4",
        "--clips_per_speaker",
        "3",
        "--duration_sec",
        "2",
        "--seed",
        "5",
        "--noise_sec",
        "2",
    ]
    assert make_synthetic.main(args) == 0
    return root


def test_same_seed_same_sound_and_frames():
    def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
        frames, utterance = film(Person.draw(seed, 1, "formant"), generator(seed, "clip", 1, 0), 1.0, 64)
        return frames, utterance.wave

    (frames, wave), (again, wave_again), (other, other_wave) = make(3), make(3), make(4)
    assert np.array_equal(frames, again)
    assert np.array_equal(wave, wave_again)
    assert not np.array_equal(frames, other)
    assert not np.array_equal(wave, other_wave)


def test_a_clip_is_the_same_whatever_else_is_made(corpus: Path):
    _, utterance = film(Person.draw(5, 1, "formant"), generator(5, "clip", 1, 2), 2.0, 96)
    _, sound, _, _ = read_clip(corpus / "train/s02_002.mp4")
    assert np.max(np.abs(sound - utterance.wave)) < 1e-4


def test_lists_are_well_formed_and_splits_share_no_person_or_utterance(corpus: Path):
    speakers, sounds = {}, []
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        items = load_json_file(corpus / f"synth_{split}.json")
        assert [set(item) for item in items] == [{"video", "speaker"}] * count
        assert all(Path(item["video"]).is_file() for item in items)
        speakers[split] = {item["speaker"] for item in items}
        assert all(Path(item["video"]).name.startswith(item["speaker"] + "_") for item in items)
        sounds += [read_clip(item["video"])[1].tobytes() for item in items]
    assert (
        not speakers["train"] & speakers["valid"] | speakers["train"] & speakers["test"] | speakers["valid"] & speakers["test"]
    )
    for split in ("train", "valid"):
        voices = load_json_file(corpus / f"voices_{split}.json")
        sounds += [soundfile.read(path)[0].astype(np.float32).tobytes() for path in voices]
        for path in load_json_file(corpus / f"noise_{split}.json"):
            noise, rate = soundfile.read(path)
            assert rate == SAMPLE_RATE
            assert np.all(np.isfinite(noise))
            assert 0.01 < np.std(noise) < 0.1
    assert len(set(sounds)) == len(sounds)
    for kind in ("noise", "voices"):
        assert not set(load_json_file(corpus / f"{kind}_train.json")) & set(load_json_file(corpus / f"{kind}_valid.json"))


def test_two_people_share_by_clip():
    plan = make_synthetic.make_plan(2, 8)
    assert {split: len(clips) for split, clips in plan.clips.items()} == {"train": 12, "valid": 2, "test": 2}
    every = [clip for clips in plan.clips.values() for clip in clips]
    assert len(set(every)) == 16


def test_sound_and_video_are_complete_and_start_together(corpus: Path):
    frames, sound, times, first_sec = read_clip(corpus / "train/s01_000.mp4")
    assert frames.shape == (50, 96, 96, 3)
    assert sound.size == 2 * SAMPLE_RATE
    assert first_sec == 0
    assert np.allclose(times, np.arange(50) / FPS, atol=1e-6)


def test_the_mouth_follows_the_sound(corpus: Path):
    items = [item for split in ("train", "valid", "test") for item in load_json_file(corpus / f"synth_{split}.json")]
    by_shift = []
    for item in items:
        frames, sound, _, _ = read_clip(item["video"])
        heard, seen = loudness(sound), mouth_motion(frames)
        by_shift.append([np.corrcoef(np.roll(seen, shift), heard)[0, 1] for shift in (-3, -2, -1, 0, 1, 2, 3)])
    mean = np.mean(by_shift, axis=0)
    assert mean[3] > 0.6
    assert np.argmax(mean) == 3, f"mouth and sound are apart: {mean}"


def test_competing_voices_cannot_be_told_from_targets_by_their_sound(corpus: Path):
    targets = [read_clip(item["video"])[1] for item in load_json_file(corpus / "synth_train.json")]
    rivals = [soundfile.read(path, dtype="float32")[0] for path in load_json_file(corpus / "voices_train.json")]

    def facts(waves: list[np.ndarray]) -> tuple[float, float, float]:
        """Mean level in dB, share of frames with speech, spectral centroid in Hz."""
        levels = np.concatenate([loudness(wave) for wave in waves])
        active = levels > 0.1 * np.max(levels)
        spectrum = np.mean([np.abs(np.fft.rfft(wave, 2 * SAMPLE_RATE)) ** 2 for wave in waves], axis=0)
        frequency = np.fft.rfftfreq(2 * SAMPLE_RATE, 1 / SAMPLE_RATE)
        return 10 * np.log10(np.mean(levels**2)), float(np.mean(active)), float(np.sum(spectrum * frequency) / np.sum(spectrum))

    (level, share, centroid), (rival_level, rival_share, rival_centroid) = facts(targets), facts(rivals)
    assert abs(level - rival_level) < 3
    assert abs(share - rival_share) < 0.15
    assert 0.6 < centroid / rival_centroid < 1.7


def test_the_mouth_alone_already_tells_two_talkers_apart():
    """Opening the sound only while the mouth is open gains 3 dB over a rival of the same kind, on average."""
    gains = []
    for trial in range(20):
        people = [FormantVoice.draw(generator(7, trial, who)) for who in range(2)]
        target, rival = (voice.speak(generator(8, trial, who), 3.0) for who, voice in enumerate(people))
        noise = rival.wave * np.sqrt(np.sum(target.wave**2) / np.sum(rival.wave**2))
        gate = np.repeat(np.clip(frame_tracks(target.opening, 75, FPS) / 0.3, 0, 1), SAMPLE_RATE // FPS)
        estimate = gate * (target.wave + noise)
        scaled = target.wave * np.dot(target.wave, estimate) / np.dot(target.wave, target.wave)
        gains.append(10 * np.log10(np.sum(scaled**2) / np.sum((estimate - scaled) ** 2)))
    assert np.mean(gains) > 3


def test_speech_has_syllables_and_pauses_and_the_mouth_is_shut_in_them():
    utterance = FormantVoice.draw(generator(1, "voice")).speak(generator(1, "clip"), 10.0)
    heard = loudness(utterance.wave)
    open_share = np.mean(utterance.opening > 0.05)
    assert 0.25 < open_share < 0.65
    shut = frame_tracks(utterance.opening, heard.size, FPS) < 0.005
    assert np.max(heard[shut]) < 0.1 * np.max(heard)
    assert utterance.opening.size == 10 * CONTROL_HZ + 1
    assert np.max(np.abs(utterance.wave)) < 1


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = ["--output_dir", str(tmp_path / "out")]
    for args, named in (
        ([], "--output_dir"),
        ([*out, "--speakers", "0"], "--speakers 0"),
        ([*out, "--duration_sec", "0.2"], "--duration_sec 0.2"),
        ([*out, "--face_size", "97"], "--face_size 97"),
        ([*out, "--speakers", "1", "--clips_per_speaker", "2"], "--clips_per_speaker 2"),
    ):
        assert make_synthetic.main(args) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_synthetic.main([*out, "--voices", "flite"]) == 2
    assert "apt-get install flite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    assert make_synthetic.main(out) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "out") in error and "Traceback" not in error


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_speaks_with_a_moving_mouth():
    by_voice = []
    for number in range(4):
        person = Person.draw(0, number, "flite")
        heard, seen = [], []
        for take in range(3):
            utterance = person.voice.speak(generator(0, number, take), 3.0)
            assert utterance.wave.size == 3 * SAMPLE_RATE
            assert np.array_equal(utterance.wave, person.voice.speak(generator(0, number, take), 3.0).wave)
            heard.append(loudness(utterance.wave))
            seen.append(frame_tracks(utterance.opening, 75, FPS))
        by_voice.append(np.corrcoef(np.concatenate(heard), np.concatenate(seen))[0, 1])
    assert np.min(by_voice) > 0.6


def test_samples_are_small_and_decode_in_pairs():
    assert sum(path.stat().st_size for path in SAMPLES_DIR.iterdir()) <= 2_000_000
    for name, _, _, snr_db in SAMPLES:
        frames, noisy, times, first_sec = read_clip(SAMPLES_DIR / f"{name}.mp4")
        clean, rate = soundfile.read(SAMPLES_DIR / f"{name}_clean.flac", dtype="float32")
        assert rate == SAMPLE_RATE
        assert noisy.shape == clean.shape
        assert first_sec == times[0] == 0
        assert len(frames) / FPS == pytest.approx(clean.size / SAMPLE_RATE, abs=0.04)
        assert 10 * np.log10(np.sum(clean**2) / np.sum((noisy - clean) ** 2)) == pytest.approx(snr_db, abs=0.05)


def test_the_face_in_every_sample_is_found():
    from utils.faces.video_crops import load_video_frames

    for name, *_ in SAMPLES:
        crops, found = load_video_frames(SAMPLES_DIR / f"{name}.mp4")
        assert np.mean(found) > 0.95
        assert np.std(crops[found].astype(np.float32)) > 20


def test_the_json_lists_are_plain(corpus: Path):
    text = (corpus / "noise_valid.json").read_text()
    assert all(isinstance(path, str) for path in json.loads(text))
