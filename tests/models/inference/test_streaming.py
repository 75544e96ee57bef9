"""Streaming: what comes out is what offline makes of the whole, 400 samples late, whatever comes in and however."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.tiny import face_crops, tiny_model, voice
from models.inference.enhancer import Enhancer
from models.inference.stream_batch import StreamBatch
from models.inference.streaming import StreamingEnhancer
from models.level import level_gain
from models.stfts import mag_phase_istft, mag_phase_stft

RATE, FPS, LATENCY = 16000, 25, 400
CAUSAL = {"causal": True, "phase_residual": True}


@pytest.fixture(scope="module")
def enhancer() -> Enhancer:
    return Enhancer(*tiny_model(model_cfg=CAUSAL))


def snr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    error = np.square(estimate.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(error, 1e-300)))


def streamed(
    stream: StreamingEnhancer, wav: np.ndarray, chunks: list[int], crops: np.ndarray | None = None,
    times: np.ndarray | None = None, mask: np.ndarray | None = None,
) -> np.ndarray:
    """wav in chunks of these sizes (in turn), each after the pictures that were shown until its end."""
    outputs, heard, shown, turn = [], 0, 0, 0
    times = np.arange(len(crops)) / FPS if crops is not None and times is None else times
    while heard < len(wav):
        chunk = wav[heard : heard + chunks[turn % len(chunks)]]
        heard, turn = heard + len(chunk), turn + 1
        if crops is not None:
            stop = int(np.searchsorted(times, heard / RATE, side="right"))
            stream.feed_video(crops[shown:stop], times[shown:stop], None if mask is None else mask[shown:stop])
            shown = stop
        outputs.append(stream.feed(chunk))
        # Never later than promised, and nothing is invented.
        assert max(0, heard - LATENCY + 1) <= sum(map(len, outputs)) <= heard
    return np.concatenate([*outputs, stream.flush()])


def whole_clip(enhancer: Enhancer, wav: np.ndarray, crops: np.ndarray | None, mask: np.ndarray | None = None) -> np.ndarray:
    """The path of a clip that is there as a whole, written out without any of the streaming code."""
    sizes = (400, enhancer.cfg["stft_cfg"]["hop_size"], 400, 0.3)
    gain = level_gain(wav, causal=True)
    wave = torch.from_numpy(np.pad(wav * gain, (0, max(0, 400 - len(wav)))))[None]
    with torch.no_grad():
        mag, pha, _ = mag_phase_stft(wave, *sizes)
        video = None if crops is None else torch.from_numpy(crops).float().div(255).permute(3, 0, 1, 2)[None]
        seen = None if mask is None else torch.from_numpy(mask)[None]
        out = enhancer.model.forward_with_gates(mag, pha, video, seen)
        return mag_phase_istft(out.mag, out.pha, *sizes, length=wave.shape[1])[0, : len(wav)].numpy() / gain


def test_latency_is_what_it_says(enhancer: Enhancer) -> None:
    assert StreamingEnhancer(enhancer).latency_samples == LATENCY == StreamBatch(enhancer.model, enhancer.cfg).latency_samples


RANDOM_SIZES = np.random.default_rng(0).integers(0, 900, 50).tolist()


@pytest.mark.parametrize("with_video", [False, True])
@pytest.mark.parametrize("chunks", [[1], [100], [400], [401], [4096], RANDOM_SIZES], ids=lambda c: f"{c[0]}x{len(c)}")
def test_streamed_is_offline(enhancer: Enhancer, chunks: list[int], with_video: bool) -> None:
    wav, crops = voice(0.82)[: 13057 if chunks != [1] else 2100], face_crops(21) if with_video else None
    reference = whole_clip(enhancer, wav, crops)
    out = streamed(StreamingEnhancer(enhancer), wav, chunks, crops)
    assert out.shape == wav.shape and out.dtype == np.float32
    assert snr_db(out, reference) > 110
    assert snr_db(enhancer.enhance(wav, RATE, crops).wav, reference) > 110


@pytest.mark.parametrize("length", [1, 150, 200, 201, 300, 399, 400, 401, 499, 500, 1099])
def test_edges_are_those_of_the_whole_clip(enhancer: Enhancer, length: int) -> None:
    wav = voice(1.0)[3000 : 3000 + length]
    reference = whole_clip(enhancer, wav, None)
    for chunks in ([length], [97]):
        assert snr_db(streamed(StreamingEnhancer(enhancer), wav, chunks), reference) > 110


def test_a_masked_and_interrupted_picture_streams_as_offline(enhancer: Enhancer) -> None:
    wav, crops, mask = voice(1.2), face_crops(30), np.arange(30) // 5 % 2 == 0
    reference = whole_clip(enhancer, wav, crops, mask)
    assert snr_db(streamed(StreamingEnhancer(enhancer), wav, [400], crops, mask=mask), reference) > 110


def test_frames_that_never_come_are_masked(enhancer: Enhancer) -> None:
    """The video stops after 0.4 s: from there on the sound is enhanced alone, as offline where the crops end."""
    wav, crops = voice(0.9), face_crops(10)
    reference = whole_clip(enhancer, wav, crops)
    assert snr_db(streamed(StreamingEnhancer(enhancer), wav, [400], crops), reference) > 110
    # It comes back: what was missed counts as frames without a face.
    crops, mask = face_crops(22), np.arange(22) // 5 % 2 == 0
    stream, heard, alphas, outputs = StreamingEnhancer(enhancer), 0, [], []
    for tick in range(22):
        if mask[tick]:
            stream.feed_video(crops[tick : tick + 1], np.array([tick / FPS]))
        outputs.append(stream.feed(wav[heard : heard + 640]))
        heard += 640
        alphas.append(stream.readout().alpha)
    shown_then = np.array(alphas) > 0
    assert shown_then[:5].all() and not shown_then[6:10].any() and shown_then[11:15].all() and not shown_then[16:20].any()


@pytest.mark.parametrize("kind", ["mobilenet", "custom3d"])
def test_streamed_is_offline_with_either_encoder_and_after_a_long_gap(kind: str) -> None:
    sections = {"lite_cfg": {"visual_encoder_type": kind}, "visual_cfg": {"remove_mean_frames": 4}}
    enhancer = Enhancer(*tiny_model(model_cfg=CAUSAL, **sections))
    wav, crops, mask = voice(1.6), face_crops(40), np.ones(40, bool)
    mask[6:34] = False  # longer than the encoder's memory
    assert enhancer.model.visual_encoder.memory_frames < 28
    reference = whole_clip(enhancer, wav, crops, mask)
    assert snr_db(streamed(StreamingEnhancer(enhancer), wav, [400], crops, mask=mask), reference) > 110
    assert snr_db(reference, whole_clip(enhancer, wav, crops)) < 60


def test_every_frame_is_encoded_once(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, counts = enhancer.model.visual_encoder, []
    encode = encoder.encode_frames

    def counted(video: torch.Tensor, *rest: object) -> tuple:
        counts.append(video.shape[2])
        return encode(video, *rest)

    monkeypatch.setattr(encoder, "encode_frames", counted)
    streamed(StreamingEnhancer(enhancer), voice(1.0), [100], face_crops(25))
    assert sum(counts) == 25 and len(counts) == 25


def test_output_leaves_as_soon_as_its_last_input_is_in(enhancer: Enhancer) -> None:
    """Sample by sample: output n is out with input n + 399 at the latest, and multiples of a hop exactly then."""
    stream, wav, given = StreamingEnhancer(enhancer), voice(0.1), 0
    for n in range(len(wav)):
        given += len(stream.feed(wav[n : n + 1]))
        assert given >= n + 1 - (LATENCY - 1)
        assert given <= max(0, (n + 1 - 200) // 100 * 100 - 100)
    assert stream.readout().backlog_samples == len(wav) - given


def test_an_impulse_comes_out_within_the_latency(enhancer: Enhancer) -> None:
    """Fed sample by sample, the answer to an impulse is under way before 400 further samples are in."""
    base = 0.01 * voice(0.3)
    for at in (1600, 1650, 1699):
        struck = base.copy()
        struck[at] += 0.5
        plain, answer = StreamingEnhancer(enhancer), StreamingEnhancer(enhancer)
        plain.feed(base[:at])
        answer.feed(struck[:at])
        for late in range(LATENCY):
            quiet, loud = plain.feed(base[at + late : at + late + 1]), answer.feed(struck[at + late : at + late + 1])
            position = at + late + 1 - plain.readout().backlog_samples  # samples given so far
            if len(loud) and np.abs(loud - quiet).max() > 0.1 and position > at:
                break
        else:
            pytest.fail(f"no answer to the impulse at {at} within {LATENCY} samples")


@pytest.mark.parametrize("at", [2000, 5555])
def test_later_sound_changes_nothing_that_has_left_and_everything_after(enhancer: Enhancer, at: int) -> None:
    wav, crops = voice(0.6), face_crops(15)
    other = wav.copy()
    other[at:] = voice(0.6, seed=1)[at:]
    one, two = (streamed(StreamingEnhancer(enhancer), w, [400], crops) for w in (wav, other))
    assert np.abs(one - two)[: at - LATENCY + 1].max() < 1e-6
    assert np.abs(one - two)[at : at + 400].max() > 1e-3
    whole_one, whole_two = (enhancer.enhance(w, RATE, crops).wav for w in (wav, other))
    assert np.abs(whole_one - whole_two)[: at - LATENCY + 1].max() < 1e-6


@pytest.mark.parametrize("kind", ["mobilenet", "custom3d"])
def test_a_later_picture_changes_nothing_before_it_and_something_after(kind: str) -> None:
    enhancer = Enhancer(*tiny_model(model_cfg=CAUSAL, lite_cfg={"visual_encoder_type": kind}))
    wav, crops = voice(0.8), face_crops(20)
    other = crops.copy()
    other[10:] = 255 - other[10:]
    for run in (lambda c: streamed(StreamingEnhancer(enhancer), wav, [400], c), lambda c: enhancer.enhance(wav, RATE, c).wav):
        change = np.abs(run(crops) - run(other))
        assert change[: 6400 - 200].max() < 1e-6  # frame 10 is at 0.4 s: STFT frame 64, which begins 200 samples before
        assert change[6400:7400].max() > 1e-5


# Pictures ------------------------------------------------------------------------------------------------------------


def test_other_rates_are_taken_by_timestamp(enhancer: Enhancer) -> None:
    wav, crops = voice(1.0), face_crops(50)
    at_25 = streamed(StreamingEnhancer(enhancer), wav, [400], crops[::2])
    np.testing.assert_allclose(streamed(StreamingEnhancer(enhancer), wav, [400], crops, np.arange(50) / 50), at_25, atol=1e-6)
    stream = StreamingEnhancer(enhancer)
    stream.feed_video(crops[:10], np.arange(10) / 10)
    slow = streamed(stream, wav, [400])
    held = crops[np.floor(np.arange(25) * 0.4 + 1e-9).astype(int)]
    np.testing.assert_allclose(slow, streamed(StreamingEnhancer(enhancer), wav, [400], held), atol=1e-5)


def test_video_that_is_late_by_more_than_its_sound_is_masked(enhancer: Enhancer) -> None:
    wav, crops = voice(0.8), face_crops(20)
    stream, alone, outputs, expected = StreamingEnhancer(enhancer), StreamingEnhancer(enhancer), [], []
    for first in range(0, len(wav), 400):
        chunk, newest = wav[first : first + 400], first // 640 - 6  # pictures come 240 ms late
        if newest >= 0 and first % 640 < 400:
            stream.feed_video(crops[newest : newest + 1], np.array([newest / FPS]))
        outputs.append(stream.feed(chunk))
        expected.append(alone.feed(chunk))
        assert stream.readout().alpha == 0
    np.testing.assert_array_equal(np.concatenate(outputs), np.concatenate(expected))
    # Now it is on time again: the picture is used at once.
    stream.feed_video(crops[15:], np.arange(15, 20) / FPS + 0.2)
    stream.feed(wav[:800])
    assert stream.readout().alpha > 0


# Several streams -------------------------------------------------------------------------------------------------------


def test_streams_of_a_batch_do_not_know_of_each_other(enhancer: Enhancer) -> None:
    waves = np.stack([voice(0.6, seed=seed) * scale for seed, scale in ((0, 1.0), (1, 0.1), (2, 3.0))])
    crops = face_crops(15)
    batch, outputs = StreamBatch(enhancer.model, enhancer.cfg, streams=3), []
    batch.add_video(crops, np.arange(15) / FPS, stream=0)
    batch.add_video(crops[::-1], np.arange(15) / FPS, np.arange(15) < 9, stream=2)
    for first in range(0, waves.shape[1], 700):
        outputs.append(batch.feed(waves[:, first : first + 700]))
    together = np.concatenate([*outputs, batch.flush()], axis=1)
    pictures = [(crops, None), (None, None), (crops[::-1], np.arange(15) < 9)]
    for row, (video, mask) in enumerate(pictures):
        assert snr_db(together[row], enhancer.enhance(waves[row], RATE, video, mask).wav) > 110


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_a_model_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="not causal"):
        StreamingEnhancer(Enhancer(*tiny_model()))
    with pytest.raises(ValueError, match=r"enhancer is a str, it should be an Enhancer"):
        StreamingEnhancer("ckpts/LiteAVSE_small.pth")


NAN = np.array([0.1, np.nan], np.float32)
MISTAKES = [
    ("feed", (NAN,), "NaN"),
    ("feed", (np.zeros(10, np.int16),), "int16"),
    ("feed", (np.zeros((10, 2), np.float32),), "2 channels"),
    ("feed", (np.zeros((2, 2, 2), np.float32),), "shape"),
    ("feed", (np.zeros(10, complex),), "complex"),
    ("feed_video", (np.zeros((1, 64, 64, 3), np.uint8), np.array([0.9])), "96, 96"),
    ("feed_video", (np.zeros((1, 96, 96, 3), np.int32), np.array([0.9])), "int32"),
    ("feed_video", (np.zeros((2, 96, 96, 3), np.uint8), np.array([0.9])), "one per frame"),
    ("feed_video", (np.zeros((1, 96, 96, 3), np.uint8), np.array([0.1])), "backwards"),
    ("feed_video", (np.zeros((2, 96, 96, 3), np.uint8), np.array([0.9, 0.8])), "backwards"),
    ("feed_video", (np.zeros((1, 96, 96, 3), np.uint8), np.array([np.nan])), "NaN"),
]


def test_a_mistake_is_named_and_leaves_the_stream_as_it_was(enhancer: Enhancer) -> None:
    wav, crops = voice(0.8), face_crops(20)
    calm, troubled = StreamingEnhancer(enhancer), StreamingEnhancer(enhancer)
    outputs: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for index, stream in enumerate((calm, troubled)):
        stream.feed_video(crops[:8], np.arange(8) / FPS)
        outputs[index].append(stream.feed(wav[:6000]))
    for method, arguments, words in MISTAKES:
        with pytest.raises(ValueError, match=words) as caught:
            getattr(troubled, method)(*arguments)
        assert "\n" not in str(caught.value)
    for index, stream in enumerate((calm, troubled)):
        stream.feed_video(crops[8:], np.arange(8, 20) / FPS)
        outputs[index] += [stream.feed(wav[6000:]), stream.flush()]
    np.testing.assert_array_equal(np.concatenate(outputs[0]), np.concatenate(outputs[1]))


def test_a_failure_inside_the_model_leaves_the_stream_as_it_was(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    wav, crops = voice(1.0), face_crops(25)
    stream, first = StreamingEnhancer(enhancer), []
    stream.feed_video(crops, np.arange(25) / FPS)
    first.append(stream.feed(wav[:5000]))
    calls, step = [], enhancer.model.mask_decoder.step

    def breaks_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(enhancer.model.mask_decoder, "step", breaks_at_the_second)
        with pytest.raises(MemoryError):
            stream.feed(np.tile(wav, 3))
    out = np.concatenate([*first, stream.feed(wav[5000:]), stream.flush()])
    assert snr_db(out, whole_clip(enhancer, wav, crops)) > 110


def test_after_the_end_only_reset_is_possible(enhancer: Enhancer) -> None:
    wav, crops = voice(0.3), face_crops(8)
    stream = StreamingEnhancer(enhancer)
    once = streamed(stream, wav, [400], crops)
    for call in (lambda: stream.feed(wav), stream.flush, lambda: stream.feed_video(crops, np.arange(8) / FPS)):
        with pytest.raises(ValueError, match="reset"):
            call()
    stream.reset()
    assert stream.readout().calls == 0
    np.testing.assert_array_equal(streamed(stream, wav, [400], crops), once)


def test_nothing_in_nothing_out(enhancer: Enhancer) -> None:
    stream = StreamingEnhancer(enhancer)
    assert stream.feed(np.zeros(0, np.float32)).shape == (0,) and stream.flush().shape == (0,)


def test_sound_alone_takes_no_video() -> None:
    stream = StreamingEnhancer(Enhancer(*tiny_model("SEMamba", model_cfg={"causal": True})))
    with pytest.raises(ValueError, match="no visual branch"):
        stream.feed_video(face_crops(1), np.zeros(1))
    assert streamed(stream, voice(0.2), [400]).shape == (3200,)


def test_integers_and_channels_are_taken(enhancer: Enhancer) -> None:
    wav = voice(0.3)
    pcm = np.round(wav * 32768).astype(np.int16)
    reference = enhancer.enhance(pcm, RATE).wav
    stereo = np.stack((pcm, pcm), axis=1)
    for samples in (pcm, stereo):
        stream = StreamingEnhancer(enhancer)
        pieces = [stream.feed(samples[first : first + 2]) for first in range(0, 100, 2)]
        pieces += [stream.feed(samples[100:]), stream.flush()]
        assert snr_db(np.concatenate(pieces), reference) > 110


# Read-out ----------------------------------------------------------------------------------------------------------------


def test_threads_are_set_inside_a_call_only(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step = [], enhancer.model.dense_encoder.step
    monkeypatch.setattr(
        enhancer.model.dense_encoder, "step", lambda x, state: (seen.append(torch.get_num_threads()), step(x, state))[1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for threads in (1, None):
            stream = StreamingEnhancer(enhancer, threads=threads)
            stream.feed(voice(0.05))
            assert torch.get_num_threads() == 2 and stream.readout().threads == threads
            with pytest.raises(ValueError):
                stream.feed(NAN)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]
    with pytest.raises(ValueError, match="threads"):
        StreamingEnhancer(enhancer, threads=0)


def test_the_readout_counts(enhancer: Enhancer) -> None:
    stream = StreamingEnhancer(enhancer)
    assert stream.readout().rtf == 0
    stream.feed(voice(0.5))
    stream.feed(np.zeros(10, np.float32))
    readout = stream.readout()
    assert readout.heard_sec == pytest.approx(0.5 + 10 / RATE) and readout.calls == 2
    assert readout.rtf == pytest.approx(readout.compute_sec / readout.heard_sec) and readout.compute_sec > 0
    assert readout.worst_call_ms >= readout.last_call_ms > 0
    assert readout.backlog_samples == 8010 - 7700
    assert "latency 400 samples" in readout.line() and "threads: 1" in readout.line() and "\n" not in readout.line()


@pytest.mark.parametrize("first", [False, True], ids=["dense first", "encoded first"])
def test_a_coarser_codec_streams_what_it_gives_offline(first: bool) -> None:
    coarse = Enhancer(*tiny_model(
        model_cfg=CAUSAL, stft_cfg={"hop_size": 200},
        lite_cfg={"freq_stride": 4, "n_freq_enc": 50, "encode_first": first, "dense_depth": 2},
    ))  # fmt: skip
    noisy = voice(1.0, seed=4)
    whole = whole_clip(coarse, noisy, None)
    assert snr_db(streamed(StreamingEnhancer(coarse), noisy, [400, 37, 1200]), whole) > 110
    assert len(coarse.model.dense_encoder.dense_block.dense_block) == 2 and coarse.model.dense_encoder.encoded_bins(201) == 50
