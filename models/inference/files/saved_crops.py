"""The face crops that a model sees, written as a video beside their sound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.inference.crop_stream import CropStream
from models.inference.files.disk_sound import SpooledSound
from utils.media.clip_writer import ClipWriter
from utils.util import atomic_write


@contextlib.contextmanager
def saved_crops(
    crop_stream: CropStream | None, path: Path | None, sound: SpooledSound, sample_rate: int, fps: float, size: int
) -> Iterator[None]:
    """Inside the `with` block, write what `crop_stream` gives out to `path` (.mp4 or .mkv), and `sound` at its end.

    Masked frames are black, as the model sees them; a recording without any has a single one, `size` pixels wide and high.
    Nothing is written without a path or a stream, or if the block fails. MediaError or OSError when the file cannot be written.
    """
    if crop_stream is None or path is None:
        yield
        return
    with atomic_write(path) as temporary, contextlib.ExitStack() as stack:
        clip: ClipWriter | None = None

        def add(crops: np.ndarray) -> None:
            nonlocal clip
            if clip is None:
                clip = stack.enter_context(ClipWriter(temporary, sample_rate, fps, crops.shape[1:3]))
            clip.add(crops)

        crop_stream.on_crops = add
        yield
        if clip is None:
            add(np.zeros((1, size, size, 3), np.uint8))
        clip.finish(sound.pieces())
