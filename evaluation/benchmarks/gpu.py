"""The parts of `python -m evaluation.gpu_check`. Each returns its results as rows for JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np
import torch

from evaluation.benchmarks import gpu_training
from evaluation.benchmarks.live import bench_streaming
from evaluation.benchmarks.network import (
    ROOT,
    Row,
    backends,
    fresh_enhancer,
    medians,
    recipes,
    scan_call,
    scan_inputs,
    training_step,
)
from evaluation.benchmarks.scan_errors import all_errors
from models.ops.backend import available_backends, describe_backend
from models.ops.scan_triton import interpreted
from models.pretrained import ARCHITECTURES
from utils.util import git_revision

RECIPE = "LiteAVSE"
TRAINING_BATCHES = (2, 8, 16, 32)
SCAN_BATCHES = (1, 8, 32)  # seconds of sound in a batch
WORST = {"float32": 1e-5, "bfloat16": 1e-2}
_INTERPRET = (
    "import json; from evaluation.benchmarks.scan_errors import all_errors; print(json.dumps(all_errors('triton', 'cpu')))"
)


def versions(device: torch.device) -> list[Row]:
    found: Row = {
        "torch": torch.__version__, "Python": platform.python_version(), "revision": git_revision(),
        "CUDA": torch.version.cuda or "none", "scan": describe_backend(device),
    }  # fmt: skip
    if device.type == "cuda":
        capability = ".".join(str(n) for n in torch.cuda.get_device_capability(device))
        found |= {"GPU": torch.cuda.get_device_name(device), "capability": capability}
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    return [found]


def _interpreter_errors() -> dict[str, dict[str, float]]:
    """Errors of Triton's interpreter. It runs in a process of its own, because Triton chooses it when it is imported."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", _INTERPRET], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ValueError(f"the Triton interpreter: {lines[-1] if lines else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def correctness(device: torch.device) -> list[Row]:
    """Largest relative error of each backend against float64, by case; "right" says whether it is within WORST."""
    found = {name: all_errors(name, device) for name in backends(device) if name != "reference"}
    if device.type == "cpu" and not interpreted():
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401

            found["triton, interpreted"] = _interpreter_errors()
    rows: list[Row] = []
    for name, cases in found.items():
        for case, errors in cases.items():
            kind, worst = case.split()[-1], max(errors.values())
            rows.append({"backend": name, "case": case, "largest error": worst, "right": str(worst <= WORST[kind])})
    return rows


def scans(device: torch.device) -> list[Row]:
    """Forward and backward of the scan along time in LiteAVSE.yaml's size, backend by backend, in turn."""
    rows: list[Row] = []
    for batch in SCAN_BATCHES:
        for backward in (False, True):
            inputs = scan_inputs((100 * batch, 161, 256, 16), device, backward)
            names = [name for name in backends(device) if name != "reference" or batch == 1]
            seconds = medians({name: scan_call(inputs, name, backward) for name in names}, 10)
            rows += [
                {"batch": batch, "pass": "forward + backward" if backward else "forward", "backend": name, "ms": 1e3 * value}
                for name, value in seconds.items()
            ]
    return rows


def _launches(step) -> int:
    """Kernels that one step starts on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)


def training(device: torch.device, deadline: float) -> list[Row]:
    """Training steps of LiteAVSE.yaml with data that is already on the device, until `deadline` (of time.monotonic)."""
    architecture, cfg = recipes()[RECIPE]
    rows: list[Row] = []
    for precision in ("fp32", "tf32", "bf16"):
        for batch in TRAINING_BATCHES:
            if time.monotonic() > deadline:
                rows.append({"precision": precision, "batch": batch, "note": "left out: no time was left"})
                continue
            try:
                found = _training_row(architecture, cfg, batch, precision, device)
                rows.append({"precision": precision, "batch": batch} | found)
            except torch.cuda.OutOfMemoryError:
                rows.append({"precision": precision, "batch": batch, "note": "the GPU's memory is too small"})
            torch.cuda.empty_cache()
    return rows


def _training_row(architecture: str, cfg: dict, batch: int, precision: str, device: torch.device) -> Row:
    cfg = {**cfg, "training_cfg": {**cfg["training_cfg"], "batch_size": batch, "precision": precision}}
    torch.manual_seed(0)
    step = training_step(ARCHITECTURES[architecture](cfg).to(device), cfg, device)
    torch.cuda.reset_peak_memory_stats(device)
    seconds = medians({"step": step}, 5)["step"]
    clips_sec = batch * cfg["training_cfg"]["segment_size"] / cfg["stft_cfg"]["sampling_rate"]
    return {
        "steps/s": 1 / seconds, "seconds of sound/s": clips_sec / seconds,
        "GB at most": torch.cuda.max_memory_allocated(device) / 1e9, "kernel launches": _launches(step),
    }  # fmt: skip


def enhancing(device: torch.device) -> list[Row]:
    """A recording with its face through the whole pipeline, with fresh weights."""
    architecture, cfg = recipes()[RECIPE]
    enhancer, rng = fresh_enhancer(architecture, cfg, device), np.random.default_rng(0)
    rows: list[Row] = []
    for length_sec in (4, 30):
        wav = 0.1 * rng.standard_normal(16000 * length_sec).astype(np.float32)
        video = rng.integers(0, 255, (25 * length_sec, 96, 96, 3), dtype=np.uint8)
        run = {"enhance": lambda wav=wav, video=video: enhancer.enhance(wav, 16000, video=video)}
        spent = medians(run, 3)["enhance"]
        rows.append({"seconds of sound": length_sec, "takes seconds": spent, "RTF": spent / length_sec})
    return rows


def streaming(device: torch.device) -> list[Row]:
    return bench_streaming(device)


def plan() -> list[str]:
    """What is measured on a GPU, in one line per part."""
    return [
        "versions: packages, GPU and the scan backend that is chosen",
        "correctness: every scan backend against float64, all gradients",
        f"scans: forward and backward, batches {SCAN_BATCHES}, each backend in turn (here: {', '.join(available_backends())})",
        f"enhancing: 4 s and 30 s of sound with a face, {RECIPE}.yaml",
        "streaming: live chunks of 25 ms",
        *gpu_training.plan(),
        f"training: steps of {RECIPE}.yaml in fp32, tf32 and bf16, batches {TRAINING_BATCHES}: speed, memory, kernel launches",
    ]
