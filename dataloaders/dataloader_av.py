"""AVDataset: the same window of clean speech, noise and face, mixed, levelled and transformed for the model."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from dataloaders.augment_rir import RIRAugmentor
from dataloaders.clip_dataset import AVItem, ClipDataset, ListError, read_paths, resolve, spectrum
from dataloaders.degrade import VisualDegradation
from dataloaders.mixing import active_samples, fit_length, mix_audio, scale_noise
from models.level import level_gain
from utils.config import complete_config
from utils.media import load_audio, load_video_frames, media_duration_sec
from utils.util import load_json_file

__all__ = ["AVDataset", "AVItem", "ListError", "VisualDegradation", "mix_audio"]

WHOLE_SEC = 30.0  # clips up to this long are read whole: headers of MPEG files are only nearly right
ROOM_SEC = 1.0  # sound before the window that a room still answers to
WINDOW_DRAWS = 8  # windows tried for one in which somebody speaks
NOISE_DRAWS = 20
AUDIBLE_POWER = 1e-8  # -80 dB re full scale: noise below this is a recording's pause

_log = logging.getLogger(__name__)


class _Sound(NamedTuple):
    target: np.ndarray  # [L] what the model should give
    speech: np.ndarray  # [L] what the microphone hears of it
    first_frame: int  # video frame at which the window begins
    n_real: int  # samples before zero padding


class AVDataset(ClipDataset):
    """Mixtures of listed clips and noises with the face that belongs to them.

    data_json: list of {"video": path, "audio": path}; audio may be absent (the sound is in the video), so may video
    (no picture: masked), and "mask" may hold [first, end) runs of frames without a face. noise_json: list of paths.
    cfg: nested recipe mapping. Relative paths are looked for beside the list, then from the working directory.

    split "train": random windows of training_cfg.segment_size that begin on a video frame, random noise and SNR,
    rooms, picture degradation; everything follows from (seed, epoch, index), see `set_epoch`, whatever the workers do.
    "valid", "test": whole clips (at most valid_max_sec), noise drawn once by (seed, index), SNRs in turn from
    valid_snrs_db; batch size 1. visual_augmentation and rir_augmentor: None means what the recipe says.

    A clip that cannot be read is logged once, kept in `failures`, and the next one takes its place; ListError when
    that happens to most of them.
    """

    def __init__(
        self, data_json: str | os.PathLike, noise_json: str | os.PathLike, cfg: Mapping,
        split: Literal["train", "valid", "test"] = "train",
        visual_augmentation: VisualDegradation | None = None, rir_augmentor: RIRAugmentor | None = None,
    ) -> None:
        if split not in ("train", "valid", "test"):
            raise ValueError(f"split {split!r} is not known; use train, valid or test")
        cfg = complete_config(cfg)
        self.split, self._noise_list = split, str(noise_json)
        self._training, self._stft, self._visual = cfg["training_cfg"], cfg["stft_cfg"], cfg["visual_cfg"]
        self._rate, self._causal = cfg["stft_cfg"]["sampling_rate"], cfg["model_cfg"]["causal"]
        sizes = (self._stft["n_fft"], self._stft["hop_size"], self._stft["win_size"])
        self._sizes = (*sizes, cfg["model_cfg"]["compress_factor"])
        self._fps, self._size = cfg["visual_cfg"]["video_fps"], cfg["visual_cfg"]["face_size"]
        entries = _read_entries(data_json, f"data_cfg.{split}_data_json")
        self._noises = read_paths(noise_json, f"data_cfg.{split}_noise_json")
        if split == "valid" and self._training["valid_clips"]:
            count = min(self._training["valid_clips"], len(entries))
            entries = [entries[i * len(entries) // count] for i in range(count)]
        super().__init__(entries, str(data_json), cfg["env_setting"]["seed"], fixed=split != "train")
        self._degrade = self._rooms = None
        if split == "train":
            rir_json = cfg["data_cfg"]["train_rir_json"]
            if visual_augmentation is None and self._training["visual_degradation"]:
                visual_augmentation = VisualDegradation()
            if rir_augmentor is None and rir_json:
                rir_augmentor = RIRAugmentor(rir_json, self._training["rir_prob"], self._rate)
            self._degrade, self._rooms = visual_augmentation, rir_augmentor
        self._durations_sec: dict[str, float] = {}

    def name(self, index: int) -> str:
        """Path of the clip at `index`, for reports."""
        entry = self._entries[index]
        return entry.get("video") or entry["audio"]

    def _item(self, entry: dict, index: int, rng: np.random.Generator) -> AVItem:
        sound = self._draw_speech(entry, rng)
        noise, snr_db = self._draw_noise(sound.speech, index, rng)
        noise = scale_noise(sound.speech, noise, snr_db, self._rate)
        noisy = (sound.speech + noise).astype(np.float32)
        gain = level_gain(noisy, self._causal, self._rate)
        clean_audio, noisy_audio = (torch.from_numpy(wave.astype(np.float32) * gain) for wave in (sound.target, noisy))
        video, mask, corruption = self._draw_video(entry, sound, rng)
        clean_mag, clean_pha, clean_com = spectrum(clean_audio, *self._sizes)
        noisy_mag, noisy_pha, _ = spectrum(noisy_audio, *self._sizes)
        return AVItem(
            clean_audio, clean_mag, clean_pha, clean_com, noisy_mag, noisy_pha,
            video, mask, corruption, noisy_audio, torch.from_numpy(gain),
        )  # fmt: skip

    def _duration_sec(self, path: str) -> float:
        if path not in self._durations_sec:
            self._durations_sec[path] = media_duration_sec(path) or 0.0
        return self._durations_sec[path]

    def _draw_speech(self, entry: dict, rng: np.random.Generator) -> _Sound:
        path = entry.get("audio") or entry["video"]
        if self.split != "train":
            speech = load_audio(path, self._rate, 0.0, self._training["valid_max_sec"])
            if len(speech) < self._stft["n_fft"]:
                raise ValueError(f"{path} has {len(speech)} samples, under one analysis window")
            return _Sound(speech, speech, 0, len(speech))
        length = self._training["segment_size"]
        hop = self._rate / self._fps  # samples per video frame
        duration_sec = self._duration_sec(path)
        whole = load_audio(path, self._rate) if duration_sec <= WHOLE_SEC else None
        n_samples = len(whole) if whole is not None else int(duration_sec * self._rate)
        last = max(0, int((n_samples - length) / hop))
        for _ in range(WINDOW_DRAWS):
            first_frame = int(rng.integers(last + 1))
            start = round(first_frame * hop)
            context = min(start, round(ROOM_SEC * self._rate))
            begin, end = start - context, start + length
            if whole is not None:
                stretch = whole[begin:end]
                loudest = float(np.max(np.abs(whole)))
            else:
                stretch = load_audio(path, self._rate, begin / self._rate, (end - begin) / self._rate)
                loudest = float(np.max(np.abs(stretch)))
            if np.max(np.abs(stretch[context:]), initial=0.0) > 0.01 * loudest:
                break
        speech = target = stretch
        if self._rooms is not None:
            speech, target = self._rooms(stretch, rng, self._training["rir_target"])
        padding = (0, max(0, context + length - len(stretch)))
        speech, target = (np.pad(wave, padding)[context:] for wave in (speech, target))
        return _Sound(target, speech, first_frame, min(length, len(stretch) - context))

    def _draw_noise(self, speech: np.ndarray, index: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Noise [L], audible while the speech is active, and the SNR in dB to mix it at."""
        if self.split == "train":
            snr_db = float(rng.uniform(*self._training["snr_range"]))
        else:
            snrs_db = self._training["valid_snrs_db"]
            snr_db = float(snrs_db[index % len(snrs_db)])
        active = active_samples(speech, self._rate)
        noise: np.ndarray | None = None
        for _ in range(NOISE_DRAWS):
            path = self._noises[int(rng.integers(len(self._noises)))]
            place = float(rng.random())
            if path in self.failures:
                continue
            try:
                noise = self._noise_window(path, len(speech), place)
            except (ValueError, OSError) as error:
                self.failures[path] = str(error)
                _log.warning("noise %s left out: %s", path, error)
                continue
            if np.mean(np.square(noise[active] if active.any() else noise)) > AUDIBLE_POWER:
                break
        if noise is None:
            last = list(self.failures.values())[-1]
            raise ListError(f"{self._noise_list}: no noise could be read in {NOISE_DRAWS} draws; last failure: {last}")
        return noise, snr_db

    def _noise_window(self, path: str, length: int, place: float) -> np.ndarray:
        """`length` samples of a noise recording from `place` (0 to 1) of where they may begin; short ones start over."""
        total = int(self._duration_sec(path) * self._rate)
        if total > length + self._rate // 10:
            start = int(place * (total - length - self._rate // 20))
            noise = load_audio(path, self._rate, start / self._rate, length / self._rate)
            return fit_length(noise, length)
        noise = load_audio(path, self._rate)
        return fit_length(noise, length, int(place * len(noise)))

    def _draw_video(
        self, entry: dict, sound: _Sound, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Video [3, V, S, S], mask bool [V] and corruption [V] for the window of `sound`."""
        size = self._size
        if not self._visual["use_visual"]:
            return torch.zeros(3, 0, size, size), torch.zeros(0, dtype=torch.bool), torch.zeros(0)
        seconds = len(sound.speech) / self._rate
        count = math.ceil(seconds * self._fps - 1e-6)
        # Drawn first, so that the picture's fate does not depend on how many numbers a degradation takes.
        dropped = self.split == "train" and rng.random() < self._training["video_dropout"]
        frames, mask = np.zeros((count, size, size, 3), np.uint8), np.zeros(count, bool)
        if "video" in entry and not dropped:
            frames, mask = self._load_video(entry, sound.first_frame, count, sound.n_real)
        corruption = np.zeros(count, np.float32)
        if self._degrade is not None and mask.any():
            frames, corruption = self._degrade(frames, rng)
            frames[~mask] = 0
        corruption = np.maximum(corruption, (~mask).astype(np.float32))
        # frames [V, S, S, 3] -> video [3, V, S, S]
        video = torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2))).float() / 255.0
        return video, torch.from_numpy(mask), torch.from_numpy(corruption)

    def _load_video(self, entry: dict, first: int, count: int, n_real: int) -> tuple[np.ndarray, np.ndarray]:
        """Crops uint8 [count, S, S, 3] and mask from video frame `first` on; masked where the sound is padding."""
        frames, mask = load_video_frames(
            entry["video"], first / self._fps, count / self._fps, self._size, self._fps, self._visual["face_crop"]
        )
        for begin, end in entry.get("mask", ()):
            mask[max(0, begin - first) : max(0, end - first)] = False
        mask &= np.arange(count) / self._fps < n_real / self._rate
        frames[~mask] = 0
        return frames, mask


def _read_entries(list_path: str | os.PathLike, key: str) -> list[dict]:
    entries = []
    for number, item in enumerate(load_json_file(list_path, key)):
        paths = {name: item.get(name) for name in ("video", "audio")} if isinstance(item, dict) else {}
        paths = {name: path for name, path in paths.items() if path is not None}
        if not paths or not all(isinstance(path, str) for path in paths.values()):
            raise ValueError(
                f'{key}: entry {number} of {list_path} should be {{"video": path, "audio": path}}, not {item!r}'
            )
        entry: dict = {name: resolve(path, Path(list_path).parent) for name, path in paths.items()}
        if item.get("mask"):
            entry["mask"] = [(int(first), int(end)) for first, end in item["mask"]]
        entries.append(entry)
    return entries
