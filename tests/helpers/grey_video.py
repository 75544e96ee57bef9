"""Videos whose every frame tells its number, for the tests of decoding."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 4  # grey levels between neighbouring source frames


def write_video(
    path: Path, times_sec: list[float], size: tuple[int, int] = (64, 64), codec: str = "libx264",
    sound: np.ndarray | None = None, sound_at_sec: float = 0.0, sound_codec: str = "flac", fps: float = 25.0,
) -> Path:
    """A video whose k-th frame, shown at times_sec[k], is grey with the level 20 + STEP * k; sound at 16 kHz."""
    height, width = size
    rate = Fraction(fps).limit_denominator(1001)
    clock = 1 / rate if codec == "mpeg1video" else Fraction(1, 90000)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.time_base = clock
        if codec == "libx264":
            video.options = {"crf": "4", "bf": "0", "g": "10"}
        else:
            video.bit_rate = 2_000_000
        audio = container.add_stream(sound_codec, rate=16000) if sound is not None else None
        if audio is not None:
            audio.layout = "mono"
        for index, at in enumerate(times_sec):
            picture = np.full((height, width, 3), min(250, 20 + STEP * index), np.uint8)
            if codec == "mpeg1video":  # something to spend bits on, so that pictures and sound alternate in the file
                grain = np.random.default_rng(index).integers(-15, 16, (height, width, 1))
                picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base, frame.pts = clock, round(at / clock)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            samples = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
            block = audio.codec_context.frame_size or 1024
            for first in range(0, len(samples), block):
                frame = av.AudioFrame.from_ndarray(samples[None, first : first + block], format="s16", layout="mono")
                frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
                frame.pts = round(sound_at_sec * 16000) + first
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def regular(count: int, fps: float, first_sec: float = 0.0) -> list[float]:
    return [first_sec + k / fps for k in range(count)]


def numbers(frames: np.ndarray) -> list[int]:
    """Source frame numbers that grey frames [V, S, S, 3] show."""
    return [round((float(frame.mean()) - 20) / STEP) for frame in frames]


def newest(times_sec: list[float], at_sec: float) -> int:
    return max(k for k, t in enumerate(times_sec) if t <= at_sec + 0.0021)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(16000 * seconds)).astype(np.float32)
