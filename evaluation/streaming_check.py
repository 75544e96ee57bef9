"""Checks that a checkpoint is causal and streams as it enhances, with its own weights and with made-up sound and faces.

    python -m evaluation.streaming_check --checkpoint_file ckpts/LiteAVSE_small.pth

Prints a line for each promise, with the measured value and the allowed one. The exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from models.inference.crop_stream import CropStream
from models.inference.enhancer import Enhancer
from models.inference.files.stream_file import chunks_with_crops
from models.inference.stream_batch import StreamBatch
from models.inference.streaming import StreamingEnhancer
from models.level import level_gain
from utils.config import load_config
from utils.console import EXIT_FAILED, Parser, run

CHUNKS: dict[str, list[int]] = {
    "1": [1], "100": [100], "400": [400], "401": [401], "4096": [4096],
    "random": np.random.default_rng(0).integers(0, 900, 64).tolist(),
}  # fmt: skip
LEAST_SNR_DB = 110.0
LARGEST_LEAK = 1e-6  # of an output whose input is at about -26 dB
LEAST_CHANGE = 1e-5  # less than this after a change of the input means that the model is dead


class Row(NamedTuple):
    """One promise: its name, the measured value, the allowed one, and whether the promise is kept."""

    name: str
    value: str
    allowed: str
    ok: bool


def made_up_sound(duration_sec: float, sample_rate: int, seed: int) -> np.ndarray:
    """Harmonics and noise whose level rises and falls, float32 [L], RMS 0.05."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_sec * sample_rate)) / sample_rate
    tone = sum(np.sin(2 * np.pi * (110 + 30 * seed) * k * t) / k for k in range(1, 20))
    sound = (1.1 + np.sin(2 * np.pi * 4 * t + seed)) * (tone + rng.standard_normal(len(t)))
    return (0.05 * sound / np.sqrt(np.mean(sound**2))).astype(np.float32)


def made_up_faces(n_frames: int, size: int, seed: int) -> np.ndarray:
    """A pattern that moves only where a mouth would be, uint8 [V, S, S, 3]."""
    rng = np.random.default_rng(seed)
    cells = np.repeat(rng.integers(60, 190, (1, 12, 12, 3)), n_frames, axis=0)
    cells[:, 7:10, 3:9] = rng.integers(0, 255, (n_frames, 3, 6, 3))
    index = np.arange(size) * 12 // size
    return cells[:, index][:, :, index].astype(np.uint8)


def whole_clip(enhancer: Enhancer, wav: np.ndarray, crops: np.ndarray | None) -> np.ndarray:
    """The clip enhanced as a whole, without any of the streaming code: wav [L] -> [L]."""
    gain = level_gain(wav, causal=True, sample_rate=enhancer.sample_rate)
    video = None if crops is None else (crops, np.ones(len(crops), bool))
    return enhancer.run_whole(wav * gain, video, keep_gate=False)[0] / gain


