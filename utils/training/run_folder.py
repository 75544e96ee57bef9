"""The files of a run beside its weights: the recipe, the versions of packages, and a log that resumes with the weights."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils.config import LossCfg, load_config
from utils.util import append_whole, atomic_write, clear_unfinished, git_revision, naming_full_disk, write_json

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

MODEL_SECTIONS = ("stft_cfg", "model_cfg", "visual_cfg", "lite_cfg")
TOTALS = {"total": "Generator Loss", "discriminator_total": "Discriminator Loss"}  # as in SEMamba's TensorBoard
VERSIONED = ("torch", "numpy", "scipy", "numba", "av", "soundfile", "soxr", "opencv-python-headless", "pesq", "pystoi")


class ShownClip(NamedTuple):
    """A validation clip as TensorBoard shows it."""

    name: str
    sounds: Mapping[str, np.ndarray]  # {"noisy": float [L] in -1 .. 1, "enhanced": ..., "clean": ...}
    sample_rate: int  # Hz
    figure: np.ndarray | None = None  # uint8 [H, W, 3]


def record_run(exp_path: Path, cfg: Mapping) -> None:
    """Save the resolved config, revision and package versions; ValueError when the folder holds a run of another model."""
    exp_path.mkdir(parents=True, exist_ok=True)
    clear_unfinished(exp_path)
    config_file = exp_path / "config.yaml"
    if config_file.is_file():
        if not config_file.read_bytes().strip():
            raise ValueError(f"{config_file} is empty, so what run is there is not known; choose another --exp_name")
        earlier = load_config(config_file)  # SEMamba's own scripts keep theirs there too, with the keys it has
        for section in MODEL_SECTIONS:
            for key, value in cfg[section].items():
                before = earlier[section][key]
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


@contextmanager
def only_run(exp_path: Path) -> Iterator[None]:
    """Inside the `with` block no other process can train in this folder; ValueError when one does already.

    The lock is the system's, so a killed run leaves none. Where the file system has no locks nothing is refused.
    """
    exp_path.mkdir(parents=True, exist_ok=True)
    with open(exp_path / ".lock", "a") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which the workers of a killed run still hold
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another run trains in {exp_path}; wait for its end, or choose another --exp_name") from None
        yield


class RunLog:
    """Writes one JSON line per entry into log.jsonl, and gives TensorBoard numbers. Unless `active`, it writes nothing.

    It removes entries after resume_step, and those of kind `again` at resume_step: the run will write them again. OSError that
    names the file, or TensorBoard's folder, where the disk is full.
    """

    def __init__(self, exp_path: Path, resume_step: int, again: str | None = None, active: bool = True) -> None:
        self.path, self._board = exp_path / "log.jsonl", None
        self._heard: set[str] = set()  # clips whose noisy and clean sound, which never change, are there
        if not active:
            return
        if self.path.is_file():
            # Lines past the checkpoint will be written again; a torn last line is what a killed run leaves.
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if (place := _place_of(line))[0] <= resume_step and place != (resume_step, again)]
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        # TensorBoard's thread would print a traceback where the disk is full; the next call here raises the same error.
        self._hook = threading.excepthook
        threading.excepthook = lambda said: None if getattr(said.exc_value, "errno", 0) == errno.ENOSPC else self._hook(said)
        with self._naming():
            self._board = SummaryWriter(str(exp_path / "logs"), purge_step=resume_step + 1)

    def _naming(self) -> AbstractContextManager[None]:
        return naming_full_disk(self.path.with_name("logs"), "TensorBoard's entries end there")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add an entry to log.jsonl."""
        if self._board is not None:
            append_whole(self.path, (json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())

    def summarize(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Give the numbers among `values` to TensorBoard, under SEMamba's tags where it has one for them."""
        with self._naming():
            for name, value in values.items() if self._board is not None else ():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(tag_of(kind, name), value, step)

    def describe(self, cfg: Mapping) -> None:
        """Give the recipe to TensorBoard: as hyper-parameters, and as text."""
        if self._board is None:
            return
        with self._naming():
            values = {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in _flat(cfg)}
            for summary in hparams(values, {}):
                self._board.file_writer.add_summary(summary)
            text = yaml.safe_dump(dict(cfg), sort_keys=False)
            self._board.add_text("Recipe", "\n".join(f"    {line}" for line in text.splitlines()))

    def show(self, step: int, clips: Iterable[ShownClip]) -> None:
        """Give the sounds and figures of validation clips to TensorBoard."""
        for clip in clips if self._board is not None else ():  # made as they are asked for: their errors are not the board's
            with self._naming():
                for name, wav in clip.sounds.items():
                    if name == "enhanced" or clip.name not in self._heard:
                        sound = torch.from_numpy(np.clip(wav, -1.0, 1.0).astype(np.float32))[None]  # [1, L]
                        self._board.add_audio(f"Validation {clip.name}/{name}", sound, step, clip.sample_rate)
                self._heard.add(clip.name)
                if clip.figure is not None:
                    tag = f"Validation {clip.name}/spectrograms, alpha, gate"
                    self._board.add_image(tag, clip.figure, step, dataformats="HWC")

    def close(self) -> None:
        if self._board is not None:
            threading.excepthook = self._hook
            with self._naming():
                self._board.close()


def tag_of(kind: str, name: str) -> str:
    """TensorBoard's tag of a value: SEMamba's, such as "Training/Magnitude Loss", or "Training/NAME" where it has none."""
    section = {"train": "Training", "validation": "Validation"}.get(kind, kind.capitalize())
    term = name.removeprefix("loss_") if kind == "validation" else name
    if kind == "train" and name in TOTALS:
        return f"{section}/{TOTALS[name]}"
    if kind == "validation" and name == "pesq":
        return f"{section}/PESQ Score"
    if kind == "validation" and name == "loss":
        return f"{section}/Generator Loss"
    if term in LossCfg.model_fields and (kind == "train" or name != term):
        return f"{section}/{'SI-SDR' if term == 'si_sdr' else term.capitalize()} Loss"
    return f"{section}/{name}"


def _flat(mapping: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a nested mapping, as ("section.key", value)."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _place_of(line: str) -> tuple[float, str | None]:
    """Step and kind of an entry."""
    try:
        entry = json.loads(line)
        return entry["step"], entry["kind"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf"), None
