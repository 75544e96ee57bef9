"""Rooms: direct sound found, nothing delayed, energy kept, what is no room refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dataloaders.augment_rir import RIRAugmentor, apply_rir, decay_sec, direct_onset, prepare_rir, reverberate
from helpers.paths import SHARED_DATA

RATE = 16000


def room(t60_sec: float = 0.5, delay: int = 300, seed: int = 0, reflection: float = 0.0) -> np.ndarray:
    """Exponentially decaying noise after a direct sound of 1 at `delay`; `reflection` adds a louder one 2.5 ms later."""
    rng = np.random.default_rng(seed)
    length = round(2 * t60_sec * RATE)
    tail = 0.15 * rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / RATE / t60_sec)
    rir = np.concatenate([1e-4 * rng.standard_normal(delay), tail]).astype(np.float32)
    rir[delay] = 1.0
    rir[delay + 40] += reflection
    return rir


def speech(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which a follows b."""
    n = len(a) + len(b)
    cross = np.fft.irfft(np.fft.rfft(a, n) * np.conj(np.fft.rfft(b, n)))
    place = int(np.argmax(cross))
    return place if place < n // 2 else place - n


@pytest.mark.parametrize("reflection", [0.0, 1.6, -2.5])
def test_direct_sound_is_found_even_when_a_reflection_is_louder(reflection: float) -> None:
    assert direct_onset(room(delay=300, reflection=reflection)) == 300


def test_decay_time_of_a_known_room() -> None:
    assert decay_sec(room(0.6, delay=0), RATE, 5, 25) == pytest.approx(0.6, rel=0.15)
    assert np.isnan(decay_sec(np.array([1.0, 0.9, 0.8]), RATE, 5, 25))


def test_target_is_the_direct_sound_and_fifty_ms_in_time_with_the_input() -> None:
    rir = prepare_rir(room(0.8))
    click = np.zeros(RATE, np.float32)
    click[1000] = 0.5
    heard, target = reverberate(click, rir)
    assert np.argmax(np.abs(target)) == 1000 and np.argmax(np.abs(heard)) == 1000
    assert np.allclose(heard[:1800], target[:1800], atol=1e-6)
    assert not np.any(np.abs(target[1800:]) > 1e-6) and rms(heard[1800:]) > 1e-3


def test_levels_are_kept_and_nothing_is_delayed() -> None:
    dry = speech(2.0)
    heard, target = reverberate(dry, prepare_rir(room(0.7, delay=1234)))
    assert heard.shape == target.shape == dry.shape and heard.dtype == np.float32
    assert rms(target) == pytest.approx(rms(dry), rel=1e-4)
    assert rms(heard) > rms(target)
    assert lag(heard, dry) == 0 and lag(target, dry) == 0 and lag(heard, target) == 0
    assert np.array_equal(apply_rir(dry, room(0.7, delay=1234)), heard)


def test_reverberant_target_is_what_is_heard() -> None:
    heard, target = reverberate(speech(), prepare_rir(room()), "reverberant")
    assert np.array_equal(heard, target) and heard is not target
    with pytest.raises(ValueError, match="dry"):
        reverberate(speech(), prepare_rir(room()), "dry")


def test_silence_stays_silence() -> None:
    heard, target = reverberate(np.zeros(500, np.float32), prepare_rir(room()))
    assert not heard.any() and not target.any()


def noisy_recording() -> np.ndarray:
    """A room of 0.2 s with a noise floor 17 dB down that goes on for two seconds."""
    rir = np.concatenate([room(0.2, delay=10), np.zeros(2 * RATE, np.float32)])
    return rir + 0.002 * np.random.default_rng(0).standard_normal(len(rir))


@pytest.mark.parametrize(
    ("rir", "said"),
    [
        (np.zeros(1000), "silent"),
        (np.array([np.nan, 1.0]), "not finite"),
        (np.eye(1, 2000)[0], "no room"),
        (room(0.05), "no room"),
        (room(0.13), "too fast|no room"),
        (noisy_recording(), "noise, not a room"),
    ],
)
def test_what_is_no_room_is_refused(rir: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepare_rir(rir)


def room_list(folder: Path) -> Path:
    soundfile.write(folder / "good.wav", 0.5 * room(0.5), RATE)
    soundfile.write(folder / "other_rate.wav", 0.5 * room(0.9), 48000)  # so 0.3 s there
    soundfile.write(folder / "cable.wav", np.eye(1, 4000)[0] * 0.9, RATE)
    (folder / "broken.wav").write_text("no sound")
    names = ["good.wav", "other_rate.wav", "cable.wav", "broken.wav", "gone.wav"]
    (folder / "rir.json").write_text(json.dumps(names))
    return folder / "rir.json"


def test_unusable_responses_are_skipped_and_reported(tmp_path: Path) -> None:
    rooms = RIRAugmentor(room_list(tmp_path))
    assert len(rooms.rirs) == 2 and {Path(path).name for path in rooms.skipped} == {"cable.wav", "broken.wav", "gone.wav"}
    assert "no room" in rooms.skipped[str(tmp_path / "cable.wav")]
    (tmp_path / "bad.json").write_text('["gone.wav"]')
    with pytest.raises(ValueError, match=r"bad\.json"):
        RIRAugmentor(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=r"1\.5"):
        RIRAugmentor(tmp_path / "rir.json", prob=1.5)


def test_probability_is_kept_and_draws_are_reproducible(tmp_path: Path) -> None:
    rooms = RIRAugmentor(room_list(tmp_path), prob=0.3)
    dry = speech(0.05)
    rng = np.random.default_rng(0)
    used = [rooms(dry, rng)[0] is not dry for _ in range(600)]
    assert 0.24 < np.mean(used) < 0.36
    rooms = RIRAugmentor(tmp_path / "rir.json", prob=1.0)
    first, second = (rooms(dry, np.random.default_rng([3, 4]))[0] for _ in range(2))
    assert np.array_equal(first, second) and not np.array_equal(first, dry)
    # What is drawn after the room does not depend on prob.
    after = []
    for prob in (0.0, 1.0):
        rng = np.random.default_rng(7)
        RIRAugmentor(tmp_path / "rir.json", prob)(dry, rng)
        after.append(rng.random())
    assert after[0] == after[1]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data is not here")
def test_recorded_rooms(tmp_path: Path) -> None:
    (tmp_path / "rir.json").write_text(json.dumps([str(path) for path in sorted((SHARED_DATA / "rir").glob("*.flac"))]))
    rooms = RIRAugmentor(tmp_path / "rir.json")
    assert len(rooms.rirs) >= 20 and any("sb-rir4" in path for path in rooms.skipped)
    dry = speech(1.0)
    for rir in rooms.rirs:
        heard, target = reverberate(dry, rir)
        assert rms(target) == pytest.approx(rms(dry), rel=1e-3) and np.isfinite(heard).all()
        assert abs(lag(heard, target)) <= 160  # in a few rooms a reflection is louder than the direct sound
