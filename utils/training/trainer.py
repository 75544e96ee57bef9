"""The training loop that every training script shares: steps, NaN guard, logs, checkpoints, exact resume.

It knows nothing of the model: a script hands it the modules, a function that turns a batch into losses, and one that
validates.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.checkpoint import save_checkpoint
from utils.distributed import Group
from utils.training import run_state
from utils.training.epoch_order import epoch_order, run_order
from utils.training.precision import choose_precision, matrix_products
from utils.training.run_folder import RunLog, ShownClip
from utils.training.run_state import Player
from utils.util import average_and_clip, check_loss_health

Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]
MAX_RELOADS = 3  # reloads without one good step between them: the run is not going to recover
# Signals that ask for a checkpoint and the end: Ctrl-C, and those that schedulers send before a time limit or a preemption.
# Windows has no USR1.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
REPEATED_SIGNAL_SEC = 2.0  # launchers and `timeout` signal the process and then its group: within this it is one request


def _quiet_worker(worker_id: int) -> None:
    torch.set_num_threads(1)  # the training process owns the cores
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the loop above decides when its workers stop.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Adversary:
    """A second network. Each step trains it first, on the generator's output for the batch.

    module: the network, saved as "discriminator" with its optimiser. report: numbers for the log, saved and resumed.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.report: dict[str, float] = {}

    def forward(self, batch: Any) -> Any:
        """Run the generator on a batch. `compute_losses` gets the result and not the batch, here and in the Trainer."""
        raise NotImplementedError

    def compute_losses(self, made: Any) -> Losses:
        """The adversary's own losses, without gradient to the generator."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what training needed. By default there is nothing to free."""


