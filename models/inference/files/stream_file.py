"""Files enhanced chunk by chunk, as a microphone and a camera would bring them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from models.inference.crop_stream import CropStream
from models.inference.enhancer import Enhancer
from models.inference.files.disk_sound import SpooledSound
from models.inference.files.enhance_file import give_back, open_job_crops, recording, write_output
from models.inference.files.jobs import Job
from models.inference.files.saved_crops import saved_crops
from models.inference.results import Outcome
from models.inference.streaming import StreamingEnhancer
from models.inference.upper_band import FULL
from utils.media.replace_sound import check_remux


def chunks_with_crops(
    sound: Iterator[np.ndarray], crop_stream: CropStream | None, sample_rate: int, fps: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(samples, crops, timestamps in seconds, mask) for each chunk, with the crops shown by its end."""
    waiting: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    heard = 0
    for samples in sound:
        heard += len(samples)
        tick = int(heard / sample_rate * fps + 1e-9)  # the newest grid time that has begun
        for first, crops, mask in crop_stream.until(tick) if crop_stream else ():
            new = crops, np.arange(first, first + len(crops)) / fps, mask
            waiting = new if waiting is None else tuple(np.concatenate(pair) for pair in zip(waiting, new, strict=True))
        if waiting is None:
            yield samples, np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0), np.zeros(0, bool)
            continue
        due = int(np.searchsorted(waiting[1], tick / fps, side="right"))
        crops, times, mask = (part[:due] for part in waiting)
        waiting = tuple(part[due:] for part in waiting)
        yield samples, crops, times, mask


def stream_file(
    enhancer: Enhancer, job: Job, chunk_ms: float = 25.0, keep_sample_rate: bool = False,
    attenuation_limit_db: float | None = None, progress: Callable[[float], object] | None = None, band: str = FULL,
) -> Outcome:
    """Enhance one recording chunk by chunk on one thread and write it; a note gives latency, RTF and the worst chunk.

    Each chunk is followed by the video frames shown until its end. The face crops are made before, as in `enhance_file`; that
    time is in the outcome's `seconds` but not in the note's RTF. `progress` is called with the seconds of sound that were fed.
    ValueError for a model that is not causal.
    """
    started, model_rate = time.perf_counter(), enhancer.sample_rate
    alphas: list[float] = []
    if job.writes_video:
        check_remux(job.video, job.output)
    notes: list[str] = []
    with recording(job.audio, model_rate, keep_sample_rate, band, notes) as heard, SpooledSound() as given:
        rate = heard.rate if heard.full else model_rate  # of the stream
        stream = StreamingEnhancer(enhancer, sample_rate=rate)
        readout = stream.readout()
        crop_stream, unseen = open_job_crops(enhancer, job, heard.sound)
        notes += unseen

        def enhanced() -> Iterator[np.ndarray]:
            nonlocal readout
            source = heard.own if heard.full else heard.sound
            chunks = source.pieces(max(1, round(chunk_ms * rate / 1000)))
            for samples, crops, times, mask in chunks_with_crops(chunks, crop_stream, rate, enhancer.video_fps):
                if len(crops):
                    stream.feed_video(crops, times, mask)
                yield stream.feed(samples)
                readout = stream.readout()
                alphas.append(readout.alpha)
                if progress is not None:
                    progress(readout.heard_sec)
            yield stream.flush()

        with saved_crops(crop_stream, job.crops, heard.sound, model_rate, enhancer.video_fps, enhancer.face_size):
            given.extend(give_back(enhanced(), rate, heard, attenuation_limit_db))
        notes += write_output(job, given, heard.rate)
        duration_sec = heard.sound.n_samples / model_rate
    notes.append(
        f"streamed in {chunk_ms:g} ms chunks at {rate / 1000:g} kHz: latency {1e3 * readout.latency_samples / rate:.1f} ms "
        f"({readout.latency_samples} samples), RTF {readout.rtf:.3f}, worst chunk {readout.worst_call_ms:.1f} ms, "
        f"{readout.threads} thread"
    )
    outcome = enhancer.outcome(duration_sec, crop_stream, np.asarray(alphas, np.float32))
    return Outcome(**vars(outcome) | {"seconds": time.perf_counter() - started, "notes": (*notes, *outcome.notes)})
