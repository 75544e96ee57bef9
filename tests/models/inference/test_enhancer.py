"""Enhancer: any waveform, with or without video, in; exactly as long and as loud out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.pass_through import PassThrough
from helpers.tiny import face_crops, tiny_config, tiny_model, voice
from models.inference.enhancer import Enhancer
from models.inference.waveform import float_waveform
from models.stfts import mag_phase_stft


@pytest.fixture(scope="module")
def offline() -> Enhancer:
    return Enhancer(*tiny_model())


@pytest.fixture(scope="module")
def causal() -> Enhancer:
    return Enhancer(*tiny_model(model_cfg={"causal": True}))


@pytest.fixture(params=["offline", "causal"])
def enhancer(request: pytest.FixtureRequest) -> Enhancer:
    return request.getfixturevalue(request.param)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("length", [1, 2, 99, 201, 399, 400, 401, 1000, 4099])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_output_is_as_long_as_the_input(offline: Enhancer, length: int, rate: int) -> None:
    wav = voice(1.0, rate)[1000 : 1000 + length]
    result = offline.enhance(wav, rate)
    assert result.wav.shape == (length,) and result.wav.dtype == np.float32 and result.sample_rate == rate
    assert np.isfinite(result.wav).all() and result.seconds > 0 and result.rtf > 0


def test_causal_output_is_as_long_as_the_input(causal: Enhancer) -> None:
    for length in (1, 399, 4099):
        result = causal.enhance(voice(1.0)[:length], 16000)
        assert result.wav.shape == (length,) and np.isfinite(result.wav).all()


def test_nothing_is_lost_at_the_end(offline: Enhancer) -> None:
    wav = voice(1.0)[:9999]
    assert rms(offline.enhance(wav, 16000).wav[-60:]) > 0.02 * rms(wav)


def test_integer_and_float_samples_of_one_sound_agree(offline: Enhancer) -> None:
    pcm16 = np.round(voice(0.5) * 32768).astype(np.int16)
    expected = offline.enhance(pcm16.astype(np.float32) / 32768, 16000).wav
    for wav in (pcm16, pcm16.astype(np.int32) * 65536, pcm16.astype(np.float64) / 32768):
        np.testing.assert_allclose(offline.enhance(wav, 16000).wav, expected, atol=1e-7)


def test_eight_bit_samples_are_centred() -> None:
    np.testing.assert_array_equal(float_waveform(np.array([0, 128, 192], np.uint8)), [-1.0, 0.0, 0.5])
    np.testing.assert_array_equal(float_waveform(np.array([-128, 0, 64], np.int8)), [-1.0, 0.0, 0.5])


def test_channels_are_averaged_whichever_axis_they_are_on(offline: Enhancer) -> None:
    left, right = voice(0.3, seed=1), voice(0.3, seed=2)
    expected = offline.enhance((left + right) / 2, 16000).wav
    for stereo in (np.stack((left, right)), np.stack((left, right), axis=1)):
        np.testing.assert_allclose(offline.enhance(stereo, 16000).wav, expected, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("duration_sec", [0.004, 0.02, 0.71237])
def test_a_model_that_changes_nothing_gives_back_the_sound(is_causal: bool, rate: int, duration_sec: float) -> None:
    """In place, at its level, complete from the first sample to the last."""
    n = round(duration_sec * rate)
    smooth = np.hanning(n) * np.sin(2 * np.pi * 440 * np.arange(n) / rate)
    wav = (0.1 * smooth if rate != 16000 else voice(1.0)[:n]).astype(np.float32)
    result = Enhancer(PassThrough(is_causal), tiny_config()).enhance(wav, rate).wav
    np.testing.assert_allclose(result, wav, atol=1e-5 if rate == 16000 else 1e-3)


def test_level_in_is_level_out_offline(offline: Enhancer) -> None:
    wav = voice(0.5)
    wav[:600] = 0  # frame 0 of a mirrored beginning has phase +pi or -pi by a rounding error, and the model sees which
    whole = offline.enhance(wav, 16000).wav
    for factor in (1e-3, 0.1, 10.0):
        scaled = offline.enhance(factor * wav, 16000).wav
        np.testing.assert_allclose(scaled / factor, whole, atol=1e-4 * np.abs(whole).max())


def test_level_in_is_level_out_causal(causal: Enhancer) -> None:
    """The running estimate begins at a prior, so that it takes a while to forget it."""
    wav = voice(2.0)
    loud = causal.enhance(wav, 16000).wav[24000:]
    quiet = causal.enhance(0.1 * wav, 16000).wav[24000:]
    assert 0.07 < rms(quiet) / rms(loud) < 0.14


def test_silence_stays_silence(enhancer: Enhancer) -> None:
    for video in (None, face_crops(10)):
        assert not enhancer.enhance(np.zeros(4000, np.float32), 16000, video).wav.any()


def test_silence_with_one_click_is_finite(enhancer: Enhancer) -> None:
    wav = np.zeros(8000, np.float32)
    wav[4000] = 1.0
    assert np.isfinite(enhancer.enhance(wav, 16000).wav).all()


@pytest.mark.parametrize(
    ("wav", "words"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.array([0.0, np.nan, np.inf], np.float32), "2 samples that are NaN or infinite"),
        (np.array([0.0, np.nan], np.float32), "1 sample that is NaN or infinite"),
        ("noisy.wav", "sound is a str, not samples"),
        (Path("noisy.wav"), "soundfile.read"),
        (np.zeros((2, 3, 4), np.float32), r"shape \[samples\]"),
        (np.zeros(500, bool), "bool"),
        (np.zeros(500, np.int64), "int64"),
        (np.zeros(500, np.complex64), "complex64"),
        (np.full(500, 1e30), "1e\\+30"),
    ],
)
def test_unusable_sound_is_refused_in_one_line(offline: Enhancer, wav: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        offline.enhance(wav, 16000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, -16000, 0.5, 16000.5, float("nan"), float("inf"), "44100", None])
def test_impossible_sample_rate_is_refused(offline: Enhancer, rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        offline.enhance(voice(0.1), rate)


def test_masked_video_is_no_video_bit_for_bit(enhancer: Enhancer) -> None:
    wav, crops = voice(1.0), face_crops(25)
    alone = enhancer.enhance(wav, 16000)
    masked = enhancer.enhance(wav, 16000, crops, np.zeros(25, bool))
    np.testing.assert_array_equal(masked.wav, alone.wav)
    assert alone.alpha is None and alone.masked_share == 1.0 and alone.mean_alpha is None
    assert any("no face" in note for note in masked.notes) and not alone.notes


def test_video_changes_the_output_and_alpha_says_where(enhancer: Enhancer) -> None:
    wav, mask = voice(1.0), np.arange(25) < 15
    seen = enhancer.enhance(wav, 16000, face_crops(25), mask, return_details=True)
    assert rms(seen.wav - enhancer.enhance(wav, 16000).wav) > 1e-6
    assert seen.alpha.shape == (161,) and seen.gate.shape == (161, 100)
    assert (seen.alpha[:96] > 0).all() and not seen.alpha[96:].any()  # frame 15 is shown from 0.6 s on: STFT frame 96
    assert seen.masked_share == pytest.approx(0.4) and 0 < seen.mean_alpha < 0.6
    assert enhancer.enhance(wav, 16000, face_crops(25), mask).gate is None


def test_what_a_masked_frame_shows_does_not_matter(enhancer: Enhancer) -> None:
    wav, mask = voice(0.6), np.arange(15) % 3 > 0
    one, other = face_crops(15, seed=1), face_crops(15, seed=1)
    other[~mask] = 255
    np.testing.assert_array_equal(
        enhancer.enhance(wav, 16000, one, mask).wav, enhancer.enhance(wav, 16000, other, mask).wav
    )


def test_video_longer_than_the_sound_is_cut(enhancer: Enhancer) -> None:
    wav, crops = voice(0.5), face_crops(40)
    whole = enhancer.enhance(wav, 16000, crops)
    np.testing.assert_array_equal(whole.wav, enhancer.enhance(wav, 16000, crops[:13]).wav)
    assert whole.masked_share == 0.0


def test_video_shorter_than_the_sound_leaves_the_rest_to_the_sound(enhancer: Enhancer) -> None:
    result = enhancer.enhance(voice(1.0), 16000, face_crops(10))
    assert result.masked_share == pytest.approx(0.6)
    assert result.alpha[:64].all() and not result.alpha[64:].any()


def test_float_crops_equal_their_bytes(offline: Enhancer) -> None:
    wav, crops = voice(0.4), face_crops(10)
    np.testing.assert_allclose(
        offline.enhance(wav, 16000, crops / np.float32(255)).wav, offline.enhance(wav, 16000, crops).wav, atol=1e-6
    )


@pytest.mark.parametrize(
    ("crops", "mask", "words"),
    [
        (np.zeros((5, 64, 64, 3), np.uint8), None, r"\[frames, 96, 96, 3\]"),
        (np.zeros((3, 5, 96, 96), np.uint8), None, r"\[frames, 96, 96, 3\]"),
        (np.zeros((5, 96, 96, 3), np.int64), None, "int64"),
        (np.full((5, 96, 96, 3), 200.0), None, "outside"),
        (np.full((5, 96, 96, 3), np.nan), None, "outside"),
        (np.zeros((5, 96, 96, 3), np.uint8), np.ones(4, bool), "video_mask"),
    ],
)
def test_unusable_crops_are_refused(offline: Enhancer, crops: np.ndarray, mask: np.ndarray | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        offline.enhance(voice(0.2), 16000, crops, mask)


def test_video_without_frames_is_no_video(offline: Enhancer) -> None:
    result = offline.enhance(voice(0.2), 16000, np.zeros((0, 96, 96, 3), np.uint8))
    assert result.masked_share == 1.0 and result.notes


def test_video_file_is_read_by_itself(offline: Enhancer, talking_clip) -> None:
    result = offline.enhance(voice(1.0), 16000, str(talking_clip))
    assert result.masked_share == 0.0 and result.alpha is not None and not result.notes
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        offline.enhance(voice(0.2), 16000, "nowhere.mp4")


def test_audio_only_model_leaves_video_alone_and_says_so() -> None:
    enhancer = Enhancer(*tiny_model("SEMamba"))
    result = enhancer.enhance(voice(0.3), 16000, "never_opened.mp4")
    np.testing.assert_array_equal(result.wav, enhancer.enhance(voice(0.3), 16000).wav)
    assert "not used" in result.notes[0] and result.alpha is None
    assert "audio only" in enhancer.describe()


def test_visual_branch_switched_off_is_audio_only() -> None:
    enhancer = Enhancer(*tiny_model(visual_cfg={"use_visual": False}))
    assert not enhancer.uses_video and enhancer.enhance(voice(0.2), 16000, face_crops(5)).notes


@pytest.mark.parametrize("lite", [{"use_vce": False}, {"use_fsvg": False}, {"use_vce": False, "use_fsvg": False}])
def test_ablations_run(lite: dict) -> None:
    result = Enhancer(*tiny_model(lite_cfg=lite)).enhance(voice(0.4), 16000, face_crops(10), return_details=True)
    assert result.alpha.shape == (65,)
    assert (result.gate is None) == ("use_fsvg" in lite)


def test_checkpoint_round_trip_and_description(av_checkpoint, offline: Enhancer) -> None:
    enhancer = Enhancer.from_checkpoint(av_checkpoint, device="cpu")
    np.testing.assert_array_equal(
        enhancer.enhance(voice(0.3), 16000, face_crops(8)).wav, offline.enhance(voice(0.3), 16000, face_crops(8)).wav
    )
    line = enhancer.describe()
    assert "\n" not in line
    for word in (str(av_checkpoint), "LiteAVSEMamba", "offline", "M parameters", "cpu", "scan"):
        assert word in line


def test_without_a_path_the_shipped_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Enhancer.from_checkpoint(device="cpu").name.endswith("LiteAVSE_small.pth")


def test_damaged_weights_are_named_not_passed_on() -> None:
    model, cfg = tiny_model()
    with torch.no_grad():
        next(model.mask_decoder.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        Enhancer(model, cfg, name="broken.pth").enhance(voice(0.2), 16000)


def test_no_gradients_are_kept(offline: Enhancer) -> None:
    offline.enhance(voice(0.2), 16000, face_crops(5))
    assert all(weight.grad is None for weight in offline.model.parameters())
    assert not offline.model.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(av_checkpoint) -> None:
    """From one spectrum: of one waveform an angle of pi may be -pi on the other device, and the network takes angles as
    numbers, so that the signs of these alone change the output of an untrained model by tenths."""
    mag, pha, _ = mag_phase_stft(torch.from_numpy(voice(0.6))[None], 400, 100, 400, 0.3)
    video = torch.from_numpy(face_crops(15)).permute(3, 0, 1, 2)[None].float() / 255
    found = {}
    for name in ("cpu", "cuda"):
        model = Enhancer.from_checkpoint(av_checkpoint, name).model
        with torch.inference_mode():
            found[name] = model(mag.to(name), pha.to(name), video.to(name))[2].cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=0, atol=1e-2 * float(found["cpu"].abs().max()))
