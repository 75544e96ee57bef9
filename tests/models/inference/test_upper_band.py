"""The band above the model's: nothing is lost at gain 1, it follows the model, and a stream gives what a file gives."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from helpers.pass_through import PassThrough
from helpers.tiny import tiny_config, tiny_model
from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import Job
from models.inference.files.stream_file import stream_file
from models.inference.streaming import StreamingEnhancer
from models.inference.upper_band import FLOOR_DB, has_upper_band, top_octave_gain
from utils.media.short_resampler import ShortResampler, convert

RATES = (22050, 32000, 44100, 48000, 96000, 192000)


class Half(PassThrough):
    """Turns everything down by 6.02 dB from STFT frame 80 on; there it is frame 80 that is half as loud."""

    def __init__(self, causal: bool) -> None:
        super().__init__(causal)
        self.seen = 0

    def init_state(self, mag: torch.Tensor) -> None:
        self.seen = 0

    def step(self, mag: torch.Tensor, pha: torch.Tensor, state: None) -> tuple:
        frames = torch.arange(self.seen, self.seen + mag.shape[2])
        self.seen += mag.shape[2]
        return mag * torch.where(frames >= 80, 0.5**0.3, 1.0), pha, None, None

    def forward(self, mag: torch.Tensor, pha: torch.Tensor) -> tuple:
        frames = torch.arange(mag.shape[2])
        return mag * torch.where(frames >= 80, 0.5**0.3, 1.0), pha, None


def sound(rate: int, duration_sec: float = 1.0, seed: int = 0) -> np.ndarray:
    """White noise up to half the rate, float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_sec * rate))).astype(np.float32)


def level_db(wav: np.ndarray, rate: int, low_hz: float, high_hz: float) -> float:
    power = np.square(np.abs(np.fft.rfft(wav * np.hanning(len(wav)))))
    frequency = np.fft.rfftfreq(len(wav), 1 / rate)
    return float(10 * np.log10(power[(frequency >= low_hz) & (frequency < high_hz)].sum() / len(wav)))


def streamed(stream: StreamingEnhancer, wav: np.ndarray, sizes: list[int]) -> np.ndarray:
    out, first, turn = [], 0, 0
    while first < len(wav):
        out.append(stream.feed(wav[first : first + sizes[turn % len(sizes)]]))
        first, turn = first + sizes[turn % len(sizes)], turn + 1
    return np.concatenate([*out, stream.flush()])


@pytest.mark.parametrize("rate", [*RATES, 16001, 47999])
def test_rates_are_converted_in_place_whatever_the_pieces(rate: int) -> None:
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 3000 * time).astype(np.float32)
    low = convert(tone, rate, 16000)
    assert len(low) == 16000
    np.testing.assert_allclose(low[100:-100], np.sin(2 * np.pi * 3000 * np.arange(16000) / 16000)[100:-100], atol=2e-5)
    resampler, pieces, first = ShortResampler(rate, 16000), [], 0
    for size in np.random.default_rng(0).integers(0, 1500, 400):
        pieces.append(resampler.feed(tone[first : first + size]))
        first += size
    np.testing.assert_array_equal(np.concatenate([*pieces, resampler.end()])[: len(low)], low)
    high = convert(np.sin(2 * np.pi * 8300 * time), rate, 16000)
    assert rate < 2 * 8300 or np.abs(high[100:-100]).max() < 1e-3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rate", RATES)
def test_a_model_that_changes_nothing_gives_every_sample_back(rate: int, causal: bool) -> None:
    wav = sound(rate, 0.5)[:-77]
    result = Enhancer(PassThrough(causal), tiny_config()).enhance(wav, rate)
    np.testing.assert_allclose(result.wav, wav, atol=2e-6)
    narrow = Enhancer(PassThrough(causal), tiny_config()).enhance(wav, rate, band="16k").wav
    assert level_db(narrow, rate, 8200, rate / 2) < level_db(wav, rate, 8200, rate / 2) - 50


@pytest.mark.parametrize("causal", [True, False])
def test_the_upper_band_follows_the_model_smoothly_over_the_seam(causal: bool) -> None:
    wav = sound(48000, 2.0)
    out = Enhancer(Half(causal), tiny_config(model_cfg={"compress_factor": 0.3})).enhance(wav, 48000).wav
    np.testing.assert_allclose(out[:22000], wav[:22000], atol=2e-6)  # frame 80 is at 0.5 s and reaches back by 12.5 ms
    np.testing.assert_allclose(out[26000:], 0.5 * wav[26000:], atol=2e-6)
    before, after = wav[24000:], out[24000:]
    bands = [(48000, hz, hz + 250) for hz in range(6000, 10000, 250)]
    steps = [level_db(after, *band) - level_db(before, *band) for band in bands]
    assert np.ptp(steps) < 0.3 and np.mean(steps) == pytest.approx(-6.02, abs=0.2)


