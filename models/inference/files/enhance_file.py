"""Files in, enhanced files out: decode, enhance, give back at the wanted rate, with or without the picture."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import soundfile

from models.inference.crop_stream import CropStream
from models.inference.enhancer import Enhancer
from models.inference.files.disk_sound import SpooledSound
from models.inference.files.jobs import SOUND_FORMATS, Job
from models.inference.files.saved_crops import saved_crops
from models.inference.results import AlphaTrack, EnhanceResult, Outcome
from models.inference.waveform import mix_back, noisy_share
from utils.console import one_line
from utils.faces.lip_sync import SoundTrack
from utils.media.decode import MediaError
from utils.media.replace_sound import check_remux, replace_sound
from utils.media.sound import own_rate_pieces, resample, resampled_pieces, sound_pieces, to_pcm16
from utils.util import atomic_write

LOOKED_AT_SEC = 60  # of a recording, at most, that a `look` is given

# (job, noisy float32 [n] at the model's rate, what was made of it at that rate): the beginning of a recording, to be drawn
Look = Callable[[Job, np.ndarray, EnhanceResult], None]


def full_scale_gain(peak: float) -> float:
    """What a sound of this peak is multiplied with before it is written: 1, or less where it is louder than full scale."""
    return 1.0 / peak if peak > 1.0 else 1.0


def write_wav(path: Path, wav: np.ndarray | SpooledSound, sample_rate: int) -> float:
    """Write float [L] as 16-bit .wav or .flac, whole or not at all, turned down where louder than full scale: gain in dB."""
    if isinstance(wav, SpooledSound):
        pieces, peak = wav.pieces(), wav.peak
    else:
        pieces, peak = iter([np.asarray(wav)]), float(np.abs(wav).max()) if len(wav) else 0.0
    gain, kind = full_scale_gain(peak), SOUND_FORMATS.get(Path(path).suffix.lower(), "WAV")
    with atomic_write(path) as temporary, contextlib.ExitStack() as stack:
        name = os.fsencode(temporary)  # as bytes: a folder's name need not be UTF-8
        file = stack.enter_context(soundfile.SoundFile(name, "w", sample_rate, 1, "PCM_16", format=kind))
        for piece in pieces:
            file.write(to_pcm16(np.asarray(piece, np.float64) * gain))
    return 20.0 * float(np.log10(gain))


def write_output(job: Job, wav: SpooledSound, sample_rate: int) -> list[str]:
    """Write a job's sound, under its picture where the output shows one, whole or not at all; gives notes."""
    if not job.with_picture:
        write_wav(job.output, wav, sample_rate)
        notes = []
    else:
        assert job.video is not None
        notes = replace_sound(job.video, wav.pieces(), sample_rate, job.output, full_scale_gain(wav.peak))
    if wav.peak > 1.0:
        notes.append(f"louder than full scale: turned down by {20 * np.log10(wav.peak):.1f} dB")
    return notes


@contextlib.contextmanager
def recording(
    path: Path, sample_rate: int, keep_sample_rate: bool, notes: list[str] | None = None
) -> Iterator[tuple[SpooledSound, SpooledSound, int]]:
    """Read a file's sound: (at `sample_rate`, at the rate in which it is given back, that rate).

    The second rate is the file's own with keep_sample_rate, else `sample_rate`. `notes` gets a line for whatever was not as it
    should be. OSError or MediaError for what is no sound.
    """
    with SpooledSound() as sound, SpooledSound() as own:
        if keep_sample_rate:
            own_rate, pieces = own_rate_pieces(path, notes)
            own.extend(pieces)
            sound.extend(resampled_pieces(own.pieces(), own_rate, sample_rate))
        else:
            sound.extend(sound_pieces(path, sample_rate, notes))
        if not sound.n_samples:
            raise MediaError(f"{path} holds less than one sample at {sample_rate} Hz")
        yield (sound, own, own_rate) if keep_sample_rate else (sound, sound, sample_rate)


def give_back(
    pieces: Iterable[np.ndarray], from_rate: int, heard: SpooledSound, rate: int, attenuation_limit_db: float | None
) -> Iterator[np.ndarray]:
    """Enhanced pieces at from_rate -> pieces at `rate`, exactly as long as `heard`, some of which is mixed back."""
    share, position = noisy_share(attenuation_limit_db), 0
    for piece in resampled_pieces(pieces, from_rate, rate):
        piece = piece[: heard.n_samples - position]
        yield mix_back(piece, heard.between(position, position + len(piece)), share) if share else piece
        position += len(piece)
    if position < heard.n_samples:  # the rates' ratio was rounded twice
        rest = heard.between(position, heard.n_samples)
        yield mix_back(np.zeros_like(rest), rest, share)


