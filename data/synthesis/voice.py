"""Formant voices: seeded, speech-like sound with its mouth movements, made with numpy and scipy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.signal import butter, resample_poly, sosfilt

SAMPLE_RATE = 16000
CONTROL_HZ = 200  # rate of formant, pitch and mouth tracks
BLOCK_SAMPLES = SAMPLE_RATE // CONTROL_HZ
SOURCE_OVERSAMPLING = 4  # the glottal pulse has corners; at 64 kHz its aliases stay below the noise of the voice
LONGEST_FIRST_SOUND_SEC = 0.35

# F1, F2, F3 in Hz (averages of Peterson & Barney 1952, men), mouth opening 0..1, lip width (1 = at rest)
VOWELS: dict[str, tuple[float, float, float, float, float]] = {
    "iy": (270, 2290, 3010, 0.45, 1.25), "ih": (390, 1990, 2550, 0.50, 1.15), "eh": (530, 1840, 2480, 0.68, 1.10),
    "ae": (660, 1720, 2410, 0.85, 1.12), "ah": (520, 1190, 2390, 0.70, 1.00), "aa": (730, 1090, 2440, 1.00, 1.00),
    "ao": (570, 840, 2410, 0.85, 0.80), "uh": (440, 1020, 2240, 0.50, 0.80), "uw": (300, 870, 2240, 0.42, 0.62),
    "er": (490, 1350, 1690, 0.52, 0.85),
}  # fmt: skip


@dataclass(frozen=True)
class Consonant:
    """How a syllable begins or ends: formant loci in Hz, length, voicing level, noise band and level, and the lips."""

    loci_hz: tuple[float, float, float]
    length_sec: tuple[float, float]
    voicing: float = 0.0
    noise_hz: tuple[float, float] = (0.0, 0.0)
    noise_level: float = 0.0
    burst: bool = False
    opening: float = 0.25
    width: float = 1.0


CONSONANTS: dict[str, Consonant] = {
    "b": Consonant((250, 900, 2300), (0.010, 0.02), 0.15, (300, 1500), 0.5, True, 0.03, 0.95),
    "p": Consonant((300, 900, 2300), (0.020, 0.05), 0.0, (300, 1800), 0.6, True, 0.05, 0.95),
    "d": Consonant((250, 1700, 2600), (0.010, 0.02), 0.15, (2500, 5500), 0.4, True),
    "t": Consonant((300, 1800, 2700), (0.025, 0.05), 0.0, (3000, 7000), 0.6, True),
    "g": Consonant((250, 1900, 2200), (0.015, 0.03), 0.15, (1200, 2600), 0.5, True, 0.3),
    "k": Consonant((300, 1900, 2300), (0.030, 0.05), 0.0, (1400, 3000), 0.6, True, 0.3),
    "s": Consonant((320, 1700, 2600), (0.050, 0.09), 0.0, (4200, 7600), 0.5, False, 0.22, 1.15),
    "sh": Consonant((320, 1800, 2400), (0.050, 0.09), 0.0, (2000, 6000), 0.5, False, 0.30, 0.75),
    "f": Consonant((320, 1000, 2300), (0.040, 0.08), 0.0, (1200, 7400), 0.18, False, 0.12, 1.05),
    "v": Consonant((300, 1000, 2300), (0.040, 0.06), 0.35, (1200, 7400), 0.1, False, 0.12, 1.05),
    "m": Consonant((250, 1000, 2200), (0.040, 0.07), 0.4, opening=0.03),
    "n": Consonant((250, 1600, 2500), (0.040, 0.07), 0.4, opening=0.25),
    "l": Consonant((360, 1100, 2700), (0.030, 0.06), 0.55, opening=0.35),
    "r": Consonant((350, 1100, 1500), (0.030, 0.06), 0.55, opening=0.3, width=0.8),
    "w": Consonant((300, 650, 2200), (0.030, 0.06), 0.55, opening=0.15, width=0.6),
    "y": Consonant((280, 2200, 3000), (0.030, 0.06), 0.55, opening=0.3, width=1.2),
}
ONSETS = ("", *CONSONANTS)
CODAS = ("", "", "", "s", "sh", "f", "m", "n", "l", "t", "k", "p")


@dataclass(frozen=True)
class Utterance:
    """What was said: sound [L] at 16 kHz, and mouth opening (0 closed .. 1) and lip width (1 at rest) at CONTROL_HZ."""

    wave: np.ndarray
    opening: np.ndarray
    width: np.ndarray
    text: str


@dataclass(frozen=True)
class FormantVoice:
    """A speaker's constants: pitch in Hz, formant scale (vocal tract length), glottal pulse, tilt, breath, unsteadiness."""

    f0_hz: float
    tract_scale: float
    open_quotient: float
    tilt: float
    breath: float
    jitter: float
    shimmer: float
    pace: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> FormantVoice:
        """Draw a speaker: pitch 90 to 240 Hz, and a vocal tract that tends to be shorter for a higher voice."""
        f0_hz = float(np.exp(rng.uniform(np.log(90), np.log(240))))
        height = np.log(f0_hz / 90) / np.log(240 / 90)
        return cls(
            f0_hz, float(0.94 + 0.22 * height + rng.uniform(-0.05, 0.05)), rng.uniform(0.5, 0.7), rng.uniform(0.15, 0.5),
            rng.uniform(0.01, 0.04), rng.uniform(0.005, 0.015), rng.uniform(0.03, 0.1), rng.uniform(0.9, 1.1),
        )  # fmt: skip

    def speak(self, rng: np.random.Generator, duration_sec: float) -> Utterance:
        """Speak random syllables with pauses between them for duration_sec; the same generator state, the same sound."""
        length_samples = round(duration_sec * SAMPLE_RATE)
        score = _Score(int(np.ceil(length_samples / BLOCK_SAMPLES)) + 1)
        end_sec = duration_sec - 0.06
        time_sec = rng.uniform(0.05, min(LONGEST_FIRST_SOUND_SEC, max(0.06, duration_sec / 4)))
        while True:
            vowel_sec = rng.uniform(0.1, 0.22) * self.pace
            onset, coda = rng.choice(ONSETS), rng.choice(CODAS)
            stop_sec = score.add_syllable(rng, time_sec, vowel_sec, str(onset), str(coda), end_sec)
            if stop_sec is None:
                break
            pause_sec = rng.uniform(0.4, 0.8) if rng.random() < 0.25 else rng.uniform(0.1, 0.4)
            time_sec = stop_sec + pause_sec * self.pace
        wave = self._render(rng, score, length_samples)
        opening, width = score.mouth()
        return Utterance(set_level(wave, rng.uniform(-27, -23), rng), opening, width, " ".join(score.names))

    def _render(self, rng: np.random.Generator, score: _Score, length_samples: int) -> np.ndarray:
        n_blocks = score.n_points - 1
        n_samples = n_blocks * BLOCK_SAMPLES
        at_sample = np.arange(n_samples) / BLOCK_SAMPLES
        points = np.arange(score.n_points)
        slow = np.convolve(rng.standard_normal(score.n_points + 40), np.hanning(41), "valid")[: score.n_points] / 20
        f0_hz = self.f0_hz * score.intonation() * np.linspace(1.08, 0.92, score.n_points) * (1 + 0.06 * slow)
        f0_hz = f0_hz * (1 + self.jitter * rng.standard_normal(score.n_points))
        voicing = np.interp(at_sample, points, score.voicing)
        source = _glottal_flow(rng, np.interp(at_sample, points, f0_hz), self.open_quotient, self.shimmer)
        source = np.diff(source, prepend=0.0) * voicing * 8
        noise = rng.standard_normal(n_samples)
        source += noise * self.breath * voicing + noise * 0.08 * np.interp(at_sample, points, score.aspiration)
        source = sosfilt([[1 - self.tilt, 0, 0, 1, -self.tilt, 0]], source)
        wave = _formant_filter(source, score.formants() * self.tract_scale)
        scale = np.sqrt(np.mean(wave**2) + 1e-12)
        for start_sec, noise_sec, low_hz, high_hz, level, decay in score.noises:
            _add_noise(wave, rng, start_sec, noise_sec, low_hz * self.tract_scale**0.5, high_hz, level * scale, decay)
        return wave[:length_samples].astype(np.float32)