class Trainer:
    """Runs optimisation steps until the recipe is done, the user interrupts, or the run cannot recover.

    generator: the module that is trained (only parameters that require grad are). pack: its checkpoint contents.
    compute_losses(batch) -> (total, {name: term}). validate() -> {name: value}, with "pesq" deciding the best.
    The items of `dataset` must depend on (seed, epoch, index) alone; `dataset.set_epoch` is called before each epoch.
    If it has `runs` of items that one read brings, the items of a run are drawn together (see run_order).
    adversary: see Adversary. group: processes that share each batch; each calls `validate`, which gives all of them the same
    values. The first process logs and saves.
    about: a text that is printed when the run starts. show: the clips that TensorBoard gets after each validation.
    """

    def __init__(
        self, cfg: Mapping, exp_path: Path, generator: torch.nn.Module, pack: Callable[[dict], dict],
        dataset: Dataset, compute_losses: Callable[[Any], Losses], validate: Callable[[], dict[str, float]],
        may_miss: set[str] = frozenset(), adversary: Adversary | None = None, group: Group | None = None, about: str = "",
        show: Callable[[], Iterable[ShownClip]] = tuple,
    ) -> None:
        self.cfg, self.show = cfg, show
        self.env, self.training = cfg["env_setting"], cfg["training_cfg"]
        self.exp_path, self.generator, self.pack, self.may_miss = exp_path, generator, pack, may_miss
        self.dataset, self.compute_losses, self.validate = dataset, compute_losses, validate
        self.adversary, self.group, self.about = adversary, group or Group(), about
        clips, size = self.training["clips_per_epoch"] or len(dataset), self.training["batch_size"]
        self.n_accumulated = self.training["accumulate_steps"]
        if clips < size * self.n_accumulated:
            times = f" times accumulate_steps {self.n_accumulated}" if self.n_accumulated > 1 else ""
            raise ValueError(f"training_cfg.batch_size {size}{times} is more than the {clips} clips of an epoch")
        if size % self.group.size:
            raise ValueError(
                f"training_cfg.batch_size {size} cannot be shared by {self.group.size} processes; choose a multiple of that"
            )
        self.player = Player(generator, self.training)
        self.rival = None if adversary is None else Player(adversary.module, self.training)
        self.parameters, self.optimizer = self.player.parameters, self.player.optimizer
        self.precision = choose_precision(self.training["precision"], self.parameters[0].device)
        self.average = [p.detach().clone() for p in self.parameters] if self.training["ema_decay"] else []
        self.step = self.epoch = self.position = 0  # updates; epochs; batches done in this epoch
        self.validation_due = False  # of this step; saved, so that a run that was stopped before it goes on with it
        self.best = {"pesq": float("-inf"), "step": -1}
        self.bad_batches = self.bad_in_row = self.reloads = 0
        self._validated_step = -1
        self._stop_signal: int | None = None
        self._stop_asked_sec = 0.0
        self._order: list[int] = []  # what this process draws in the present epoch; the loader reads it when one begins
        self._loader: DataLoader | None = None

    # Checkpoints are run_state's ------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the g_/do_ pair of this step."""
        run_state.save(self)

    def resume(self) -> bool:
        """Go back to the newest checkpoint of this run, if there is one; SEMamba's own pairs will do."""
        return run_state.resume(self)

    # One step ---------------------------------------------------------------------------------------------------

    def _set_learning_rate(self) -> float:
        """Exponential decay per epoch (torch's ExponentialLR in closed form), after a linear warm-up."""
        rate = self.training["learning_rate"] * self.training["lr_decay"] ** self.epoch
        if self.step < self.training["warmup_steps"]:
            rate *= (self.step + 1) / self.training["warmup_steps"]
        for player in (self.player, self.rival):
            for group in player.optimizer.param_groups if player is not None else ():
                group["lr"] = rate
        return rate

    def _update(self, player: Player, losses: Iterable[Losses], count: int = 1) -> tuple[dict[str, float], str | None]:
        """Step one network down the mean of `count` losses, each backpropagated before the next one is computed.

        Returns (total, terms and gradient norm, None or why nothing was done).
        """
        player.optimizer.zero_grad(set_to_none=True)
        seen: dict[str, list[torch.Tensor]] = {}
        for total, terms in losses:
            (total / count).backward()
            for name, value in {"total": total, **terms}.items():
                seen.setdefault(name, []).append(value.detach().float())
        norm = average_and_clip(player.parameters, self.training["grad_clip"], self.group.average_gradients)
        means = {name: values[0] if len(values) == 1 else torch.stack(values).mean() for name, values in seen.items()}
        named = means | {"grad_norm": norm.detach().float()}
        # The step waits for a GPU only here: all numbers are read together.
        read = dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True))
        problem = check_loss_health({name: value for name, value in read.items() if name != "grad_norm"})
        problem = self.group.first_problem(problem or check_loss_health({"gradient norm": read["grad_norm"]}))
        if problem is not None:
            player.optimizer.zero_grad(set_to_none=True)
            return {}, problem
        player.optimizer.step()
        return read, None

    def train_step(self, *batches: Any) -> tuple[dict[str, float], str | None]:
        """One update from the mean gradient of batches of one size: (values to log, None or why they were skipped)."""
        with matrix_products(self.precision):
            return self._train_step(batches)

    def _train_step(self, batches: tuple[Any, ...]) -> tuple[dict[str, float], str | None]:
        rate, count = self._set_learning_rate(), len(batches)
        learnt: dict[str, float] = {}
        if self.adversary is not None:
            made = [self.adversary.forward(batches[0])] if count == 1 else None
            rival, problem = self._update(self.rival, map(self.adversary.compute_losses, made or self._made(batches)), count)
            if problem is not None:
                return {}, f"discriminator: {problem}"
            learnt = {f"discriminator_{name}": value for name, value in rival.items()}
            batches = made or map(self.adversary.forward, batches)
        values, problem = self._update(self.player, map(self.compute_losses, batches), count)
        if problem is not None:
            return {}, problem
        self._update_average()
        return {**values, **learnt, "learning_rate": rate}, None

    def _made(self, batches: tuple[Any, ...]) -> Iterator[Any]:
        """The generator's output for each batch, without gradients, since the graphs of all batches would fill the memory."""
        for batch in batches:
            with torch.no_grad():
                made = self.adversary.forward(batch)
            yield made

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
        self.group.say(f"batch skipped ({where}): {problem}; {self.bad_in_row} in a row, {self.bad_batches} in all")
        log.write("skipped", self.step, {"problem": problem, "epoch": self.epoch, "position": self.position})
        if self.bad_in_row < self.training["nan_patience"]:
            return
        self.reloads += 1
        if self.reloads > MAX_RELOADS or run_state.load_pair(self) is None:
            raise ValueError(
                f"training does not recover: {self.bad_in_row} bad batches in a row at {where} ({problem}); "
                "lower training_cfg.learning_rate, or look at the data named in the log"
            )
        self.group.say(f"{self.bad_in_row} bad batches in a row: weights and optimiser reloaded from the last checkpoint")
        self.bad_in_row = 0

    # The loop ---------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Any]:
        """The batches that are left of this epoch. In a group each process gets its share of each batch."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        size, share = self.training["batch_size"], self.training["batch_size"] // self.group.size
        drawn = self.training["clips_per_epoch"], self.env["seed"], self.epoch
        runs = getattr(self.dataset, "runs", None)
        if runs is None:
            order = epoch_order(len(self.dataset), *drawn, getattr(self.dataset, "group", 1))
        else:
            order = run_order(runs, *drawn, size, self.group.size, self.env["num_workers"])
        updates = (len(order) // size - self.position) // self.n_accumulated
        starts = range(self.position * size, (self.position + updates * self.n_accumulated) * size, size)
        self._order[:] = [item for start in starts for item in order[start + self.group.rank * share :][:share]]
        if self._loader is None:
            workers = self.env["num_workers"]
            self._loader = DataLoader(
                self.dataset, batch_size=share, sampler=self._order, num_workers=workers, worker_init_fn=_quiet_worker,
                persistent_workers=workers > 0, pin_memory=self.parameters[0].is_cuda,
                generator=torch.Generator(),  # a loader draws a number: not from the generator that dropout draws from
            )
        yield from self._loader

    @property
    def done(self) -> bool:
        limit = self.training["max_steps"]
        return self.epoch >= self.training["training_epochs"] or (limit is not None and self.step >= limit)

    def _validate_if_due(self, log: RunLog) -> None:
        """Validate if it is due, and save again with the best score. A run that is asked to stop does not validate first."""
        if not self.validation_due or self._stopping():
            return
        self._validate(log)
        self.validation_due, self._validated_step = False, self.step
        self.save()

    def _validate(self, log: RunLog) -> None:
        self.generator.eval()
        with self.averaged_weights():
            scores = self.validate()
            if self.group.is_main:
                log.show(self.step, self.show())
            key = "criterion" if "criterion" in scores else "pesq"
            if not math.isnan(scores.get(key, math.nan)) and scores[key] > self.best.get(key, -math.inf):
                self.best = {"pesq": scores["pesq"], key: scores[key], "step": self.step}
                if self.group.is_main:
                    save_checkpoint(self.exp_path / "best.pth", self.pack({"step": self.step, "scores": scores}))
        self.generator.train()
        shown = ", ".join(f"{k} {v:.3f}" for k, v in scores.items() if isinstance(v, float))
        self.group.say(f"step {self.step} validation: {shown}; best PESQ {self.best['pesq']:.3f} at step {self.best['step']}")
        log.write("validation", self.step, scores)
        log.summarize("validation", self.step, scores)

    def _every(self, key: str) -> bool:
        return self.step % self.env[key] == 0

    def run(self) -> str:
        """Train; returns "finished" or "interrupted". Interrupted runs have a checkpoint of their last whole step."""
        previous = {s: signal.signal(s, self._remember_signal) for s in STOP_SIGNALS}
        log = RunLog(self.exp_path, self.step, "validation" if self.validation_due else None, active=self.group.is_main)
        if self.step == 0:
            log.describe(self.cfg)
        self.generator.train()
        if self.adversary is not None:
            self.adversary.module.train()
        if self.training["max_steps"]:
            wanted = self.training["max_steps"]
        else:
            clips = self.training["clips_per_epoch"] or len(self.dataset)
            wanted = self.training["training_epochs"] * (clips // (self.training["batch_size"] * self.n_accumulated))
        quiet = not (self.group.is_main and sys.stderr.isatty())  # a bar would write megabytes into a scheduler's log
        try:
            with tqdm(total=wanted, initial=self.step, unit="step", dynamic_ncols=True, disable=quiet) as bar:
                self._validate_if_due(log)
                self._validated_step = self.step  # a run that was finished before is not validated anew
                while not self.done and not self._stopping():
                    self._run_epoch(bar, log)
                if self.done and self.training["validate_at_end"] and self._validated_step != self.step:
                    self.validation_due = True
                    self._validate_if_due(log)
            self.save()
        finally:
            self._loader = None  # its workers end with it
            if self.adversary is not None:
                self.adversary.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
            log.close()
        return "finished" if self.done and not self.validation_due else "interrupted"

    def _run_epoch(self, bar: tqdm, log: RunLog) -> None:
        started = time.perf_counter()
        for batches in zip(*[self._batches()] * self.n_accumulated, strict=True):
            values, problem = self.train_step(*batches)
            self.position += self.n_accumulated
            self.step += 1
            bar.update(1)
            if problem is not None:
                self._after_bad_batch(problem, log)
            else:
                self.bad_in_row = self.reloads = 0
                values["step_sec"] = time.perf_counter() - started
                self._log_step(values, bar, log)
            self.validation_due = self._every("validation_interval")
            if self.validation_due or self._every("checkpoint_interval"):
                self.save()  # before the validation: what fails or stops there costs no step
            self._validate_if_due(log)
            if self.done or self._stopping():
                return
            started = time.perf_counter()
        self.epoch, self.position = self.epoch + 1, 0

    def _log_step(self, values: dict[str, float], bar: tqdm, log: RunLog) -> None:
        """A line with the terms each stdout_interval, TensorBoard's numbers each summary_interval."""
        said, summarized = self._every("stdout_interval"), self._every("summary_interval")
        if not (said or summarized):
            return
        if self.group.size > 1:
            values = self.group.mean_of(values)
        if self.adversary is not None:
            values |= self.adversary.report
        if summarized:
            log.summarize("train", self.step, values)
        if said:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.group.say(f"step {self.step}/{bar.total}, epoch {self.epoch}: {shown}")
            log.write("train", self.step, {"epoch": self.epoch, **values})

    def _stopping(self) -> bool:
        return self.group.any(self._stop_signal is not None)

    def _remember_signal(self, number: int, frame: Any) -> None:
        again = self._stop_signal is not None
        if again and time.monotonic() - self._stop_asked_sec > REPEATED_SIGNAL_SEC:
            raise KeyboardInterrupt  # asked twice: stop now, the last checkpoint stands
        if not again:
            self._stop_signal, self._stop_asked_sec = number, time.monotonic()
            self.group.say(f"{signal.Signals(number).name}: finishing this step and saving a checkpoint (again: stop at once)")
