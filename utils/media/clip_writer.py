"""Face crops and their sound written as a small H.264 and FLAC clip: the one H.264 writer of this project."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from types import TracebackType

import av
import numpy as np

from utils.media.decode import MediaError, create_media
from utils.media.sound import to_pcm16

CLIP_CRF = 14  # H.264 quality of written crops: no visible loss at 96 x 96


def write_clip(
    path: str | os.PathLike | io.BytesIO, frames: np.ndarray, samples: np.ndarray | None, sample_rate: int = 16000,
    fps: float = 25.0,
) -> None:
    """Write frames uint8 [V, H, W, 3] (even H, W) and sound float [L] as H.264 and FLAC in one .mp4 or .mkv, or mp4 in memory.

    Without samples the frames alone. Sound begins at 0, frame k is shown at k / fps; a key frame every second lets
    windows be sought. MediaError when the file cannot be written.
    """
    with ClipWriter(path, None if samples is None else sample_rate, fps, frames.shape[1:3]) as clip:
        clip.add(frames)
        clip.finish([] if samples is None else [np.asarray(samples)])


class ClipWriter:
    """`write_clip` piece by piece: frames with `add`, as many as there are, then `finish` with the whole sound.

    `size` is (height, width) of all frames, `crf` H.264's quality; no sound without sample_rate. MediaError when the file
    cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike | io.BytesIO, sample_rate: int | None, fps: float, size: tuple[int, int],
        crf: int = CLIP_CRF,
    ) -> None:
        in_memory = isinstance(path, io.BytesIO)
        self._path, self._rate = "a clip" if in_memory else path, sample_rate
        self._period = 1 / Fraction(fps).limit_denominator(1001)
        self._shown = 0
        with self._errors():
            self._stack = contextlib.ExitStack()
            self._container = self._stack.enter_context(create_media(path, **{"format": "mp4"} if in_memory else {}))
            self._video = video = self._container.add_stream("libx264", rate=1 / self._period)
            video.height, video.width = size
            video.pix_fmt = "yuv420p"
            # No B frames: decoding order is showing order, and the first frame is at 0 in every container. fastdecode:
            # training decodes a clip hundreds of times. No mbtree: with it the same frames are not always the same bytes.
            video.options = {
                "crf": str(crf), "preset": "medium", "tune": "fastdecode", "mbtree": "0", "bf": "0", "threads": "1",
                "g": str(max(1, round(fps))),
            }  # fmt: skip
            self._audio = None if sample_rate is None else self._container.add_stream("flac", rate=sample_rate)
            if self._audio is not None:
                self._audio.layout = "mono"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise MediaError(f"{self._path} cannot be written: {error}") from None

    def add(self, frames: np.ndarray) -> None:
        """Add frames uint8 [v, H, W, 3]."""
        with self._errors():
            for rgb in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
                frame.pts, frame.time_base = self._shown, self._period
                self._container.mux(self._video.encode(frame))
                self._shown += 1

    def finish(self, sound: Iterable[np.ndarray]) -> None:
        """End the frames and write the sound, float pieces [n]."""
        with self._errors():
            self._container.mux(self._video.encode(None))
            if self._audio is None:
                return
            block, waiting, first = self._audio.codec_context.frame_size or 4096, np.zeros(0, np.int16), 0
            for piece in sound:
                waiting = np.concatenate((waiting, to_pcm16(piece)))
                whole = len(waiting) // block * block
                self._mux_sound(waiting[:whole], first, block)
                waiting, first = waiting[whole:], first + whole
            self._mux_sound(waiting, first, block)
            self._container.mux(self._audio.encode(None))

    def _mux_sound(self, pcm: np.ndarray, at: int, block: int) -> None:
        for first in range(0, len(pcm), block):
            frame = av.AudioFrame.from_ndarray(pcm[None, first : first + block], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, at + first, Fraction(1, self._rate)
            self._container.mux(self._audio.encode(frame))

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._errors():
            self._stack.close()
