"""Synthetic people and their clips: draw a person, film an utterance, write video and lossless sound into one file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from data.synthesis.face import Face, render_face
from data.synthesis.flite import FliteVoice, require_flite
from data.synthesis.noise import babble, clicks, coloured, hum
from data.synthesis.voice import SAMPLE_RATE, FormantVoice, Utterance, set_level
from utils.media.clip_writer import ClipWriter
from utils.media.sound import to_pcm16
from utils.util import atomic_write

FPS = 25
SAMPLE_SEC = 5.0
SAMPLE_SIZE = 240
# name, flite voice (its number), face number, SNR in dB
SAMPLES = (("cafe_slt", 0, 29, 3.0), ("pink_rms", 1, 31, 5.0), ("talker_awb", 2, 16, 0.0), ("hum_kal16", 3, 24, 2.0))


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A random generator for one person, clip or noise, so that the order in which they are made does not matter."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


@dataclass(frozen=True)
class Person:
    """A voice and its face."""

    voice: FormantVoice | FliteVoice
    face: Face

    @classmethod
    def draw(cls, seed: int, number: int, voices: str) -> Person:
        """The number-th person of this seed; voices is `formant` or `flite` (ValueError where that is not installed)."""
        rng = generator(seed, "voice", number)
        if voices == "flite":
            require_flite()
        voice = FliteVoice.draw(rng, number) if voices == "flite" else FormantVoice.draw(rng)
        return cls(voice, Face.draw(generator(seed, "face", number)))


def film(
    person: Person, rng: np.random.Generator, duration_sec: float, size: int, portrait: bool = False
) -> tuple[np.ndarray, Utterance]:
    """Let a person speak: frames uint8 [V, size, size, 3] at FPS, V = ceil(duration * FPS), and the utterance filmed."""
    utterance = person.voice.speak(rng, duration_sec)
    n_frames = int(np.ceil(round(duration_sec * FPS, 6)))
    frames = render_face(person.face, utterance.opening, utterance.width, rng, n_frames, FPS, size, portrait)
    return frames, utterance


def write_clip(path: str | os.PathLike, frames: np.ndarray, wave: np.ndarray, crf: int = 18) -> None:
    """Write frames uint8 [V, H, W, 3] at FPS and sound [L] as H.264 and 16-bit FLAC into one mp4, whole or not at all."""
    with atomic_write(path) as temporary, ClipWriter(temporary, SAMPLE_RATE, FPS, frames.shape[1:3], crf) as clip:
        clip.add(frames)
        clip.finish([wave])


def write_sound(path: str | os.PathLike, wave: np.ndarray) -> None:
    """Write 16-bit wav or flac (by the path's ending), whole or not at all."""
    with atomic_write(path) as temporary:
        soundfile.write(temporary, to_pcm16(wave), SAMPLE_RATE, format=Path(path).suffix[1:].upper(), subtype="PCM_16")


def _sample_noise(name: str, people: Sequence[Person], rng: np.random.Generator, n_samples: int) -> np.ndarray:
    duration_sec = n_samples / SAMPLE_RATE
    if name.startswith("cafe"):
        talkers = [person.voice.speak(rng, duration_sec).wave for person in people[4:8]]
        return babble(rng, n_samples, [*talkers, *(FormantVoice.draw(rng).speak(rng, duration_sec).wave for _ in range(3))])
    if name.startswith("pink"):
        return coloured(rng, n_samples, -3)
    if name.startswith("talker"):
        return people[1].voice.speak(rng, duration_sec).wave
    return hum(rng, n_samples) + 0.7 * clicks(rng, n_samples)


def write_samples(folder: str | os.PathLike, seed: int) -> list[Path]:
    """Write SAMPLES: portraits with flite voices, noisy sound in NAME.mp4 and its clean reference in NAME_clean.flac."""
    people = [Person.draw(seed, number, "flite") for number in range(8)]
    written = []
    for name, voice, face, snr_db in SAMPLES:
        rng = generator(seed, "sample", name)
        person = Person(people[voice].voice, Face.draw(generator(seed, "sample face", face)))
        frames, utterance = film(person, rng, SAMPLE_SEC, SAMPLE_SIZE, portrait=True)
        clean = set_level(utterance.wave, -24, rng)
        noise = _sample_noise(name, people, rng, clean.size)
        noise = noise * np.sqrt(np.sum(clean**2) / np.sum(noise**2)) * 10 ** (-snr_db / 20)
        gain = min(1.0, 0.95 / float(np.max(np.abs(clean + noise))))
        video, reference = Path(folder) / f"{name}.mp4", Path(folder) / f"{name}_clean.flac"
        write_clip(video, frames, gain * (clean + noise), crf=24)
        write_sound(reference, gain * clean)
        written += [video, reference]
    return written
