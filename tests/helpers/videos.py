"""Recordings for tests of faces and timing: drawn people who really speak, any frame times, a detector for drawings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr

from data.synthesis.clip import Person, film, generator
from utils.faces.cropper import FaceBox

RATE = 16000
SIDE = 96  # pixels, of each person in `beside`


@functools.lru_cache(maxsize=4)
def talking(number: int, seconds: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """A drawn person at 25 frames/s, uint8 [V, 96, 96, 3], and the voice that the mouth moves with, float [L]."""
    frames, utterance = film(Person.draw(0, number, "formant"), generator(0, "talking", number), seconds, SIDE)
    return frames, utterance.wave.astype(np.float32)


def sped_up(samples: np.ndarray, factor: float) -> np.ndarray:
    """Sound for pictures that are shown `factor` times as fast."""
    return soxr.resample(samples, RATE * factor, RATE, quality="HQ").astype(np.float32)


def timed_video(path: Path, frames: Sequence[np.ndarray], times_sec: Sequence[float], sound: np.ndarray | None) -> Path:
    """Frame k, uint8 [H, W, 3], shown at times_sec[k]; sound float [L] at 16 kHz from 0 on, without loss."""
    clock = Fraction(1, 90000)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt, video.codec_context.time_base = "yuv420p", clock
        video.options = {"crf": "14", "preset": "veryfast", "bf": "0", "threads": "1"}
        audio = None if sound is None else container.add_stream("flac", rate=RATE)
        if audio is not None:
            audio.layout = "mono"
        for picture, at_sec in zip(frames, times_sec, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base, frame.pts = clock, round(at_sec / clock)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            pcm = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
            for first in range(0, len(pcm), 4096):
                frame = av.AudioFrame.from_ndarray(pcm[None, first : first + 4096], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


class Drawings:
    """Finds a face in each square of the picture's height that is not blank: drawn faces that fill such squares."""

    name = "drawings"

    def __call__(self, picture: np.ndarray) -> list[FaceBox]:
        side = picture.shape[0]
        squares = range(0, picture.shape[1] - side + 1, side)
        return [FaceBox(x + side / 2, side / 2, side) for x in squares if picture[:, x : x + side].std() > 8]
