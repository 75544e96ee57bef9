"""Checks this code on a GPU: correctness, speed and memory, in at most eight minutes.

    python -m evaluation.gpu_check --output_dir results/gpu

Writes gpu_check.json after each part, so that a run that is cut off leaves what it found. Without a GPU it says what it would
measure, and compares the CPU's kernels, and Triton's in its interpreter where Triton is installed, with float64.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from evaluation.benchmarks import gpu, gpu_training
from evaluation.benchmarks.network import Row
from utils.console import EXIT_FAILED, Parser, one_line, run
from utils.util import pick_device, write_json


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("gpu_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="results/gpu")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--limit_sec", type=float, default=480, help="no part begins after this many seconds")
    return parser.parse_args(argv)


def parts_for(device: torch.device, deadline: float) -> dict[str, Callable[[], list[Row]]]:
    """The parts that can run on the device, in order; the longest is the last."""
    parts: dict[str, Callable[[], list[Row]]] = {
        "versions": lambda: gpu.versions(device), "correctness": lambda: gpu.correctness(device)
    }  # fmt: skip
    if device.type == "cuda":
        parts |= {
            "scans": lambda: gpu.scans(device), "enhancing": lambda: gpu.enhancing(device),
            "streaming": lambda: gpu.streaming(device),
            **{name: functools.partial(part, device) for name, part in gpu_training.PARTS.items()},
            "training": lambda: gpu.training(device, deadline - 30),
        }  # fmt: skip
    return parts


def check(device: torch.device, limit_sec: float, path: Path) -> bool:
    """Runs the parts and writes `path` after each; returns whether all ran and every backend is right."""
    started, report, good = time.monotonic(), {"device": str(device), "parts": {}, "not run": {}}, True
    for name, part in parts_for(device, started + limit_sec).items():
        begun = time.monotonic()
        if begun - started > limit_sec:
            report["not run"][name] = f"{limit_sec:g} s were over"
        else:
            try:
                rows = part()
                report["parts"][name] = {"seconds": round(time.monotonic() - begun, 1), "rows": rows}
                good &= all(row.get("right") != "False" for row in rows)
                print(f"{name}: done in {time.monotonic() - begun:.1f} s", flush=True)
            except Exception as error:  # a part that fails must not stop the others
                report["not run"][name] = one_line(error)
        if name in report["not run"]:
            good = False
            print(f"{name}: not run, {report['not run'][name]}", flush=True)
        write_json(path, report)
    return good


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)

    def body() -> int:
        device = pick_device(args.device)
        output = Path(args.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        if device.type != "cuda":
            print("There is no GPU here, or --device says cpu. On a GPU this would measure:")
            print("\n".join(f"  {line}" for line in gpu.plan()))
        good = check(device, args.limit_sec, output / "gpu_check.json")
        print(f"wrote {output / 'gpu_check.json'}")
        return 0 if good else EXIT_FAILED

    return run("gpu_check.py", body)


if __name__ == "__main__":
    sys.exit(main())