class _Run:
    """One recording on its way through a model."""

    def __init__(
        self, enhancer: Enhancer, sound: SpooledSound, pictures: CropStream | None, look: bool,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        self._enhancer, self._sound, self._pictures, self._look = enhancer, sound, pictures, look
        self._progress = progress or (lambda seconds: None)
        self._gates: list[np.ndarray] = []
        self.outcome: Outcome | None = None  # once all pieces are taken

    def pieces(self) -> Iterator[np.ndarray]:
        """The enhanced sound at the model's rate; a causal model's memory does not grow with it."""
        enhancer, sound, rate = self._enhancer, self._sound, self._enhancer.sample_rate
        if not enhancer.model.causal:
            length_sec = sound.n_samples / rate
            whole = enhancer.enhance(
                np.concatenate(list(sound.pieces())), rate, self._pictures, return_details=self._look,
                progress=lambda share: self._progress(share * length_sec),
            )
            self.outcome, self._gates = whole, [] if whole.gate is None else [whole.gate]
            yield whole.wav
            return
        stft = enhancer.cfg["stft_cfg"]
        alpha, wanted = AlphaTrack(stft, sound.n_samples), LOOKED_AT_SEC * rate / stft["hop_size"]
        n_given = 0
        for wav, steps, gates in enhancer.stream(sound.pieces(), self._pictures, self._look):
            alpha.append(steps)
            n_given += len(wav)
            self._progress(n_given / rate)
            if sum(map(len, self._gates)) < wanted:
                self._gates += gates
            yield wav
        self.outcome = enhancer.outcome(sound.n_samples / rate, self._pictures, alpha.values)

    def beginning(self, given: SpooledSound, rate: int) -> tuple[np.ndarray, EnhanceResult]:
        """(noisy, enhanced as it is given back) of the first minute, at the model's rate."""
        model_rate, hop = self._enhancer.sample_rate, self._enhancer.cfg["stft_cfg"]["hop_size"]
        noisy = self._sound.between(0, LOOKED_AT_SEC * model_rate).copy()  # what comes from a file cannot be written to
        wav = resample(given.between(0, LOOKED_AT_SEC * rate), rate, model_rate)[: len(noisy)]
        steps = 1 + max(len(noisy), self._enhancer.cfg["stft_cfg"]["n_fft"]) // hop
        seen = self.outcome.alpha is not None
        return noisy, EnhanceResult(
            duration_sec=len(noisy) / model_rate, seconds=0.0, alpha=self.outcome.alpha[:steps] if seen else None,
            wav=np.pad(wav, (0, len(noisy) - len(wav))), sample_rate=model_rate,
            gate=np.concatenate(self._gates)[:steps] if seen and self._gates else None,
        )  # fmt: skip


def enhance_file(
    enhancer: Enhancer, job: Job, post_process: Callable[[np.ndarray], np.ndarray] | None = None,
    keep_sample_rate: bool = False, attenuation_limit_db: float | None = None, look: Look | None = None,
    progress: Callable[[float], object] | None = None,
) -> Outcome:
    """Enhance one recording and write it, at the model's rate or its own, as long as it was to the sample.

    A video that is missing or broken is left out, with a note; where the output is to be a video, it is an error. A causal
    model's memory does not grow with the recording. `post_process` takes and returns float [L], the whole sound at
    the model's rate. attenuation_limit_db: see models/inference/waveform.py. `look` is called when all is written, `progress`
    with the seconds of sound that are enhanced. The outcome's `seconds` include decoding. ValueError (MediaError), OSError
    for files that cannot be read or written.
    """
    started, rate = time.perf_counter(), enhancer.sample_rate
    if job.with_picture:
        check_remux(job.video, job.output)
    notes: list[str] = []
    with recording(job.audio, rate, keep_sample_rate, notes) as (sound, heard, own_rate), SpooledSound() as given:
        pictures, unseen = open_pictures(enhancer, job, sound)
        notes += unseen
        run = _Run(enhancer, sound, pictures, look is not None, progress)
        pieces = run.pieces()
        if post_process is not None:
            pieces = iter([np.asarray(post_process(np.concatenate(list(pieces))), np.float32)])
        with saved_crops(pictures, job.crops, sound, rate, enhancer.video_fps, enhancer.face_size):
            given.extend(give_back(pieces, rate, heard, own_rate, attenuation_limit_db))
        notes += [*run.outcome.notes, *write_output(job, given, own_rate)]
        seconds = time.perf_counter() - started
        if look is not None:
            look(job, *run.beginning(given, own_rate))
    outcome = Outcome(**{field.name: getattr(run.outcome, field.name) for field in fields(Outcome)})
    return replace(outcome, seconds=seconds, notes=tuple(notes))


def open_pictures(enhancer: Enhancer, job: Job, sound: SpooledSound) -> tuple[CropStream | None, list[str]]:
    """The job's pictures as far as the sound goes, and a note where they cannot be used."""
    rate = enhancer.sample_rate
    try:
        return enhancer.open_crops(job.video, None, sound.n_samples / rate, SoundTrack(sound.between, rate))
    except (MediaError, FileNotFoundError) as error:
        return None, [f"{one_line(error)}: audio only"]
