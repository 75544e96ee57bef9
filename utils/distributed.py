"""Starts the processes which train one model or share files out, and exchanges data between them.

Gradients are averaged here after backward instead of by DistributedDataParallel: nothing wraps the modules, so that
checkpoints, frozen parts, two losses in one step and batches without a video need no care of their own. A model of two
million weights leaves nothing to gain by sending gradients while others are still computed.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from utils.console import EXIT_USAGE, one_line
from utils.util import pick_device

Result = TypeVar("Result")
# The others wait while the first process validates or writes; a process that dies is noticed by the launcher.
TIMEOUT = datetime.timedelta(hours=6)
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class Group:
    """The processes of a run; without torch.distributed there is one. All of them must call each method, except `say`."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1
        self.is_main = self.rank == 0

    def say(self, text: str) -> None:
        """Print a line above the progress bar, in the first process only."""
        if self.is_main:
            tqdm.write(text)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes (anything that can be pickled), in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], Any]) -> Any:
        """The result of `make`, which only the first process calls."""
        if self.size == 1:
            return make()
        held = [make() if self.is_main else None]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=self._device)) > 0)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the processes, without gradient."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def first_problem(self, problem: str | None) -> str | None:
        """The problem of the first process that has one, so that all skip the step together; None if no process has one."""
        if self.size == 1 or not self.any(problem is not None):
            return problem
        return next(f"process {rank}: {text}" for rank, text in enumerate(self.gather(problem)) if text is not None)

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes. A gradient that no process has stays None."""
        if self.size == 1 or not parameters:
            return
        like = parameters[0]
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=like.device, dtype=like.dtype)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters] + [has])
        dist.all_reduce(flat)
        *gradients, has = flat.split([p.numel() for p in parameters] + [len(parameters)])
        for parameter, gradient, n_have in zip(parameters, gradients, has.tolist(), strict=True):
            parameter.grad = (gradient / self.size).view_as(parameter) if n_have else None

    def mean_of(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means of the named values over the processes that have them."""
        everyone = self.gather(dict(values))
        names = dict.fromkeys(name for one in everyone for name in one)
        return {name: sum(v := [one[name] for one in everyone if name in one]) / len(v) for name in names}

    def copy_from_main(self, module: torch.nn.Module) -> None:
        """Give every process the weights and buffers of the first one."""
        if self.size > 1:
            for value in module.state_dict().values():
                dist.broadcast(value, src=0)

    def together(self, make: Callable[[], Result]) -> Result:
        """Call `make` in each process. If one raises ValueError or OSError, the first process raises it and the others end."""
        result, error = None, None
        try:
            result = make()
        except (ValueError, OSError) as caught:
            error = caught
        if self.size > 1:
            texts = self.gather(None if error is None else one_line(error))
            first = next((text for text in texts if text is not None), None)
            if first is not None and not self.is_main:
                raise SystemExit(EXIT_USAGE)
            error = None if first is None else ValueError(first)
        if error is not None:
            raise error
        return result

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def started_together() -> bool:
    """Whether torchrun or srun started this process as one of several; srun's variables are then read as torchrun's."""
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        return True
    if not started_by_srun() or int(os.environ["SLURM_NTASKS"]) < 2:
        return False
    job, step = int(os.environ.get("SLURM_JOB_ID", 0)), int(os.environ["SLURM_STEP_ID"])
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "localhost"
    for ours, value in (
        ("RANK", os.environ["SLURM_PROCID"]), ("WORLD_SIZE", os.environ["SLURM_NTASKS"]),
        ("LOCAL_RANK", os.environ["SLURM_LOCALID"]), ("MASTER_ADDR", first_node(nodes)),
        # The tasks cannot ask each other for a free port before they have met: it follows from the job and the step.
        ("MASTER_PORT", str(15000 + (job * 16 + step) % 15000)),
    ):  # fmt: skip
        os.environ.setdefault(ours, value)
    return True


def started_by_srun() -> bool:
    """Whether this process is a task of a SLURM step. A batch script's own commands have no SLURM_STEP_ID."""
    return {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID"} <= set(os.environ)


def first_node(nodes: str) -> str:
    """First host of a SLURM node list, such as gpu[03-05,9],login1."""
    name, bracket, rest = nodes.partition("[")
    if "," in name or not bracket:
        return nodes.split(",")[0]
    inside, _, suffix = rest.partition("]")
    return name + inside.split(",")[0].split("-")[0] + suffix.split(",")[0]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_with_launcher() -> None:
    """Let the system kill this process when torchrun, which started it, is killed; only Linux can.

    torchrun gives each process a session of its own. Where torchrun itself was killed, as by a full memory, its processes
    stayed, waited for each other for TIMEOUT, and kept the run's folder locked against the same command. ValueError where
    torchrun has ended already, while this process was still importing torch.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if _adopted():
            raise ValueError("torchrun, which started this process, has ended; run its command again")


def _adopted() -> bool:
    """Whether torchrun started this process and its parent is another one by now: one whose memory has no torch in it.

    What torchrun starts leads a session; what a script between the two starts does not, and its parent never has torch.
    """
    leads, has_parent_here = os.getsid(0) == os.getpid(), os.getppid() != 0  # 0 lives in another PID namespace
    return leads and has_parent_here and _has_torch("self") and not _has_torch(str(os.getppid()))


def _has_torch(process: str) -> bool:
    """Whether a process of /proc has loaded torch; False for one that this user may not look into, as the system's first."""
    try:
        return "libtorch" in Path("/proc", process, "maps").read_text(errors="replace")
    except OSError:
        return False


@contextmanager
def process_group(
    backend: str, device: torch.device, url: str = "env://", rank: int = -1, size: int = -1
) -> Iterator[Group]:
    """Join the other processes; "nccl" is for CUDA devices, on others gloo is used."""
    end_with_launcher()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        backend = "gloo"
    try:
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=TIMEOUT)
    except dist.DistNetworkError as error:
        where = url if url != "env://" else f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(f"the processes cannot meet at {where} ({one_line(error)}); set MASTER_PORT to a free port") from None
    try:
        yield Group(device)
    finally:
        dist.destroy_process_group()


def rank_device(name: str, local_rank: int) -> torch.device:
    """The device of one of several processes on a machine: a GPU of its own for "auto" and "cuda" where there are GPUs.

    Where srun shows each task one GPU, that is it. ValueError when there are more processes than GPUs.
    """
    if not (torch.cuda.is_available() and name in ("auto", "cuda")):
        return pick_device(name)
    if torch.cuda.device_count() == 1 and started_by_srun():
        local_rank = 0
    if local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank} of this machine has no GPU: it has {torch.cuda.device_count()}; start fewer")
    return torch.device("cuda", local_rank)


def alone_or_together(device_name: str, work: Callable[[Group, torch.device], Result]) -> Result:
    """Call `work` with this process's group and device: a group of one, or that of the processes that torchrun has started.

    This is for work whose processes need each other only at its beginning and end; they exchange data through the CPU.
    """
    if not started_together():
        return work(Group(), pick_device(device_name))
    device = rank_device(device_name, int(os.environ.get("LOCAL_RANK", 0)))
    with process_group("gloo", torch.device("cpu")) as group:
        return work(group, device)