@dataclass
class _Score:
    """The plan of an utterance: tracks of n_points at CONTROL_HZ, noises, and knots that are interpolated."""

    n_points: int
    names: list[str] = field(default_factory=list)
    noises: list[tuple[float, float, float, float, float, bool]] = field(default_factory=list)
    formant_knots: list[tuple[float, tuple[float, float, float]]] = field(default_factory=list)
    mouth_knots: list[tuple[float, float, float]] = field(default_factory=list)
    accents: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.time_sec = np.arange(self.n_points) / CONTROL_HZ
        self.voicing = np.zeros(self.n_points)
        self.aspiration = np.zeros(self.n_points)

    def add_syllable(
        self, rng: np.random.Generator, start_sec: float, vowel_sec: float, onset: str, coda: str, end_sec: float
    ) -> float | None:
        """Write one syllable at start_sec; gives the time at which it stops, or None where it would pass end_sec."""
        first, last = rng.choice(list(VOWELS), 2)
        last = last if rng.random() < 0.4 else first
        stress = rng.uniform(0.7, 1.0)
        onset_sec = rng.uniform(*CONSONANTS[onset].length_sec) if onset else 0.0
        coda_sec = rng.uniform(*CONSONANTS[coda].length_sec) if coda else 0.0
        vowel_at = start_sec + onset_sec
        coda_at = vowel_at + vowel_sec
        stop_sec = coda_at + coda_sec
        if stop_sec > end_sec:
            return None
        self.names.append(f"{onset}{first}{'' if last == first else last}{coda}")
        self.accents.append(((vowel_at + coda_at) / 2, rng.uniform(0.92, 1.12)))
        self.mouth_knots.append((start_sec, 0.0, 1.0))
        if onset:
            self._add_consonant(CONSONANTS[onset], start_sec, onset_sec)
        for share, vowel in ((0.2, first), (0.45, first), (0.8, last)):
            f1, f2, f3, opening, width = VOWELS[vowel]
            moment = vowel_at + share * vowel_sec
            self.formant_knots.append((moment, (f1, f2, f3)))
            self.mouth_knots.append((moment, opening * stress * (0.75 if share == 0.8 else 1.0), width))
        openness = max(VOWELS[first][3], VOWELS[last][3])
        self._voice(vowel_at, vowel_sec, stress * (0.55 + 0.45 * openness))
        if coda:
            self._add_consonant(CONSONANTS[coda], coda_at, coda_sec)
        self.mouth_knots.append((stop_sec + 0.01, 0.0, 1.0))
        return stop_sec

    def _add_consonant(self, kind: Consonant, start_sec: float, length_sec: float) -> None:
        middle_sec = start_sec + length_sec / 2
        self.formant_knots.append((middle_sec, kind.loci_hz))
        self.mouth_knots.append((middle_sec, kind.opening, kind.width))
        if kind.voicing:
            self._voice(start_sec, length_sec + 0.03, kind.voicing)
        if kind.noise_level:
            self.noises.append((start_sec, length_sec, *kind.noise_hz, kind.noise_level, kind.burst))
        if kind.burst and not kind.voicing:
            self.aspiration = np.maximum(self.aspiration, _bump(self.time_sec, start_sec, length_sec + 0.02, 0.01))

    def _voice(self, start_sec: float, length_sec: float, level: float) -> None:
        self.voicing = np.maximum(self.voicing, level * _bump(self.time_sec, start_sec, length_sec, 0.03))

    def formants(self) -> np.ndarray:
        """Formant tracks [n_points, 3] in Hz, smoothed over 30 ms."""
        times = [moment for moment, _ in self.formant_knots] or [0.0]
        values = np.array([value for _, value in self.formant_knots] or [VOWELS["ah"][:3]])
        return np.stack([smooth(np.interp(self.time_sec, times, track), 7) for track in values.T], axis=1)

    def intonation(self) -> np.ndarray:
        """Pitch factor [n_points]: one accent per syllable."""
        times, values = zip(*self.accents, strict=True) if self.accents else ((0.0,), (1.0,))
        return np.interp(self.time_sec, times, values)

    def mouth(self) -> tuple[np.ndarray, np.ndarray]:
        """Mouth opening and lip width [n_points], smoothed over 25 ms around each moment, so neither leads nor lags."""
        times, opening, width = zip(*self.mouth_knots, strict=True) if self.mouth_knots else ((0.0,), (0.0,), (1.0,))
        tracks = [smooth(np.interp(self.time_sec, times, track), 5) for track in (opening, width)]
        return tracks[0].astype(np.float32), tracks[1].astype(np.float32)


