"""Checkpoints: written whole or not at all, loaded without running code, refused with a reason when they do not fit."""

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


def load_state(model: torch.nn.Module, state: Mapping, name: str, may_miss: set[str] = frozenset()) -> None:
    """Load `state` into `model` strictly; ValueError says what does not fit. Keys in `may_miss` may be absent."""
    expected = model.state_dict()
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
    model.load_state_dict(dict(state), strict=False)


def latest_pair(folder: str | os.PathLike) -> tuple[Path, Path, int] | None:
    """Newest step for which both g_XXXXXXXX.pth and do_XXXXXXXX.pth are in `folder`: (g, do, step), or None."""
    pairs = _steps(folder, "g") & _steps(folder, "do")
    if not pairs:
        return None
    step = max(pairs)
    return Path(folder) / f"g_{step:08d}.pth", Path(folder) / f"do_{step:08d}.pth", step


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