def streamed(enhancer: Enhancer, wav: np.ndarray, sizes: Sequence[int], crops: np.ndarray | None = None) -> np.ndarray:
    """The clip fed in chunks of these sizes, taken in turn; the crops shown until the end of a chunk are fed before it."""
    stream = StreamingEnhancer(enhancer)
    edges = np.cumsum(np.resize(sizes, 2 * len(wav) // max(1, int(np.mean(sizes))) + 2))
    chunks = (piece for piece in np.split(wav, edges[edges < len(wav)]))
    video = None if crops is None else CropStream([(crops, np.ones(len(crops), bool))], len(crops))
    outputs = []
    for samples, frames, times, mask in chunks_with_crops(chunks, video, enhancer.sample_rate, enhancer.video_fps):
        if len(frames):
            stream.feed_video(frames, times, mask)
        outputs.append(stream.feed(samples))
    return np.concatenate([*outputs, stream.flush()])


def snr_db(estimate: np.ndarray, reference: np.ndarray) -> float:
    """The energy of the reference divided by that of the difference, in dB."""
    error = np.square(estimate.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(error, 1e-30)))


def _unchanged_then_changed(name: str, one: np.ndarray, other: np.ndarray, from_sample: int) -> Iterator[Row]:
    change = np.abs(one - other)
    leak, after = float(change[:from_sample].max(initial=0.0)), float(change[from_sample:].max(initial=0.0))
    yield Row(f"{name}: before", f"{leak:.1e}", f"<= {LARGEST_LEAK:g}", leak <= LARGEST_LEAK)
    yield Row(f"{name}: after", f"{after:.1e}", f">= {LEAST_CHANGE:g}", after >= LEAST_CHANGE)


def causality(enhancer: Enhancer, duration_sec: float) -> Iterator[Row]:
    """A change of the sound or of the crops changes the output from the latency on, and nothing before."""
    rate, fps, latency = enhancer.sample_rate, enhancer.video_fps, StreamingEnhancer(enhancer).latency_samples
    wav, new = (made_up_sound(duration_sec, rate, seed) for seed in (0, 1))
    for share in (0.25, 0.6):
        at = int(share * len(wav)) + 37
        other = np.concatenate((wav[:at], new[at:]))
        results = [whole_clip(enhancer, w, None) for w in (wav, other)]
        yield from _unchanged_then_changed(f"sound changed from {at} on, whole clip", *results, at - latency + 1)
        results = [streamed(enhancer, w, [latency]) for w in (wav, other)]
        yield from _unchanged_then_changed(f"sound changed from {at} on, streamed", *results, at - latency + 1)
    if not enhancer.uses_video:
        return
    n_frames = int(duration_sec * fps)
    crops, new_crops = (made_up_faces(n_frames, enhancer.face_size, seed) for seed in (0, 1))
    frame = n_frames // 2
    other_crops = np.concatenate((crops[:frame], new_crops[frame:]))
    at = int(frame / fps * rate) - latency // 2  # the start of the first STFT frame that may see it
    results = [whole_clip(enhancer, wav, c) for c in (crops, other_crops)]
    yield from _unchanged_then_changed(f"video changed from frame {frame} on, whole clip", *results, at)
    results = [streamed(enhancer, wav, [latency], c) for c in (crops, other_crops)]
    yield from _unchanged_then_changed(f"video changed from frame {frame} on, streamed", *results, at)


def equality(enhancer: Enhancer, duration_sec: float) -> Iterator[Row]:
    """The streamed output equals that of the whole clip for all sizes of chunks, in one stream and in a batch of two."""
    rate, fps = enhancer.sample_rate, enhancer.video_fps
    wav = made_up_sound(duration_sec, rate, 0)[:-37]
    videos: dict[str, np.ndarray | None] = {"sound alone": None}
    if enhancer.uses_video:
        videos["with video"] = made_up_faces(int(duration_sec * fps) - 3, enhancer.face_size, 0)
    for label, crops in videos.items():
        reference = whole_clip(enhancer, wav, crops)
        results = {f"chunks of {name}": streamed(enhancer, wav, sizes, crops) for name, sizes in CHUNKS.items()}
        results["Enhancer.enhance"] = enhancer.enhance(wav, rate, crops).wav
        for name, result in results.items():
            snr = snr_db(result, reference) if result.shape == wav.shape else float("-inf")
            yield Row(f"{label}, {name}: SNR in dB", f"{snr:.1f}", f">= {LEAST_SNR_DB:g}", snr >= LEAST_SNR_DB)
    two = np.stack((wav, 0.3 * made_up_sound(duration_sec, rate, 1)[:-37]))
    batch = StreamBatch(enhancer.model, enhancer.cfg, streams=2)
    outputs = [batch.feed(two[:, first : first + 400]) for first in range(0, len(wav), 400)]
    out = np.concatenate([*outputs, batch.flush()], axis=1)
    snr = min(snr_db(out[row], whole_clip(enhancer, two[row], None)) for row in (0, 1))
    yield Row("two streams in a batch: SNR in dB", f"{snr:.1f}", f">= {LEAST_SNR_DB:g}", snr >= LEAST_SNR_DB)


def impulse_latency(enhancer: Enhancer) -> Row:
    """How many samples after an impulse have to be fed until it is in the output; the worst case within a hop."""
    hop, latency = enhancer.cfg["stft_cfg"]["hop_size"], StreamingEnhancer(enhancer).latency_samples
    base = 0.2 * made_up_sound(0.3, enhancer.sample_rate, 0)
    worst, heard_of = 0, True
    for at in range(10 * hop, 11 * hop, max(1, hop // 3)):  # an impulse at a multiple of the hop waits longest
        struck = base.copy()
        struck[at] += 0.5
        plain, stream = StreamingEnhancer(enhancer), StreamingEnhancer(enhancer)
        quiet, loud = [plain.feed(base[:at])], [stream.feed(struck[:at])]
        heard = at
        while sum(map(len, loud)) <= at and heard < len(base):
            quiet.append(plain.feed(base[heard : heard + 1]))
            loud.append(stream.feed(struck[heard : heard + 1]))
            heard += 1
        worst = max(worst, heard - at)
        heard_of &= float(np.abs(np.concatenate(loud) - np.concatenate(quiet)).max()) > LEAST_CHANGE  # in the output up to now
    return Row("impulse in to impulse out, in samples", f"{worst}{'' if heard_of else ', not heard'}", f"<= {latency}",
               heard_of and worst <= latency)


def check(enhancer: Enhancer, duration_sec: float = 1.0) -> list[Row]:
    """Checks all promises; ValueError for a model that is not causal."""
    if not enhancer.model.causal:
        raise ValueError(f"{enhancer.name} is not causal (model_cfg.causal: false), so it makes no promise to check")
    enhancer.warm_up()
    return [*causality(enhancer, duration_sec), *equality(enhancer, duration_sec), impulse_latency(enhancer)]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("streaming_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_file", default="ckpts/LiteAVSE_small.pth")
    parser.add_argument("--config", help="recipe, for checkpoints without a configuration")
    parser.add_argument("--duration_sec", type=float, default=1.0, help="length of the made-up clip")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    if not 0.5 <= args.duration_sec <= 60:
        parser.error(f"--duration_sec is {args.duration_sec:g}, it should be between 0.5 and 60")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def body() -> int:
        config = load_config(args.config) if args.config else None
        enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device, config)
        rows = check(enhancer, args.duration_sec)
        print(enhancer.describe())
        for row in rows:
            print(f"{row.name:52s}{row.value:>16s}  {row.allowed:12s}{'ok' if row.ok else 'BROKEN'}")
        broken = [row for row in rows if not row.ok]
        print(f"{len(rows) - len(broken)} of {len(rows)} hold")
        return EXIT_FAILED if broken else 0

    return run("streaming_check.py", body)


if __name__ == "__main__":
    raise SystemExit(main())
