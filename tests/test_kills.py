"""Runs that are killed at any moment go on to the very result of a run that never was, and leave nothing over.

LITEAVSE_KILLS says how often each run is killed (default 2).
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import ROOT
from helpers.tiny import all_files, face_crops, voice, wav_file
from helpers.training import last_pair, log_lines, write_recipe
from utils.distributed import free_port
from utils.media.clip_writer import write_clip
from utils.util import write_json

KILLS = int(os.environ.get("LITEAVSE_KILLS", "2"))

pytestmark = pytest.mark.slow


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def whole(arguments: Callable[[], list[str]]) -> float:
    """Run to the end; the seconds that it takes."""
    begun = time.monotonic()
    process = start(*arguments())
    errors = process.communicate()[1]
    assert process.returncode == 0, errors.decode(errors="replace")[-3000:]
    return time.monotonic() - begun


def killed_and_taken_up(arguments: Callable[[], list[str]], seconds: float, seed: int) -> None:
    """Kill a run, with all its processes, KILLS times at random moments, then let it end."""
    rng = np.random.default_rng(seed)
    for _ in range(KILLS):
        process = start(*arguments())
        try:
            process.communicate(timeout=float(rng.uniform(0.2, 1.0)) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    whole(arguments)


def rows_of(table: Path) -> list[tuple[str, ...]]:
    """What a table says of each recording, without what took how long and which run did it."""
    with open(table, newline="", encoding="utf-8") as file:
        return [(Path(row["file"]).name, Path(row["output"]).name) for row in csv.DictReader(file)]


def same_files(one: Path, other: Path) -> None:
    assert all_files(one) == all_files(other)
    for name in all_files(one):
        if not name.endswith(".csv"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_training_on_two_ranks(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)

    def command(name: str) -> Callable[[], list[str]]:
        return lambda: [
            "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "train_lite.py",
            "--config", str(recipe), "--exp_folder", str(tmp_path), "--exp_name", name, "--device", "cpu",
            "--override", "training_cfg.max_steps=6", "env_setting.checkpoint_interval=1",
        ]  # fmt: skip

    seconds = whole(command("whole"))
    killed_and_taken_up(command("killed"), seconds, 1)
    (weights, _), (again, _) = last_pair(tmp_path / "whole"), last_pair(tmp_path / "killed")
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "killed")
    kept = {name for name in all_files(tmp_path / "killed") if not name.startswith("logs")}
    assert kept == {name for name in all_files(tmp_path / "whole") if not name.startswith("logs")}


def test_a_folder_run(tmp_path: Path, causal_checkpoint: Path) -> None:
    for number in range(6):
        wav_file(tmp_path / "in" / f"{number}.wav", voice(4.0, seed=number))

    def command(name: str) -> Callable[[], list[str]]:
        return lambda: ["inference_av.py", "--input_folder", str(tmp_path / "in"), "--output", str(tmp_path / name),
                        "--checkpoint_file", str(causal_checkpoint), "--device", "cpu", "--skip_existing"]  # fmt: skip

    seconds = whole(command("whole"))
    killed_and_taken_up(command("killed"), seconds, 2)
    same_files(tmp_path / "whole", tmp_path / "killed")
    assert rows_of(tmp_path / "whole" / "enhanced.csv") == rows_of(tmp_path / "killed" / "enhanced.csv")


@pytest.mark.parametrize("kind", ["shards", "clips"])
def test_face_crops(tmp_path: Path, kind: str) -> None:
    entries = []
    for number in range(6):
        write_clip(tmp_path / f"take{number}.mp4", face_crops(25, seed=number), voice(1.0, seed=number))
        entries.append({"video": str(tmp_path / f"take{number}.mp4")})
    write_json(tmp_path / "clips.json", entries)

    def command(name: str) -> Callable[[], list[str]]:
        return lambda: [
            "-m", "data.prepare_faces", "--list", str(tmp_path / "clips.json"), "--output_dir", str(tmp_path / name),
            "--format", kind, "--clips_per_shard", "2", "--face_crop", "center", "--workers", "2",
            "--output_list", str(tmp_path / name / "list.json"),
        ]  # fmt: skip

    seconds = whole(command("whole"))
    killed_and_taken_up(command("killed"), seconds, 3)
    (tmp_path / "whole" / "list.json").unlink(missing_ok=True)  # it holds the folder's own name
    (tmp_path / "killed" / "list.json").unlink(missing_ok=True)
    same_files(tmp_path / "whole", tmp_path / "killed")
