"""Pictures of running streams: which one each moment of the model's frame grid shows, and its features, each made once.

Grid time k is at k / video_fps seconds and shows, as in files (utils.media.frame_grid), the newest frame that is not
later (2 ms of jitter are forgiven). What is not there when its sound must leave is not waited for: that STFT frame has no
picture, alpha is 0.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping

import numpy as np
import torch

from models.timing import newest_seen, video_frame_index
from utils.media.frame_grid import HOLD_SEC, JITTER_SEC


class PictureQueue:
    """One stream's frames by time, and what each grid time shows; a shallow copy is a snapshot.

    A frame is shown until the next one is due: over gaps of up to 0.2 s when a later frame is known already, else for as
    long as the last two frames lay apart (`hold_sec` instead, where given). So a frame that is still on its way leaves
    its grid time without a picture. Coming late it is shown for what is left of its grid time, and from there on.

    Grid times are encoded in order, once each. Those without a picture are encoded (as black) only when a picture
    follows: until then a late frame can still take its place, so that the encoder knows how the mouth moved even where
    the sound has left without it. A frame later than that, behind a grid time already encoded, is shown only onwards.
    """

    def __init__(self, fps: float, hold_sec: float | None = None) -> None:
        self.fps, self.hold_sec = fps, hold_sec
        self.next_tick = 0  # the first grid time that is not encoded
        self.state: list[torch.Tensor] | None = None  # the encoder's, after all grid times before
        self.features: torch.Tensor | None = None  # [n, D] of the last grid times encoded, as many as may be shown again
        self.seen: list[bool] = []  # whether those showed a face
        self._frames: tuple[tuple[float, np.ndarray | None], ...] = ()  # (seconds, crop or None: no face)
        self._newest_sec = -np.inf
        self._spacing_sec = 1.0 / fps

    def add(self, crops: np.ndarray, timestamps: np.ndarray, mask: np.ndarray) -> None:
        """Frames crops [V, S, S, 3] shown from timestamps [V] (seconds, not falling) on; mask bool [V]: a face is seen."""
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

    def _picture(self, tick: int) -> np.ndarray | None:
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
            shown = at_sec - since < min(self._spacing_sec, HOLD_SEC) - 2 * JITTER_SEC  # both may be off
        return crop if shown else None

    def due(self, ticks: range, memory_frames: int) -> list[np.ndarray | None]:
        """What is to be encoded now that sound of these grid times leaves, in order; next_tick moves past it.

        None is a grid time without a picture. What lies further back than the encoder remembers is left out.
        """
        reach_sec = max(HOLD_SEC, self.hold_sec or 0.0) + JITTER_SEC
        self._forget(reach_sec)
        if not self._frames:
            return []
        first = max(self.next_tick, ticks.start - memory_frames)
        pictures = [self._picture(tick) for tick in range(first, ticks.stop)]
        while pictures and pictures[-1] is None:
            pictures.pop()
        if pictures:
            self.next_tick = first + len(pictures)
            self._forget(reach_sec)
        return pictures

    def _forget(self, reach_sec: float) -> None:
        """Drop frames that no grid time from next_tick on can show."""
        at_sec = self.next_tick / self.fps
        older = bisect_right(self._frames, at_sec + JITTER_SEC, key=_time) - 1  # than the newest that next_tick could show
        if older >= 0 and self._frames[older][0] + reach_sec < at_sec:
            older += 1
        if older > 0:
            self._frames = self._frames[older:]


def _time(frame: tuple[float, np.ndarray | None]) -> float:
    return frame[0]


class VideoSide:
    """The visual encoder at work for several streams that advance together."""

    def __init__(self, encoder: torch.nn.Module, timing: Mapping, streams: int, hold_sec: float | None) -> None:
        self.encoder, self.timing = encoder, timing
        self.queues = [PictureQueue(timing["fps"], hold_sec) for _ in range(streams)]
        self.device = next(encoder.parameters()).device
        self.memory_frames: int = encoder.memory_frames
        self._kept = 2 + int(timing["lookahead_ms"] * timing["fps"] / 1000)  # grid times from an STFT frame's own to its last

    def snapshot(self) -> list[PictureQueue]:
        return [copy.copy(queue) for queue in self.queues]

    def features(self, first: int, n_frames: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Features [B, t, D] and validity [B, t] for STFT frames first .. first + n_frames - 1; None: no picture at all."""
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
        """Encode what is due; per stream the features [v, D] of the newest grid times, and whether each shows a face."""
        due = [queue.due(ticks, self.memory_frames) for queue in self.queues]
        tables: list[tuple[torch.Tensor | None, list[bool]]] = [
            (queue.features, queue.seen) for queue in self.queues
        ]
        for count in {len(pictures) for pictures in due} - {0}:
            rows = [row for row, pictures in enumerate(due) if len(pictures) == count]
            video = torch.stack([self._clip(due[row]) for row in rows])  # [b, 3, v, S, S]
            states = [self.queues[row].state or self.encoder.init_state(1) for row in rows]
            joined = states[0] if len(rows) == 1 else [torch.cat(parts) for parts in zip(*states, strict=True)]
            faces = [[picture is not None for picture in due[row]] for row in rows]
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

    def _clip(self, pictures: list[np.ndarray | None]) -> torch.Tensor:
        """Crops [S, S, 3], black for None -> float [3, v, S, S] in [0, 1]."""
        size = self.encoder.face_size
        clip = torch.zeros(len(pictures), size, size, 3, device=self.device)
        for index, picture in enumerate(pictures):
            if picture is not None:
                scale = 255.0 if picture.dtype == np.uint8 else 1.0
                clip[index] = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device).float() / scale
        return clip.permute(3, 0, 1, 2)
