"""Files in, enhanced files out: what to pair, what to write where, and how to go on when one of them is broken."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from models.enhancer import AlphaTrack, Enhancer, Outcome
from models.pictures import Pictures
from models.saved_crops import saved_crops
from models.spool import SpooledSound
from utils.console import EXIT_FAILED, one_line
from utils.media import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, MediaError, sound_pieces
from utils.sync import SoundTrack
from utils.util import atomic_write


@dataclass(frozen=True)
class Job:
    """One recording to enhance: the file with the sound, the file with the picture (maybe the same), where to write."""

    audio: Path
    video: Path | None
    output: Path
    crops: Path | None = None  # where the face crops that the model sees are written, with the sound

    @property
    def label(self) -> str:
        return self.audio.name if self.video in (None, self.audio) else f"{self.audio.name} + {self.video.name}"


def same_file(one: Path, other: Path) -> bool:
    """Whether both paths lead to one place, through links and whether or not it exists yet."""
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return one.resolve() == other.resolve()


def single_job(audio: Path | None, video: Path | None, output: Path | None) -> Job:
    """Job for one recording; `output` may be a .wav file, a folder that exists, or None (results/<stem>_enhanced.wav).

    FileNotFoundError or ValueError for a sound that is not there, or an output that would replace the input.
    """
    sound = audio if audio is not None else video
    assert sound is not None
    if not sound.exists():
        raise FileNotFoundError(f"{sound} does not exist")
    if sound.is_dir():
        raise ValueError(f"{sound} is a folder; give it as --input_folder")
    output = output or Path("results")
    if output.is_dir() or not output.suffix:
        output = output / f"{sound.stem}_enhanced.wav"
    if output.suffix.lower() != ".wav":
        raise ValueError(f"output {output} should be a .wav file or a folder")
    for source in (sound, video):
        if source is not None and same_file(source, output):
            raise ValueError(f"output {output} is the input itself; choose another name")
    return Job(sound, video, output)


def folder_jobs(folder: Path, output: Path, use_video: bool = True, suffix: str = "_enhanced") -> list[Job]:
    """Jobs for the recordings that lie in `folder` itself, by name: a sound with the video of the same stem beside it, or
    a video with its own sound (with use_video=False sound files only). Outputs are output/<stem><suffix>.wav.

    FileNotFoundError or ValueError when there is no such folder, nothing in it, or `output` is that folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"input folder {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"input folder {folder} is a file; give a single recording as --input_audio or --input_video")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; for a folder of recordings it should be a folder")
    if same_file(folder, output):
        raise ValueError(f"output folder {output} is the input folder; choose another, inputs are never overwritten")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    sounds = [path for path in files if path.suffix.lower() in AUDIO_EXTENSIONS]
    videos = [path for path in files if path.suffix.lower() in VIDEO_EXTENSIONS] if use_video else []
    partner: dict[str, Path] = {}
    for path in videos:
        partner.setdefault(path.stem, path)
    heard = {path.stem for path in sounds}
    pairs: list[tuple[Path, Path | None]] = [(path, partner.get(path.stem)) for path in sounds]
    pairs += [(path, path) for path in videos if path.stem not in heard]
    if not pairs:
        kinds = "sound or video" if use_video else "sound"
        raise ValueError(f"input folder {folder} holds no {kinds} files itself (subfolders are not searched)")
    count = Counter(sound.stem for sound, _ in pairs)
    jobs = []
    for sound, video in sorted(pairs, key=lambda pair: pair[0].name):
        # a.wav beside a.flac: the outputs must not overwrite each other
        name = sound.stem if count[sound.stem] == 1 else f"{sound.stem}_{sound.suffix[1:].lower()}"
        jobs.append(Job(sound, video, output / f"{name}{suffix}.wav"))
    return jobs


def write_wav(path: Path, wav: np.ndarray | SpooledSound, sample_rate: int) -> float:
    """Write float [L] as 16-bit PCM, whole or not at all; louder than full scale is turned down. Gives the gain in dB."""
    if isinstance(wav, SpooledSound):
        pieces, peak = wav.pieces(), wav.peak
    else:
        pieces, peak = iter([np.asarray(wav)]), float(np.abs(wav).max()) if len(wav) else 0.0
    gain = 1.0 / peak if peak > 1.0 else 1.0
    with atomic_write(path) as temporary, soundfile.SoundFile(temporary, "w", sample_rate, 1, "PCM_16", format="WAV") as file:
        for piece in pieces:
            pcm = np.clip(np.round(np.asarray(piece, np.float64) * gain * 32768.0), -32768, 32767)
            file.write(pcm.astype(np.int16))
    return 20.0 * float(np.log10(gain))


