"""Draws the face of a scene: the speaker's own (filmed or made), a degraded or shifted one, or another person's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.augment_video import FETCHED, OTHER, SHIFT, SHIFT_SEC, CropJitter, VisualDegradation
from dataloaders.clip_dataset import as_video
from dataloaders.clip_sources import Clip, draw_window
from dataloaders.dubbing import Dubber
from dataloaders.scene import Scene, SceneMaker, speaker_of


class SceneFace(NamedTuple):
    """The face of a scene: V video frames of S x S."""

    video: torch.Tensor  # uint8 [3, V, S, S]
    mask: torch.Tensor  # bool [V], False where there is no face to see
    corruption: torch.Tensor  # float [V], 1 where the video does not show what goes with the target's voice
    features: torch.Tensor  # [V, D] of a made face, NaN of a filmed one; [0, 0] where no faces are made


class SceneVideo:
    """Draws the face of a scene as a recipe says; everything follows from the generator it is given.

    scenes: names other people's clips. degrade, jitter: None means never. dubber: makes faces for clips without video.
    """

    def __init__(
        self, scenes: SceneMaker, degrade: VisualDegradation | None, jitter: CropJitter | None, dubber: Dubber | None,
        cfg: Mapping,
    ) -> None:
        self._scenes, self._degrade, self._jitter, self._dubber = scenes, degrade, jitter, dubber
        self._training, self._visual = cfg["training_cfg"], cfg["visual_cfg"]
        self._rate = cfg["stft_cfg"]["sampling_rate"]
        self._fps, self._size = self._visual["video_fps"], self._visual["face_size"]

    def __call__(self, scene: Scene, rng: np.random.Generator) -> SceneFace:
        """Return the face of a scene; without `visual_cfg.use_visual` one of no frames."""
        if not self._visual["use_visual"]:
            none = torch.zeros(3, 0, self._size, self._size, dtype=torch.uint8)
            return SceneFace(none, torch.zeros(0, dtype=torch.bool), torch.zeros(0), torch.zeros(0, 0))
        dropped = rng.random() < self._training["video_dropout"]
        kind = self._degrade.draw(rng) if self._degrade is not None else "none"
        # Drawn by filmed and made faces alike, and whatever happens to the face.
        late_sec = float(rng.uniform(-1, 1)) * self._training["scene"]["sync_jitter_ms"] / 1000
        if kind == SHIFT:
            late_sec = float(rng.uniform(*SHIFT_SEC)) * float(rng.choice((-1, 1)))
        if self._dubber is not None and not scene.shown.clip.has_video and not dropped:
            return self._made(scene, kind, late_sec, rng)
        return self._filmed(scene, kind, late_sec, dropped, rng)

    def _filmed(self, scene: Scene, kind: str, late_sec: float, dropped: bool, rng: np.random.Generator) -> SceneFace:
        size, count, clip = self._size, len(scene.frames), scene.shown.clip
        frames, mask = np.zeros((count, size, size, 3), np.uint8), np.zeros(count, bool)
        corruption = np.zeros(count, np.float32)
        if clip.has_video and not dropped:
            corruption[:] = float(kind in FETCHED)
            clip, wanted = self._frames_of(kind, clip, scene.frames, late_sec, rng)
            first = int(wanted.min())
            there, seen = clip.frames(first, int(wanted.max()) - first + 1)
            frames, mask = there[wanted - first], seen[wanted - first]
            if scene.target.any():  # padding of the sound has no video; a closed mouth has
                mask = mask & self._in_sound(scene)
            if self._jitter is not None:
                frames = self._jitter(frames, rng)
            frames[~mask] = 0
        if self._degrade is not None and kind not in FETCHED and mask.any():
            frames, corruption = self._degrade.apply(kind, frames, rng)
            frames[~mask] = 0
        made = torch.zeros(0, 0) if self._dubber is None else torch.full((count, self._visual["visual_dim"]), torch.nan)
        return SceneFace(as_video(frames), torch.from_numpy(mask), _with_missing(corruption, mask), made)

    def _made(self, scene: Scene, kind: str, late_sec: float, rng: np.random.Generator) -> SceneFace:
        """A face that speaks with the target's voice or, by `kind`, with another sound, which says nothing of the target."""
        count, sound = len(scene.frames), scene.shown.target
        if kind == OTHER:
            other = self._scenes.other_clip(scene.shown.clip, rng, with_face=False)
            sound = draw_window(other, len(sound), self._rate, self._fps, rng)[0]
        moved = round(late_sec * self._rate)
        sound = np.pad(sound, (moved, 0))[: len(sound)] if moved > 0 else np.pad(sound, (0, -moved))[-moved:]
        features = torch.from_numpy(self._dubber(sound, count, self._fps, self._rate, rng))
        mask = self._in_sound(scene)
        corruption = np.full(count, float(kind in FETCHED), np.float32)
        video = torch.zeros(3, count, self._size, self._size, dtype=torch.uint8)
        return SceneFace(video, torch.from_numpy(mask), _with_missing(corruption, mask), features)

    def _in_sound(self, scene: Scene) -> np.ndarray:
        """bool [V]: the frames that are shown while the clip's own sound lasts."""
        return np.arange(len(scene.frames)) / self._fps < scene.shown.n_real / self._rate

    def _frames_of(
        self, kind: str, clip: Clip, wanted: np.ndarray, late_sec: float, rng: np.random.Generator
    ) -> tuple[Clip, np.ndarray]:
        """(clip, frames of it) shown in the place of the wanted frames [V]: a little out of time, much, or somebody else's."""
        if kind == OTHER:
            other = self._scenes.other_clip(clip, rng, with_face=True)
            last = max(0, math.floor((other.duration_sec() or 0.0) * self._fps) - len(wanted))
            if speaker_of(other) != speaker_of(clip):
                return other, int(rng.integers(last + 1)) + wanted - wanted[0]
            late_sec = float(rng.uniform(*SHIFT_SEC))  # there is nobody else
        last = max(math.floor((clip.duration_sec() or 0.0) * self._fps) - 1, 0)
        late = round(late_sec * self._fps)
        if abs(late_sec) >= SHIFT_SEC[0]:
            # Shown early where the clip has no earlier frames, late where it has no later ones.
            late = -abs(late) if wanted.min() < abs(late) else abs(late) if wanted.max() + abs(late) > last else late
        return clip, np.maximum(wanted - late, 0)


def _with_missing(corruption: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Frames without a face count as corrupted."""
    return torch.from_numpy(np.maximum(corruption, (~mask).astype(np.float32)))
