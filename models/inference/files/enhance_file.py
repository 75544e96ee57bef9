"""From a file to its enhanced file: decode, enhance, return to the output's rate, and write the sound or the video with it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from models.inference.crop_stream import CropStream
from models.inference.enhancer import Enhancer
from models.inference.files.disk_sound import SpooledSound
from models.inference.files.jobs import SOUND_FORMATS, Job
from models.inference.files.saved_crops import saved_crops
from models.inference.results import AlphaTrack, EnhanceResult, Outcome
from models.inference.upper_band import FULL, has_upper_band
from models.inference.waveform import mix_back, noisy_share
from utils.console import one_line
from utils.faces.lip_sync import SoundTrack
from utils.media.decode import MediaError
from utils.media.replace_sound import check_remux, replace_sound
from utils.media.short_resampler import ShortResampler
from utils.media.sound import own_rate_pieces, resample, resampled_pieces, to_pcm16
from utils.util import atomic_write

LOOKED_AT_SEC = 60  # a `look` is given at most this much of a recording

# (job, noisy float32 [n] at the model's rate, the result at that rate): the beginning of a recording, to be drawn
Look = Callable[[Job, np.ndarray, EnhanceResult], None]


def full_scale_gain(peak: float) -> float:
    """Return the factor that a sound with this peak is written with: 1, or less where it is louder than full scale."""
    return 1.0 / peak if peak > 1.0 else 1.0


def write_wav(path: Path, wav: np.ndarray | SpooledSound, sample_rate: int) -> float:
    """Write float [L] as a complete 16-bit .wav or .flac. Sound above full scale is turned down; the gain in dB is returned."""
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
    """Write a job's sound, or its video with that sound, whole or not at all; returns notes."""
    if not job.writes_video:
        write_wav(job.output, wav, sample_rate)
        notes = []
    else:
        assert job.video is not None
        notes = replace_sound(job.video, wav.pieces(), sample_rate, job.output, full_scale_gain(wav.peak))
    if wav.peak > 1.0:
        notes.append(f"louder than full scale: turned down by {20 * np.log10(wav.peak):.1f} dB")
    return notes


class Recording(NamedTuple):
    """A file's sound on disk."""

    sound: SpooledSound  # at the model's rate
    own: SpooledSound  # at `rate`
    rate: int  # Hz, of the output: the file's own, or the model's
    full: bool  # whether the output holds the band above the model's


@contextlib.contextmanager
def recording(
    path: Path, sample_rate: int, keep_sample_rate: bool, band: str, notes: list[str] | None = None
) -> Iterator[Recording]:
    """Read a file's sound for a model with this rate; `band` is one of upper_band.BANDS.

    The output has the file's own rate where it is above the model's and band is "full", and with keep_sample_rate. `notes`
    gets a line for whatever was not as it should be. OSError or MediaError for a file without sound.
    """
    own_rate, pieces = own_rate_pieces(path, notes)
    full = band == FULL and has_upper_band(own_rate, sample_rate)
    with SpooledSound() as sound, SpooledSound() as own:
        if full:
            down = ShortResampler(own_rate, sample_rate)
            for piece in pieces:
                own.append(piece)
                sound.append(down.feed(piece))
            sound.append(down.end())
        elif keep_sample_rate:
            own.extend(pieces)
            sound.extend(resampled_pieces(own.pieces(), own_rate, sample_rate))
        else:
            sound.extend(resampled_pieces(pieces, own_rate, sample_rate))
        if not sound.n_samples:
            raise MediaError(f"{path} holds less than one sample at {sample_rate} Hz")
        kept = full or keep_sample_rate
        yield Recording(sound, own if kept else sound, own_rate if kept else sample_rate, full)


def with_upper_band(
    made: Iterable[tuple[np.ndarray, np.ndarray]], heard: Recording, enhancer: Enhancer
) -> Iterator[np.ndarray]:
    """Pieces of (enhanced samples, gain of the upper band) -> pieces of the output at the recording's own rate."""
    upper = enhancer.upper_band(heard.rate, heard.own.between, heard.sound.between)
    for wav, gains in made:
        yield upper.feed(wav, gains)
    yield upper.end(heard.own.n_samples)


def give_back(
    pieces: Iterable[np.ndarray], from_rate: int, heard: Recording, attenuation_limit_db: float | None
) -> Iterator[np.ndarray]:
    """Enhanced pieces at from_rate -> pieces at the output's rate, exactly as long as it; some of the input is mixed back."""
    own, share, position = heard.own, noisy_share(attenuation_limit_db), 0
    for piece in resampled_pieces(pieces, from_rate, heard.rate):
        piece = piece[: own.n_samples - position]
        yield mix_back(piece, own.between(position, position + len(piece)), share) if share else piece
        position += len(piece)
    if position < own.n_samples:  # the rates' ratio was rounded twice
        rest = own.between(position, own.n_samples)
        yield mix_back(np.zeros_like(rest), rest, share)


