"""Runs that are killed at any moment go on to the very result of a run that never was, and leave nothing over.

LITEAVSE_KILLS says how often each run is killed (default 2).
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass
class Run:
    """One command, which writes into `folder`, its log beside it; the same command goes on with what a killed one left."""

    arguments: Callable[[], list[str]]
    folder: Path

    def __post_init__(self) -> None:
        self.temporary = self.folder.with_name("tmp")
        self.temporary.mkdir(exist_ok=True)

    def start(self) -> subprocess.Popen:
        with open(self.folder.with_name("log"), "wb") as log:
            return subprocess.Popen(
                [sys.executable, *self.arguments()], cwd=ROOT, start_new_session=True, stdout=log, stderr=log,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )  # fmt: skip

    def written(self) -> dict[str, tuple[int, int]]:
        """When each file was written last, and its bytes."""
        stats = {}
        for name in all_files(self.folder):
            with contextlib.suppress(FileNotFoundError):  # a temporary file that has its name by now
                stat = (self.folder / name).stat()
                stats[name] = stat.st_mtime_ns, stat.st_size
        return stats

    def to_the_end(self) -> tuple[float, float]:
        """Run to the end; the seconds until the first file is written, and from then until the last one is."""
        begun_sec, before = time.monotonic(), self.written()
        process, first_sec, last_sec = self.start(), None, 0.0
        while process.poll() is None:
            time.sleep(0.01)
            if (now := self.written()) != before:
                before, last_sec = now, time.monotonic()
                first_sec = first_sec or last_sec
        assert process.returncode == 0, self.folder.with_name("log").read_text()[-3000:]
        return (first_sec or last_sec) - begun_sec, last_sec - (first_sec or last_sec)

    def kill(self, at_work: bool, seconds: float) -> bool:
        """Kill it, with all its processes, so long after its first write or else after its start; False where it had ended."""
        before, process = self.written(), self.start()
        while at_work and process.poll() is None and self.written() == before:
            time.sleep(0.01)
        try:
            process.wait(seconds)
            assert process.returncode == 0, self.folder.with_name("log").read_text()[-3000:]
            return False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True


def killed_and_taken_up(run: Run, start_sec: float, work_sec: float, seed: int) -> None:
    """Kill a run KILLS times at random moments, which lie all over its work and now and then in a start; then let it end."""
    rng = np.random.default_rng(seed)
    killed = [0, 0]  # in a start, at work
    for _ in range(KILLS):
        at_work = bool(rng.random() < 0.8)
        most_sec = 2 * work_sec / (KILLS + 1) if at_work else start_sec
        killed[at_work] += run.kill(at_work, float(rng.random()) * most_sec)
    print(f"{KILLS} runs, {killed[1]} killed at work and {killed[0]} in their start")
    run.to_the_end()
    end_sec = time.monotonic() + 60
    while processes_of(run.temporary) and time.monotonic() < end_sec:  # Python's own end a moment later
        time.sleep(0.1)
    assert not processes_of(run.temporary)
    left = [path.name for path in run.temporary.iterdir() if not path.name.startswith("torch")]  # torch keeps some for ever
    assert not left


def processes_of(temporary: Path) -> list[str]:
    """The command lines of processes that were given `temporary` for their temporary files."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended by now
            if f"TMPDIR={temporary}".encode() in environment.read_bytes().split(b"\0"):
                found.append(environment.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


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

    def run(name: str) -> Run:
        return Run(lambda: [
            "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "train_lite.py",
            "--config", str(recipe), "--exp_folder", str(tmp_path), "--exp_name", name, "--device", "cpu",
            "--override", f"training_cfg.max_steps={6 + 2 * KILLS}", "env_setting.checkpoint_interval=1",
        ], tmp_path / name)  # fmt: skip

    killed_and_taken_up(run("killed"), *run("whole").to_the_end(), 1)
    (weights, _), (again, _) = last_pair(tmp_path / "whole"), last_pair(tmp_path / "killed")
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "killed")
    kept = {name for name in all_files(tmp_path / "killed") if not name.startswith("logs")}
    assert kept == {name for name in all_files(tmp_path / "whole") if not name.startswith("logs")}


def test_a_folder_run(tmp_path: Path, causal_checkpoint: Path) -> None:
    for number in range(6 + KILLS):
        wav_file(tmp_path / "in" / f"{number}.wav", voice(4.0, seed=number))

    def run(name: str) -> Run:
        return Run(lambda: [
            "inference_av.py", "--input_folder", str(tmp_path / "in"), "--output", str(tmp_path / name),
            "--checkpoint_file", str(causal_checkpoint), "--device", "cpu", "--skip_existing",
        ], tmp_path / name)  # fmt: skip

    killed_and_taken_up(run("killed"), *run("whole").to_the_end(), 2)
    same_files(tmp_path / "whole", tmp_path / "killed")
    assert rows_of(tmp_path / "whole" / "enhanced.csv") == rows_of(tmp_path / "killed" / "enhanced.csv")


@pytest.mark.parametrize("kind", ["shards", "clips"])
def test_face_crops(tmp_path: Path, kind: str) -> None:
    entries = []
    for number in range(6 + KILLS):
        write_clip(tmp_path / f"take{number}.mp4", face_crops(25, seed=number), voice(1.0, seed=number))
        entries.append({"video": str(tmp_path / f"take{number}.mp4")})
    write_json(tmp_path / "clips.json", entries)

    def run(name: str) -> Run:
        return Run(lambda: [
            "-m", "data.prepare_faces", "--list", str(tmp_path / "clips.json"), "--output_dir", str(tmp_path / name),
            "--format", kind, "--clips_per_shard", "2", "--face_crop", "center", "--workers", "2",
            "--output_list", str(tmp_path / name / "list.json"),
        ], tmp_path / name)  # fmt: skip

    killed_and_taken_up(run("killed"), *run("whole").to_the_end(), 3)
    for name in ("whole", "killed") if kind == "clips" else ():  # the list holds the folder's own name
        path = tmp_path / name / "list.json"
        path.write_text(path.read_text().replace(str(tmp_path / name), ""))
    same_files(tmp_path / "whole", tmp_path / "killed")
