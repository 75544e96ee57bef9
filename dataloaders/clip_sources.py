"""Reads the sound and crops of clips, from the files of a list or from shards, through one interface."""

from __future__ import annotations

import json
import os
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dataloaders.clip_dataset import resolve
from utils.faces.video_crops import load_video_frames
from utils.media.decode import EndsBefore, MediaError
from utils.media.shards import CROPS, NOTE, SOUND, decode_crops, decode_samples, find_shards, names_shards, read_clips
from utils.media.sound import load_audio, media_duration_sec
from utils.training.epoch_order import GROUP_RUNS
from utils.util import load_json_file

WHOLE_SEC = 30.0  # clips up to this long are read whole: headers of MPEG files are only nearly right
ROOM_SEC = 1.0  # sound before the window that a room still answers to
WINDOW_DRAWS = 8  # windows tried for one in which somebody speaks
MOST_COUNTED = 1 << 40  # frames or samples; a note that says more is damaged
RUN_BYTES = 16 << 20  # of a shard that are read in one go, and stay in memory while their clips are drawn


class Clip(Protocol):
    """One recording of a talking person. Every method raises a ValueError or OSError for what cannot be read."""

    @property
    def name(self) -> str:
        """What messages call it: a path, or a shard and the key in it."""

    @property
    def has_video(self) -> bool: ...

    def duration_sec(self) -> float | None:
        """Length of its sound; None when nothing says."""

    def sound(self, start_sec: float = 0.0, duration_sec: float | None = None) -> np.ndarray:
        """What `load_audio` gives: float32 [L] at the recipe's rate."""

    def frames(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Crops uint8 [count, S, S, 3] from video frame `first` on, and mask bool [count]: where there is a face."""


class FileClip:
    """A clip of a list: a video, a separate sound file, or both; `mask`: [first, end) runs of frames without a face."""

    def __init__(
        self, video: str | None, audio: str | None, mask: Sequence[tuple[int, int]], cfg: Mapping,
        speaker: str | None = None,
    ) -> None:
        self._video, self._audio, self._mask, self._cfg = video, audio, mask, cfg
        self.speaker = speaker  # as the list says it
        self._duration_sec: float | None = None

    @property
    def name(self) -> str:
        return self._video or self._audio

    @property
    def has_video(self) -> bool:
        return self._video is not None

    @property
    def _sound_path(self) -> str:
        return self._audio or self._video

    def duration_sec(self) -> float | None:
        if self._duration_sec is None:
            self._duration_sec = media_duration_sec(self._sound_path)
        return self._duration_sec

    def sound(self, start_sec: float = 0.0, duration_sec: float | None = None) -> np.ndarray:
        return load_audio(self._sound_path, self._cfg["stft_cfg"]["sampling_rate"], start_sec, duration_sec)

    def frames(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        visual = self._cfg["visual_cfg"]
        fps = visual["video_fps"]
        frames, mask = load_video_frames(
            self._video, first / fps, count / fps, visual["face_size"], fps, visual["face_crop"]
        )
        return frames, _unmasked(mask, self._mask, first)


class ShardClip:
    """A clip of a shard, whose members are read when the first of them is asked for."""

    has_video = True

    def __init__(self, name: str, fetch: Callable[[], dict[str, bytes]], cfg: Mapping) -> None:
        self.name = name
        self._fetch, self._cfg = fetch, cfg
        self._held: dict[str, bytes] | None = None

    def _member(self, suffix: str) -> bytes:
        self._held = self._held or self._fetch()
        if suffix not in self._held:
            raise MediaError(f"{self.name} has no {suffix}")
        return self._held[suffix]

    def _note(self) -> dict:
        """The clip's note: n_frames, n_samples and, checked, mask."""
        try:
            note = json.loads(self._member(NOTE))
            counts = [note["n_frames"], note["n_samples"]]
            if not all(type(count) is int and 0 <= count < MOST_COUNTED for count in counts):
                raise ValueError("n_frames or n_samples is no count")
            return note | {"mask": masked_pairs(note.get("mask"))}
        except MediaError:
            raise
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise MediaError(f"{self.name}: its note is damaged: {reprlib.repr(error)}") from None

    def duration_sec(self) -> float | None:
        return self._note()["n_samples"] / self._cfg["stft_cfg"]["sampling_rate"]

    def sound(self, start_sec: float = 0.0, duration_sec: float | None = None) -> np.ndarray:
        rate = self._cfg["stft_cfg"]["sampling_rate"]
        first = round(start_sec * rate)
        return decode_samples(self._member(SOUND), first, None if duration_sec is None else first + round(duration_sec * rate))

    def frames(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        visual, note = self._cfg["visual_cfg"], self._note()
        frames, there = decode_crops(
            self._member(CROPS), first, count, note["n_frames"], visual["video_fps"], visual["face_size"]
        )
        return frames, _unmasked(there, note["mask"], first)


def masked_pairs(mask: object) -> list[tuple[int, int]]:
    """Check runs [first, end) of frames without a face, as lists and shards hold them; ValueError says what is wrong."""
    if mask is None:
        return []
    good = isinstance(mask, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair) and 0 <= pair[0] <= pair[1]
        for pair in mask
    )
    if not good:
        raise ValueError(f"mask should be [first, end) pairs of frame numbers, as [[0, 5], [20, 25]], not {reprlib.repr(mask)}")
    return [(first, end) for first, end in mask]


def _unmasked(mask: np.ndarray, runs: Sequence[tuple[int, int]], first: int) -> np.ndarray:
    """The mask bool [V] of frames from `first` on, False in [first, end) runs too."""
    for begin, end in runs:
        mask[max(0, begin - first) : max(0, end - first)] = False
    return mask


class ShardClips(Sequence):
    """The clips of several shards, in order. `runs`: which of them one read brings into memory together.

    A run is read at once and kept until GROUP_RUNS others have been: quick for items drawn as `run_order` says.
    """

    def __init__(self, source: str | os.PathLike, key: str, cfg: Mapping) -> None:
        shards = find_shards(source, key)
        wanted = {
            "face_size": cfg["visual_cfg"]["face_size"], "video_fps": cfg["visual_cfg"]["video_fps"],
            "sample_rate": cfg["stft_cfg"]["sampling_rate"],
        }  # fmt: skip
        made = {"face_size": shards[0].face_size, "video_fps": shards[0].fps, "sample_rate": shards[0].sample_rate}
        for name, value in wanted.items():
            if made[name] != value:
                raise ValueError(
                    f"{key}: the shards of {source} were made with {name} {made[name]:g}, the recipe's is {value:g}; "
                    f"change the recipe, or make them again with data/prepare_faces.py"
                )
        self._cfg = cfg
        self._paths = [shard.path for shard in shards]
        self._keys = [key for shard in shards for key, _, _ in shard.clips]
        self._places: list[tuple[int, int, int]] = []  # of each run: number of its shard, first byte, bytes
        self.runs: list[range] = []
        for number, shard in enumerate(shards):
            self._add_runs(number, shard.clips)
        self._run_of = np.repeat(np.arange(len(self.runs)), [len(run) for run in self.runs])
        self._loaded: OrderedDict[int, dict[str, dict[str, bytes]]] = OrderedDict()

    def _add_runs(self, number: int, clips: Sequence[tuple[str, int, int]]) -> None:
        """Cut a shard's clips into runs of RUN_BYTES or a little more."""
        begin = 0
        for index, (_, first, size) in enumerate(clips):
            start, end = clips[begin][1], first + size
            if end - start >= RUN_BYTES or index == len(clips) - 1:
                before = self.runs[-1].stop if self.runs else 0
                self.runs.append(range(before, before + index + 1 - begin))
                self._places.append((number, start, end - start))
                begin = index + 1

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> ShardClip:
        run = int(self._run_of[index])
        path, key = self._paths[self._places[run][0]], self._keys[index]
        return ShardClip(f"{path}: {key}", lambda: self._members(run, key), self._cfg)

    def _members(self, run: int, key: str) -> dict[str, bytes]:
        number, first, size = self._places[run]
        if run not in self._loaded:
            while len(self._loaded) >= GROUP_RUNS:
                self._loaded.popitem(last=False)
            self._loaded[run] = read_clips(self._paths[number], first, size)
        self._loaded.move_to_end(run)
        if key not in self._loaded[run]:
            raise MediaError(f"{self._paths[number]} is not the shard that its index is about: {key} is missing")
        return self._loaded[run][key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": OrderedDict()}  # each loader's worker reads for itself


def open_clips(source: str | os.PathLike, key: str, cfg: Mapping) -> Sequence[Clip]:
    """The clips that a recipe's `key` names: a list (JSON) of files, or shards (a folder, a .tar, a pattern of them).

    cfg: complete recipe. ValueError or FileNotFoundError says what is wrong with the list or the shards.
    """
    if source and names_shards(source):
        return ShardClips(source, key, cfg)
    clips = []
    for number, item in enumerate(load_json_file(source, key)):
        paths = {name: item.get(name) for name in ("video", "audio")} if isinstance(item, dict) else {}
        paths = {name: path for name, path in paths.items() if path is not None}
        if not paths or not all(isinstance(path, str) for path in paths.values()):
            raise ValueError(
                f'{key}: entry {number} of {source} should be {{"video": path, "audio": path}}, not {reprlib.repr(item)}'
            )
        found = {name: resolve(path, Path(source).parent) for name, path in paths.items()}
        try:
            mask = masked_pairs(item.get("mask"))
            if not isinstance(item.get("speaker", ""), (str, type(None))):
                raise ValueError(f"speaker should be a name, not {reprlib.repr(item['speaker'])}")
        except ValueError as error:
            raise ValueError(f"{key}: entry {number} of {source}: {error}") from None
        clips.append(FileClip(found.get("video"), found.get("audio"), mask, cfg, item.get("speaker")))
    return clips


def draw_window(
    clip: Clip, length: int, sample_rate: int, fps: float, rng: np.random.Generator
) -> tuple[np.ndarray, int, int]:
    """A random window of `length` samples that begins with a video frame, and the sound before it that a room answers to.

    Returns (stretch float32 [up to context + length], context in samples, the video frame at which the window begins).
    A few windows are tried for one in which somebody speaks. ValueError for a clip without sound.
    """
    hop = sample_rate / fps  # samples per video frame
    duration_sec = clip.duration_sec() or 0.0
    whole = clip.sound() if duration_sec <= WHOLE_SEC else None
    n_samples = len(whole) if whole is not None else int(duration_sec * sample_rate)
    last = max(0, int((n_samples - length) / hop))
    for _ in range(WINDOW_DRAWS):
        first_frame = int(rng.integers(last + 1))
        start = round(first_frame * hop)
        context = min(start, round(ROOM_SEC * sample_rate))
        if whole is not None:
            stretch = whole[start - context : start + length]
        else:
            try:
                stretch = clip.sound((start - context) / sample_rate, (context + length) / sample_rate)
            except EndsBefore:
                stretch = np.zeros(0, np.float32)
            if len(stretch) <= context and start:  # its header says that it is longer than it is
                last, stretch = first_frame // 2, np.zeros(0, np.float32)
                continue
        loudest = float(np.max(np.abs(stretch if whole is None else whole), initial=0.0))
        if np.max(np.abs(stretch[context:]), initial=0.0) > 0.01 * loudest:
            break
    if not len(stretch):
        raise ValueError(f"{clip.name} holds no sound")
    return stretch, context, first_frame
