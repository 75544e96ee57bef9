"""Live enhancement: sound and face crops as they arrive -> enhanced sound 25 ms later."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from models.inference.enhancer import Enhancer
from models.inference.stream_batch import StreamBatch
from models.inference.upper_band import FULL, HIGHEST_RATE_HZ, check_band, stream_latency_samples
from models.inference.waveform import float_waveform, mix_back, noisy_share
from utils.media.short_resampler import ShortResampler


@dataclass(frozen=True)
class Readout:
    """Measurements of a stream; times are wall time inside its calls."""

    heard_sec: float  # seconds of sound that were fed
    compute_sec: float  # spent in feed, feed_video and flush
    last_call_ms: float  # of the last such call
    worst_call_ms: float
    calls: int
    latency_samples: int
    backlog_samples: int  # samples that were fed and are not returned yet
    alpha: float  # mean trust in the video over the last call's frames
    threads: int | None  # torch threads inside a call; None: as the program has set them

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of sound (0 before any sound)."""
        return self.compute_sec / self.heard_sec if self.heard_sec else 0.0

    def line(self) -> str:
        """The measurements in one line."""
        threads = "the program's" if self.threads is None else f"{self.threads}"
        return (
            f"latency {self.latency_samples} samples, RTF {self.rtf:.3f}, last call {self.last_call_ms:.1f} ms, "
            f"worst {self.worst_call_ms:.1f} ms, backlog {self.backlog_samples} samples, alpha {self.alpha:.2f}, "
            f"torch threads: {threads}"
        )


class _Recent:
    """The last samples of a sound, by their index. Its array is not changed in place, so a shallow copy is a snapshot."""

    def __init__(self) -> None:
        self._samples, self._first = np.zeros(0, np.float32), 0

    def append(self, samples: np.ndarray) -> None:
        self._samples = np.concatenate((self._samples, samples))

    def take(self, first: int, stop: int) -> np.ndarray:
        """Samples first .. stop - 1; those before them are forgotten."""
        self._samples, self._first = self._samples[first - self._first :], first
        return self._samples[: stop - first]


class _OwnRate:
    """The way of a stream from its own rate to the model's and back, with the upper band or without."""

    def __init__(self, enhancer: Enhancer, sample_rate: int, full: bool) -> None:
        self._down, self._weight = ShortResampler(sample_rate, enhancer.sample_rate), np.float32(full)
        self._own, self._low = _Recent(), _Recent()
        self._upper = enhancer.upper_band(sample_rate, self._own.take, self._low.take)
        self._heard = 0

    def run(self, batch: StreamBatch, samples: np.ndarray, last: bool) -> np.ndarray:
        """Further samples [n] through a batch of one stream -> the output [m] that is ready. An error changes nothing."""
        parts = (self, self._down, self._own, self._low)
        before = [dict(vars(part)) for part in parts]
        try:
            self._heard += len(samples)
            self._own.append(samples)
            low = self._down.end() if last else self._down.feed(samples)
            self._low.append(low)
            enhanced = (batch.flush(low[None]) if last else batch.feed(low[None]))[0]
        except BaseException:
            for part, state in zip(parts, before, strict=True):
                vars(part).update(state)
            raise
        gains = np.concatenate([np.zeros(0, np.float32), *(gain[0] * self._weight for gain in batch.upper)])
        out = self._upper.feed(enhanced, gains)
        return np.concatenate((out, self._upper.end(self._heard))) if last else out


