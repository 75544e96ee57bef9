"""Makes many faces of few: the same movement of the mouth in another shape, place, light and pace."""

from __future__ import annotations

import cv2
import numpy as np

PACES = (0.8, 1.25)  # relative to the speed of the recording
GRID = 4  # points on each side of the grid that bends a face


def _bent(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the new face comes from: maps x and y, float32 [S, S]; moved, turned, scaled, sheared, bent."""
    middle = (size - 1) / 2
    scale, stretch = np.exp(rng.uniform(-0.25, 0.25)), np.exp(rng.uniform(-0.12, 0.12))
    turn, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.12, 0.12)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.array([[scale * stretch, shear], [0.0, scale / stretch]])
    if rng.random() < 0.5:
        matrix[:, 0] *= -1  # mirrored
    y, x = np.mgrid[:size, :size].astype(np.float32) - middle
    bend = cv2.resize(rng.normal(0, 0.035 * size * rng.random(), (GRID, GRID, 2)).astype(np.float32), (size, size),
                      interpolation=cv2.INTER_CUBIC)
    shift = rng.uniform(-0.09, 0.09, 2) * size + middle
    return tuple((matrix[k, 0] * x + matrix[k, 1] * y + shift[k] + bend[..., k]).astype(np.float32) for k in (0, 1))


def _lit(faces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [V, S, S, 3] in [0, 1] in another light: gamma, contrast, tint, a lamp from one side, now and then grey."""
    size = faces.shape[1]
    out = faces ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    y, x = np.mgrid[:size, :size] / size - 0.5
    lamp = 1 + rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.4, 0.4) * y
    out = out * (lamp[..., None] * rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3)).astype(np.float32)
    out += np.float32(rng.uniform(-0.12, 0.12))
    if rng.random() < 0.15:
        out = np.repeat(out.mean(3, keepdims=True), 3, 3)
    return np.clip(out, 0, 1)


def paced(values: np.ndarray, first: float, pace: float, count: int) -> np.ndarray:
    """values [V, ...] at frames first, first + pace, ..., linearly interpolated -> float32 [count, ...]."""
    at = np.clip(first + pace * np.arange(count), 0, len(values) - 1)
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    high = np.minimum(low + 1, len(values) - 1)
    return values[low].astype(np.float32) * (1 - share) + values[high].astype(np.float32) * share


def another_face(crops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """crops float32 [V, S, S, 3] in [0, 255] -> the same in [0, 1] as another face: one shape and light for the whole clip."""
    size = crops.shape[1]
    x, y = _bent(size, rng)
    drift = rng.normal(0, 0.012 * size, 2).astype(np.float32)
    out = np.empty(crops.shape, np.float32)
    for index, crop in enumerate(crops):
        part = np.float32(index / max(1, len(crops) - 1) - 0.5)
        out[index] = cv2.remap(crop, x + drift[0] * part, y + drift[1] * part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return _lit(out / 255, rng)


def worse_camera(faces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """faces float32 [V, S, S, 3] in [0, 1] as a poor camera shows them: grain, blur, few pixels."""
    size = faces.shape[1]
    out = faces
    if rng.random() < 0.3:
        side = int(rng.integers(size // 3, size))
        out = np.stack([cv2.resize(cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA), (size, size)) for f in out])
    if rng.random() < 0.5:
        out = out + np.float32(rng.uniform(0, 0.05)) * rng.standard_normal(out.shape, dtype=np.float32)
    return np.clip(out, 0, 1)
