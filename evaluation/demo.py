"""Enhances the clips in samples/ with and without their video, scores both against the clean sound, and draws one figure."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.reporting.spectrograms import spectrogram_figure
from evaluation.reporting.tables import common_means, complete
from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import write_wav
from models.inference.results import EnhanceResult
from utils import console
from utils.media.formats import VIDEO_EXTENSIONS
from utils.media.sound import load_audio
from utils.scores.metrics import METRICS, TABLE, number, require_scorers, score_clip

ROOT = Path(__file__).resolve().parents[1]
NOISY, AUDIO_ONLY, AUDIO_VISUAL = "noisy", "audio only", "audio-visual"


@dataclass(frozen=True)
class Sample:
    """One clip: a video with the noisy sound inside, and the clean sound beside it."""

    video: Path
    noisy: np.ndarray  # float32 [L]
    clean: np.ndarray  # float32 [L]

    @property
    def name(self) -> str:
        return self.video.stem


def load_samples(folder: Path, sample_rate: int) -> list[Sample]:
    """Every NAME.mp4 (or other video) in `folder` that has NAME_clean.flac beside it, sorted by name.

    FileNotFoundError or ValueError, one line, for a folder that is not there or holds none, and for lengths that differ.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"samples folder {folder} does not exist")
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_EXTENSIONS]
    pairs = [(path, path.with_name(f"{path.stem}_clean.flac")) for path in videos]
    pairs = [(video, clean) for video, clean in pairs if clean.is_file()]
    if not pairs:
        raise ValueError(f"samples folder {folder} holds no pair of NAME.mp4 and NAME_clean.flac")
    samples = [Sample(video, load_audio(video, sample_rate), load_audio(clean, sample_rate)) for video, clean in pairs]
    for sample in samples:
        if len(sample.noisy) != len(sample.clean):
            raise ValueError(
                f"{sample.video} has {len(sample.noisy)} samples, its clean sound {len(sample.clean)}; they must match"
            )
    return samples


def usable_metrics() -> list[str]:
    """Metrics whose packages are installed; the others are named in a line each."""
    usable = []
    for metric in METRICS:
        try:
            require_scorers([metric])
        except ValueError as error:
            print(f"note: {error}")
        else:
            usable.append(metric)
    return usable


def enhance(enhancer: Enhancer, sample: Sample, folder: Path) -> dict[str, EnhanceResult]:
    """Enhance without the video and, where the model can use it, with the video; both are written as .wav."""
    rate = enhancer.sample_rate
    results = {AUDIO_ONLY: enhancer.enhance(sample.noisy, rate)}
    if enhancer.uses_video:
        crops, mask = enhancer.load_video(sample.video, len(sample.noisy) / rate)
        results[AUDIO_VISUAL] = enhancer.enhance(sample.noisy, rate, crops, mask, return_details=True)
    write_wav(folder / f"{sample.name}_noisy.wav", sample.noisy, rate)
    for row, result in results.items():
        write_wav(folder / f"{sample.name}_{row.replace(' ', '_').replace('-', '_')}.wav", result.wav, rate)
        for note in result.notes:
            print(f"note: {sample.name}: {note}")
    return results


def table(scores: Mapping[str, Mapping[str, Mapping]], metrics: Sequence[str]) -> str:
    """Text table of scores[clip][row][metric], with means over the clips that have a score in every row."""
    lines = [f"{'clip':<14}{'':<14}" + "".join(f"{TABLE[metric].heading:>14}" for metric in metrics)]

    def add(clip: str, row: str, values: Mapping[str, float]) -> None:
        cells = (number(values[metric], metric) for metric in metrics)
        lines.append(f"{clip:<14}{row:<14}" + "".join(f"{cell:>14}" for cell in cells))

    for clip, rows in scores.items():
        for place, (row, values) in enumerate(rows.items()):
            add(clip if place == 0 else "", row, values)
    for place, (row, means) in enumerate(common_means(list(scores.values()), metrics).items()):
        add("mean" if place == 0 else "", row, means)
    for clip, rows in scores.items():
        for row, values in rows.items():
            lines += [f"not scored: {clip}, {row}, {metric}: {why}" for metric, why in values["errors"].items()]
    return "\n".join(lines)


def draw(path: Path, sample: Sample, result: EnhanceResult, cfg: Mapping) -> None:
    """Noisy, enhanced and clean spectrogram, their difference, alpha and the gate, as a .png."""
    way = AUDIO_ONLY if result.alpha is None else AUDIO_VISUAL
    sounds = {"noisy": sample.noisy, f"enhanced, {way}": result.wav, "clean": sample.clean}
    spectrogram_figure(path, sample.name, sounds, result, cfg["stft_cfg"])


def report_speed(results: Mapping[str, Mapping[str, EnhanceResult]]) -> str:
    """Real-time factor of each row over all clips."""
    parts = []
    for row in next(iter(results.values())):
        every = [rows[row] for rows in results.values()]
        parts.append(f"{row} {sum(r.seconds for r in every) / sum(r.duration_sec for r in every):.2f}")
    return f"RTF (seconds of computing per second of sound, without decoding the video): {', '.join(parts)}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(prog="evaluation.demo", description=__doc__)
    parser.add_argument("--checkpoint_file", type=Path, default=ROOT / "ckpts" / "LiteAVSE_small.pth",
                        help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--samples", type=Path, default=ROOT / "samples", help="folder of NAME.mp4 and NAME_clean.flac")
    parser.add_argument("--output_dir", type=Path, default=Path("results/demo"), help="folder for the sound and the figure")
    parser.add_argument("--figure", metavar="NAME", help="clip to draw (default: the last by name)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def demonstrate(args: argparse.Namespace) -> int:
    """Enhance, score, draw; EXIT_FAILED when no clip could be scored in any metric."""
    if not args.checkpoint_file.is_file():
        raise FileNotFoundError(
            f"checkpoint {args.checkpoint_file} does not exist; train one with train_lite.py, or name another with "
            "--checkpoint_file"
        )
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device)
    samples = load_samples(args.samples, enhancer.sample_rate)
    drawn = next((sample for sample in samples if sample.name == args.figure), None) if args.figure else samples[-1]
    if drawn is None:
        raise ValueError(f"--figure {args.figure}: the clips are {', '.join(sample.name for sample in samples)}")
    print(enhancer.describe(), flush=True)
    metrics = usable_metrics()
    enhancer.warm_up()
    results, scores = {}, {}
    for sample in samples:
        results[sample.name] = enhance(enhancer, sample, args.output_dir)
        estimates = {NOISY: sample.noisy} | {row: result.wav for row, result in results[sample.name].items()}
        scores[sample.name] = {
            row: score_clip(sample.clean, wav, enhancer.sample_rate, metrics) for row, wav in estimates.items()
        }
    print(f"\n{table(scores, metrics)}\n\n{report_speed(results)}")
    exit_code = 0 if any(complete(list(scores.values()), metric) for metric in metrics) else console.EXIT_FAILED
    print(f"sound: {args.output_dir / '*.wav'}")
    if importlib.util.find_spec("matplotlib") is None:
        print("note: no figure: it needs the matplotlib package, which is not installed: pip install matplotlib")
        return exit_code
    figure = args.output_dir / f"{drawn.name}.png"
    rows = results[drawn.name]
    draw(figure, drawn, rows.get(AUDIO_VISUAL, rows[AUDIO_ONLY]), enhancer.cfg)
    print(f"figure: {figure}")
    return exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parse(argv)
    return console.run("evaluation.demo", lambda: demonstrate(args))


if __name__ == "__main__":
    raise SystemExit(main())
