"""From a training script's command line to a trained model: one process, one for each GPU, or as torchrun says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.multiprocessing as mp

from utils.config import load_config
from utils.console import EXIT_INTERRUPTED, EXIT_USAGE, Parser, run
from utils.distributed import Group, process_group, rank_device, started_by_torchrun
from utils.training.run_folder import only_run, record_run
from utils.training.trainer import Trainer
from utils.util import pick_device

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
    """Train what `build` makes of the recipe that `args` names; the exit code.

    Under torchrun this process joins the others. Otherwise env_setting.num_gpus processes are started where there are so
    many GPUs; where there are fewer those are used, without any the CPU, and a line says so.
    """
    if started_by_torchrun():
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
    try:
        mp.spawn(_spawned, args=(program, args, build, count), nprocs=count)
    except mp.ProcessExitedException as ended:  # it has said why
        return ended.exit_code if ended.exit_code > 0 else EXIT_USAGE
    return 0


def usable_gpus(cfg: dict, present: int) -> tuple[int, str | None]:
    """How many GPUs to train on, 0 being the CPU, and what to say where that is not what the recipe asks for."""
    wanted, machines = cfg["env_setting"]["num_gpus"], cfg["env_setting"]["dist_cfg"]["world_size"]
    if machines > 1:
        raise ValueError(
            f"env_setting.dist_cfg.world_size is {machines} machines: start the script on each of them with torchrun"
        )
    if wanted <= present:
        return wanted, None
    if not present:
        return 0, f"env_setting.num_gpus is {wanted}, but this torch ({torch.__version__}) sees no GPU: training on its CPU"
    return present, f"env_setting.num_gpus is {wanted}, this machine has {present}: training on those, with the same batches"


def _spawned(rank: int, program: str, args: argparse.Namespace, build: Build, size: int) -> None:
    code = run(program, lambda: _train_in_group(args, build, rank, size))
    if code:
        raise SystemExit(code)


def _train_in_group(args: argparse.Namespace, build: Build, local_rank: int, size: int = -1) -> int:
    """Train as one of several processes: those that torchrun started (`size` -1), or `size` of our own on this machine."""
    cfg = load_config(args.config, args.override)
    device = rank_device(args.device, local_rank)
    dist_cfg = cfg["env_setting"]["dist_cfg"]
    place = ("env://",) if size < 0 else (dist_cfg["dist_url"], local_rank, size)
    with process_group(dist_cfg["dist_backend"], device, *place) as group:
        return train_in(args, cfg, build, device, group)


def train_in(args: argparse.Namespace, cfg: dict, build: Build, device: torch.device, group: Group) -> int:
    """Train in `exp_folder/exp_name` what `build` makes of a recipe, as one of a group; the exit code."""
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
        f"{exp_path}: {trained:,} trainable of {every:,} parameters on {device}{shared}; {trainer.about}; "
        f"{len(trainer.dataset)} clips" + (f"; goes on from step {trainer.step}" if resumed else "")
    )
    outcome, best = trainer.run(), trainer.best
    said = f"best PESQ {best['pesq']:.3f} at step {best['step']}" if best["step"] >= 0 else "no validation gave a PESQ yet"
    group.say(f"{outcome} at step {trainer.step}; {said}")
    return 0 if outcome == "finished" else EXIT_INTERRUPTED
