"""Links the boxes of single detections into tracks, one for each head, and gives a track one steady box per frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.faces.detectors import FaceBox

DETECT_EVERY = 5  # frames from look to look
BRIDGE_SEC = 0.4  # a face unseen for longer than this is gone
SMOOTH_LOOKS = 5  # running median over this many looks (1 s): heads drift, detectors jump

Track = dict[int, FaceBox]  # by number of the look, rising


def link(looks: Sequence[Sequence[FaceBox]]) -> list[Track]:
    """Link the boxes of successive looks (detections) into one track per head; a look that misses a head leaves a gap."""
    tracks: list[Track] = []
    for index, boxes in enumerate(looks):
        free = list(range(len(tracks)))
        for box in sorted(boxes, key=lambda candidate: -candidate.side):
            last = {number: tracks[number][max(tracks[number])] for number in free}
            near = [number for number in free if last[number].near(box)]
            if near:
                match = min(near, key=lambda number: box.away(last[number]))
                free.remove(match)
                tracks[match][index] = box
            else:
                tracks.append({index: box})
    return tracks


def size(track: Track) -> float:
    """The sum of the sides of a track's boxes, so that large heads and those seen for long count most."""
    return sum(box.side for box in track.values())


def most_at_once(tracks: Sequence[Track]) -> int:
    """The largest number of heads in one look. A head that only one of many looks found counts as a false alarm."""
    n_looks = 1 + max((max(track) for track in tracks), default=-1)
    steady = [track for track in tracks if len(track) >= min(2, n_looks)]
    return max((sum(look in track for track in steady) for look in range(n_looks)), default=0)


def joined(best: Track, tracks: Sequence[Track]) -> Track:
    """`best`, joined with the tracks of the same head from before it was lost and after.

    Where there is never more than one head, every track is of that head; among several, only the tracks in its place.
    """
    alone = most_at_once(tracks) < 2
    for track in sorted(tracks, key=size, reverse=True):
        if set(track) & set(best) or len(track) < 2:
            continue
        earlier, later = (track, best) if min(track) < min(best) else (best, track)
        before = earlier[max(look for look in earlier if look < min(later))]
        if alone or (before.alike(later[min(later)]) and before.away(later[min(later)]) < 1.0):
            best = dict(sorted({**best, **track}.items()))
    return best


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median over `width` entries around each of values [n, d], edges repeated."""
    half = width // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0), axis=-1)


def steady_boxes(track: Track, at: Sequence[int], count: int, fps: float) -> list[FaceBox | None]:
    """One box per frame 0 .. count - 1 from a track whose look k was at frame at[k]; None where the head is not seen.

    The centre is smoothed, and interpolated linearly between looks. All boxes have one size, because a crop whose size
    changes looks like a moving mouth.
    """
    seen = np.array([at[look] for look in track])
    found = np.array([(box.x, box.y, box.side) for box in track.values()])
    centre = _running_median(found[:, :2], SMOOTH_LOOKS)
    side = float(np.median(found[:, 2]))
    x, y = (np.interp(np.arange(count), seen, centre[:, axis]) for axis in (0, 1))
    present = _present(count, seen, fps)
    return [FaceBox(float(x[i]), float(y[i]), side) if present[i] else None for i in range(count)]


def _present(count: int, seen: np.ndarray, fps: float) -> np.ndarray:
    """bool [count]: the frames near a look that saw the head; gaps of up to BRIDGE_SEC count as seen."""
    present = np.abs(np.arange(count)[:, None] - seen[None, :]).min(axis=1) <= DETECT_EVERY // 2
    bridge = BRIDGE_SEC * fps
    for before, after in zip(seen[:-1], seen[1:], strict=True):
        if after - before <= bridge + 1e-6:
            present[before:after] = True
    if seen[0] <= bridge / 2:
        present[: seen[0]] = True
    if count - 1 - seen[-1] <= bridge / 2:
        present[seen[-1] :] = True
    return present
