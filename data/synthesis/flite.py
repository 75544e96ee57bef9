"""Voices of flite (Debian's small text-to-speech program) with mouth movements from its phoneme timings."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from data.synthesis.voice import CONTROL_HZ, SAMPLE_RATE, Utterance, set_level, smooth

FLITE_VOICES = ("slt", "rms", "awb", "kal16")
TIMEOUT_SEC = 60
LONGEST_GAP_SEC = 1.0  # a longer rest is filled with a shortened sentence
FASTEST = 0.8  # a sentence is spoken this much faster at most to fit in

# Six-word commands: verb, amount, colour, thing, place, when.
GRAMMAR = (
    ("carry", "fetch", "paint", "wash", "borrow", "mend", "hide", "polish", "sell", "lift"),
    ("one", "every", "that", "my", "another", "your"),
    ("copper", "purple", "silver", "yellow", "little", "wooden", "amber", "navy", "mossy", "broken"),
    ("kettle", "lantern", "basket", "wagon", "piano", "umbrella", "table", "bottle", "window", "carpet"),
    ("upstairs", "outside", "indoors", "nearby", "below", "above"),
    ("today", "again", "quietly", "tomorrow", "later", "slowly"),
)

# Mouth opening 0..1 and lip width (1 at rest) of each phoneme that flite's US English prints.
VISEMES: dict[str, tuple[float, float]] = {
    "aa": (1.0, 1.0), "ae": (0.85, 1.12), "ah": (0.7, 1.0), "ao": (0.85, 0.8), "aw": (0.85, 0.85), "ax": (0.55, 1.0),
    "ay": (0.85, 1.1), "eh": (0.68, 1.1), "er": (0.52, 0.85), "ey": (0.6, 1.15), "ih": (0.5, 1.15), "iy": (0.45, 1.25),
    "ow": (0.65, 0.72), "oy": (0.7, 0.8), "uh": (0.5, 0.8), "uw": (0.42, 0.62), "y": (0.35, 1.2), "w": (0.18, 0.6),
    "r": (0.35, 0.8), "l": (0.4, 1.0), "hh": (0.4, 1.0), "n": (0.28, 1.0), "ng": (0.3, 1.0), "d": (0.28, 1.0),
    "t": (0.25, 1.0), "k": (0.32, 1.0), "g": (0.32, 1.0), "s": (0.22, 1.15), "z": (0.22, 1.15), "sh": (0.3, 0.75),
    "zh": (0.3, 0.75), "ch": (0.28, 0.75), "jh": (0.28, 0.75), "th": (0.25, 1.0), "dh": (0.25, 1.0),
    "f": (0.12, 1.05), "v": (0.12, 1.05), "m": (0.0, 1.0), "b": (0.0, 0.95), "p": (0.0, 0.95), "pau": (0.0, 1.0),
}  # fmt: skip
_UNKNOWN_VISEME = (0.3, 1.0)


@dataclass(frozen=True)
class FliteVoice:
    """A flite voice and how it is varied: `stretch` of its durations, `scale` of its pitch and formants together."""

    name: str
    stretch: float = 1.0
    scale: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, number: int) -> FliteVoice:
        """The number-th speaker: flite's voices in turn, first as they are, then up to 12 % higher or lower."""
        name = FLITE_VOICES[number % len(FLITE_VOICES)]
        if number < len(FLITE_VOICES):
            return cls(name)
        return cls(name, float(rng.uniform(0.9, 1.1)), float(rng.choice([-1, 1]) * rng.uniform(0.04, 0.12) + 1))

    def speak(self, rng: np.random.Generator, duration_sec: float) -> Utterance:
        """Speak as many random sentences as fit in duration_sec, pauses between them; ValueError where flite is missing."""
        n_samples = round(duration_sec * SAMPLE_RATE)
        wave = np.zeros(n_samples, np.float32)
        n_points = int(np.ceil(duration_sec * CONTROL_HZ)) + 1
        tracks = np.tile(np.array([[0.0], [1.0]]), n_points)  # [2, n_points]: opening, width
        spoken: list[str] = []
        at_sec = rng.uniform(0.05, min(0.35, duration_sec / 8))
        while True:
            room_sec = duration_sec - 0.05 - at_sec
            sound, timings, text = self._fit(rng, room_sec, must=not spoken or room_sec > LONGEST_GAP_SEC)
            if sound is None:
                break
            start = round(at_sec * SAMPLE_RATE)
            sound = sound[: n_samples - start]
            wave[start : start + sound.size] += sound
            mouth_tracks(tracks, timings, start / SAMPLE_RATE)
            spoken.append(text)
            at_sec += sound.size / SAMPLE_RATE + rng.uniform(0.4, 0.8)
        opening, width = (smooth(track, 11).astype(np.float32) for track in tracks)
        return Utterance(set_level(wave, rng.uniform(-27, -23), rng), opening, width, ". ".join(spoken))

    def _fit(
        self, rng: np.random.Generator, room_sec: float, must: bool
    ) -> tuple[np.ndarray | None, list[tuple[str, float, float]], str]:
        """A sentence no longer than room_sec. If one `must` be said, it is spoken faster or with fewer words where needed."""
        words = [str(rng.choice(slot)) for slot in GRAMMAR]
        while words:
            text = " ".join(words)
            for stretch in (self.stretch, self.stretch * FASTEST) if must else (self.stretch,):
                sound, timings = _synthesise(self.name, text, stretch, self.scale)
                if sound.size <= room_sec * SAMPLE_RATE:
                    return sound, timings, text
            words = words[:-1] if must else []
        return None, [], ""


