"""A scheduler of one machine, which may pass for FAKE_NODES of them: `srun` starts the tasks of a step with SLURM's variables,
`scontrol` writes to FAKE_SLURM/asked.

The tasks' process ids are in FAKE_SLURM/pids, where the test finds whom to send USR1, as SLURM does before a time limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def srun(arguments: list[str]) -> int:
    while arguments[0].startswith("--"):
        arguments = arguments[1:]
    count, nodes = int(os.environ["FAKE_NTASKS"]), int(os.environ.get("FAKE_NODES", 1))
    tasks = []
    for rank in range(count):
        local = str(rank % (count // nodes))
        place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": local, "SLURM_NTASKS": str(count), "SLURM_STEP_ID": "0",
                 "SLURM_STEP_NODELIST": "localhost"}  # fmt: skip
        tasks.append(subprocess.Popen(arguments, env=os.environ | place))
    (Path(os.environ["FAKE_SLURM"]) / "pids").write_text(" ".join(str(task.pid) for task in tasks))
    return max(task.wait() for task in tasks)


def install(folder: Path) -> None:
    """Put srun and scontrol into `folder`, to be first on PATH."""
    for name in ("srun", "scontrol"):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__)} {name} "$@"\n')
        command.chmod(0o755)


if __name__ == "__main__":
    if sys.argv[1] == "srun":
        raise SystemExit(srun(sys.argv[2:]))
    with open(Path(os.environ["FAKE_SLURM"]) / "asked", "a", encoding="utf-8") as file:
        file.write(" ".join(sys.argv[2:]) + "\n")
