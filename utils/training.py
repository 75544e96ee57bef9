"""The training loop that every training script shares: steps, NaN guard, logs, checkpoints, exact resume.

It knows nothing of the model: a script hands it the modules, a function that turns a batch into losses, and one that
validates.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.checkpoint import latest_pair, load_checkpoint, load_state, prune_pairs, save_checkpoint
from utils.util import atomic_write, check_loss_health, git_revision, safe_backward, write_json

Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]
MODEL_SECTIONS = ("stft_cfg", "model_cfg", "visual_cfg", "lite_cfg")
VERSIONED = ("torch", "numpy", "scipy", "numba", "av", "soundfile", "soxr", "opencv-python-headless", "pesq", "pystoi")
MAX_RELOADS = 3  # reloads without one good step between them: the run is not going to recover


def epoch_order(n_items: int, per_epoch: int | None, seed: int, epoch: int) -> list[int]:
    """Order of items in an epoch: the same for the same seed and epoch, whatever came before."""
    order = np.random.default_rng([seed, epoch]).permutation(n_items)
    wanted = per_epoch or n_items
    repeats = -(-wanted // n_items)
    return [int(i) for i in np.tile(order, repeats)[:wanted]]


def _quiet_worker(worker_id: int) -> None:
    torch.set_num_threads(1)  # the training process owns the cores
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the loop above decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def record_run(exp_path: Path, cfg: Mapping) -> None:
    """Save the resolved config, revision and package versions; ValueError when the folder holds a run of another model."""
    exp_path.mkdir(parents=True, exist_ok=True)
    config_file = exp_path / "config.yaml"
    if config_file.is_file():
        earlier = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        for section in MODEL_SECTIONS:
            for key, value in cfg[section].items():
                before = earlier.get(section, {}).get(key)
                if before != value:
                    raise ValueError(
                        f"{exp_path} holds a run with {section}.{key}: {before}, this one has {value}; "
                        "choose another --exp_name, or remove that folder"
                    )
    with atomic_write(config_file) as temporary:
        temporary.write_text(yaml.safe_dump(dict(cfg), sort_keys=False), encoding="utf-8")
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    write_json(exp_path / "environment.json", {
        "revision": git_revision(), "python": platform.python_version(), "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None, "packages": versions,
    })


class RunLog:
    """One JSON line per entry in log.jsonl, and the same numbers in TensorBoard."""

    def __init__(self, exp_path: Path, resume_step: int) -> None:
        self.path = exp_path / "log.jsonl"
        if self.path.is_file():
            # Lines past the checkpoint will be written again; a torn last line is what a killed run leaves.
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= resume_step]
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._board = SummaryWriter(str(exp_path / "logs"), purge_step=resume_step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class Trainer:
    """Runs optimisation steps until the recipe is done, the user interrupts, or the run cannot recover.

    generator: the module that is trained (only parameters that require grad are). pack: its checkpoint contents.
    compute_losses(batch) -> (total, {name: term}). validate() -> {name: value}, with "pesq" deciding the best.
    The items of `dataset` must depend on (seed, epoch, index) alone; `dataset.set_epoch` is called before each epoch.
    """

    def __init__(
        self, cfg: Mapping, exp_path: Path, generator: torch.nn.Module, pack: Callable[[dict], dict],
        dataset: Dataset, compute_losses: Callable[[Any], Losses], validate: Callable[[], dict[str, float]],
        may_miss: set[str] = frozenset(),
    ) -> None:
        self.env, self.training = cfg["env_setting"], cfg["training_cfg"]
        self.exp_path, self.generator, self.pack, self.may_miss = exp_path, generator, pack, may_miss
        self.dataset, self.compute_losses, self.validate = dataset, compute_losses, validate
        clips, size = self.training["clips_per_epoch"] or len(dataset), self.training["batch_size"]
        if clips < size:
            raise ValueError(f"training_cfg.batch_size {size} is more than the {clips} clips of an epoch")
        self.parameters = [p for p in generator.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.training["learning_rate"],
            betas=(self.training["adam_b1"], self.training["adam_b2"]),
        )
        self.average = [p.detach().clone() for p in self.parameters] if self.training["ema_decay"] else []
        self.step = self.epoch = self.position = 0  # position: batches done in this epoch
        self.best = {"pesq": float("-inf"), "step": -1}
        self.bad_batches = self.bad_in_row = self.reloads = 0
        self._stop_signal: int | None = None

    # Checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the g_/do_ pair of this step. The do_ file is written first: a g_ file implies its partner."""
        name = f"{self.step:08d}.pth"
        save_checkpoint(self.exp_path / f"do_{name}", {
            "optim_g": self.optimizer.state_dict(), "steps": self.step, "epoch": self.epoch, "position": self.position,
            "best": dict(self.best), "bad_batches": self.bad_batches, "bad_in_row": self.bad_in_row,
            "average": self.average,
            "rng": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        })
        save_checkpoint(self.exp_path / f"g_{name}", self.pack({"step": self.step, "best": dict(self.best)}))
        prune_pairs(self.exp_path, self.env["keep_checkpoints"])

    def _load_pair(self) -> dict | None:
        pair = latest_pair(self.exp_path)
        if pair is None:
            return None
        weights, rest, _ = pair
        load_state(self.generator, load_checkpoint(weights)["generator"], str(weights), self.may_miss)
        state = load_checkpoint(rest)
        self.optimizer.load_state_dict(state["optim_g"])
        if self.average:  # a run that begins to average on the way begins with the weights it has
            self.average = [value.detach().clone() for value in state.get("average") or self.parameters]
        return state

    def resume(self) -> bool:
        """Go back to the newest checkpoint of this run, if there is one."""
        state = self._load_pair()
        if state is None:
            return False
        self.step, self.epoch, self.position = state["steps"], state["epoch"], state["position"]
        self.best, self.bad_batches, self.bad_in_row = state["best"], state["bad_batches"], state["bad_in_row"]
        torch.set_rng_state(state["rng"]["torch"].cpu())
        if torch.cuda.is_available() and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all([value.cpu() for value in state["rng"]["cuda"]])
        return True

    # One step ---------------------------------------------------------------------------------------------------

    def _set_learning_rate(self) -> float:
        """Exponential decay per epoch (torch's ExponentialLR in closed form), after a linear warm-up."""
        rate = self.training["learning_rate"] * self.training["lr_decay"] ** self.epoch
        if self.step < self.training["warmup_steps"]:
            rate *= (self.step + 1) / self.training["warmup_steps"]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def train_step(self, batch: Any) -> tuple[dict[str, float], str | None]:
        """One optimisation step: (values to log, None or why the batch was skipped)."""
        self.optimizer.zero_grad(set_to_none=True)
        rate = self._set_learning_rate()
        total, terms = self.compute_losses(batch)
        problem = check_loss_health({"total": total, **terms})
        if problem is None:
            norm, problem = safe_backward(total, self.parameters, self.training["grad_clip"])
        if problem is not None:
            return {}, problem
        self.optimizer.step()
        self._update_average()
        values = {name: float(term.detach()) for name, term in terms.items()}
        return {"total": float(total.detach()), **values, "grad_norm": norm, "learning_rate": rate}, None

    def _update_average(self) -> None:
        """Exponential moving average of the weights; its memory grows with the run, so that the start is soon forgotten."""
        if self.average:
            decay = min(self.training["ema_decay"], (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the generator has the averaged weights, if the recipe asks for an average."""
        weights = [p.detach() for p in self.parameters]
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, self.average or own)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    def _after_bad_batch(self, problem: str, log: RunLog) -> None:
        self.bad_batches += 1
        self.bad_in_row += 1
        where = f"step {self.step}, epoch {self.epoch}, batch {self.position}"
        tqdm.write(f"batch skipped ({where}): {problem}; {self.bad_in_row} in a row, {self.bad_batches} in all")
        log.write("skipped", self.step, {"problem": problem, "epoch": self.epoch, "position": self.position})
        if self.bad_in_row < self.training["nan_patience"]:
            return
        self.reloads += 1
        if self.reloads > MAX_RELOADS or self._load_pair() is None:
            raise ValueError(
                f"training does not recover: {self.bad_in_row} bad batches in a row at {where} ({problem}); "
                "lower training_cfg.learning_rate, or look at the data named in the log"
            )
        tqdm.write(f"{self.bad_in_row} bad batches in a row: weights and optimiser reloaded from the last checkpoint")
        self.bad_in_row = 0

    # The loop ---------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Any]:
        """What is left of this epoch."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        size = self.training["batch_size"]
        order = epoch_order(len(self.dataset), self.training["clips_per_epoch"], self.env["seed"], self.epoch)
        loader = DataLoader(
            self.dataset, batch_size=size, sampler=order[self.position * size :], drop_last=True,
            num_workers=self.env["num_workers"], worker_init_fn=_quiet_worker, pin_memory=torch.cuda.is_available(),
        )
        yield from loader

    @property
    def done(self) -> bool:
        limit = self.training["max_steps"]
        return self.epoch >= self.training["training_epochs"] or (limit is not None and self.step >= limit)

    def _validate(self, log: RunLog) -> None:
        self.generator.eval()
        with self.averaged_weights():
            scores = self.validate()
            if scores.get("pesq", float("-inf")) > self.best["pesq"]:
                self.best = {"pesq": scores["pesq"], "step": self.step}
                save_checkpoint(self.exp_path / "best.pth", self.pack({"step": self.step, "scores": scores}))
        self.generator.train()
        shown = ", ".join(f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float))
        tqdm.write(f"step {self.step} validation: {shown}; best PESQ {self.best['pesq']:.3f} at step {self.best['step']}")
        log.write("validation", self.step, scores)

    def _every(self, key: str) -> bool:
        return self.step % self.env[key] == 0

    def run(self) -> str:
        """Train; returns "finished" or "interrupted". Interrupted runs have a checkpoint of their last whole step."""
        previous = {s: signal.signal(s, self._remember_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        log = RunLog(self.exp_path, self.step)
        self.generator.train()
        if self.training["max_steps"]:
            wanted = self.training["max_steps"]
        else:
            clips = self.training["clips_per_epoch"] or len(self.dataset)
            wanted = self.training["training_epochs"] * (clips // self.training["batch_size"])
        try:
            with tqdm(total=wanted, initial=self.step, unit="step", dynamic_ncols=True) as bar:
                while not self.done and self._stop_signal is None:
                    self._run_epoch(bar, log)
            self.save()
        finally:
            log.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return "finished" if self.done else "interrupted"

    def _run_epoch(self, bar: tqdm, log: RunLog) -> None:
        started = time.perf_counter()
        for batch in self._batches():
            values, problem = self.train_step(batch)
            self.position += 1
            self.step += 1
            bar.update(1)
            if problem is not None:
                self._after_bad_batch(problem, log)
            else:
                self.bad_in_row = self.reloads = 0
                values["step_sec"] = time.perf_counter() - started
                if self._every("stdout_interval"):
                    bar.set_postfix(loss=f"{values['total']:.3f}", epoch=self.epoch)
                    log.write("train", self.step, {"epoch": self.epoch, **values})
            if self._every("validation_interval"):
                self._validate(log)
            if self._every("checkpoint_interval"):
                self.save()
            if self.done or self._stop_signal is not None:
                return
            started = time.perf_counter()
        self.epoch, self.position = self.epoch + 1, 0

    def _remember_signal(self, number: int, frame: Any) -> None:
        if self._stop_signal is not None:
            raise KeyboardInterrupt  # asked twice: stop now, the last checkpoint stands
        self._stop_signal = number
        tqdm.write(f"{signal.Signals(number).name}: finishing this step and saving a checkpoint (again: stop at once)")