def mouth_tracks(tracks: np.ndarray, timings: list[tuple[str, float, float]], start_sec: float) -> None:
    """Write the mouth of (phoneme, start, end in seconds) into tracks [2, n_points] at CONTROL_HZ, in place."""
    at_sec = np.arange(tracks.shape[1]) / CONTROL_HZ - start_sec
    for phone, begin_sec, end_sec in timings:
        tracks[:, (at_sec >= begin_sec) & (at_sec < end_sec)] = np.array(VISEMES.get(phone, _UNKNOWN_VISEME))[:, None]


def require_flite() -> str:
    """Path of the flite program; ValueError with the remedy where it is not installed."""
    program = shutil.which("flite")
    if program is None:
        raise ValueError("--voices flite: flite is not installed; apt-get install flite, or use --voices formant")
    return program


@lru_cache(maxsize=64)
def _synthesise(voice: str, text: str, stretch: float, scale: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Sound [L] and (phoneme, start, end in seconds) of one sentence, without the silence around it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        # A sentence at scale 1.1 is played 1.1 times as fast, so it is spoken that much slower first.
        settings = ["-voice", voice, "--setf", f"duration_stretch={stretch * scale:.4f}"]
        command = [require_flite(), *settings, "-psdur", "-t", text, "-o", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_SEC)
        except (OSError, subprocess.SubprocessError) as error:
            raise ValueError(f"--voices flite: flite could not say {text!r}: {error}") from None
        sound, rate = soundfile.read(path, dtype="float32")
    ends = [(item.rpartition(":")[0], float(item.rpartition(":")[2])) for item in done.stdout.split()]
    starts = [0.0, *(end for _, end in ends[:-1])]
    said = [(phone, start, end) for (phone, end), start in zip(ends, starts, strict=True) if phone != "pau"]
    if not said:
        raise ValueError(f"--voices flite: flite printed no phonemes for {text!r}; flite 2.0 or newer is needed")
    first_sec, last_sec = said[0][1], said[-1][2] + 0.06
    sound = sound[round(first_sec * rate) : round(last_sec * rate)]
    up, down = SAMPLE_RATE, round(rate * scale)
    step = int(np.gcd(up, down))
    sound = resample_poly(sound.astype(np.float64), up // step, down // step).astype(np.float32)
    fade = min(160, sound.size // 2)
    sound[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
    sound[sound.size - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound, [(phone, (begin - first_sec) / scale, (end - first_sec) / scale) for phone, begin, end in said]
