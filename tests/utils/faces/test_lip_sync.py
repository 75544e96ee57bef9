"""By how much a picture is late, by mouth and voice: right where it says it is sure, and not sure of what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.videos import RATE, SIDE, sped_up, talking, timed_video
from utils.faces.cropper import FaceOptions, FaceReport
from utils.faces.lip_sync import OffsetEstimate, SoundTrack, estimate_offset, mouth_fit
from utils.faces.lip_sync import talking as goes_with
from utils.faces.video_crops import load_video_frames
from utils.media.sound import load_audio


def track(samples: np.ndarray) -> SoundTrack:
    return SoundTrack(lambda first, stop: samples[first:stop], RATE)


def measured(crops: np.ndarray, sound: np.ndarray, late_sec: float = 0.0, mask: np.ndarray | None = None) -> OffsetEstimate:
    """The estimate for pictures that are shown late_sec later than they should be."""
    mask = np.ones(len(crops), bool) if mask is None else mask
    return estimate_offset(*mouth_fit(crops, mask, late_sec, 25.0, track(sound)))


@pytest.mark.parametrize("late_sec", [-0.32, -0.08, 0.0, 0.12, 0.32])
def test_a_known_lateness_is_measured(late_sec: float) -> None:
    crops, voice = talking(0)
    estimate = measured(crops, voice, late_sec)
    assert estimate.sure and abs(estimate.offset_sec - late_sec) <= 0.04


def test_noise_as_loud_as_the_voice_is_endured() -> None:
    crops, voice = talking(1)
    noise = np.random.default_rng(0).standard_normal(len(voice)).astype(np.float32)
    noise *= np.sqrt(np.mean(voice**2) / np.mean(noise**2))
    assert abs(measured(crops, voice + noise, 0.2).offset_sec - 0.2) <= 0.05


def test_another_voice_is_no_reason_to_be_sure() -> None:
    for mouth, voice in ((0, 1), (1, 0)):
        assert not measured(talking(mouth)[0], talking(voice)[1]).sure


def test_the_mouth_goes_with_its_own_voice() -> None:
    for number, other in ((0, 1), (1, 0)):
        (crops, voice), (elsewhere, _) = talking(number), talking(other)
        fits = [goes_with(mouth_fit(mouth, np.ones(150, bool), 0.0, 25.0, track(voice))[0]) for mouth in (crops, elsewhere)]
        assert fits[0] > fits[1] + 0.3


def test_nothing_to_go_by_is_not_sure() -> None:
    crops, voice = talking(0)
    still, silent = np.repeat(crops[:1], 150, axis=0), np.zeros_like(voice)
    for pictures, sound, mask in (
        (still, voice, None), (crops, silent, None), (crops[:1], voice, None), (crops[:0], voice, None),
        (crops, voice[:100], None), (crops, voice, np.zeros(150, bool)), (crops, voice, np.arange(150) < 12),
    ):  # fmt: skip
        estimate = measured(pictures, sound, mask=mask)
        assert not estimate.sure and np.isfinite([estimate.offset_sec, estimate.confidence]).all()


def test_masked_frames_do_not_count() -> None:
    crops, voice = talking(0)
    mask = np.arange(150) % 50 >= 10
    scrambled = crops.copy()
    scrambled[~mask] = np.random.default_rng(0).integers(0, 256, (30, SIDE, SIDE, 3), np.uint8)
    assert measured(scrambled, voice, 0.12, mask) == measured(crops, voice, 0.12, mask)
    assert abs(measured(crops, voice, 0.12, mask).offset_sec - 0.12) <= 0.04


@pytest.mark.parametrize("fps", [23.976, 29.97])
def test_a_file_is_brought_into_time_by_itself_at_any_rate(tmp_path: Path, fps: float) -> None:
    crops, voice = talking(0)
    sound = sped_up(voice, fps / 25)
    path = timed_video(tmp_path / "late.mkv", crops, 0.12 + np.arange(150) / fps, sound)
    report = FaceReport()
    options = FaceOptions("none", av_offset_ms="auto")
    found, mask = load_video_frames(path, face_crop=options, sound=track(sound), report=report)
    assert report.estimate is not None and report.estimate.sure and abs(report.offset_ms - 120) <= 40
    assert any("late" in note and "taken back" in note for note in report.notes())
    assert mask[1:].all()  # the first picture, 120 ms late in the file, is there from about the beginning on
    assert len(found) == pytest.approx(len(sound) / RATE * 25, abs=2)


def test_an_unsure_measurement_changes_nothing(tmp_path: Path) -> None:
    crops, _ = talking(0)
    _, other = talking(1)
    path = timed_video(tmp_path / "dubbed.mkv", crops, np.arange(150) / 25, other)
    plain, _ = load_video_frames(path, face_crop="none")
    report = FaceReport()
    options = FaceOptions("none", av_offset_ms="auto")
    left, _ = load_video_frames(path, face_crop=options, sound=track(other), report=report)
    assert np.array_equal(left, plain) and report.offset_ms == 0
    assert any("left as it is" in note for note in report.notes())
    with pytest.raises(ValueError, match="auto"):
        load_video_frames(path, face_crop=options)


def test_real_speech_is_measured(shared_data: Path) -> None:
    paths = sorted((shared_data / "grid" / "raw" / "s5").glob("*.mpg"))[:3]
    crops = np.concatenate([load_video_frames(path, 0.0, 3.0, face_crop="haar")[0] for path in paths])
    voice = np.concatenate([np.pad(load_audio(path), (0, 48000))[:48000] for path in paths])
    noise = np.random.default_rng(0).standard_normal(len(voice)) * np.sqrt(np.mean(voice**2))
    mask = np.arange(225) % 75 > 0  # cuts from clip to clip
    for late_sec in (-0.2, 0.12):
        estimate = measured(crops, voice, late_sec, mask)
        assert estimate.sure and abs(estimate.offset_sec - late_sec) <= 0.04
        assert abs(measured(crops, voice + noise.astype(np.float32), late_sec, mask).offset_sec - late_sec) <= 0.08
