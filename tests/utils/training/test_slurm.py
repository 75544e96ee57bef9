"""recipes/slurm through a fake scheduler: USR1 gives a checkpoint, the job queues again and goes on, also with fewer tasks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import fake_slurm
from helpers.paths import LONGEST_SEC, ROOT
from helpers.training import last_pair, write_recipe
from utils.checkpoint import latest_pair
from utils.console import EXIT_INTERRUPTED
from utils.distributed import first_node, rank_device, started_together

STEPS = 24
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1,SIGUSR2",
            "--shutdown-timeout", "300", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # fmt: skip


def job(folder: Path, script: str, tasks: int, *arguments: str, **more: str) -> subprocess.Popen:
    """A batch job of a script of recipes/slurm, as the scheduler starts it."""
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder), "FAKE_NTASKS": str(tasks),
        "SLURM_JOB_ID": str(os.getpid()), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more,
    }  # fmt: skip
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    (folder / "pids").unlink(missing_ok=True)
    return subprocess.Popen(
        ["bash", str(ROOT / "recipes" / "slurm" / script), *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def options() -> list[str]:
    """Overrides. The mean over frames that have a face is not the mean over the tasks' shares: no confidence loss."""
    return [f"training_cfg.max_steps={STEPS}", "training_cfg.training_epochs=1000", "training_cfg.loss.confidence=0",
            "env_setting.checkpoint_interval=1000"]  # fmt: skip


def finish(process: subprocess.Popen, code: int) -> str:
    try:
        said, _ = process.communicate(timeout=LONGEST_SEC)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, said[-3000:]
    return said


def wait_for_steps(run: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LONGEST_SEC
    while not ((run / "log.jsonl").is_file() and (run / "log.jsonl").read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def has_signals_option() -> bool:
    shown = subprocess.run([*TORCHRUN[:3], "--help"], capture_output=True, text=True, check=True).stdout
    return "--signals-to-handle" in shown


def interrupt(folder: Path, run: Path, process: subprocess.Popen, number: int) -> str:
    """Send the tasks a signal once they have trained three steps; what the job said."""
    wait_for_steps(run, process)
    for pid in (folder / "pids").read_text().split():
        os.kill(int(pid), number)
    return finish(process, EXIT_INTERRUPTED)


@pytest.mark.slow
def test_a_job_queues_again_and_goes_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    fake_slurm.install(tmp_path)

    def start(name: str, tasks: int) -> subprocess.Popen:
        return job(tmp_path, "one_node.sh", tasks, str(recipe), str(tmp_path / name), *options())

    finish(start("whole", 2), 0)
    said = interrupt(tmp_path, tmp_path / "stopped", start("stopped", 2), signal.SIGUSR1)
    assert said.count("SIGUSR1: finishing this step and saving a checkpoint") == 1 and "one of 2 processes" in said
    assert (tmp_path / "asked").read_text() == f"requeue {os.getpid()}\n"
    assert 3 <= latest_pair(tmp_path / "stopped")[2] < STEPS
    shutil.copytree(tmp_path / "stopped", tmp_path / "fewer")
    assert "goes on from step" in finish(start("stopped", 2), 0)
    assert "goes on from step" in finish(start("fewer", 1), 0)
    whole, same, fewer = (last_pair(tmp_path / name)[0] for name in ("whole", "stopped", "fewer"))
    assert all(torch.equal(whole[key], same[key]) for key in whole)
    size = torch.cat([value.flatten().float() for value in whole.values()]).norm()
    error = torch.cat([(whole[key] - fewer[key]).flatten().float() for key in whole]).norm()
    assert 0 < error < 1e-3 * size  # sums in another order


@pytest.mark.slow
def test_a_job_of_several_nodes_queues_again(tmp_path: Path) -> None:
    """Two tasks, each the first of its node."""
    recipe = write_recipe(tmp_path)
    fake_slurm.install(tmp_path)

    def start() -> subprocess.Popen:
        return job(tmp_path, "several_nodes.sh", 2, str(recipe), str(tmp_path / "run"), *options(), FAKE_NODES="2")

    said = interrupt(tmp_path, tmp_path / "run", start(), signal.SIGUSR1)
    assert said.count("SIGUSR1: finishing this step") == 1 and "one of 2 processes" in said
    assert (tmp_path / "asked").read_text() == f"requeue {os.getpid()}\n"
    assert "goes on from step" in finish(start(), 0) and latest_pair(tmp_path / "run")[2] == STEPS


@pytest.mark.slow
def test_each_job_of_an_array_trains_a_recipe_of_its_own(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    fake_slurm.install(tmp_path)
    (tmp_path / "ablations").mkdir()
    for name in ("a", "b"):
        shutil.copy(recipe, tmp_path / "ablations" / f"{name}.yaml")
    place = {"RECIPES": str(tmp_path / "ablations"), "EXP_FOLDER": str(tmp_path / "exp"), "SLURM_ARRAY_JOB_ID": "77"}

    def start() -> subprocess.Popen:
        return job(tmp_path, "ablations.sh", 1, *options(), SLURM_ARRAY_TASK_ID="1", **place)

    interrupt(tmp_path, tmp_path / "exp" / "b", start(), signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == "requeue 77_1\n"
    assert "goes on from step" in finish(start(), 0) and latest_pair(tmp_path / "exp" / "b")[2] == STEPS
    assert not (tmp_path / "exp" / "a").exists()


@pytest.mark.slow
def test_torchrun_passes_the_signal_on_where_it_is_told_to(tmp_path: Path) -> None:
    """As docs/train.md says. Without the option torchrun itself ends at USR1, and nobody saves."""
    if not has_signals_option():
        pytest.skip("this torchrun has no --signals-to-handle")
    recipe = write_recipe(tmp_path)
    command = [*TORCHRUN, "--nproc_per_node", "2", "train_lite.py", "--config", str(recipe), "--exp_folder", str(tmp_path),
               "--exp_name", "run", "--override", "training_cfg.max_steps=100000", *options()[1:]]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    wait_for_steps(tmp_path / "run", process)
    os.kill(process.pid, signal.SIGUSR1)
    try:
        said, _ = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert said.count("SIGUSR1: finishing this step and saving a checkpoint") == 1, said[-3000:]
    step = latest_pair(tmp_path / "run")[2]
    assert f"interrupted at step {step}" in said and step >= 3


def test_srun_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in (("PROCID", "5"), ("LOCALID", "1"), ("NTASKS", "8"), ("JOB_ID", "77"), ("STEP_NODELIST", "gpu[03-04]")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert not started_together()  # a command of the batch script itself, which has no step
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert started_together()
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")] == ["5", "1", "8", "gpu03"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert rank_device("auto", 1) == torch.device("cuda", 0)  # the one GPU that srun shows this task


@pytest.mark.parametrize(("nodes", "first"), [
    ("gpu[03-05,9],login1", "gpu03"), ("a1,b2", "a1"), ("n7", "n7"), ("rack[2,4]-x", "rack2-x"), ("a,b[1-2]", "a"),
])  # fmt: skip
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
