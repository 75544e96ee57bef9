"""The parts of gpu_check that train: train_lite.py in processes of its own, on the faces in samples/.

Each returns rows that go into JSON as they are; "right" says whether what must be so is so.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch

from evaluation.benchmarks.loader import drawn_clips, prepare
from evaluation.benchmarks.network import ROOT, Row
from utils.checkpoint import latest_pair, load_checkpoint
from utils.config import load_config
from utils.console import EXIT_INTERRUPTED
from utils.distributed import free_port
from utils.util import write_json

CONFIG = ROOT / "recipes" / "LiteAVSE" / "LiteAVSE.yaml"
WORKERS = (4, 8, 15)
STEPS = 20
LIMIT_SEC = 150  # of one training
# No download, no validation on the way, and each step in the log.
OPTIONS = (
    "visual_cfg.backbone_weights=none", "visual_cfg.face_crop=none", "env_setting.stdout_interval=1",
    "env_setting.validation_interval=100000", "training_cfg.training_epochs=1000", "training_cfg.clips_per_epoch=64",
)  # fmt: skip


@contextmanager
def corpus() -> Iterator[tuple[Path, list[str]]]:
    """A folder with crops of the drawn clips and noise, and the overrides that name them."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        clips, _ = prepare(drawn_clips(folder), folder, load_config(CONFIG, ["visual_cfg.face_crop=center"]))
        soundfile.write(folder / "noise.wav", 0.1 * rng.standard_normal(160_000), 16000)
        write_json(folder / "noise.json", ["noise.wav"])
        lists = {"data_json": clips, "noise_json": folder / "noise.json"}
        yield folder, [f"data_cfg.{split}_{kind}={path}" for split in ("train", "valid") for kind, path in lists.items()]


def start(
    device: torch.device, folder: Path, name: str, overrides: list[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """A training in folder/name, as a user starts it."""
    command = [sys.executable, "train_lite.py", "--config", str(CONFIG), "--exp_folder", str(folder), "--exp_name", name,
               "--device", device.type, "--override", *OPTIONS, *overrides]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """What a training said; ValueError, with its last line, where it did not end with `code` in time."""
    try:
        said, _ = process.communicate(timeout=LIMIT_SEC)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise ValueError(f"a training did not end within {LIMIT_SEC} s") from None
    if process.returncode != code:
        raise ValueError(f"a training ended with code {process.returncode}: {(said.strip().splitlines() or ['silently'])[-1]}")
    return said


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(latest_pair(run)[0])["generator"]


def real_steps(device: torch.device) -> list[Row]:
    """Steps with clips that are read, mixed and degraded by the loader, for several numbers of its workers."""
    rows: list[Row] = []
    with corpus() as (folder, lists):
        for workers in WORKERS:
            name = f"workers_{workers}"
            options = [f"training_cfg.max_steps={STEPS}", f"env_setting.num_workers={workers}"]
            finish(start(device, folder, name, [*lists, *options]))
            lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
            seconds = [line["step_sec"] for line in lines if line["kind"] == "train"][STEPS // 4 :]  # after the start
            rows.append({"workers": workers, "steps/s": 1 / statistics.mean(seconds), "slowest step in s": max(seconds)})
    return rows


def resume(device: torch.device) -> list[Row]:
    """Six steps in one go, and in two parts: the weights must be equal bit for bit."""
    with corpus() as (folder, lists):
        for name, last in (("whole", 6), ("parts", 3), ("parts", 6)):
            finish(start(device, folder, name, [*lists, f"training_cfg.max_steps={last}", "env_setting.num_workers=2"]))
        whole, parts = _weights(folder / "whole"), _weights(folder / "parts")
        worst = max(float((whole[key].double() - parts[key].double()).abs().max()) for key in whole)
        equal = all(torch.equal(whole[key], parts[key]) for key in whole)
    return [{"what": "resumed is uninterrupted", "largest difference": worst, "right": str(equal)}]


def terminated(device: torch.device) -> list[Row]:
    """A process group of one (NCCL on a GPU) that gets SIGTERM: it must save the step it is in and end with code 130."""
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with corpus() as (folder, lists):
        options = [*lists, "training_cfg.max_steps=100000", "env_setting.num_workers=2"]
        process, log = start(device, folder, "run", options, place), folder / "run" / "log.jsonl"
        deadline = time.monotonic() + LIMIT_SEC
        while process.poll() is None and time.monotonic() < deadline:
            if log.is_file() and log.read_text(encoding="utf-8").count("\n") >= 3:
                process.terminate()
                break
            time.sleep(0.2)
        asked = time.monotonic()
        said = finish(process, EXIT_INTERRUPTED)
        pair = latest_pair(folder / "run")
    saved = pair is not None and f"interrupted at step {pair[2]}" in said
    return [{"what": "SIGTERM gives a checkpoint", "seconds to the end": time.monotonic() - asked, "right": str(saved)}]


PARTS: dict[str, Callable[[torch.device], list[Row]]] = {"real steps": real_steps, "resume": resume, "terminated": terminated}


def plan() -> list[str]:
    """What these parts do, in one line each."""
    return [
        f"real steps: {STEPS} training steps through the loader with {', '.join(map(str, WORKERS))} workers",
        "resume: six steps at once and in two parts give the same weights bit for bit",
        "terminated: one process with NCCL saves at SIGTERM and ends with code 130",
    ]
