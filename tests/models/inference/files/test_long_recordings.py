"""Long recordings: memory that does not grow, no joins where there need be none, cross-fades where there must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import inference_av
from helpers.pass_through import PassThrough
from helpers.tiny import face_crops, tiny_config, tiny_model, voice, write_mpg
from models.inference import enhancer as enhancer_module
from models.inference import overlap
from models.inference import stream_batch as stream_core
from models.inference.crop_stream import CropStream
from models.inference.enhancer import Enhancer
from models.inference.files.disk_sound import SpooledSound
from models.inference.files.enhance_file import write_wav
from models.inference.overlap import enhance_overlapped
from models.inference.results import Whole
from utils.faces import video_crops as face_video
from utils.faces.video_crops import crop_stretches, load_video_frames
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError
from utils.media.sound import load_audio, sound_pieces

RATE = 16000


def snr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    error = np.square(estimate.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(error, 1e-300)))


def test_the_size_of_the_pieces_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    enhancer = Enhancer(*tiny_model(model_cfg={"causal": True}))
    wav, crops = voice(1.7), face_crops(43)
    results = []
    for frames in (17, 80, 1000):
        for module in (stream_core, enhancer_module):
            monkeypatch.setattr(module, "PIECE_FRAMES", frames)
        results.append(enhancer.enhance(wav, RATE, crops, return_details=True))
    for result in results[:2]:
        assert snr_db(result.wav, results[2].wav) > 110
        np.testing.assert_allclose(result.alpha, results[2].alpha, atol=1e-5)
        np.testing.assert_allclose(result.gate, results[2].gate, atol=1e-5)


def test_a_causal_model_never_takes_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cfg = tiny_model(model_cfg={"causal": True})
    sizes, step, encode = [], model.step_with_gates, model.visual_encoder.encode_frames
    monkeypatch.setattr(model, "step_with_gates", lambda mag, *rest: (sizes.append(mag.shape[2]), step(mag, *rest))[1])
    frames = []
    monkeypatch.setattr(
        model.visual_encoder, "encode_frames", lambda video, *rest: (frames.append(video.shape[2]), encode(video, *rest))[1]
    )
    enhancer = Enhancer(model, cfg)
    result = enhancer.enhance(voice(3.0), RATE, face_crops(75))
    assert max(sizes) <= stream_core.PIECE_FRAMES and sum(sizes) == 481 == len(result.alpha)
    assert max(frames) <= stream_core.PIECE_FRAMES // 6 + 1 and sum(frames) == 75


def test_a_video_file_is_decoded_as_far_as_the_sound_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.mp4"
    write_clip(path, face_crops(60), voice(2.4))
    monkeypatch.setattr(face_video, "CHUNK_FRAMES", 10)
    model, cfg = tiny_model(model_cfg={"causal": True})
    enhancer = Enhancer(model, cfg)
    whole = enhancer.enhance(voice(2.4), RATE, load_video_frames(path)[0])
    pictures, _ = enhancer.open_crops(str(path), None, 2.4)
    ahead = []

    def sound():
        for first in range(0, 38400, 3200):
            yield voice(2.4)[first : first + 3200]
            ahead.append(pictures.pulled - (first + 3200) / RATE * 25)

    out = np.concatenate([made.wav for made in enhancer.stream(sound(), pictures)])
    assert snr_db(out, whole.wav) > 110 and whole.masked_share == 0
    assert max(ahead) <= 11 and pictures.pulled == 60


# Models that want whole recordings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_sec", [30.2, 31.0, 39.3])
def test_chunks_of_a_model_that_changes_nothing_are_seamless(length_sec: float) -> None:
    wav = np.resize(voice(5.0), round(length_sec * RATE)) * np.linspace(0.2, 2, round(length_sec * RATE), dtype=np.float32)
    result = Enhancer(PassThrough(False), tiny_config()).enhance(wav, RATE)
    np.testing.assert_allclose(result.wav, wav, atol=1e-5)


def test_only_long_recordings_are_cut_and_under_one_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, run = [], Enhancer.run_whole

    def watched(self: Enhancer, samples: np.ndarray, *rest: object) -> tuple:
        seen.append(samples)
        return run(self, samples, *rest)

    monkeypatch.setattr(Enhancer, "run_whole", watched)
    enhancer = Enhancer(PassThrough(False), tiny_config())
    enhancer.enhance(np.resize(voice(1.0), 30 * RATE), RATE)
    assert [len(samples) for samples in seen] == [30 * RATE]
    seen.clear()
    wav = np.resize(voice(1.0), 40 * RATE)
    wav[20 * RATE :] *= 0.01
    enhancer.enhance(wav, RATE)
    assert max(map(len, seen)) <= 11 * RATE and len(seen) > 3
    loud, quiet = (np.sqrt(np.mean(np.square(seen[index]))) for index in (0, -1))
    assert quiet / loud == pytest.approx(0.01, rel=0.05)


def test_chunks_get_their_own_pictures_and_alpha() -> None:
    fps, rate, hop = 25, 1000, 10
    crops = np.arange(25 * 25, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)
    stretches = [(crops[first : first + 60], np.ones(len(crops[first : first + 60]), bool)) for first in range(0, 625, 60)]
    asked = []

    def run(samples: np.ndarray, picture: tuple | None) -> Whole:
        first = int(picture[0][0, 0, 0, 0])
        asked.append((first, len(picture[0]), len(samples)))
        alpha = np.full(1 + len(samples) // hop, first / fps, np.float32)
        return Whole(samples.copy(), alpha, None, alpha / 100)

    wav = np.ones(25 * rate, np.float32)
    out, alpha, upper = enhance_overlapped(wav, CropStream(stretches, 625), rate, fps, hop, run)
    np.testing.assert_allclose(out, 1.0, atol=1e-6)
    assert asked == [(0, 250, 10000), (225, 250, 10000), (450, 175, 7000)]
    np.testing.assert_allclose(upper, alpha / 100)
    assert alpha.shape == (2501,) and alpha[0] == 0 and alpha[949] == 0 and alpha[950] == 9 and alpha[-1] == 18


def test_a_long_clip_of_an_offline_model_is_near_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with normalisation over time cannot give the same, but no join may be heard as a jump."""
    enhancer, wav, crops = Enhancer(*tiny_model()), np.resize(voice(2.0), 4 * RATE), face_crops(100)
    whole = enhancer.enhance(wav, RATE, crops)
    monkeypatch.setattr(enhancer_module, "LONGEST_WHOLE_SEC", 1)
    monkeypatch.setattr(overlap, "CHUNK_SEC", 2)
    parts = enhancer.enhance(wav, RATE, crops)
    assert snr_db(parts.wav, whole.wav) > 10 and parts.alpha.shape == whole.alpha.shape
    assert (parts.alpha > 0).all() == (whole.alpha > 0).all()


