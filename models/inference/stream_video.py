"""The video of live streams: which crop each time of the model's frame grid shows, and its features, computed once.

Grid time k is at k / video_fps seconds. As in files (utils.media.frame_grid) it shows the newest video frame that is not
later; 2 ms of jitter are allowed. The sound does not wait for a late frame: its STFT frames are not valid, alpha is 0.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
import torch

from models.timing import newest_seen, video_frame_index
from utils.media.frame_grid import HOLD_SEC, JITTER_SEC


class CropQueue:
    """The video frames of one stream by their time, and which one each grid time shows; a shallow copy is a snapshot.

    A frame is shown until the next one is expected: up to 0.2 s if a later frame is already known, else for the time
    between the last two frames (or for `hold_sec`, if given). A grid time whose frame has not arrived shows nothing. If the
    frame arrives late, it is shown for the rest of its grid time and after that.

    Grid times are encoded in order, once each. A grid time that shows nothing is encoded (as a black frame) only when a
    later one shows a face. Until then its frame may still arrive, so that the encoder sees how the mouth moved although the
    sound did not wait. A frame whose grid time is already encoded is used only for later grid times.
    """

    def __init__(self, fps: float, hold_sec: float | None = None) -> None:
        self.fps, self.hold_sec = fps, hold_sec
        self.next_tick = 0  # the first grid time that is not encoded
        self.state: list[torch.Tensor] | None = None  # of the encoder, after all grid times before that
        self.features: torch.Tensor | None = None  # [n, D] of the last grid times that an STFT frame may still need
        self.seen: list[bool] = []  # whether each of them showed a face
        self._frames: tuple[tuple[float, np.ndarray | None], ...] = ()  # (seconds, crop or None: no face)
        self._newest_sec = -np.inf
        self._spacing_sec = 1.0 / fps

    def add(self, crops: np.ndarray, timestamps: np.ndarray, mask: np.ndarray) -> None:
        """Add crops [V, S, S, 3], shown from timestamps [V] (seconds, in order) on; mask bool [V]: the frame shows a face."""
        times = np.asarray(timestamps, dtype=np.float64)
        if times.shape != (len(crops),):
            raise ValueError(f"timestamps have the shape {list(times.shape)}, they should be [{len(crops)}], one per frame")
        if not len(times):
            return
        if not np.isfinite(times).all():
            raise ValueError("timestamps hold NaN or infinity; they should be seconds since the sound began")
        before = np.concatenate(([self._newest_sec], times[:-1]))
        if (times < before).any():
            at = int(np.argmax(times < before))
            raise ValueError(f"timestamps go backwards: {times[at]:g} s after {before[at]:g} s")
        if np.isfinite(spacing := times[-1] - before[-1]) and spacing > 0:
            self._spacing_sec = float(spacing)
        self._newest_sec = float(times[-1])
        self._frames += tuple(
            (float(at), crop if face else None) for at, crop, face in zip(times, crops, mask, strict=True)
        )

    def _crop_at(self, tick: int) -> np.ndarray | None:
        at_sec = tick / self.fps
        position = bisect_right(self._frames, at_sec + JITTER_SEC, key=_time) - 1
        if position < 0:
            return None
        since, crop = self._frames[position]
        if position + 1 < len(self._frames):
            shown = at_sec - since <= HOLD_SEC + JITTER_SEC
        elif self.hold_sec is not None:
            shown = at_sec - since <= self.hold_sec + JITTER_SEC
        else:
            shown = at_sec - since < min(self._spacing_sec, HOLD_SEC) - 2 * JITTER_SEC  # the jitter of both frames
        return crop if shown else None

    def due(self, ticks: range, memory_frames: int) -> list[np.ndarray | None]:
        """The crops to encode now that the sound of these grid times is processed, in order; next_tick moves past them.

        None stands for a grid time that shows no face. Grid times that the encoder would not remember are left out.
        """
        reach_sec = max(HOLD_SEC, self.hold_sec or 0.0) + JITTER_SEC
        self._forget(reach_sec)
        if not self._frames:
            return []
        first = max(self.next_tick, ticks.start - memory_frames)
        crops = [self._crop_at(tick) for tick in range(first, ticks.stop)]
        while crops and crops[-1] is None:
            crops.pop()
        if crops:
            self.next_tick = first + len(crops)
            self._forget(reach_sec)
        return crops

    def _forget(self, reach_sec: float) -> None:
        """Drop the frames that no grid time from next_tick on can show."""
        at_sec = self.next_tick / self.fps
        older = bisect_right(self._frames, at_sec + JITTER_SEC, key=_time) - 1  # before the newest one that next_tick can show
        if older >= 0 and self._frames[older][0] + reach_sec < at_sec:
            older += 1
        if older > 0:
            self._frames = self._frames[older:]


def _time(frame: tuple[float, np.ndarray | None]) -> float:
    return frame[0]


class VideoSide:
    """Runs the visual encoder for several streams that advance together."""

    def __init__(self, encoder: torch.nn.Module, timing: Mapping, streams: int, hold_sec: float | None) -> None:
        self.encoder, self.timing = encoder, timing
        self.queues = [CropQueue(timing["fps"], hold_sec) for _ in range(streams)]
        self.device = next(encoder.parameters()).device
        self.memory_frames: int = encoder.memory_frames
        self._kept = 2 + int(timing["lookahead_ms"] * timing["fps"] / 1000)  # grid times that one STFT frame may see

    def snapshot(self) -> list[CropQueue]:
        return [copy.copy(queue) for queue in self.queues]

    def features(self, first: int, n_frames: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Features [B, t, D] and valid [B, t] of STFT frames first .. first + n_frames - 1, or None if no frame is valid."""
        now = video_frame_index(n_frames, **self.timing | {"lookahead_ms": 0.0}, first=first)
        ahead = video_frame_index(n_frames, **self.timing, first=first)
        tables = self._encode(range(int(now[0]), int(ahead[-1]) + 1))
        valid = torch.zeros(len(tables), n_frames, dtype=torch.bool)
        features = torch.zeros(len(tables), n_frames, self.encoder.visual_dim, device=self.device)
        for row, (queue, (table, seen)) in enumerate(zip(self.queues, tables, strict=True)):
            if table is None:
                continue
            # table holds grid times next_tick - len(table) .. next_tick - 1
            begin = queue.next_tick - len(table)
            place, valid[row : row + 1] = newest_seen(torch.tensor([seen]), now - begin, ahead - begin)
            features[row] = table[place[0].to(self.device)]
        return (features, valid.to(self.device)) if valid.any() else None

    def _encode(self, ticks: range) -> list[tuple[torch.Tensor | None, list[bool]]]:
        """Encode the crops that are due -> per stream: features [v, D] of the newest grid times, whether each shows a face."""
        due = [queue.due(ticks, self.memory_frames) for queue in self.queues]
        tables: list[tuple[torch.Tensor | None, list[bool]]] = [
            (queue.features, queue.seen) for queue in self.queues
        ]
        for count in {len(crops) for crops in due} - {0}:
            rows = [row for row, crops in enumerate(due) if len(crops) == count]
            video = torch.stack([self._clip(due[row]) for row in rows])  # [b, 3, v, S, S]
            states = [self.queues[row].state or self.encoder.init_state(1) for row in rows]
            joined = states[0] if len(rows) == 1 else [torch.cat(parts) for parts in zip(*states, strict=True)]
            faces = [[crop is not None for crop in due[row]] for row in rows]
            features, after = self.encoder.encode_frames(video, joined, torch.tensor(faces, device=self.device))  # [b, D, v]
            for position, row in enumerate(rows):
                queue, (table, seen) = self.queues[row], tables[row]
                new = features[position].t()  # [v, D]
                tables[row] = (
                    new if table is None else torch.cat((table, new)), seen + faces[position],
                )
                queue.state = [part[position : position + 1] for part in after]
                queue.features, queue.seen = tables[row][0][-self._kept :].clone(), tables[row][1][-self._kept :]
        return tables

    def _clip(self, crops: list[np.ndarray | None]) -> torch.Tensor:
        """Crops [S, S, 3], where None stands for a black frame -> float [3, v, S, S] in [0, 1]."""
        size = self.encoder.face_size
        clip = torch.zeros(len(crops), size, size, 3, device=self.device)
        for index, crop in enumerate(crops):
            if crop is not None:
                scale = 255.0 if crop.dtype == np.uint8 else 1.0
                clip[index] = torch.from_numpy(np.ascontiguousarray(crop)).to(self.device).float() / scale
        return clip.permute(3, 0, 1, 2)