def enhance_file(
    enhancer: Enhancer, job: Job, post_process: Callable[[np.ndarray], np.ndarray] | None = None
) -> Outcome:
    """Enhance one recording and write it at the model's rate.

    A picture that is missing or broken is left out, with a note. A causal model's memory does not grow with the
    recording. `post_process` takes and gives float [L], the whole sound. The outcome's `seconds` include decoding.
    ValueError (MediaError), OSError for a sound that cannot be read or written.
    """
    started, rate = time.perf_counter(), enhancer.sample_rate
    with SpooledSound() as sound, SpooledSound() as enhanced:
        spool(sound, job.audio, rate)
        pictures, notes = open_pictures(enhancer, job, sound)
        with saved_crops(pictures, job.crops, sound, rate, enhancer.video_fps):
            if enhancer.model.causal:
                outcome = _in_pieces(enhancer, sound, pictures, enhanced)
            else:
                outcome = enhancer.enhance(np.concatenate(list(sound.pieces())), rate, pictures)
                enhanced.append(outcome.wav)
        notes += outcome.notes
        wav: np.ndarray | SpooledSound = enhanced
        if post_process is not None:
            wav = np.asarray(post_process(np.concatenate(list(enhanced.pieces()))), np.float32)[: sound.n_samples]
            wav = np.pad(wav, (0, sound.n_samples - len(wav)))
        gain_db = write_wav(job.output, wav, rate)
    if gain_db < 0:
        notes.append(f"louder than full scale: turned down by {-gain_db:.1f} dB")
    outcome = Outcome(**{field.name: getattr(outcome, field.name) for field in fields(Outcome)})
    return replace(outcome, seconds=time.perf_counter() - started, notes=tuple(notes))


def _in_pieces(
    enhancer: Enhancer, sound: SpooledSound, pictures: Pictures | None, enhanced: SpooledSound
) -> Outcome:
    alpha = AlphaTrack(enhancer.cfg["stft_cfg"], sound.n_samples)
    for wav, steps, _ in enhancer.stream(sound.pieces(), pictures):
        enhanced.append(wav)
        alpha.append(steps)
    return enhancer.outcome(sound.n_samples / enhancer.sample_rate, pictures, alpha.values)


def spool(sound: SpooledSound, path: Path, sample_rate: int) -> None:
    """Decode a whole file's sound into `sound`; OSError or MediaError for what is no sound."""
    for piece in sound_pieces(path, sample_rate):
        sound.append(piece)
    if not sound.n_samples:
        raise MediaError(f"{path} holds less than one sample at {sample_rate} Hz")


def open_pictures(enhancer: Enhancer, job: Job, sound: SpooledSound) -> tuple[Pictures | None, list[str]]:
    """The job's pictures as far as the sound goes, and a note where they cannot be used."""
    rate = enhancer.sample_rate
    try:
        return enhancer.pictures(job.video, None, sound.n_samples / rate, SoundTrack(sound.between, rate))
    except (MediaError, FileNotFoundError) as error:
        return None, [f"{one_line(error)}: audio only"]


def report_line(job: Job, result: Outcome) -> str:
    """What was done to one recording, in one line."""
    parts = [f"{result.duration_sec:.2f} s", f"RTF {result.rtf:.2f}"]
    if result.alpha is not None:
        parts += [f"mean alpha {result.mean_alpha:.2f}", f"masked {100 * result.masked_share:.0f} %"]
    if result.faces is not None:
        parts.append(result.faces.summary())
    return f"{job.label}: {', '.join(parts)} -> {job.output}"


def run_jobs(
    enhancer: Enhancer, jobs: Sequence[Job], work: Callable[[Enhancer, Job], Outcome] = enhance_file
) -> int:
    """Do all jobs, printing a line for each; one that fails stops no other. Exit code: 0, or EXIT_FAILED if any failed.

    `work` does one: `enhance_file`, models.stream_files.stream_file, or either with arguments of its own bound to it.
    """
    enhancer.warm_up()
    failures: list[tuple[Job, str]] = []
    said: set[str] = set()
    for job in tqdm(jobs, unit="file", disable=None if len(jobs) > 1 else True):
        try:
            result = work(enhancer, job)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failures.append((job, one_line(error)))
            continue
        tqdm.write(report_line(job, result))
        if result.faces is not None and result.faces.fallback and result.faces.fallback not in said:
            tqdm.write(f"  note: {result.faces.fallback}")  # of the machine, not of the file: once
            said.add(result.faces.fallback)
        for note in result.notes:
            tqdm.write(f"  note: {note}")
    if failures:
        if len(jobs) > 1:
            print(f"{len(failures)} of {len(jobs)} recordings failed:", file=sys.stderr)
        for job, reason in failures:
            print(f"failed: {job.label}: {reason}", file=sys.stderr)
    return EXIT_FAILED if failures else 0