def test_the_gain_is_that_of_the_top_octave_within_bounds() -> None:
    noisy = torch.ones(1, 201, 5)
    enhanced = noisy.clone()
    enhanced[:, :90] = 0.0  # below the top octave: does not count
    enhanced[:, 100:, 1] = 0.1**0.3
    enhanced[:, 100:, 2] = 0.0
    enhanced[:, 100:, 3] = 2.0
    gain = top_octave_gain(noisy, enhanced, 0.3)
    np.testing.assert_allclose(gain, [[1, 0.1, 10 ** (FLOOR_DB / 20), 1, 1]], rtol=1e-4)
    np.testing.assert_allclose(top_octave_gain(noisy * 0, noisy * 0, 0.3), 1.0)
    assert has_upper_band(48000, 16000) and not has_upper_band(16000, 16000) and not has_upper_band(8000, 16000)


@pytest.fixture(scope="module")
def enhancer() -> Enhancer:
    return Enhancer(*tiny_model(model_cfg={"causal": True}))


@pytest.mark.parametrize("band", ["full", "16k"])
@pytest.mark.parametrize(("rate", "sizes"), [(48000, [1200]), (44100, [1, 700, 3333]), (96000, [50000])])
def test_a_stream_gives_what_a_file_gives(enhancer: Enhancer, rate: int, sizes: list[int], band: str) -> None:
    wav = sound(rate, 0.7)
    out = streamed(StreamingEnhancer(enhancer, sample_rate=rate, band=band), wav, sizes)
    assert len(out) == len(wav)
    if band == "full":
        np.testing.assert_allclose(out, enhancer.enhance(wav, rate).wav, atol=2e-6)
    else:
        assert level_db(out, rate, 8200, rate / 2) < level_db(wav, rate, 8200, rate / 2) - 50


@pytest.mark.parametrize(("rate", "latency"), [(16000, 400), (32000, 927), (48000, 1390), (44100, 1277), (96000, 2779)])
def test_the_latency_is_what_it_says_and_4_ms_more_than_without_conversion(enhancer: Enhancer, rate: int, latency: int) -> None:
    stream, wav, given = StreamingEnhancer(enhancer, sample_rate=rate), sound(rate, 0.2), 0
    assert stream.latency_samples == latency and latency / rate <= 0.0291
    waited = []
    for index in range(len(wav)):
        out = stream.feed(wav[index : index + 1])
        waited += [index + 1 - number for number in range(given, given + len(out))]
        given += len(out)
    assert max(waited) == latency and stream.readout().backlog_samples == len(wav) - given < latency


def test_an_error_leaves_the_stream_as_it_was(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    wav, stream = sound(48000, 0.3), StreamingEnhancer(enhancer, sample_rate=48000)
    first = stream.feed(wav[:5000])
    for call in (lambda: stream.feed(wav[5000:9000]), stream.flush):
        with monkeypatch.context() as broken:
            broken.setattr(enhancer.model, "step_with_gates", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                call()
    out = np.concatenate((first, stream.feed(wav[5000:]), stream.flush()))
    np.testing.assert_allclose(out, enhancer.enhance(wav, 48000).wav, atol=2e-6)
    with pytest.raises(ValueError, match="16000 to"):
        StreamingEnhancer(enhancer, sample_rate=8000)
    with pytest.raises(ValueError, match="full, 16k"):
        enhancer.enhance(wav, 48000, band="wide")


def test_files_and_streams_keep_their_rate_and_attenuation_limit(enhancer: Enhancer, tmp_path: Path) -> None:
    wav = sound(48000, 0.5)
    soundfile.write(tmp_path / "a.wav", wav, 48000, subtype="FLOAT")
    job = Job(tmp_path / "a.wav", None, tmp_path / "b.wav")
    for limit in (None, 6.0):
        expected = enhancer.enhance(wav, 48000, attenuation_limit_db=limit).wav
        for work in (enhance_file, stream_file):
            work(enhancer, job, attenuation_limit_db=limit)
            out, rate = soundfile.read(job.output)
            assert rate == 48000
            np.testing.assert_allclose(out, expected / max(1.0, np.abs(expected).max()), atol=4e-5)
    enhance_file(enhancer, job, band="16k")
    assert soundfile.info(job.output).samplerate == 16000
    enhance_file(enhancer, job, band="16k", keep_sample_rate=True)
    assert level_db(soundfile.read(job.output)[0], 48000, 8200, 24000) < level_db(wav, 48000, 8200, 24000) - 50


def test_memory_does_not_grow_with_a_file_or_a_stream(tmp_path: Path) -> None:
    enhancer, peaks = Enhancer(PassThrough(True), tiny_config()), []
    for duration_sec in (5, 25):
        soundfile.write(tmp_path / "a.wav", sound(48000, duration_sec), 48000)
        tracemalloc.start()
        enhance_file(enhancer, Job(tmp_path / "a.wav", None, tmp_path / "b.wav"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1e6, peaks  # 20 s more are 5 MB at both rates
    stream, wav = StreamingEnhancer(enhancer, sample_rate=48000), sound(48000)
    sizes = []
    for _ in range(30):
        stream.feed(wav)
        parts = vars(stream._own_rate).values()
        held = [value for part in parts if hasattr(part, "__dict__") for value in vars(part).values()]
        sizes.append(sum(value.size for value in held if isinstance(value, np.ndarray)))
    assert max(sizes[5:]) <= max(sizes[:5])