def set_level(wave: np.ndarray, level_db: float, rng: np.random.Generator) -> np.ndarray:
    """Bring a voice [L] to level_db (active RMS, dB of full scale; 20 ms frames), peak at most 0.9, over a -80 dB floor."""
    frames = wave[: wave.size // 320 * 320].reshape(-1, 320).astype(np.float64)
    power = np.mean(frames**2, axis=1) if frames.size else np.zeros(1)
    active = power[power > max(float(power.max()) * 1e-3, 1e-10)]
    gain = 10 ** (level_db / 20) / np.sqrt(active.mean()) if active.size else 1.0
    peak = float(np.max(np.abs(wave), initial=0.0))
    gain = min(gain, 0.9 / peak) if peak else gain
    return (wave * gain + 1e-4 * rng.standard_normal(wave.size)).astype(np.float32)


def smooth(track: np.ndarray, n_points: int) -> np.ndarray:
    """Average a track [n] with a Hann window of n_points (odd) around each point; the ends are held."""
    window = np.hanning(n_points + 2)[1:-1]
    padded = np.pad(track, n_points // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), "valid")


def _bump(time_sec: np.ndarray, start_sec: float, length_sec: float, edge_sec: float) -> np.ndarray:
    edge_sec = min(edge_sec, length_sec / 2)
    ramp = np.minimum(time_sec - start_sec, start_sec + length_sec - time_sec) / edge_sec
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(ramp, 0, 1))


def _glottal_flow(rng: np.random.Generator, f0_hz: np.ndarray, open_quotient: float, shimmer: float) -> np.ndarray:
    """Rosenberg's (1971) type C glottal flow [L] for a pitch track [L] in Hz, each period's height perturbed by shimmer."""
    fast_hz = np.repeat(f0_hz, SOURCE_OVERSAMPLING)
    phase = np.cumsum(fast_hz) / (SAMPLE_RATE * SOURCE_OVERSAMPLING)
    period = phase.astype(np.int64)
    phase -= period
    rise, fall = open_quotient * 0.67, open_quotient * 0.33
    flow = np.where(phase < rise, 0.5 - 0.5 * np.cos(np.pi * phase / rise), 0.0)
    falling = (phase >= rise) & (phase < rise + fall)
    flow[falling] = np.cos(0.5 * np.pi * (phase[falling] - rise) / fall)
    height = 1 + shimmer * rng.standard_normal(int(period[-1]) + 1) if period.size else np.ones(1)
    return resample_poly(flow * height[period], 1, SOURCE_OVERSAMPLING)


def _formant_filter(source: np.ndarray, formants_hz: np.ndarray) -> np.ndarray:
    """Filter source [L] by a cascade of resonators (Klatt 1980) that move with formants_hz [L / BLOCK_SAMPLES + 1, 3]."""
    n_blocks = source.size // BLOCK_SAMPLES
    upper = np.broadcast_to(formants_hz[:, :1] * 0 + np.array([3500.0, 4500.0]), (len(formants_hz), 2))
    centre_hz = np.clip(np.concatenate([formants_hz, upper], axis=1), 150, 7500)
    width_hz = np.array([70.0, 90.0, 130.0, 200.0, 300.0])
    radius = np.exp(-np.pi * width_hz / SAMPLE_RATE)
    a1 = -2 * radius * np.cos(2 * np.pi * centre_hz / SAMPLE_RATE)  # [n, 5]
    a2 = np.broadcast_to(radius**2, a1.shape)
    zero, one = np.zeros_like(a1), np.ones_like(a1)
    sections = np.stack([1 + a1 + a2, zero, zero, one, a1, a2], axis=-1)  # [n, 5, 6]
    state = np.zeros((sections.shape[1], 2))
    wave = np.empty_like(source)
    for block in range(n_blocks):
        part = slice(block * BLOCK_SAMPLES, (block + 1) * BLOCK_SAMPLES)
        wave[part], state = sosfilt(sections[block], source[part], zi=state)
    return wave


@lru_cache(maxsize=256)
def _band(low_hz: float, high_hz: float) -> np.ndarray:
    return butter(2, (low_hz, min(high_hz, 7800.0)), "bandpass", fs=SAMPLE_RATE, output="sos")


def _add_noise(
    wave: np.ndarray, rng: np.random.Generator, start_sec: float, length_sec: float,
    low_hz: float, high_hz: float, level: float, decay: bool,
) -> None:  # fmt: skip
    start = round(start_sec * SAMPLE_RATE)
    n_samples = min(round((length_sec + 0.015) * SAMPLE_RATE), wave.size - start)
    noise = sosfilt(_band(round(low_hz, -1), high_hz), rng.standard_normal(n_samples))
    noise *= level / np.sqrt(np.mean(noise**2) + 1e-12)
    at_sec = np.arange(n_samples) / SAMPLE_RATE
    shape = np.exp(-at_sec / 0.012) if decay else _bump(at_sec, 0.0, n_samples / SAMPLE_RATE, 0.02)
    wave[start : start + n_samples] += noise * shape
