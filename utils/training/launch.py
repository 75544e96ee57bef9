"""Starts a training from its command line: in one process, in one for each GPU, or in those of torchrun or srun."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.multiprocessing as mp

from utils.config import load_config
from utils.console import EXIT_INTERRUPTED, EXIT_USAGE, Parser, run
from utils.distributed import Group, free_port, process_group, rank_device, started_together
from utils.training.run_folder import only_run, record_run
from utils.training.trainer import STOP_SIGNALS, Trainer
from utils.util import pick_device

NVIDIA_DEVICE = Path("/dev/nvidia0")
# (recipe, folder of the run, device, processes that share it) -> what trains it; a function at the top of a script
Build = Callable[[dict, Path, torch.device, Group], Trainer]


def training_parser(program: str, description: str, config: str) -> Parser:
    """Parser of the options that all training scripts have; `config` is the recipe taken by default."""
    parser = Parser(program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=config, help="recipe (YAML)")
    parser.add_argument("--exp_folder", default="exp", help="where runs are kept")
    parser.add_argument("--exp_name", default=None, help="name of this run; default: the recipe's file name")
    parser.add_argument("--override", nargs="*", action="extend", default=[], metavar="section.key=value",
                        help="change keys of the recipe")
    parser.add_argument("--device", default="auto", help="auto (env_setting.num_gpus says how many GPUs), cpu, cuda or cuda:N")
    return parser


def launch(program: str, args: argparse.Namespace, build: Build) -> int:
    """Train with the Trainer that `build` makes from the recipe in `args`. Returns the exit code.

    Under torchrun and srun this process joins the others. Otherwise it starts one process for each of env_setting.num_gpus
    GPUs. If the machine has fewer, it uses those, and if it has none, the CPU; a line says so.
    """
    if started_together():
        return run(program, lambda: _train_in_group(args, build, int(os.environ.get("LOCAL_RANK", 0))))
    return run(program, lambda: _train_here(program, args, build))


def _train_here(program: str, args: argparse.Namespace, build: Build) -> int:
    cfg = load_config(args.config, args.override)
    if args.device != "auto":
        return train_in(args, cfg, build, pick_device(args.device), Group())
    count, said = usable_gpus(cfg, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if said is not None:
        print(said, flush=True)
    if count <= 1:
        return train_in(args, cfg, build, pick_device("cuda" if count else "cpu"), Group())
    return _spawn_and_wait(count, (program, args, build, count, f"tcp://localhost:{free_port()}"))


def _spawn_and_wait(count: int, arguments: tuple) -> int:
    """Start `count` processes; pass the signals that ask for a checkpoint on to them, and wait for their end."""
    context = mp.spawn(_spawned, args=arguments, nprocs=count, join=False)

    def pass_on(number: int, frame: object) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS if number != signal.SIGINT}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the children itself
    try:
        while not context.join(timeout=1.0):
            pass
    except mp.ProcessExitedException as ended:  # it has said why
        for process in context.processes:
            process.join()
        return ended.exit_code if ended.exit_code > 0 else EXIT_USAGE
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def usable_gpus(cfg: dict, present: int) -> tuple[int, str | None]:
    """How many GPUs to train on, 0 being the CPU, and what to say where that is not what the recipe asks for."""
    wanted, machines = cfg["env_setting"]["num_gpus"], cfg["env_setting"]["dist_cfg"]["world_size"]
    if machines > 1:
        raise ValueError(
            f"env_setting.dist_cfg.world_size is {machines} machines: start the script on each of them with srun or torchrun"
        )
    if wanted == 0 and present:
        return 0, f"env_setting.num_gpus is 0: training on the CPU, though this machine has {present} GPUs; leave the key out"
    if not present and wanted != 0:
        if wanted is None and not NVIDIA_DEVICE.exists():
            return 0, None
        there = f", though {NVIDIA_DEVICE} is there (torch without CUDA, or no driver)" if NVIDIA_DEVICE.exists() else ""
        asked = "left out" if wanted is None else wanted
        return 0, (f"env_setting.num_gpus is {asked}, but this torch ({torch.__version__}) sees no GPU{there}: "
                   "training on its CPU")  # fmt: skip
    if wanted is None:
        size = cfg["training_cfg"]["batch_size"]
        count = max(n for n in range(1, present + 1) if size % n == 0)
        if count == present:
            return count, None
        return count, f"training on {count} of {present} GPUs: training_cfg.batch_size {size} cannot be shared by more of them"
    if wanted <= present:
        return wanted, None
    return present, f"env_setting.num_gpus is {wanted}, this machine has {present}: training on those, with the same batches"


def _spawned(rank: int, program: str, args: argparse.Namespace, build: Build, size: int, url: str) -> None:
    code = run(program, lambda: _train_in_group(args, build, rank, size, url))
    if code:
        raise SystemExit(code)


def _train_in_group(args: argparse.Namespace, build: Build, local_rank: int, size: int = -1, url: str = "env://") -> int:
    """Train as one of several processes: those that torchrun or srun started (`size` -1), or `size` of our own here."""
    cfg = load_config(args.config, args.override)
    device = rank_device(args.device, local_rank)
    place = (url,) if size < 0 else (url, local_rank, size)
    with process_group(cfg["env_setting"]["dist_cfg"]["dist_backend"], device, *place) as group:
        return train_in(args, cfg, build, device, group)


def train_in(args: argparse.Namespace, cfg: dict, build: Build, device: torch.device, group: Group) -> int:
    """Train in `exp_folder/exp_name` with the Trainer that `build` makes, as one process of a group. Returns the exit code."""
    exp_path = Path(args.exp_folder) / (args.exp_name or Path(args.config).stem)

    with ExitStack() as held:

        def prepare() -> Trainer:
            trainer = build(cfg, exp_path, device, group)
            if group.is_main:
                held.enter_context(only_run(exp_path))
                record_run(exp_path, cfg)
            return trainer

        return _train(group.together(prepare), exp_path, device, group)


def _train(trainer: Trainer, exp_path: Path, device: torch.device, group: Group) -> int:
    resumed = trainer.resume()
    every, trained = (sum(p.numel() for p in some) for some in (trainer.generator.parameters(), trainer.parameters))
    shared = f", one of {group.size} processes" if group.size > 1 else ""
    group.say(
        f"{exp_path}: {trained:,} trainable of {every:,} parameters on {device} in {trainer.precision}{shared}; "
        f"{trainer.about}; {len(trainer.dataset)} clips" + (f"; goes on from step {trainer.step}" if resumed else "")
    )
    try:
        outcome, best = trainer.run(), trainer.best
    except torch.OutOfMemoryError:
        training = trainer.training
        raise ValueError(
            f"step {trainer.step}: the memory of {device} is full. Lower training_cfg.batch_size ({training['batch_size']}) "
            f"and raise accumulate_steps ({training['accumulate_steps']}) by as much; precision: bf16 (it is "
            f"{trainer.precision}) and a smaller segment_size ({training['segment_size']}) need less, too"
        ) from None
    said = f"best PESQ {best['pesq']:.3f} at step {best['step']}" if best["step"] >= 0 else "no validation gave a PESQ yet"
    limit = trainer.training["max_steps"]
    key = "max_steps" if limit is not None and trainer.step >= limit else "training_epochs"
    why = f" (training_cfg.{key}: {trainer.training[key]})" if outcome == "finished" else ""
    group.say(f"{outcome} at step {trainer.step}{why}; {said}")
    return 0 if outcome == "finished" else EXIT_INTERRUPTED
