"""VCTKDemandDataset: recorded pairs of clean and noisy speech, as VoiceBank-DEMAND holds them (Valentini-Botinhao, 2017)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dataloaders.clip_dataset import AVItem, ClipDataset, read_paths, spectrum
from models.level import level_gain
from models.pcs400 import SAMPLE_RATE_HZ as PCS_RATE_HZ
from models.pcs400 import cal_pcs
from utils.media.sound import load_audio
from utils.scores.metrics import aligned


def pair_by_name(clean: Sequence[str], noisy: Sequence[str], noisy_list: str, clean_list: str) -> list[dict[str, str]]:
    """{"clean", "noisy"} paths of each noisy file and the clean file of the same name (folder and suffix do not count).

    ValueError names the lists and the first file without a partner, or with two.
    """
    by_stem: dict[str, str] = {}
    for path in clean:
        stem = Path(path).stem
        if stem in by_stem:
            raise ValueError(f"{clean_list}: {by_stem[stem]} and {path} are two clean files of one name")
        by_stem[stem] = path
    alone = [path for path in noisy if Path(path).stem not in by_stem]
    if alone:
        raise ValueError(
            f"{len(alone)} of {len(noisy)} files in {noisy_list} have no file of the same name in {clean_list} "
            f"(first: {alone[0]}); make both with data/make_dataset_json.py"
        )
    return [{"clean": by_stem[Path(path).stem], "noisy": path} for path in noisy]


class VCTKDemandDataset(ClipDataset):
    """Pairs of the two lists, matched by file name, resampled (soxr) and divided by the RMS of the whole noisy clip.

    The arguments are SEMamba's, and beside them seed, causal (a running level instead of the RMS), max_sec (length that
    whole clips are cut to) and keys (what the lists are called in messages). split: windows of segment_size that follow
    from (seed, epoch, index), shorter clips padded with zeros; else whole clips. pcs: the clean sound is contrast
    stretched. n_cache_reuse and device are taken and not needed: items are made on the CPU, each when it is asked for.
    What happens to clips that cannot be read is said in ClipDataset. ValueError for lists that do not match.
    """

    def __init__(
        self, clean_json: str | os.PathLike, noisy_json: str | os.PathLike, sampling_rate: int = 16000,
        segment_size: int = 32000, n_fft: int = 400, hop_size: int = 100, win_size: int = 400, compress_factor: float = 1.0,
        split: bool = True, n_cache_reuse: int = 1, shuffle: bool = True, device: object = None, pcs: bool = False,
        *, seed: int = 1234, causal: bool = False, max_sec: float | None = None,
        keys: tuple[str, str] = ("clean_json", "noisy_json"),
    ) -> None:
        if pcs and sampling_rate != PCS_RATE_HZ:
            raise ValueError(f"PCS targets are made at {PCS_RATE_HZ} Hz, stft_cfg.sampling_rate is {sampling_rate}")
        clean, noisy = read_paths(clean_json, keys[0]), read_paths(noisy_json, keys[1])
        entries = pair_by_name(clean, noisy, str(noisy_json), str(clean_json))
        if shuffle:
            entries = [entries[i] for i in np.random.default_rng(seed).permutation(len(entries))]
        super().__init__(entries, str(noisy_json), seed, fixed=not split)
        self._rate, self._segment, self._split = sampling_rate, segment_size, split
        self._sizes = (n_fft, hop_size, win_size, compress_factor)
        self._pcs, self._causal, self._max_sec = pcs, causal, max_sec

    def name(self, index: int) -> str:
        """Path of the noisy clip at `index`, for reports."""
        return self._entries[index]["noisy"]

    def _item(self, entry: Mapping, index: int, rng: np.random.Generator) -> AVItem:
        limit_sec = None if self._split else self._max_sec
        clean, noisy = (load_audio(entry[kind], self._rate, 0.0, limit_sec) for kind in ("clean", "noisy"))
        clean, noisy = aligned(clean, noisy, self._rate, align=True)
        if not self._split and len(noisy) < self._sizes[0]:
            raise ValueError(f"{entry['noisy']} has {len(noisy)} samples, under one analysis window")
        if self._pcs:
            clean = cal_pcs(clean)
        gain = level_gain(noisy, self._causal, self._rate)
        waves = [clean * gain, noisy * gain, gain]  # each [L]
        if self._split:
            start = int(rng.integers(max(0, len(noisy) - self._segment) + 1))
            missing = max(0, self._segment - len(noisy))
            waves = [np.pad(wave[start : start + self._segment], (0, missing)) for wave in waves[:2]]
            waves.append(np.pad(gain[start : start + self._segment], (0, missing), "edge"))
        clean_audio, noisy_audio, kept_gain = (torch.from_numpy(wave.astype(np.float32)) for wave in waves)
        clean_mag, clean_pha, clean_com = spectrum(clean_audio, *self._sizes)
        noisy_mag, noisy_pha, _ = spectrum(noisy_audio, *self._sizes)
        video = torch.zeros(3, 0, 1, 1, dtype=torch.uint8)  # none, so no mask and no corruption either
        mask, corruption = torch.zeros(0, dtype=torch.bool), torch.zeros(0)
        return AVItem(
            clean_audio, clean_mag, clean_pha, clean_com, noisy_mag, noisy_pha, video, mask, corruption, noisy_audio, kept_gain
        )