# Files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "suffix"), [(16000, ".wav"), (44100, ".flac"), (8000, ".wav"), (48000, ".mpg")])
def test_sound_in_pieces_is_the_sound(tmp_path: Path, rate: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".mpg":
        write_mpg(path, face_crops(250), voice(10.0, rate), rate)
    else:
        soundfile.write(path, np.stack((voice(10.01, rate), voice(10.01, rate, 1)), axis=1), rate)
    pieces = list(sound_pieces(path))
    assert len(pieces) > 2 and max(map(len, pieces)) < 6 * RATE
    np.testing.assert_allclose(np.concatenate(pieces), load_audio(path), atol=1e-6)


def test_what_is_no_sound_is_refused_in_pieces_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan] * 500), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(MediaError, match="NaN"):
        list(sound_pieces(tmp_path / "nan.wav"))
    with pytest.raises(MediaError, match="no samples"):
        list(sound_pieces(tmp_path / "empty.wav"))
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        list(sound_pieces(tmp_path / "gone.wav"))


def test_stretches_of_crops_are_short_and_join_to_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mpg(tmp_path / "a.mpg", face_crops(130), voice(5.2, 44100))
    whole, mask = load_video_frames(path, face_size=48, face_crop="center")
    monkeypatch.setattr(face_video, "CHUNK_BYTES", 96 * 96 * 3 * 60)
    stretches = list(crop_stretches(path, face_size=48, face_crop="center"))
    assert [len(crops) for crops, _ in stretches] == [60, 60, len(whole) - 120]
    np.testing.assert_array_equal(np.concatenate([crops for crops, _ in stretches]), whole)
    np.testing.assert_array_equal(np.concatenate([seen for _, seen in stretches]), mask)


def test_spooled_sound_is_written_turned_down_as_an_array_is(tmp_path: Path) -> None:
    wav = 3 * voice(2.3) / np.abs(voice(2.3)).max()
    with SpooledSound() as sound:
        for first in range(0, len(wav), 5000):
            sound.append(wav[first : first + 5000])
        np.testing.assert_array_equal(np.concatenate(list(sound.pieces(999))), wav)
        assert write_wav(tmp_path / "a.wav", sound, RATE) == write_wav(tmp_path / "b.wav", wav, RATE) < 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


# inference_av.py --stream --------------------------------------------------------------------------------------------


def test_a_streamed_file_is_the_enhanced_file(causal_checkpoint, talking_clip, tmp_path: Path, capsys) -> None:
    command = ["--checkpoint_file", str(causal_checkpoint), "--device", "cpu", "--input_video", str(talking_clip), "--output"]
    assert inference_av.main([*command, str(tmp_path / "whole.wav")]) == 0
    assert inference_av.main([*command, str(tmp_path / "live.wav"), "--stream", "--chunk_ms", "10"]) == 0
    out = capsys.readouterr().out
    assert "streamed in 10 ms chunks at 16 kHz: latency 25.0 ms (400 samples), RTF " in out and "worst chunk" in out
    whole, live = (soundfile.read(tmp_path / f"{name}.wav", dtype="int16")[0].astype(int) for name in ("whole", "live"))
    assert len(whole) == len(live) == 16000 and np.abs(whole - live).max() <= 1


def test_stream_is_refused_in_one_line(av_checkpoint, causal_checkpoint, tmp_path: Path, capsys) -> None:
    soundfile.write(tmp_path / "a.wav", voice(0.1), RATE)
    command = ["--input_audio", str(tmp_path / "a.wav"), "--output", str(tmp_path), "--device", "cpu", "--stream"]
    assert inference_av.main([*command, "--checkpoint_file", str(av_checkpoint)]) == 2
    assert "not causal" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        inference_av.main([*command, "--checkpoint_file", str(causal_checkpoint), "--chunk_ms", "0"])
    assert "--chunk_ms is 0" in capsys.readouterr().err
