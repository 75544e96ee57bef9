"""Speed of the scan, the blocks, the models, a training step and the data loader, side by side in one run.

    python -m evaluation.benchmark --output_dir results/benchmark

Every time is the median of repeated runs after a warm-up; what is compared is run in turn (A, B, A, B, ...), so that a
machine whose speed drifts treats both alike. Writes benchmark.json and benchmark.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from evaluation.benchmarks.faces import bench_faces
from evaluation.benchmarks.live import bench_memory, bench_streaming
from evaluation.benchmarks.loader import bench_loader
from evaluation.benchmarks.network import (
    Row,
    bench_block,
    bench_limits,
    bench_models,
    bench_scaling,
    bench_scan,
    bench_training,
)
from models.ops.backend import describe_backend
from utils.console import Parser, run
from utils.util import atomic_write, git_revision, pick_device, write_json

PARTS = ("scan", "block", "models", "streaming", "training", "memory", "scaling", "faces", "loader")


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:d}" if isinstance(value, int) else f"{value:.3g}"


def markdown(report: dict) -> str:
    """The report as one page of tables."""
    lines = ["# Benchmarks", "", f"`{report['command']}`", "", report["machine"], ""]
    for title, rows in report["tables"].items():
        if not rows:
            continue
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(key, "")) for key in columns) + " |" for row in rows] + [""]
    return "\n".join(lines)


def _machine(device: torch.device) -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    gpu = f"; {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    return (
        f"{name}, {torch.get_num_threads()} threads{gpu}; torch {torch.__version__}, Python {platform.python_version()}, "
        f"revision {git_revision()}; {describe_backend(device)}"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="results/benchmark")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each function, after a warm-up")
    parser.add_argument("--longest_sec", type=int, default=30, help="longest clip of the model table")
    parser.add_argument("--loader_list", default=None, help="list of raw clips for the loader's table (default: made for it)")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=None)
    return parser.parse_args(argv)


def measure(
    wanted: Sequence[str], device: torch.device, repeats: int, longest_sec: int, loader_list: str | None = None
) -> dict[str, list[Row]]:
    """The chosen tables by title."""
    tables: dict[str, list[Row]] = {}
    if "scan" in wanted:
        tables["Selective scan"] = bench_scan(device, repeats)
        if device.type == "cpu":
            tables["How close to the machine's limits"] = bench_limits(tables["Selective scan"])
    if "block" in wanted:
        tables["One time-frequency block, one second of sound, C=64"] = bench_block(device, repeats)
    if "models" in wanted:
        tables["Real-time factor of the whole pipeline"] = bench_models(device, repeats, longest_sec)
    if "streaming" in wanted:
        tables["Live, in 25 ms chunks, one thread"] = bench_streaming(device)
    if "training" in wanted:
        tables["Training"] = bench_training(device, repeats)
    if "memory" in wanted:
        tables["Peak memory"] = bench_memory(device)
    if "scaling" in wanted:
        tables["Cost against length and batch, LiteAVSE_small, sound path"] = bench_scaling(device, repeats)
    if "faces" in wanted:
        tables["From a video file to face crops, one core"] = bench_faces(repeats)
    if "loader" in wanted:
        tables["Data loader, one process, files in memory"] = bench_loader(loader_list, repeats)
    return tables


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def work() -> int:
        device = pick_device(args.device)
        tables = measure(args.only or PARTS, device, args.repeats, args.longest_sec, args.loader_list)
        command = "python -m evaluation.benchmark " + " ".join(sys.argv[1:] if argv is None else argv)
        report = {"command": command.strip(), "machine": _machine(device), "tables": tables}
        write_json(Path(args.output_dir) / "benchmark.json", json.loads(json.dumps(report, default=float)))
        with atomic_write(Path(args.output_dir) / "benchmark.md") as temporary:
            temporary.write_text(markdown(report), encoding="utf-8")
        print(markdown(report))
        print(f"written to {args.output_dir}/benchmark.json and benchmark.md")
        return 0

    return run("benchmark", work)


if __name__ == "__main__":
    raise SystemExit(main())
