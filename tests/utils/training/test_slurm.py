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


def interrupt(folder: Path, run: Path, process: subprocess.Popen, number: int) -> str:
    """Send the tasks a signal once they have trained three steps; what the job said."""
    deadline = time.monotonic() + LONGEST_SEC
    while not ((run / "log.jsonl").is_file() and (run / "log.jsonl").read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
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
