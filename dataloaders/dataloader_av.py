"""AVDataset: windows of speech mixed with noise, with the face of the speaker, as the model takes them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from dataloaders.augment_rir import RIRAugmentor
from dataloaders.augment_video import CropJitter, VisualDegradation
from dataloaders.clip_dataset import AVItem, ClipDataset, ListError, as_video, read_paths, spectrum
from dataloaders.clip_sources import Clip, draw_window, open_clips
from dataloaders.dubbing import Dubber
from dataloaders.mixing import active_samples, fit_length, mix_audio, scale_noise
from dataloaders.scene import SceneMaker, speaker_of
from dataloaders.scene_video import SceneVideo
from models.level import level_gain
from utils.config import complete_config
from utils.console import one_line
from utils.media.sound import load_audio, media_duration_sec

__all__ = ["AVDataset", "AVItem", "ListError", "VisualDegradation", "mix_audio"]

NOISE_DRAWS = 20
MOSTLY = 0.9  # of a window's frames corrupted: its face says nothing
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
    (no video: masked), and "mask" may hold [first, end) runs of frames without a face. Or shards: a folder, a .tar, a
    pattern. noise_json: list of paths. cfg: nested recipe mapping. Relative paths are looked for beside the list, then
    from the working directory. The same crops give the same items from a list and from shards.

    split "train": random windows of training_cfg.segment_size that begin on a video frame, random noise and SNR,
    rooms, placement and degradation of the crop; everything follows from (seed, epoch, index), see `set_epoch`, whatever
    the workers do.
    "valid", "test": whole clips (at most valid_max_sec), noise drawn once by (seed, index), SNRs in turn from
    valid_snrs_db; batch size 1. visual_augmentation and rir_augmentor: None means what the recipe says.

    What happens to clips that cannot be read is said in ClipDataset. A noise that cannot be read is kept in
    `noise_failures`, and another one drawn; ListError when none is found.
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
        entries = open_clips(data_json, f"data_cfg.{split}_data_json", cfg)
        # Items that one read brings, to be drawn together (epoch_order.run_order); None: each is read for itself.
        self.runs: Sequence[range] | None = getattr(entries, "runs", None) if split == "train" else None
        self._noises = read_paths(noise_json, f"data_cfg.{split}_noise_json")
        if split == "valid" and self._training["valid_clips"]:
            count = min(self._training["valid_clips"], len(entries))
            entries = [entries[i * len(entries) // count] for i in range(count)]
        options = self._training["scene"] if split == "train" else None
        clips = entries
        # Items that belong side by side in a batch: item 2k and 2k + 1 are a pair scene of clip k, or two scenes.
        self.group = 2 if options and options["pair_share"] else 1
        if self.group == 2:
            entries = [clip for clip in clips for _ in range(2)]
        super().__init__(entries, str(data_json), cfg["env_setting"]["seed"], fixed=split != "train")
        self._degrade = self._rooms = self._jitter = None
        if split == "train":
            self._jitter = CropJitter() if self._training["crop_jitter"] else None
            rir_json = cfg["data_cfg"]["train_rir_json"]
            if visual_augmentation is None and self._training["visual_degradation"]:
                visual_augmentation = VisualDegradation(self._training["degradation_shares"])
            if rir_augmentor is None and rir_json:
                rir_augmentor = RIRAugmentor(rir_json, self._training["rir_prob"], self._rate)
            self._degrade, self._rooms = visual_augmentation, rir_augmentor
        self._scenes: SceneMaker | None = None
        self._all_faces = False  # clips without video are given a face
        if options:
            talkers_json = cfg["data_cfg"]["train_talkers_json"]
            talkers = open_clips(talkers_json, "data_cfg.train_talkers_json", cfg) if talkers_json else []
            bank = cfg["data_cfg"]["train_dubbing_bank"]
            dubbed = bank and self._visual["use_visual"]
            dubber = Dubber(bank, cfg["training_cfg"]["scene"]["dubbing_variation"]) if dubbed else None
            self._scenes = SceneMaker(clips, talkers, self._audible_noise, self._rooms, cfg, all_faces=dubber is not None)
            self._scene_face = SceneVideo(self._scenes, self._degrade, self._jitter, dubber, cfg)
            self._all_faces = dubber is not None
        self._durations_sec: dict[str, float] = {}
        self.noise_failures: dict[str, str] = {}

    def name(self, index: int) -> str:
        """Path of the clip at `index`, for reports."""
        return self._entries[index].name

    def _item(self, clip: Clip, index: int, rng: np.random.Generator) -> AVItem:
        if self._scenes is not None:
            return self._scene_item(clip, index, rng)
        sound = self._draw_speech(clip, rng)
        noise, snr_db = self._draw_noise(sound.speech, index, rng)
        if self.split != "train":
            noise = self._interference(clip, sound.speech, noise, index, rng)
        noise = scale_noise(sound.speech, noise, snr_db, self._rate)
        noisy = (sound.speech + noise).astype(np.float32)
        return self._finish(sound.target, noisy, *self._draw_video(clip, sound, rng))

    def _scene_item(self, clip: Clip, index: int, rng: np.random.Generator) -> AVItem:
        """An item of a drawn scene; both items of a pair scene draw it from the same generator."""
        options, role = self._training["scene"], None
        if self.group == 2:
            shared = np.random.default_rng([self._seed, int(self._epoch[0]), index // 2, 1])
            if shared.random() < options["pair_share"] and (clip.has_video or self._all_faces):
                scene, role = self._scenes.scene(clip, shared, index % 2), index % 2
        if role is None:
            if self.group == 2 and index % 2:
                clip = self._scenes.other_clip(clip, rng, with_face=False)
            scene = self._scenes.scene(clip, rng)
        face = self._scene_face(scene, rng)
        target = scene.target
        if options["faceless_target"] == "everybody" and (not len(face.mask) or float(face.corruption.mean()) > MOSTLY):
            target = scene.everybody
        return self._finish(target, scene.noisy, *face[:3])._replace(features=face.features)

    def _finish(
        self, target: np.ndarray, noisy: np.ndarray, video: torch.Tensor, mask: torch.Tensor, corruption: torch.Tensor
    ) -> AVItem:
        """The item of a target and a mixture [L] and their video, levelled and transformed."""
        gain = level_gain(noisy, self._causal, self._rate)
        clean_audio, noisy_audio = (torch.from_numpy(wave.astype(np.float32) * gain) for wave in (target, noisy))
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

    def _draw_speech(self, clip: Clip, rng: np.random.Generator) -> _Sound:
        if self.split != "train":
            speech = clip.sound(0.0, self._training["valid_max_sec"])
            if len(speech) < self._stft["n_fft"]:
                raise ValueError(f"{clip.name} has {len(speech)} samples, under one analysis window")
            return _Sound(speech, speech, 0, len(speech))
        length = self._training["segment_size"]
        stretch, context, first_frame = draw_window(clip, length, self._rate, self._fps, rng)
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
        return self._audible_noise(active_samples(speech, self._rate), rng), snr_db

    def _interference(
        self, clip: Clip, speech: np.ndarray, noise: np.ndarray, index: int, rng: np.random.Generator
    ) -> np.ndarray:
        """The interference [L] of a fixed item, by its kind: the noise, another speaker's clip, or both at the same level."""
        kinds = self._training["valid_kinds"]
        # SNRs take turns too: a kind's turn comes round with each of them.
        kind = kinds[index // len(self._training["valid_snrs_db"]) % len(kinds)]
        if kind == "noise":
            return noise
        others = [k for k in range(len(self._entries)) if speaker_of(self._entries[k]) != speaker_of(clip)]
        if not others:
            raise ListError(f"{self._list}: valid_kinds {kind} needs clips of two speakers, in folders of their own")
        talker = self._entries[others[int(rng.integers(len(others)))]].sound(0.0, self._training["valid_max_sec"])
        talker = fit_length(np.asarray(talker, np.float64), len(speech))
        if kind == "talker":
            return talker
        return talker + scale_noise(talker, noise, 0.0, self._rate)

    def _audible_noise(self, active: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Noise [L] that is audible where `active` bool [L] is True."""
        noise: np.ndarray | None = None
        for _ in range(NOISE_DRAWS):
            path = self._noises[int(rng.integers(len(self._noises)))]
            place = float(rng.random())
            if path in self.noise_failures:
                continue
            try:
                noise = self._noise_window(path, len(active), place)
            except (ValueError, OSError, MemoryError) as error:
                self.noise_failures[path] = one_line(error)
                _log.warning("noise %s left out: %s", path, error)
                continue
            if np.mean(np.square(noise[active] if active.any() else noise)) > AUDIBLE_POWER:
                break
        if noise is None:
            last = list(self.noise_failures.values())[-1]
            raise ListError(f"{self._noise_list}: no noise could be read in {NOISE_DRAWS} draws; last failure: {last}")
        return noise

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
        self, clip: Clip, sound: _Sound, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Video uint8 [3, V, S, S], mask bool [V] and corruption [V] for the window of `sound`."""
        size = self._size
        if not self._visual["use_visual"]:
            return torch.zeros(3, 0, size, size, dtype=torch.uint8), torch.zeros(0, dtype=torch.bool), torch.zeros(0)
        ahead_sec = self._visual["visual_lookahead_ms"] / 1000
        seconds = len(sound.speech) / self._rate + ahead_sec
        count = math.ceil(seconds * self._fps - 1e-6)
        # Drawn first, so that the crops' fate does not depend on how many numbers a degradation takes.
        dropped = self.split == "train" and rng.random() < self._training["video_dropout"]
        frames, mask = np.zeros((count, size, size, 3), np.uint8), np.zeros(count, bool)
        if clip.has_video and not dropped:
            frames, mask = clip.frames(sound.first_frame, count)
            mask &= np.arange(count) / self._fps < sound.n_real / self._rate + ahead_sec  # padding of the sound has no video
            if self._jitter is not None:
                frames = self._jitter(frames, rng)
            frames[~mask] = 0
        corruption = np.zeros(count, np.float32)
        if self._degrade is not None and mask.any():
            frames, corruption = self._degrade(frames, rng)
            frames[~mask] = 0
        corruption = np.maximum(corruption, (~mask).astype(np.float32))
        # frames [V, S, S, 3] -> video [3, V, S, S]
        video = as_video(frames)
        return video, torch.from_numpy(mask), torch.from_numpy(corruption)
