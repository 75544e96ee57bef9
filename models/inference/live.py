"""A live stream between devices: blocks from a microphone in, enhanced blocks to an output, and what it costs.

Two devices have two clocks. Sound that was enhanced waits in a buffer of a few blocks. Where the output asks for more than
there is it gets silence, and what waits for longer than MOST_WAITING_SEC is left out, so the delay cannot grow.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from models.inference.streaming import StreamingEnhancer

MOST_WAITING_SEC = 0.25  # of sound on either side of the model
MOST_FRAMES = 100  # of a camera that wait for the model
BLOCKS_AHEAD = 2  # that wait for the output before it begins: a block may come late by that much


class LiveSound:
    """What stands between an input's callback, the model and an output's callback; each may run in a thread of its own.

    `hear` takes a block [n] of the input, `work` enhances what waits, and `play` gives the next n samples to the output.
    """

    def __init__(self, stream: StreamingEnhancer, block_samples: int) -> None:
        self.stream, self._block = stream, block_samples
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._heard: deque[np.ndarray] = deque()
        self._ready: deque[np.ndarray] = deque()
        self._most = max(2 * BLOCKS_AHEAD * block_samples, round(MOST_WAITING_SEC * stream.sample_rate))
        self._playing = False
        self._fed, self._arrived_at = 0, time.monotonic()  # samples that the model has taken; when the last block came
        self.left_out_sec = 0.0  # of sound that waited for too long, before the model or after it
        self.silences = 0  # blocks that were not ready when the output asked for them

    def hear(self, samples: np.ndarray) -> None:
        """Take a block of the input."""
        with self._lock:
            self._heard.append(np.array(samples, np.float32))
            self._leave_out(self._heard)
            self._arrived_at = time.monotonic()
        self._arrived.set()

    def now_sec(self) -> float:
        """Return how much sound has arrived until now, in seconds of the stream."""
        with self._lock:
            arrived = self._fed + sum(map(len, self._heard))
            return arrived / self.stream.sample_rate + time.monotonic() - self._arrived_at

    def work(self, wait_sec: float = 0.0) -> bool:
        """Enhance what waits, after waiting for it for at most wait_sec; whether there was any."""
        if not self._arrived.wait(wait_sec):
            return False
        with self._lock:
            blocks, self._heard = list(self._heard), deque()
            self._fed += sum(map(len, blocks))
            self._arrived.clear()
        for block in blocks:
            out = self.stream.feed(block)
            with self._lock:
                self._ready.append(out)
                self._leave_out(self._ready)
        return bool(blocks)

    def play(self, n_samples: int) -> np.ndarray:
        """Return the next samples for the output; silence where there are none."""
        out = np.zeros(n_samples, np.float32)
        with self._lock:
            waiting = sum(map(len, self._ready))
            if not self._playing and waiting < n_samples + (BLOCKS_AHEAD - 1) * self._block:
                return out
            if self._playing and waiting < n_samples:
                self.silences += 1
            self._playing = waiting >= n_samples
            filled = 0
            while filled < n_samples and self._ready:
                part = self._ready.popleft()
                taken = part[: n_samples - filled]
                out[filled : filled + len(taken)] = taken
                filled += len(taken)
                if len(taken) < len(part):
                    self._ready.appendleft(part[len(taken) :])
        return out

    def waiting_samples(self) -> int:
        """Return how many samples wait before and after the model."""
        with self._lock:
            return sum(map(len, self._heard)) + sum(map(len, self._ready))

    def line(self, devices_sec: float) -> str:
        """One line: how long the sound takes from device to device, of which devices_sec are theirs, and the model's load."""
        readout, rate = self.stream.readout(), self.stream.sample_rate
        model_ms, devices_ms = 1e3 * readout.latency_samples / rate, 1e3 * devices_sec
        total_ms = devices_ms + model_ms + 1e3 * (self.waiting_samples() + self._block) / rate
        return (
            f"latency {total_ms:.0f} ms (model {model_ms:.0f}, devices {devices_ms:.0f}), "
            f"load {100 * readout.rtf:.0f} %, worst block {readout.worst_call_ms:.0f} ms, alpha {readout.alpha:.2f}, "
            f"{self.silences} gaps, {self.left_out_sec:.1f} s left out"
        )

    def _leave_out(self, blocks: deque[np.ndarray]) -> None:
        """Drop the oldest blocks where too many wait."""
        while len(blocks) > 1 and sum(map(len, blocks)) > self._most:
            self.left_out_sec += len(blocks.popleft()) / self.stream.sample_rate


class Camera(Protocol):
    """What `Watcher` needs of cv2.VideoCapture."""

    def read(self) -> tuple[bool, np.ndarray | None]: ...


class Watcher:
    """Takes frames from a camera in a thread of its own and keeps their face crops until `feed` gives them to the stream.

    A frame belongs to the sound that arrives with it; how late the camera itself is, is not known. `crop` takes a frame
    uint8 [H, W, 3] and a time, and returns the crop and whether it shows a face, as utils.faces.live_cropper does.
    """

    def __init__(
        self, camera: Camera, crop: Callable[[np.ndarray, float], tuple[np.ndarray, bool]], sound: LiveSound
    ) -> None:
        self._camera, self._crop, self._sound = camera, crop, sound
        self._frames: deque[tuple[np.ndarray, float, bool]] = deque(maxlen=MOST_FRAMES)
        self._last_sec = -1.0
        self.ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.ended.is_set():
            there, frame = self._camera.read()  # [H, W, 3], BGR
            if not there:
                break
            at_sec = self._sound.now_sec()
            crop, seen = self._crop(np.ascontiguousarray(frame[..., ::-1]), at_sec)
            self._frames.append((crop, at_sec, seen))
        self.ended.set()

    def feed(self) -> None:
        """Give the stream the crops that have come since the last call."""
        while self._frames:
            crop, at_sec, seen = self._frames.popleft()
            if at_sec > self._last_sec:  # the sound's clock may step back a little between two blocks
                self._sound.stream.feed_video(crop[None], np.array([at_sec]), np.array([seen]))
                self._last_sec = at_sec
