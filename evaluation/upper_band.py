"""How the band above 8 kHz comes back: wide-band speech and noise at 48 kHz are made, enhanced and measured.

    python -m evaluation.upper_band --output_dir results/upper_band

The speech of samples/ has no sound above 8 kHz. It gets a band of noise there whose level follows that of its own 4 to 6 kHz
and falls by 12 dB per octave, as fricatives do. Noise is added over the whole band. The output folder receives clean/, noisy/,
full/ and 16k/; folders of other programs' outputs with the same names are given with --others. Printed for each, over all
clips: the level above 8 kHz relative to all (dB), the log-spectral distance to the clean speech above 8 kHz (dB), and the seam:
the largest deviation of the long-term spectrum at 7.5 to 8.5 kHz from a line through both sides (dB).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from models.inference.enhancer import Enhancer
from models.inference.upper_band import BANDS
from utils.console import Parser, run
from utils.media.short_resampler import convert
from utils.media.sound import load_audio

RATE, LOW_RATE, EDGE_HZ = 48000, 16000, 8000
SPEECH_RATE = 14000  # above half of it samples/ has lost what its own way to 16 kHz took
KINDS = {"white": 0.0, "pink": 0.5}  # kind of noise -> how its magnitude falls with frequency: f^-exponent
FRAME, HOP = 1024, 512
FLOOR_DB = 80.0  # below the clean clip's largest bin: what is quieter counts as this


def shaped_noise(n_samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise [n] at RATE whose magnitude falls as f^-exponent from 50 Hz on, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    frequency = np.maximum(np.fft.rfftfreq(n_samples, 1 / RATE), 50.0)
    noise = np.fft.irfft(spectrum * frequency**-exponent, n_samples)
    return noise / np.sqrt(np.mean(noise**2))


def band(wav: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Return what of wav [n] at RATE lies between two frequencies."""
    spectrum = np.fft.rfft(wav)
    frequency = np.fft.rfftfreq(len(wav), 1 / RATE)
    return np.fft.irfft(np.where((frequency >= low_hz) & (frequency < high_hz), spectrum, 0), len(wav))


def wide_band(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech [n] at LOW_RATE -> [3 n] at RATE whose band above SPEECH_RATE / 2 is noise that follows its 4 to 6 kHz."""
    low = convert(convert(speech, LOW_RATE, SPEECH_RATE), SPEECH_RATE, RATE)
    noise = shaped_noise(len(low), 2.0, rng)  # 12 dB per octave
    dull = convert(convert(noise.astype(np.float32), RATE, SPEECH_RATE), SPEECH_RATE, RATE)
    noise = noise[: len(dull)] - dull[: len(noise)]  # it meets `low` without a gap
    low = low[: len(noise)]
    width = RATE // 100
    envelope = np.sqrt(np.convolve(band(low, 4000, 6000) ** 2, np.ones(width) / width, "same"))
    # At 8 kHz there is as much power per Hz as between 4 and 6 kHz.
    density = np.mean(band(noise, EDGE_HZ, EDGE_HZ + 500) ** 2) / 500
    return (low + noise * envelope / np.sqrt(2000 * density)).astype(np.float32)


def spectra(wav: np.ndarray) -> np.ndarray:
    """Power of Hann-windowed frames, [frames, FRAME // 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(wav, FRAME)[::HOP]
    return np.square(np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)))


def measure(wav: np.ndarray, clean: np.ndarray) -> tuple[float, float, float]:
    """Return level above EDGE_HZ, log-spectral distance there and the seam, in dB, of wav [n] beside the clean speech [n]."""
    made, wanted = spectra(wav), spectra(clean)
    frequency = np.fft.rfftfreq(FRAME, 1 / RATE)
    high = frequency >= EDGE_HZ + 250  # the filters' own slope is not counted
    floor = wanted.max() * 10 ** (-FLOOR_DB / 10)
    level = 10 * np.log10(made[:, high].sum() / made.sum())
    distance = 10 * np.log10(np.maximum(made[:, high], floor) / np.maximum(wanted[:, high], floor))
    mean_db = 10 * np.log10(np.maximum(made.mean(axis=0), floor * 1e-3))
    near = (frequency >= 6500) & (frequency <= 9500)
    inside = (frequency >= 7500) & (frequency <= 8500)
    line = np.polyval(np.polyfit(frequency[near & ~inside], mean_db[near & ~inside], 1), frequency[inside])
    return float(level), float(np.sqrt((distance**2).mean(axis=1)).mean()), float(np.abs(mean_db[inside] - line).max())


def build_clips(samples: Path, output: Path, snr_db: float, seed: int) -> list[str]:
    """Write clean/ and noisy/ into the output folder and return the names of the clips."""
    names = []
    for number, path in enumerate(sorted(samples.glob("*_clean.flac"))):
        for kind, exponent in KINDS.items():
            rng = np.random.default_rng([seed, number])
            clean = wide_band(load_audio(path, LOW_RATE), rng)
            noise = shaped_noise(len(clean), exponent, rng)
            noisy = clean + noise * np.sqrt(np.mean(clean**2)) * 10 ** (-snr_db / 20)
            names.append(f"{path.stem.removesuffix('_clean')}_{kind}.wav")
            for folder, wav in (("clean", clean), ("noisy", noisy)):
                (output / folder).mkdir(parents=True, exist_ok=True)
                soundfile.write(output / folder / names[-1], 0.25 * wav / np.abs(noisy).max(), RATE, subtype="FLOAT")
    if not names:
        raise ValueError(f"{samples} holds no *_clean.flac")
    return names


def parser() -> Parser:
    parser = Parser(prog="python -m evaluation.upper_band", description=__doc__)
    parser.add_argument("--checkpoint_file", type=Path, default=Path("ckpts/LiteAVSE_small.pth"), help="the model")
    parser.add_argument("--samples", type=Path, default=Path("samples"), help="folder with *_clean.flac (default: samples)")
    parser.add_argument("--output_dir", type=Path, default=Path("results/upper_band"), help="where all sounds are written")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders of other programs' outputs, same names")
    parser.add_argument("--snr_db", type=float, default=5.0, help="signal-to-noise ratio over the whole band (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the noises (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parser().parse_args(argv)

    def body() -> int:
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, "cpu")
        print(enhancer.describe())
        names = build_clips(args.samples, args.output_dir, args.snr_db, args.seed)
        for kind in BANDS:
            (args.output_dir / kind).mkdir(exist_ok=True)
            for name in names:
                noisy, _ = soundfile.read(args.output_dir / "noisy" / name, dtype="float32")
                result = enhancer.enhance(noisy, RATE, band=kind)
                soundfile.write(args.output_dir / kind / name, result.wav, RATE, subtype="FLOAT")
        print(f"{'sound':<12}{'level above 8 kHz':>20}{'LSD above 8 kHz':>18}{'seam':>8}   (dB, {len(names)} clips)")
        for folder in [args.output_dir / name for name in ("clean", "noisy", *BANDS)] + args.others:
            values = []
            for name in names:
                clean, wav = (load_audio(place / name, RATE) for place in (args.output_dir / "clean", folder))
                values.append(measure(wav[: len(clean)], clean[: len(wav)]))
            level, distance, seam = np.mean(values, axis=0)
            print(f"{folder.name:<12}{level:>20.1f}{distance:>18.1f}{seam:>8.1f}")
        return 0

    return run("python -m evaluation.upper_band", body)


if __name__ == "__main__":
    raise SystemExit(main())
