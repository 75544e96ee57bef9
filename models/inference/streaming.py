"""Live enhancement: sound and pictures in as they come, enhanced sound out 25 ms later."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from models.inference.enhancer import Enhancer
from models.inference.stream_batch import StreamBatch
from models.inference.waveform import float_waveform, mix_back, noisy_share


@dataclass(frozen=True)
class Readout:
    """How a stream is doing; times are wall time inside its calls."""

    heard_sec: float  # of sound fed
    compute_sec: float  # spent in feed, feed_video and flush
    last_call_ms: float  # the last call that did something
    worst_call_ms: float
    calls: int
    latency_samples: int
    backlog_samples: int  # fed and not given back yet
    alpha: float  # mean trust in the picture over the last call's frames
    threads: int | None  # torch threads inside a call; None: as the program has set them

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of sound (0 before any sound)."""
        return self.compute_sec / self.heard_sec if self.heard_sec else 0.0

    def line(self) -> str:
        """The read-out in one line."""
        threads = "the program's" if self.threads is None else f"{self.threads}"
        return (
            f"latency {self.latency_samples} samples, RTF {self.rtf:.3f}, last call {self.last_call_ms:.1f} ms, "
            f"worst {self.worst_call_ms:.1f} ms, backlog {self.backlog_samples} samples, alpha {self.alpha:.2f}, "
            f"torch threads: {threads}"
        )


class StreamingEnhancer:
    """One live stream through a causal model: feed sound and pictures, get enhanced sound, as long and as loud.

    What comes out is what `Enhancer.enhance` makes of the whole, whatever the chunks. Output sample n leaves with the call
    that brings input sample n + latency_samples - 1, or sooner. threads: torch threads inside a call (a live stream is
    many small steps, which more threads slow down when anything else wants the cores); None leaves the program's
    setting; outside of a call it is never changed. hold_sec: how long a frame may be shown when its successor is overdue;
    by default not at all (see stream_video.PictureQueue). A camera whose pictures always arrive late needs it, or
    the sound fed as late. attenuation_limit_db mixes some of the noise back, sample by sample (models/inference/waveform.py).
    ValueError for a model that is not causal. An error in a call leaves the stream as it was.

    For several streams in step, see models.inference.stream_batch.StreamBatch.
    """

    def __init__(
        self, enhancer: Enhancer, threads: int | None = 1, hold_sec: float | None = None,
        attenuation_limit_db: float | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, it should be at least 1, or None for the program's own setting")
        if hold_sec is not None and not 0 <= hold_sec < 60:
            raise ValueError(f"hold_sec is {hold_sec}, it should be some seconds, e.g. 0.2")
        self._threads, self._share = threads, noisy_share(attenuation_limit_db)
        self._batch = StreamBatch(enhancer.model, enhancer.cfg, hold_sec=hold_sec)
        self.sample_rate = enhancer.sample_rate
        self.latency_samples = self._batch.latency_samples
        self._start_over()

    def _start_over(self) -> None:
        self._kind: tuple[np.dtype, int | None] | None = None  # (dtype, channels) of the chunks
        self._noisy = np.zeros(0, np.float32)  # samples heard and not given back, where some of them are mixed back
        self._heard = self._calls = 0
        self._seconds = self._last = self._worst = 0.0

    def reset(self) -> None:
        """Back to the start: a new stream, a new read-out."""
        self._batch.reset()
        self._start_over()

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """Further samples [n] or [n, channels], any n, at the model's rate -> enhanced mono float32 [m] complete by now.

        Integers or floats as in `Enhancer.enhance`; 32 and 64-bit floats may alternate, nothing else may change within a
        stream. ValueError for another kind or channel count than before, NaN or infinity, and after `flush`.
        """
        samples = np.asarray(samples)
        kind = self._checked_kind(samples)
        mono = float_waveform(samples, axis=1) if samples.size else np.zeros(0, np.float32)
        out = self._timed(lambda: self._batch.feed(mono[None])[0])
        self._kind = kind
        self._heard += len(mono)
        return self._with_noise(out, mono)

    def feed_video(self, frames: np.ndarray, timestamps: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Face crops [V, S, S, 3], uint8 or float in [0, 1], shown from timestamps [V] on (seconds since the sound began).

        Any rate, ahead of the sound or late; mask bool [V]: a face is seen (default all). Frames are kept until the sound
        gets there. ValueError for crops of another size or kind, timestamps that go backwards, a model without a visual
        branch, and after `flush`.
        """
        self._timed(lambda: self._batch.add_video(frames, timestamps, mask))

    def flush(self) -> np.ndarray:
        """End the stream -> the samples [m] still to come; then only `reset` is possible."""
        return self._with_noise(self._timed(lambda: self._batch.flush()[0]), np.zeros(0, np.float32))

    def readout(self) -> Readout:
        """How the stream is doing so far."""
        alpha = [part.mean() for part in self._batch.alpha]
        return Readout(
            heard_sec=self._heard / self.sample_rate, compute_sec=self._seconds, last_call_ms=1e3 * self._last,
            worst_call_ms=1e3 * self._worst, calls=self._calls, latency_samples=self.latency_samples,
            backlog_samples=self._batch.backlog_samples, alpha=float(np.mean(alpha)) if alpha else 0.0, threads=self._threads,
        )  # fmt: skip

    def _with_noise(self, out: np.ndarray, heard: np.ndarray) -> np.ndarray:
        """out [m] with the share of the samples it was made of; heard [n] came with this call."""
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
    """`count` torch threads inside, what was set before outside; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
