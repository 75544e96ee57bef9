"""The base of the datasets: examples that depend on (seed, epoch, index) alone, and the treatment of unreadable clips."""

from __future__ import annotations

import contextlib
import logging
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from models.stfts import mag_phase_stft
from utils.console import one_line
from utils.util import load_json_file

FIXED_EPOCH = 2**31 - 1  # stands for the epoch in draws that never change

_log = logging.getLogger(__name__)


class ListError(ValueError):
    """Most files of a list cannot be used; the message names the list."""


class UnreadableClip(ValueError):
    """A clip of a fixed split that cannot be read; the message names it and says why."""


class AVItem(NamedTuple):
    """One example; L samples, T STFT frames, F bins, V video frames of S x S. The first six are SEMamba's."""

    clean_audio: torch.Tensor  # [L], multiplied by gain
    clean_mag: torch.Tensor  # [F, T], compressed
    clean_pha: torch.Tensor  # [F, T], radians
    clean_com: torch.Tensor  # [F, T, 2], compressed
    noisy_mag: torch.Tensor  # [F, T], compressed
    noisy_pha: torch.Tensor  # [F, T], radians
    video: torch.Tensor  # uint8 [3, V, S, S]; the model scales it, on its own device
    video_mask: torch.Tensor  # bool [V], False where there is no face to see
    corruption: torch.Tensor  # float [V], 1 where the video was degraded or is absent
    noisy_audio: torch.Tensor  # [L], multiplied by gain
    gain: torch.Tensor  # [L]
    features: torch.Tensor = torch.zeros(0, 0)  # [V, D] of a made face (dubbing), NaN: of a filmed one; [0, 0]: none


def as_video(frames: np.ndarray) -> torch.Tensor:
    """Crops uint8 [V, S, S, 3] as the video of an item, uint8 [3, V, S, S]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))


class ClipDataset(Dataset):
    """Examples made from the clips of a list; a subclass makes one in `_item`.

    entries: one for each clip, as `_item` takes them. source: the list's path, for messages. `fixed`: draws do not
    change with the epoch.
    A clip that cannot be read is logged (by each worker that meets it) and kept in `failures`. In training the next one
    takes its place; in a fixed split, where that one would count twice, UnreadableClip is raised. ListError when most of
    them cannot be read.
    """

    def __init__(self, entries: Sequence, source: str, seed: int, fixed: bool) -> None:
        self._entries, self._list, self._seed, self._fixed = entries, source, seed, fixed
        # In shared memory, so that workers that outlive an epoch hear of the next one.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._tried: set[int] = set()
        self.failures: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random windows, noises and degradations are drawn from now on."""
        self._epoch[0] = epoch

    def name(self, index: int) -> str:
        """Path of the clip at `index`, for reports."""
        raise NotImplementedError

    def _item(self, entry: Any, index: int, rng: np.random.Generator) -> AVItem:
        """The example made of an entry; ValueError or OSError when it cannot be read."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> AVItem:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._fixed:
            return self._read(index, index, FIXED_EPOCH)
        for step in range(len(self)):
            with contextlib.suppress(UnreadableClip):
                return self._read((index + step) % len(self), index, int(self._epoch[0]))
        raise ListError(f"{self._list}: no clip can be read")

    def _read(self, place: int, index: int, epoch: int) -> AVItem:
        """The example that `index` asks for, made of the clip at `place`."""
        path = self.name(place)
        if path not in self.failures:
            # A fresh generator per attempt: a failing clip must not shift the draws of the one that replaces it.
            rng = np.random.default_rng([self._seed, epoch, index])
            self._tried.add(place)
            try:
                return self._item(self._entries[place], index, rng)
            except ListError:
                raise
            except (ValueError, OSError, MemoryError) as error:
                self._record(path, one_line(error))
        raise UnreadableClip(f"{path}: {self.failures[path]}")

    def _record(self, path: str, reason: str) -> None:
        self.failures[path] = reason
        _log.warning("%s left out: %s", path, reason)
        if len(self.failures) > max(len(self._tried) / 2, min(8, len(self) / 2)):
            raise ListError(
                f"{self._list}: {len(self.failures)} of {len(self._tried)} clips tried cannot be read; last: {path}: {reason}"
            )


def spectrum(wave: torch.Tensor, *sizes: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """wave [L] -> mag [F, T], pha [F, T], com [F, T, 2]; sizes: n_fft, hop_size, win_size, compress_factor."""
    mag, pha, com = mag_phase_stft(wave[None], *sizes)
    return mag[0], pha[0], com[0]


def resolve(path: str, folder: Path) -> str:
    """A path of a list: looked for beside the list, then from the working directory."""
    if os.path.isabs(path):  # asking a cluster's file system about a million of them takes minutes
        return path
    beside = folder / path
    return str(beside) if beside.exists() else path


def read_paths(list_path: str | os.PathLike, key: str) -> list[str]:
    """Paths of a flat list; ValueError or FileNotFoundError names the recipe's `key` that pointed there."""
    items = load_json_file(list_path, key)
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise ValueError(f"{key}: entry {number} of {list_path} should be a path, not {reprlib.repr(item)}")
    return [resolve(item, Path(list_path).parent) for item in items]
