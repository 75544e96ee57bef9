"""Size and cost of models: parameters, multiply-adds, real-time factors, latency, memory; SEMamba and every recipe.

    python -m evaluation.complexity_analysis --output_csv results/complexity.csv --n_runs 5

The weights are random, because nothing here depends on them. Each recipe is measured in a process of its own. Multiply-adds
(MACs) are those of matrix products, convolutions and scans; normalisations, activations and the STFT are not counted.
--peers times other programs (evaluation.peers) in the same run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from evaluation.benchmarks.live import stream_noise
from evaluation.benchmarks.network import recipes
from evaluation.peers import PEERS, enhance
from evaluation.reporting.tables import latex_escape, write_text
from evaluation.testset.manifest import SAMPLE_RATE_HZ
from evaluation.testset.runs import command_line
from models.generator import SEMamba
from models.inference.enhancer import Enhancer
from models.inference.streaming import StreamingEnhancer
from models.ops.backend import describe_backend, resolve_backend
from models.pretrained import ARCHITECTURES
from utils.config import load_config
from utils.console import Parser, run
from utils.util import pick_device, write_csv

VISUAL_ENCODER = "visual_encoder."
COLUMNS = {  # of the CSV: (heading of the tables, digits)
    "parameters_m": ("params M", 2), "trained_m": ("trained M", 2), "parameters_without_encoder_m": ("no v.e. M", 2),
    "trained_without_encoder_m": ("trained, no v.e. M", 2), "macs_sound_g": ("GMAC/s sound", 2),
    "macs_face_g": ("GMAC/s +face", 2), "rtf_sound": ("RTF sound", 3), "rtf_face": ("RTF +face", 3),
    "rtf_stream": ("RTF live", 3), "rtf_stream_face": ("RTF live +face", 3), "worst_chunk_ms": ("worst chunk ms", 1),
    "latency_ms": ("latency ms", 0), "cpu_peak_mb": ("CPU MB", 0), "gpu_peak_mb": ("GPU MB", 0),
}  # fmt: skip
STREAM_THREADS = 1  # in many small steps more threads would wait for each other


def count_parameters(model: torch.nn.Module) -> dict[str, float]:
    """Millions of parameters, in all and trained, with and without the visual encoder."""
    counts = dict.fromkeys(list(COLUMNS)[:4], 0)
    for name, weight in model.named_parameters():
        inside = name.startswith(VISUAL_ENCODER)
        for key, counted in (
            ("parameters_m", True), ("trained_m", weight.requires_grad), ("parameters_without_encoder_m", not inside),
            ("trained_without_encoder_m", weight.requires_grad and not inside),
        ):  # fmt: skip
            counts[key] += weight.numel() if counted else 0
    return {key: value / 1e6 for key, value in counts.items()}


def count_macs(call) -> int:
    """Multiply-adds of `call()`, by torch's counter and the formulas of our compiled operations.

    ValueError unless the scan is the compiled one: plain tensor operations have no formulas and would not be counted.
    """
    if resolve_backend("cpu") != "numba":
        raise ValueError("MACs are counted with the compiled scan (LITEAVSE_SCAN=numba), which is not in use")
    with torch.no_grad():
        call()  # compiled operations register their formulas at their first use, which must be before the counter starts
        with FlopCounterMode(display=False) as counter:
            call()
    return counter.get_total_flops() // 2


def _inputs(cfg: Mapping, seconds: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Magnitude and phase [1, F, T] and video [1, 3, V, S, S] of this many seconds."""
    stft, visual, rng = cfg["stft_cfg"], cfg["visual_cfg"], torch.Generator().manual_seed(0)
    frames = round(seconds * stft["sampling_rate"] / stft["hop_size"])
    mag, pha = (torch.rand(1, stft["n_fft"] // 2 + 1, frames, generator=rng) for _ in range(2))
    size, n_video = visual["face_size"], round(seconds * visual["video_fps"])
    return mag, pha, torch.rand(1, visual["visual_channels"], n_video, size, size, generator=rng)


def macs_per_second(model: SEMamba, cfg: Mapping) -> dict[str, float | None]:
    """Billions of multiply-adds per second of sound, without and with the video."""
    mag, pha, video = _inputs(cfg, 1.0)
    found = {"macs_sound_g": count_macs(lambda: model(mag, pha)) / 1e9, "macs_face_g": None}
    if getattr(model, "use_visual", False):
        found["macs_face_g"] = count_macs(lambda: model(mag, pha, video)) / 1e9
    return found


def offline_rtf(enhancer: Enhancer, seconds: float, n_runs: int) -> dict[str, float | None]:
    """Median seconds of computing per second of sound of the whole pipeline, without and with the video."""
    rng, size = np.random.default_rng(0), enhancer.face_size
    wav = 0.1 * rng.standard_normal(round(seconds * enhancer.sample_rate)).astype(np.float32)
    face = rng.integers(0, 255, (round(seconds * enhancer.video_fps), size, size, 3), dtype=np.uint8)
    found: dict[str, float | None] = {"rtf_sound": None, "rtf_face": None}
    for key, video in (("rtf_sound", None), ("rtf_face", face)):
        if video is None or enhancer.uses_video:
            enhancer.enhance(wav, enhancer.sample_rate, video)
            times = [enhancer.enhance(wav, enhancer.sample_rate, video).seconds for _ in range(n_runs)]
            found[key] = statistics.median(times) / seconds
    return found


def streaming(enhancer: Enhancer, seconds: float, n_runs: int) -> dict[str, float | None]:
    """Median real-time factors without and with the video, worst call and latency of live streams; None unless it is causal."""
    found: dict[str, float | None] = dict.fromkeys(("rtf_stream", "rtf_stream_face", "worst_chunk_ms", "latency_ms"))
    if not enhancer.model.causal:
        return found
    rng, worst = np.random.default_rng(0), []
    stream = StreamingEnhancer(enhancer, threads=STREAM_THREADS)
    for key, face in (("rtf_stream", False), ("rtf_stream_face", True)):
        if face and not enhancer.uses_video:
            continue
        stream.reset()
        stream_noise(stream, rng, face, 0.5)  # the first calls are slow
        rtfs = []
        for _ in range(n_runs):
            stream.reset()
            worst += stream_noise(stream, rng, face, seconds)
            rtfs.append(stream.readout().rtf)
        found[key] = statistics.median(rtfs)
    latency_ms = 1e3 * stream.readout().latency_samples / stream.sample_rate
    return found | {"worst_chunk_ms": max(worst), "latency_ms": latency_ms}


def _resident_bytes(largest: bool) -> int | None:
    """Resident memory of this process, now or its peak since the last reset; None on systems other than Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    key = "VmHWM:" if largest else "VmRSS:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def _watch_memory() -> int | None:
    """Forget the peak of this process's memory; resident bytes now, None on systems other than Linux."""
    before = _resident_bytes(False)
    if before is not None:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
    return before


def _peak_mb(before: int | None) -> float | None:
    """MB from what `_watch_memory` gave to the peak since then."""
    return None if before is None else (_resident_bytes(True) - before) / 1e6


def peak_memory(architecture: str, cfg: Mapping, device: torch.device, seconds: float) -> tuple[Enhancer, dict]:
    """Build the model and enhance once: (the enhancer, the peak of memory in MB on CPU and GPU, weights included)."""
    before = _watch_memory()
    enhancer = Enhancer(ARCHITECTURES[architecture](cfg), cfg, device)
    offline_rtf(enhancer, seconds, 1)
    found: dict[str, float | None] = {"cpu_peak_mb": _peak_mb(before), "gpu_peak_mb": None}
    if device.type == "cuda":
        found["gpu_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return enhancer, found


def analyse(name: str, architecture: str, cfg: Mapping, device: str, threads: int, n_runs: int, seconds: float) -> dict:
    """One row, measured in this process; MACs and streaming are the CPU's."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    enhancer, memory = peak_memory(architecture, cfg, torch.device(device), seconds)
    found = {"recipe": name, **count_parameters(enhancer.model), **memory, **offline_rtf(enhancer, seconds, n_runs)}
    model = enhancer.model.to("cpu")
    alone = Enhancer(model, cfg, torch.device("cpu"))
    return found | macs_per_second(model, cfg) | streaming(alone, seconds, n_runs)


def analyse_peer(name: str, n_runs: int, seconds: float) -> dict:
    """The row of another program, on one thread: its frames one by one, which is a stream as well as a file."""
    wav = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)
    peer, before = PEERS[name], _watch_memory()
    runs = [enhance(peer, wav)[1] for _ in range(n_runs + 1)][1:]
    rtf = statistics.median(sum(spent) for spent in runs) / seconds
    return dict.fromkeys(COLUMNS) | {
        "recipe": peer.name, "rtf_sound": rtf, "rtf_stream": rtf, "worst_chunk_ms": 1e3 * max(max(spent) for spent in runs),
        "latency_ms": 1e3 * (peer.delay + peer.frame) / peer.rate, "cpu_peak_mb": _peak_mb(before),
    }  # fmt: skip


def read_recipe(path: str) -> tuple[str, str, dict]:
    """(name, architecture, configuration) of a recipe; one with visual_cfg or lite_cfg is LiteAVSEMamba's."""
    cfg = load_config(path, ["visual_cfg.backbone_weights=none"])
    sections = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    return Path(path).stem, "LiteAVSEMamba" if {"visual_cfg", "lite_cfg"} & set(sections) else "SEMamba", cfg


def show(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def text_table(rows: Sequence[Mapping]) -> str:
    """For the terminal: a line per quantity, a column per recipe."""
    width = max(len(row["recipe"]) for row in rows) + 2
    names = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    lines = [f"{'':20}" + "".join(f"{row['recipe']:>{width}}" for row in rows)]
    lines += [
        f"{COLUMNS[key][0]:20}" + "".join(f"{show(row[key], COLUMNS[key][1]):>{width}}" for row in rows) for key in names
    ]
    return "\n".join(lines)


def latex_table(rows: Sequence[Mapping], note: str) -> str:
    """A line per recipe; needs booktabs and graphicx."""
    names = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    lines = [
        r"\begin{table*}[t]", r"\centering", r"\footnotesize", rf"\caption{{Size and cost. {latex_escape(note)}}}",
        r"\label{tab:complexity}", r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * len(names)}}}", r"\toprule",
        "Recipe & " + " & ".join(latex_escape(COLUMNS[key][0]) for key in names) + r" \\", r"\midrule",
    ]  # fmt: skip
    for row in rows:
        cells = [show(row[key], COLUMNS[key][1]) for key in names]
        lines.append(" & ".join([latex_escape(row["recipe"]), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""])


def compare(args: argparse.Namespace, command: str) -> int:
    """Measure, print, write the CSV and the LaTeX table beside it."""
    if args.n_runs < 1 or args.threads < 1 or not 0.5 <= args.duration_sec <= 60:
        raise ValueError("--n_runs and --threads should be 1 or more, --duration_sec between 0.5 and 60")
    chosen = [read_recipe(path) for path in args.config] if args.config else [
        (name, architecture, cfg) for name, (architecture, cfg) in recipes().items()
    ]  # fmt: skip
    device, rows = pick_device(args.device), []
    spawned = multiprocessing.get_context("spawn")
    for recipe in tqdm(chosen, unit="recipe", disable=None):
        with ProcessPoolExecutor(1, mp_context=spawned) as alone:
            job = alone.submit(analyse, *recipe, str(device), args.threads, args.n_runs, args.duration_sec)
            rows.append(job.result())
    for name in args.peers:
        with ProcessPoolExecutor(1, mp_context=spawned) as alone:
            rows.append(alone.submit(analyse_peer, name, args.n_runs, args.duration_sec).result())
    note = (
        f"RTF: whole pipeline on {args.duration_sec:g} s, medians of {args.n_runs}, threads: {args.threads}, {device}. Live: "
        f"in chunks of 25 ms, with face crops where there is a face, CPU threads: {STREAM_THREADS}. v.e.: visual encoder. "
        f"Memory: at its largest, weights included. {describe_backend(device)}."
    )
    print(f"{text_table(rows)}\n{note}")
    write_csv(args.output_csv, rows, ["recipe", *COLUMNS])
    write_text(args.output_csv.with_suffix(".tex"), f"% {command}\n{latex_table(rows, note)}")
    print(f"written to {args.output_csv} and {args.output_csv.with_suffix('.tex')}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("complexity_analysis.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", help="recipes (default: SEMamba's and all of ours)")
    parser.add_argument("--output_csv", type=Path, default=Path("results/complexity.csv"), help="LaTeX is written beside")
    parser.add_argument("--peers", nargs="+", choices=sorted(PEERS), default=[], help="other programs, timed in the same run")
    parser.add_argument("--n_runs", type=int, default=5, help="timed runs, after a warm-up")
    parser.add_argument("--duration_sec", type=float, default=4.0, help="length of the timed sound")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("complexity_analysis.py", lambda: compare(args, command_line("evaluation.complexity_analysis", argv)))


if __name__ == "__main__":
    raise SystemExit(main())