class _Run:
    """One recording on its way through a model."""

    def __init__(
        self, enhancer: Enhancer, sound: SpooledSound, crop_stream: CropStream | None, look: bool,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        self._enhancer, self._sound, self._crop_stream, self._look = enhancer, sound, crop_stream, look
        self._progress = progress or (lambda seconds: None)
        self._gates: list[np.ndarray] = []
        self.outcome: Outcome | None = None  # once all pieces are taken

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the enhanced sound at the model's rate, and the gain of the upper band for each further STFT frame.

        A causal model's memory does not grow with the recording.
        """
        enhancer, sound, rate = self._enhancer, self._sound, self._enhancer.sample_rate
        if not enhancer.model.causal:
            yield self._at_once()
            return
        stft = enhancer.cfg["stft_cfg"]
        alpha, wanted = AlphaTrack(stft, sound.n_samples), LOOKED_AT_SEC * rate / stft["hop_size"]
        n_given = 0
        for made in enhancer.stream(sound.pieces(), self._crop_stream, self._look):
            alpha.append(made.alpha)
            n_given += len(made.wav)
            self._progress(n_given / rate)
            if sum(map(len, self._gates)) < wanted:
                self._gates += made.gate
            yield made.wav, made.upper
        self.outcome = enhancer.outcome(sound.n_samples / rate, self._crop_stream, alpha.values)

    def _at_once(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the same of a model that is not causal, in one piece."""
        length_sec = self._sound.n_samples / self._enhancer.sample_rate
        samples = np.concatenate(list(self._sound.pieces()))
        self.outcome, made = self._enhancer.enhance_samples(
            samples, length_sec, self._crop_stream, self._look, lambda share: self._progress(share * length_sec)
        )
        self._gates = [] if made.gate is None or self.outcome.alpha is None else [made.gate]
        return made.wav, made.upper

    def beginning(self, given: SpooledSound, rate: int) -> tuple[np.ndarray, EnhanceResult]:
        """Return (noisy, enhanced) of the first minute at the model's rate; the enhanced sound is the one that is written."""
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
    progress: Callable[[float], object] | None = None, band: str = FULL,
) -> Outcome:
    """Enhance one recording and write it, as long as it was to the sample; `recording` says at which rate.

    A video that is missing or broken is left out, with a note; where the output is to be a video, it is an error. A causal
    model's memory does not grow with the recording. `post_process` takes and returns float [L], the whole sound at
    the model's rate. attenuation_limit_db: see models/inference/waveform.py. `look` is called when all is written, `progress`
    with the seconds of sound that are enhanced. The outcome's `seconds` include decoding. ValueError (MediaError), OSError
    for files that cannot be read or written.
    """
    started, rate = time.perf_counter(), enhancer.sample_rate
    if job.writes_video:
        check_remux(job.video, job.output)
    notes: list[str] = []
    with recording(job.audio, rate, keep_sample_rate, band, notes) as heard, SpooledSound() as given:
        crops, unseen = open_job_crops(enhancer, job, heard.sound)
        notes += unseen
        run = _Run(enhancer, heard.sound, crops, look is not None, progress)
        made = run.pieces()
        if post_process is not None:
            wavs, gains = map(np.concatenate, zip(*made, strict=True))
            made = iter([(np.asarray(post_process(wavs), np.float32), gains)])
        pieces = with_upper_band(made, heard, enhancer) if heard.full else (wav for wav, _ in made)
        with saved_crops(crops, job.crops, heard.sound, rate, enhancer.video_fps, enhancer.face_size):
            given.extend(give_back(pieces, heard.rate if heard.full else rate, heard, attenuation_limit_db))
        notes += [*run.outcome.notes, *write_output(job, given, heard.rate)]
        seconds = time.perf_counter() - started
        if look is not None:
            look(job, *run.beginning(given, heard.rate))
    outcome = Outcome(**{field.name: getattr(run.outcome, field.name) for field in fields(Outcome)})
    return replace(outcome, seconds=seconds, notes=tuple(notes))


def open_job_crops(enhancer: Enhancer, job: Job, sound: SpooledSound) -> tuple[CropStream | None, list[str]]:
    """Return the job's crops as far as the sound goes, and a note where they cannot be used."""
    rate = enhancer.sample_rate
    try:
        return enhancer.open_crops(job.video, None, sound.n_samples / rate, SoundTrack(sound.between, rate))
    except (MediaError, FileNotFoundError) as error:
        return None, [f"{one_line(error)}: audio only"]
