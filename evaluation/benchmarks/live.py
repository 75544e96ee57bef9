"""The benchmark's tables of live streams and of peak memory."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from evaluation.benchmarks.network import (
    SCAN_SHAPES,
    Row,
    backends,
    fresh_enhancer,
    recipes,
    scan_call,
    scan_inputs,
    training_step,
)
from models.inference.streaming import StreamingEnhancer
from models.pretrained import ARCHITECTURES

LIVE_SEC = 4


def bench_streaming(device: torch.device) -> list[Row]:
    """A live stream in 25 ms chunks with and without the face, on one thread: real-time factor, and the time of a chunk."""
    rng, rows = np.random.default_rng(0), []
    for name in ("LiteAVSE_small", "LiteAVSE"):
        architecture, cfg = recipes()[name]
        enhancer = fresh_enhancer(architecture, cfg, device)
        for face in (False, True):
            stream = StreamingEnhancer(enhancer)
            for _ in range(2):  # the first time is the warm-up
                stream.reset()
                spent_ms = stream_noise(stream, rng, face, LIVE_SEC)
            readout = stream.readout()
            rows.append({
                "recipe": name, "input": "sound and face" if face else "sound", "RTF": readout.rtf,
                "median chunk ms": statistics.median(spent_ms), "worst chunk ms": max(spent_ms),
                "latency ms": 1e3 * readout.latency_samples / stream.sample_rate,
            })  # fmt: skip
    return rows


def stream_noise(stream: StreamingEnhancer, rng: np.random.Generator, face: bool, seconds: float) -> list[float]:
    """Streams noise in chunks of 25 ms, and noise for faces; returns the ms of each chunk, with those of its crops."""
    size, spent_ms, shown = stream.sample_rate // 40, [], 0
    for chunk in range(round(seconds * 40)):
        before = stream.readout().compute_sec
        while face and shown / 25 < (chunk + 1) / 40:
            stream.feed_video(rng.integers(0, 255, (1, 96, 96, 3), dtype=np.uint8), np.array([shown / 25]))
            shown += 1
        stream.feed(0.1 * rng.standard_normal(size).astype(np.float32))
        spent_ms.append(1e3 * (stream.readout().compute_sec - before))
    return spent_ms


def _grown_by(seconds_between: float, function: Callable[[], object]) -> int:
    """The most bytes by which this process's resident memory grows while `function` runs (sampled)."""
    page, statm = os.sysconf("SC_PAGE_SIZE"), Path("/proc/self/statm")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page

    before, largest, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(seconds_between):
            largest[0] = max(largest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        largest[0] = max(largest[0], resident())
        done.set()
        watcher.join()
    return largest[0] - before


def _memory_of(kind: str, name: str) -> Row:
    """One row of the memory table, measured in a process of its own, since the next run would use memory that one frees."""
    torch.manual_seed(0)
    if kind == "scan":
        label, shape = next(iter(SCAN_SHAPES.items()))
        device = torch.device("cpu")
        scan_call(scan_inputs((1, 2, 64, shape[3]), device, True), name, True)()  # compiled code, thread pools
        inputs = scan_inputs(shape, device, True)
        size = sum(value.nbytes for value in inputs.values())
        grown = _grown_by(1e-3, scan_call(inputs, name, True))
        return {"what": f"scan forward + backward, {name}, {label}", "peak MB": grown / 1e6, "times its inputs": grown / size}
    architecture, cfg = recipes()[name]
    if kind == "training":
        step = training_step(ARCHITECTURES[architecture](cfg), cfg, torch.device("cpu"))
        what = f"training step, {name}, batch {cfg['training_cfg']['batch_size']}"
        return {"what": what, "peak MB": _grown_by(1e-2, step) / 1e6}
    enhancer = fresh_enhancer(architecture, cfg, torch.device("cpu"))
    enhancer.warm_up()
    wav = 0.1 * np.random.default_rng(0).standard_normal(64000).astype(np.float32)
    return {"what": f"enhancing 4 s, {name}, sound", "peak MB": _grown_by(1e-3, lambda: enhancer.enhance(wav, 16000)) / 1e6}


def bench_memory(device: torch.device) -> list[Row]:
    """Peak memory beyond that of the model and its inputs."""
    if device.type != "cpu" or not Path("/proc/self/statm").exists():
        return []
    jobs = [("scan", name) for name in backends(device)]
    jobs += [("enhance", name) for name in ("LiteAVSE_small", "LiteAVSE", "SEMamba_advanced")]
    jobs += [("training", name) for name in ("LiteAVSE_small", "LiteAVSE")]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return [pool.submit(_memory_of, *job).result() for job in jobs]
