"""A fixed test set: a manifest says how each mixture is made, and a mixture made from it is always the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from dataloaders.augment_rir import prepare_rir, reverberate
from dataloaders.clip_dataset import resolve
from dataloaders.mixing import active_samples, fit_length, mix_audio
from utils.media.sound import load_audio
from utils.util import atomic_write, write_json

VERSION = 1
SAMPLE_RATE_HZ = 16000
NOISE = "noise"
TALKERS = {"one_speaker": 1, "three_speakers": 3}  # kinds of noise made of other people's clips
NOISE_IN_ROOM = "noise_in_room"  # the mixtures of NOISE, with the speaker in a room
KINDS = (NOISE, *TALKERS, NOISE_IN_ROOM)


@dataclass(frozen=True)
class Masker:
    """A recording that disturbs. It begins at `offset_samples` (at 16 kHz) and is repeated after its end."""

    path: str
    offset_samples: int


@dataclass(frozen=True)
class Sample:
    """One mixture: who speaks, what disturbs and how loudly, and what happens to the video."""

    sample_id: str
    clip: str  # name of the clip; mixtures of one clip are no independent samples
    speaker: str
    audio: str  # file with the clean sound
    video: str | None
    masked: tuple[tuple[int, int], ...]  # [first, end) video frames without a face
    kind: str
    maskers: tuple[Masker, ...]
    snr_db: float
    room: str | None  # impulse response of the speaker's room
    visual: str  # one of evaluation.testset.conditions
    other_video: str | None  # another speaker's face
    other_masked: tuple[tuple[int, int], ...]
    seed: int  # of the video's degradation


@dataclass(frozen=True)
class Manifest:
    """A manifest as read: its samples, the seconds of a clip that are used at most, and its hash."""

    samples: tuple[Sample, ...]
    max_sec: float
    sha256: str
    note: str  # how it was made, for captions
    left_out: dict[str, str]  # what could not be used when it was made, and why


@dataclass(frozen=True)
class Mixture:
    """A sample as sound, float32 [L] at 16 kHz each."""

    clean: np.ndarray  # what an enhancer should return; in a room it includes the early reflections
    noisy: np.ndarray

    @property
    def fingerprint(self) -> str:
        """A hash, which changes when a single bit of the mixture does."""
        return hashlib.sha256(self.noisy.astype("<f4").tobytes()).hexdigest()[:12]


def json_sha256(value: object) -> str:
    """A hash of `value` as JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _relative(path: str | None, folder: Path) -> str | None:
    return None if path is None else Path(os.path.relpath(path, folder)).as_posix()


def write_manifest(path: Path, samples: list[Sample], max_sec: float, note: str, left_out: dict[str, str]) -> None:
    """Write the samples. Paths are relative to the manifest, so that it can be moved together with the data."""
    folder = path.parent
    entries = []
    for sample in samples:
        entry = dataclasses.asdict(sample)
        for key in ("audio", "video", "room", "other_video"):
            entry[key] = _relative(entry[key], folder)
        for masker in entry["maskers"]:
            masker["path"] = _relative(masker["path"], folder)
        entries.append(entry)
    write_json(path, {"version": VERSION, "note": note, "max_sec": max_sec, "left_out": left_out, "samples": entries})


def _sample(entry: dict, folder: Path) -> Sample:
    entry = dict(entry)
    for key in ("audio", "video", "room", "other_video"):
        entry[key] = None if entry[key] is None else resolve(entry[key], folder)
    for key in ("masked", "other_masked"):
        entry[key] = tuple((int(first), int(end)) for first, end in entry[key])
    entry["maskers"] = tuple(Masker(resolve(m["path"], folder), int(m["offset_samples"])) for m in entry["maskers"])
    return Sample(**entry)


def read_manifest(path: str | os.PathLike) -> Manifest:
    """Read what `write_manifest` wrote; ValueError or FileNotFoundError, one line, when it is none or holds no samples."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"manifest {path} does not exist; make one with python -m evaluation.make_testset")
    content = path.read_bytes()
    try:
        held = json.loads(content)
        if held["version"] != VERSION:
            raise ValueError(f"version {held['version']}, this program reads {VERSION}")
        samples = tuple(_sample(entry, path.parent) for entry in held["samples"])
        max_sec, note, left_out = float(held["max_sec"]), str(held["note"]), dict(held["left_out"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of evaluation.make_testset: {type(error).__name__} {error}") from None
    if not samples:
        raise ValueError(f"manifest {path} holds no samples")
    if len({sample.sample_id for sample in samples}) < len(samples):
        raise ValueError(f"manifest {path} names a sample_id twice; make it anew with python -m evaluation.make_testset")
    return Manifest(samples, max_sec, hashlib.sha256(content).hexdigest(), note, left_out)


def load_speech(path: str, max_sec: float) -> np.ndarray:
    """Clean sound of a clip [L]; ValueError when nobody speaks in it."""
    speech = load_audio(path, SAMPLE_RATE_HZ, 0.0, max_sec)
    if not active_samples(speech, SAMPLE_RATE_HZ).any():
        raise ValueError(f"{path} is silent")
    return speech


def sum_maskers(maskers: tuple[Masker, ...], length: int) -> np.ndarray:
    """The sum of all maskers, float64 [length]; several talkers are first scaled to equal power."""
    total = np.zeros(length)
    for masker in maskers:
        wave = load_audio(masker.path, SAMPLE_RATE_HZ).astype(np.float64)
        piece = fit_length(wave, length, masker.offset_samples % max(1, len(wave)))
        if len(maskers) > 1:
            active = active_samples(piece, SAMPLE_RATE_HZ)
            if not active.any():
                raise ValueError(f"masker {masker.path} is silent")
            piece = piece / np.sqrt(np.mean(np.square(piece[active])))
        total += piece
    return total


def mix(sample: Sample, max_sec: float) -> Mixture:
    """Make a sample's mixture; ValueError or OSError names the file that cannot be used."""
    speech = target = load_speech(sample.audio, max_sec)
    if sample.room is not None:
        room = prepare_rir(load_audio(sample.room, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
        speech, target = reverberate(speech, room, "early", SAMPLE_RATE_HZ)
    noise = sum_maskers(sample.maskers, len(speech))
    return Mixture(target.astype(np.float32), mix_audio(speech, noise, sample.snr_db, SAMPLE_RATE_HZ))


def write_sounds(held: Manifest, folder: Path) -> None:
    """Write each mixture as noisy/SAMPLE_ID.wav and clean/SAMPLE_ID.wav, 16 kHz float; OSError, ValueError as `mix`."""
    for sample in tqdm(held.samples, unit="mixture", disable=None):
        made = mix(sample, held.max_sec)
        for name, wav in (("noisy", made.noisy), ("clean", made.clean)):
            write_sound(folder / name / f"{sample.sample_id}.wav", wav)


def write_sound(path: Path, wav: np.ndarray) -> None:
    """Write sound [L] as a wav of 32-bit floats at 16 kHz, which changes no bit of it."""
    with atomic_write(path) as temporary:
        soundfile.write(temporary, wav, SAMPLE_RATE_HZ, subtype="FLOAT", format="WAV")
