"""Saves and loads checkpoints: whole or not at all, without running code from them, and says why one does not fit."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from utils.util import atomic_write


def save_checkpoint(path: str | os.PathLike, contents: Mapping) -> None:
    """Write `contents` (tensors and plain values only) to `path` atomically."""
    with atomic_write(path) as temporary:
        torch.save(dict(contents), temporary)


def load_checkpoint(
    path: str | os.PathLike, map_location: str | torch.device = "cpu", needs: Sequence[str] = ()
) -> dict:
    """Read a checkpoint with weights_only=True; one clear line when it is missing, damaged or something else.

    `needs`: keys without which it is of no use.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was made
            contents = torch.load(path, map_location=map_location, weights_only=True)
    except PermissionError:
        raise ValueError(f"checkpoint {path} cannot be read: permission denied") from None
    except Exception:  # a damaged file makes the unpickler trip over anything: IndexError, OSError, struct.error
        # What torch says is not passed on: it advises to load the file with weights_only=False, which may run its code.
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged, no checkpoint, or holds more than tensors and plain values"
        ) from None
    if not isinstance(contents, dict):
        raise ValueError(f"checkpoint {path} holds a {type(contents).__name__}, not a dict with a 'generator'")
    missing = [key for key in needs if key not in contents]
    if missing:
        raise ValueError(
            f"checkpoint {path} holds no {missing[0]}: a run cannot go on from it; remove it and its partner (g_ or do_), "
            "or choose another --exp_name"
        )
    return contents


def check_weights(state: Mapping, name: str) -> None:
    """Raise ValueError where `state` holds anything but plain tensors of finite numbers under names."""
    for key, value in state.items():
        kind = None
        if not isinstance(key, str):
            kind = f"a {type(key).__name__} where the name of a weight belongs"
        elif not isinstance(value, torch.Tensor):
            kind = f"a {type(value).__name__} as {key:.80}"
        elif value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
            kind = f"a tensor that is not dense and real as {key:.80}"
        elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
            kind = f"NaN or infinity in {key:.80}"
        if kind is not None:
            raise ValueError(f"{name} holds {kind}; it cannot be used")


def load_state(model: torch.nn.Module, state: Mapping, name: str, may_miss: set[str] = frozenset()) -> None:
    """Load `state` into `model` strictly; ValueError says what does not fit. Keys in `may_miss` may be absent."""
    check_fit(model, state, name, may_miss)
    model.load_state_dict(dict(state), strict=False)


def check_fit(model: torch.nn.Module, state: Mapping, name: str, may_miss: set[str] = frozenset()) -> None:
    """Raise the errors of `load_state` without loading; `model` may be on the meta device."""
    expected = model.state_dict()
    check_weights(state, name)
    missing = sorted(set(expected) - set(state) - set(may_miss))
    extra = sorted(set(state) - set(expected))
    shapes = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights are missing (first: {missing[0]})")
    if extra:
        problems.append(f"{len(extra)} weights are unknown to the model (first: {extra[0]})")
    if shapes:
        key = shapes[0]
        problems.append(f"{len(shapes)} shapes differ (first: {key} {list(state[key].shape)}, "
                        f"the model's is {list(expected[key].shape)})")
    if problems:
        raise ValueError(f"{name} does not fit {type(model).__name__} as configured: " + "; ".join(problems))


def all_pairs(folder: str | os.PathLike) -> list[tuple[Path, Path, int]]:
    """Return (g, do, step), the newest first, for each step with both g_XXXXXXXX.pth and do_XXXXXXXX.pth in `folder`."""
    steps = sorted(_steps(folder, "g") & _steps(folder, "do"), reverse=True)
    return [(Path(folder) / f"g_{step:08d}.pth", Path(folder) / f"do_{step:08d}.pth", step) for step in steps]


def latest_pair(folder: str | os.PathLike) -> tuple[Path, Path, int] | None:
    """Return the newest of `all_pairs`, or None."""
    return next(iter(all_pairs(folder)), None)


def prune_pairs(folder: str | os.PathLike, keep: int) -> None:
    """Delete all g_/do_ pairs but the newest `keep`, and do_ files without a partner, which are of no use alone."""
    weights, rest = _steps(folder, "g"), _steps(folder, "do")
    kept = set(sorted(weights & rest)[-keep:])
    for step in rest - kept:
        for kind in ("g", "do"):  # in this order: a g_ file implies its partner
            (Path(folder) / f"{kind}_{step:08d}.pth").unlink(missing_ok=True)


def _steps(folder: str | os.PathLike, kind: str) -> set[int]:
    """Steps of the checkpoints g_XXXXXXXX.pth or do_XXXXXXXX.pth in `folder`; g_original.pth is none of them."""
    names = (re.fullmatch(rf"{kind}_(\d{{8}})\.pth", path.name) for path in Path(folder).glob(f"{kind}_*.pth"))
    return {int(match.group(1)) for match in names if match}