class StreamingEnhancer:
    """One live stream through a causal model: it takes sound and face crops and returns as much enhanced sound, as loud.

    The output is the same for all sizes of chunks, and the same as that of `Enhancer.enhance` for the whole sound. Output
    sample n is returned by the call that feeds input sample n + latency_samples - 1, or earlier. threads: torch threads
    inside a call (a live stream is many small steps; more threads slow them down when other programs use the cores), or None
    for the program's setting, which is never changed outside of a call. hold_sec: how long a video frame may stay visible
    when the next one is late, by default not at all (see stream_video.CropQueue); for a camera whose frames always arrive
    late set it, or feed the sound later. attenuation_limit_db mixes some of the noise back (models/inference/waveform.py).
    sample_rate: the rate of input and output, by default the model's. Above it `band` "full" treats the upper band and "16k"
    leaves it out (models/inference/upper_band.py); converting to the model's rate and back adds 4 ms of latency. ValueError
    for a model that is not causal. A call that raises an error does not change the stream.

    StreamBatch (models/inference/stream_batch.py) runs several streams together.
    """

    def __init__(
        self, enhancer: Enhancer, threads: int | None = 1, hold_sec: float | None = None,
        attenuation_limit_db: float | None = None, sample_rate: int | None = None, band: str = FULL,
    ) -> None:
        if not isinstance(enhancer, Enhancer):
            raise ValueError(f"enhancer is a {type(enhancer).__name__}, it should be an Enhancer: Enhancer.from_checkpoint()")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, it should be at least 1, or None for the program's own setting")
        if hold_sec is not None and not 0 <= hold_sec < 60:
            raise ValueError(f"hold_sec is {hold_sec}, it should be some seconds, e.g. 0.2")
        self._threads, self._share = threads, noisy_share(attenuation_limit_db)
        self._batch = StreamBatch(enhancer.model, enhancer.cfg, hold_sec=hold_sec, keep_upper=True)
        self._enhancer, self._full = enhancer, check_band(band) == FULL
        self.sample_rate = enhancer.sample_rate if sample_rate is None else sample_rate
        if not enhancer.sample_rate <= self.sample_rate <= HIGHEST_RATE_HZ:
            allowed = f"{enhancer.sample_rate} to {HIGHEST_RATE_HZ}"
            raise ValueError(f"sample_rate is {sample_rate}, a stream should have {allowed} Hz")
        self.latency_samples = self._batch.latency_samples
        if self.sample_rate != enhancer.sample_rate:
            self.latency_samples = stream_latency_samples(
                self.sample_rate, enhancer.sample_rate, self._batch.latency_samples
            )
        self._start_over()

    def _start_over(self) -> None:
        self._kind: tuple[np.dtype, int | None] | None = None  # (dtype, channels) of the chunks
        self._noisy = np.zeros(0, np.float32)  # samples fed and not returned yet, if noise is to be mixed back
        own = self.sample_rate != self._enhancer.sample_rate
        self._own_rate = _OwnRate(self._enhancer, self.sample_rate, self._full) if own else None
        self._heard = self._given = self._calls = 0
        self._seconds = self._last = self._worst = 0.0

    def reset(self) -> None:
        """Begin a new stream and new measurements."""
        self._batch.reset()
        self._start_over()

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """Any number of further samples [n] or [n, channels] -> the enhanced mono float32 [m] that is ready.

        The samples are integers or floats as in `Enhancer.enhance`. Within a stream 32 and 64-bit floats may alternate, but
        nothing else may change. ValueError for another type or number of channels, NaN or infinity, and after `flush`.
        """
        samples = np.asarray(samples)
        kind = self._checked_kind(samples)
        mono = float_waveform(samples, axis=1) if samples.size else np.zeros(0, np.float32)
        out = self._timed(lambda: self._through(mono, last=False))
        self._kind = kind
        self._heard += len(mono)
        return self._with_noise(out, mono)

    def feed_video(self, frames: np.ndarray, timestamps: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add face crops [V, S, S, 3], uint8 or float in [0, 1], shown from timestamps [V] on (seconds of the sound).

        The frames may have any rate and come before or after their sound; early ones are kept. mask bool [V]: the frame
        shows a face (default all). ValueError for crops of another size or type, timestamps that go backwards, a model
        without a visual branch, and after `flush`.
        """
        self._timed(lambda: self._batch.add_video(frames, timestamps, mask))

    def flush(self) -> np.ndarray:
        """End the stream -> the last samples [m]; after that only `reset` is possible."""
        nothing = np.zeros(0, np.float32)
        return self._with_noise(self._timed(lambda: self._through(nothing, last=True)), nothing)

    def _through(self, samples: np.ndarray, last: bool) -> np.ndarray:
        if self._own_rate is not None:
            return self._own_rate.run(self._batch, samples, last)
        return (self._batch.flush() if last else self._batch.feed(samples[None]))[0]

    def readout(self) -> Readout:
        """The measurements so far."""
        alpha = [part.mean() for part in self._batch.alpha]
        return Readout(
            heard_sec=self._heard / self.sample_rate, compute_sec=self._seconds, last_call_ms=1e3 * self._last,
            worst_call_ms=1e3 * self._worst, calls=self._calls, latency_samples=self.latency_samples,
            backlog_samples=self._heard - self._given, alpha=float(np.mean(alpha)) if alpha else 0.0, threads=self._threads,
        )  # fmt: skip

    def _with_noise(self, out: np.ndarray, heard: np.ndarray) -> np.ndarray:
        """Mix into out [m] its share of the noisy samples; heard [n] are those of this call."""
        self._given += len(out)
        if not self._share:
            return out
        noisy = np.concatenate((self._noisy, heard))
        self._noisy = noisy[len(out) :]
        return mix_back(out, noisy[: len(out)], self._share)

    def _checked_kind(self, samples: np.ndarray) -> tuple[np.dtype, int | None]:
        if samples.ndim not in (1, 2):
            raise ValueError(f"a chunk should have the shape [samples] or [samples, channels], not {list(samples.shape)}")
        if samples.ndim == 2 and not samples.shape[1]:
            raise ValueError("a chunk should have at least one channel, not none")
        floating = np.issubdtype(samples.dtype, np.floating)
        kind = (np.dtype(float) if floating else samples.dtype, samples.shape[1] if samples.ndim == 2 else None)
        if self._kind is not None and kind != self._kind:
            was, now = (f"{dtype}" + (f" in {n} channels" if n else " without channels") for dtype, n in (self._kind, kind))
            raise ValueError(f"this stream's samples were {was}, now they are {now}; reset() begins another one")
        return kind

    def _timed(self, call: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        started = time.perf_counter()
        with _torch_threads(self._threads):
            result = call()
        self._last = time.perf_counter() - started
        self._worst = max(self._worst, self._last)
        self._seconds += self._last
        self._calls += 1
        return result


@contextlib.contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Use `count` torch threads inside the `with` block; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
