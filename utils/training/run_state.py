"""The checkpoints of a run: saving the state of a trainer, and resuming from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from utils.checkpoint import all_pairs, check_weights, load_checkpoint, load_state, prune_pairs, save_checkpoint

if TYPE_CHECKING:
    from utils.training.trainer import Trainer


class Player:
    """A network with its optimiser."""

    def __init__(self, module: torch.nn.Module, training: Mapping) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training["learning_rate"], betas=(training["adam_b1"], training["adam_b2"]),
            fused=all(p.is_cuda for p in self.parameters) or None,  # one kernel for all of them; on a CPU as before
        )

    def load_optimizer(self, state: Mapping, weights: Mapping) -> None:
        """Load the optimiser's state, which knows parameters by number, in the order of the weights saved beside it.

        SEMamba registers its layers in another order than this module may.
        """
        own = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        trained = set(own)
        number = {name: i for i, name in enumerate(name for name in weights if name in trained)}
        held = {i: state["state"][number[name]] for i, name in enumerate(own) if number.get(name) in state["state"]}
        settings = self.optimizer.state_dict()["param_groups"]  # the recipe's: it may have been changed
        self.optimizer.load_state_dict({"state": held, "param_groups": settings})


def save(run: Trainer) -> None:
    """Write the g_/do_ pair of a step. The do_ file is written first: a g_ file implies its partner.

    Every process of the group takes part; each one's random state is kept, a GPU's being that of its own device.
    """
    rng = run.group.gather({
        "torch": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    })  # fmt: skip
    if run.group.is_main:
        name = f"{run.step:08d}.pth"
        rest = {
            "optim_g": run.optimizer.state_dict(), "steps": run.step, "epoch": run.epoch, "position": run.position,
            "best": dict(run.best), "bad_batches": run.bad_batches, "bad_in_row": run.bad_in_row, "rng": rng,
            "average": run.average, "validation_due": run.validation_due, "precision": run.precision,
        }
        if run.rival is not None:
            rest["discriminator"] = {key: value.detach().cpu() for key, value in run.rival.module.state_dict().items()}
            rest |= {"optim_d": run.rival.optimizer.state_dict(), "report": dict(run.adversary.report)}
        save_checkpoint(run.exp_path / f"do_{name}", rest)
        save_checkpoint(run.exp_path / f"g_{name}", run.pack({"step": run.step, "best": dict(run.best)}))
        prune_pairs(run.exp_path, run.env["keep_checkpoints"])
    run.group.wait()


STATE_KINDS = {
    "optim_g": Mapping, "optim_d": Mapping, "discriminator": Mapping, "steps": int, "epoch": int, "position": int,
    "best": Mapping, "report": Mapping, "bad_batches": int, "bad_in_row": int,
}  # fmt: skip


def _read_pair(run: Trainer) -> tuple[dict, dict, str] | None:
    """Read the newest pair that can be read; a damaged newer one is named. ValueError where all are damaged."""
    pairs = all_pairs(run.exp_path)
    for number, (weights_file, state_file, _) in enumerate(pairs):
        try:
            weights = load_checkpoint(weights_file, needs=("generator",))["generator"]
            state = load_checkpoint(state_file, needs=("optim_g", "steps", "epoch"))
            wrong = [key for key, kind in STATE_KINDS.items() if key in state and not isinstance(state[key], kind)]
            if wrong or not isinstance(weights, Mapping):
                what = f"a {type(state[wrong[0]]).__name__} as {wrong[0]}" if wrong else "no weights as 'generator'"
                raise ValueError(f"checkpoint {state_file if wrong else weights_file} holds {what}")
            check_weights(weights, f"checkpoint {weights_file}")
        except ValueError as error:
            if number == len(pairs) - 1:
                raise
            run.group.say(f"{error}; the pair of step {pairs[number + 1][2]} is used instead")
            continue
        return weights, state, str(weights_file)
    return None


def load_pair(run: Trainer) -> dict | None:
    """Weights and optimisers of the newest pair into the modules; the rest of what it holds, or None without one."""
    held = run.group.from_main(lambda: _read_pair(run))
    if held is None:
        return None
    weights, state, name = held
    load_state(run.generator, weights, name, run.may_miss)
    run.player.load_optimizer(state["optim_g"], weights)
    if run.rival is not None:
        if "discriminator" not in state or "optim_d" not in state:
            raise ValueError(f"{name} was trained without a discriminator; choose another --exp_name")
        load_state(run.rival.module, state["discriminator"], name.replace("g_", "do_"))
        run.rival.load_optimizer(state["optim_d"], state["discriminator"])
    if run.average:  # a run that begins to average on the way begins with the weights it has
        held_average = state.get("average") or run.parameters
        run.average = [value.detach().clone().to(p.device) for value, p in zip(held_average, run.parameters, strict=True)]
    return state


def resume(run: Trainer) -> bool:
    """Go back to the newest checkpoint of a run, if there is one; SEMamba's own pairs will do.

    Then every process of the group holds the same weights. With more processes than the checkpoint had, or fewer, the
    weights, the optimiser and the order of the clips go on as they were; what dropout draws does not.
    """
    state = load_pair(run)
    for player in (run.player, run.rival):
        if player is not None:
            run.group.copy_from_main(player.module)
    if state is None:
        run.average = [p.detach().clone() for p in run.parameters] if run.average else []
        return False
    run.step, run.epoch, run.position = state["steps"], state["epoch"], state.get("position", 0)
    run.best, run.validation_due = state.get("best", run.best), state.get("validation_due", False)
    run.bad_batches, run.bad_in_row = state.get("bad_batches", 0), state.get("bad_in_row", 0)
    before = state.get("precision", run.precision)
    if before != run.precision:
        run.group.say(f"{run.exp_path} was trained in {before} up to step {run.step}, and goes on in {run.precision}")
    if run.adversary is not None:
        run.adversary.report |= state.get("report", {})
    rng = state.get("rng", [])
    rng = [rng] if isinstance(rng, Mapping) else rng  # as written by one process before there could be more
    if run.group.rank < len(rng):
        own = rng[run.group.rank]
        torch.set_rng_state(own["torch"].cpu())
        if torch.cuda.is_available() and own["cuda"]:  # earlier versions kept those of all the devices of a machine
            device = torch.cuda.current_device()
            torch.cuda.set_rng_state(own["cuda"][device if device < len(own["cuda"]) else 0].cpu())
    return True
