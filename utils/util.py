"""Small helpers for all scripts: files, seeds, devices, losses that are not finite."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = ".unfinished-"  # how the names of temporary files begin
LONGEST_SUFFIX = 8
LEAST_FREE_BYTES = 64 << 10  # a disk with less is full


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it there on success, so that no reader ever sees half a file.

    The content is on the disk before the rename. OSError that names the file where the disk is full; what was at `path` before
    is then as it was. Writing processes hold a lock on their temporary files; `clear_unfinished` removes those of killed ones.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # a name that the file system does not take fails before any work is done
    # The suffix is kept: writers such as soundfile and PyAV choose the format by it.
    suffix = path.suffix if path.suffix.isascii() and len(path.suffix) <= LONGEST_SUFFIX else ""
    handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=suffix, dir=path.parent)
    temporary = Path(name)
    try:
        with naming_full_disk(path, "it was not written; what was there before is as it was"):
            _lock(handle)
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files that nobody else may read
            os.fsync(handle)
            os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def append_whole(path: str | os.PathLike, data: bytes, sync: bool = False) -> None:
    """Append all of `data` to a file, or nothing; `sync` returns when it is on the disk.

    OSError that names the file where the disk is full: a file system may take a part of what is written and say nothing.
    """
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            with naming_full_disk(path, "nothing was added to it"):
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                if sync:
                    os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike, then: str) -> Iterator[None]:
    """Errors inside that come from a full disk become an OSError that names `path` and says what became of it."""
    try:
        yield
    except Exception as error:
        if _is_full(error, Path(path).parent):
            raise OSError(errno.ENOSPC, f"No space left on device: {path}; {then}") from error
        raise


def _lock(handle: int) -> bool:
    """Take the lock of a temporary file; False where another process holds it, or the system has no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether a write failed because there is no room: libraries say so in many ways, and the disk itself in one."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    try:
        space = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return space.f_bavail * space.f_frsize < LEAST_FREE_BYTES


def clear_unfinished(folder: str | os.PathLike) -> int:
    """Remove the temporary files that killed processes left in `folder`, none of a living one; return how many."""
    count = 0
    for path in Path(folder).glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                if _lock(handle):
                    path.unlink()
                    count += 1
            finally:
                os.close(handle)
    return count


def load_json_file(path: str | os.PathLike, key: str | None = None) -> list:
    """Read a JSON list; ValueError names the file (and the configuration `key` that pointed there) when it is unusable."""
    origin = f"{key}: " if key else ""
    if not path:
        raise ValueError(f"{origin}no list given; data/make_grid_json.py, make_dataset_json.py and prepare_noise.py make them")
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows put a mark before the text
            items = json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{origin}list {path} does not exist; make it with the scripts in data/") from None
    except RecursionError:
        raise ValueError(f"{origin}{path} is not a JSON list: it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{origin}{path} is not a JSON list: {error}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(f"{origin}{path} holds no entries; it should be a non-empty JSON list")
    return items


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as indented JSON, as a whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names in its first line."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: str | os.PathLike, rows: Iterable[Mapping], columns: Sequence[str]) -> None:
    """Write the named columns of `rows` as CSV, as a whole or not at all.

    A float has six decimals, or as many as it needs in the column snr_db. None, NaN and missing values are empty cells. A
    mapping {metric: reason} is written as its reasons, each of them once.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(row.get(column), column) for column in columns] for row in rows)


def _csv_cell(value: object, column: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Mapping):
        return "; ".join(sorted(set(value.values())))
    if isinstance(value, (int, float)) and column == "snr_db":
        return f"{value:g}"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def initialize_seed(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below us still read the legacy generator
    torch.manual_seed(seed)


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device called `name`; "auto" is CUDA when it is there, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: this machine's last one is cuda:{torch.cuda.device_count() - 1}")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, AssertionError, TypeError, ImportError):  # each backend has its own way to say so
            raise ValueError(f"device {name!r} cannot be used on this machine; use auto, cpu, cuda or cuda:N") from None
    return device


def reuse_freed_memory() -> bool:
    """Keep freed tensors' memory in the process instead of giving it back to Linux after every layer; True when set.

    Otherwise glibc asks Linux for each tensor over 32 MB, and Linux clears it page by page: up to a quarter of a million page
    faults were counted in a step of CPU training. The price is that the process never becomes smaller again.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # glibc's malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


def git_revision() -> str:
    """Return the short revision of this source tree (with `+` when it has changes), or "unknown" outside git."""
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def check_loss_health(losses: Mapping[str, torch.Tensor | float]) -> str | None:
    """Return a sentence naming the loss terms that are NaN or infinite, or None when all are finite."""
    values = {name: float(v.detach() if isinstance(v, torch.Tensor) else v) for name, v in losses.items()}
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not bad:
        return None
    return "not finite: " + ", ".join(f"{name}={value}" for name, value in sorted(bad.items()))


def backward_and_clip(
    loss: torch.Tensor, parameters: list[torch.nn.Parameter], grad_clip: float | None,
    average: Callable[[list[torch.nn.Parameter]], None] | None = None,
) -> torch.Tensor:
    """Backpropagate and clip (None: not) -> gradient norm before clipping, a scalar that nobody has waited for yet.

    `average` is called between, to bring the gradients of several processes together.
    """
    loss.backward()
    return average_and_clip(parameters, grad_clip, average)


def average_and_clip(
    parameters: list[torch.nn.Parameter], grad_clip: float | None,
    average: Callable[[list[torch.nn.Parameter]], None] | None = None,
) -> torch.Tensor:
    """`backward_and_clip` after the backward pass."""
    if average is not None:
        average(parameters)
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if grad_clip is None else grad_clip)


def safe_backward(
    loss: torch.Tensor, parameters: list[torch.nn.Parameter], grad_clip: float | None,
    average: Callable[[list[torch.nn.Parameter]], None] | None = None,
) -> tuple[float, str | None]:
    """`backward_and_clip`; the gradients are dropped when their norm is not finite.

    Returns (gradient norm before clipping, None or a sentence that says why the step must be skipped).
    """
    norm = float(backward_and_clip(loss, parameters, grad_clip, average))
    if math.isfinite(norm):
        return norm, None
    for parameter in parameters:
        parameter.grad = None
    return norm, f"gradient norm is {norm}"
