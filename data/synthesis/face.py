"""Drawn talking faces: seeded people whose mouths follow an utterance's opening and width tracks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data.synthesis.voice import CONTROL_HZ

SUPERSAMPLING = 2
SHIFT = 5  # cv2 draws at 1/32 pixel, so that slow movements do not jump
SKINS = ((240, 210, 188), (234, 194, 162), (222, 176, 138), (194, 143, 102), (164, 116, 84), (136, 94, 70))
HAIRS = ((28, 22, 20), (62, 40, 26), (110, 72, 40), (186, 146, 86), (150, 70, 34), (150, 148, 146))
EYES = ((70, 46, 28), (86, 110, 140), (84, 112, 72), (110, 84, 50))
MOUTH_Y = 0.52  # head units: origin between ears, 1 = half the head's height, y down
LONGEST_OPENING = 0.36
LEFT, TOP, RIGHT, BOTTOM = -1.35, -1.45, 1.35, 1.45  # the part of the head plane that is painted


@dataclass(frozen=True)
class Face:
    """A person: colours are RGB 0..255, lengths are head units (half the head's height)."""

    skin: np.ndarray
    hair: np.ndarray
    eye: np.ndarray
    lip: np.ndarray
    shirt: np.ndarray
    half_width: float
    chin: float
    hairline: float
    hair_length: float
    brow: float
    eye_gap: float
    mouth_half_width: float
    stubble: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Face:
        """Draw a person."""
        tone = rng.uniform(0, len(SKINS) - 1.001)
        low = int(tone)
        skin = np.array(SKINS[low]) * (1 - tone + low) + np.array(SKINS[low + 1]) * (tone - low) + rng.uniform(-6, 6, 3)
        lip = skin * np.array([0.86, 0.6, 0.6]) * rng.uniform(0.85, 1.0) + np.array([14, -4, 2]) * rng.uniform(0, 1)
        hair = np.array(HAIRS[rng.integers(len(HAIRS))]) * rng.uniform(0.8, 1.2)
        hair *= min(1.0, 0.7 * skin.mean() / hair.mean())  # face detectors expect hair darker than the skin
        hair_length = float(rng.choice([0.0, 0.35, 1.0, 1.25]))
        return cls(
            skin, hair, np.array(EYES[rng.integers(4)]),
            lip, _muted(rng.uniform(30, 220, 3)), rng.uniform(0.75, 0.86), rng.uniform(0.1, 0.28), rng.uniform(-0.72, -0.55),
            hair_length, rng.uniform(0.03, 0.06), rng.uniform(0.31, 0.36), rng.uniform(0.25, 0.3),
            float(rng.uniform(0, 0.18) if hair_length < 0.5 and rng.random() < 0.3 else 0.0),
        )  # fmt: skip


@dataclass(frozen=True)
class _View:
    """Where the head is in one frame: centre and half height in canvas pixels, roll in radians, sideways turn."""

    centre: np.ndarray
    scale: float
    roll: float
    turn: float
    drop: float

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Head-plane points [n, 2] to canvas pixels [n, 2]."""
        x = points[:, 0] + self.turn * np.clip(1 - (points[:, 0] / 0.9) ** 2, 0, 1)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        turned = np.stack([cos * x - sin * points[:, 1], sin * x + cos * points[:, 1]], axis=1)
        return self.centre + self.scale * turned

    def head_plane(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each canvas pixel [H, W, 2] on the painted head, whose jaw is lowered by `drop`."""
        offset = (grid - self.centre.astype(np.float32)) / np.float32(self.scale)
        cos, sin = np.float32(np.cos(self.roll)), np.float32(np.sin(self.roll))
        x = cos * offset[..., 0] + sin * offset[..., 1]
        y = cos * offset[..., 1] - sin * offset[..., 0]
        x -= np.float32(self.turn) * np.clip(1 - (x / np.float32(0.9)) ** 2, 0, 1)
        ramp = np.clip((y - np.float32(0.3)) / np.float32(0.7 + self.drop), 0, 1)
        return x, y - np.float32(self.drop) * ramp * ramp * (3 - 2 * ramp)


def _muted(colour: np.ndarray) -> np.ndarray:
    """Pull colours [..., 3] half way to grey."""
    return 0.5 * colour + 0.5 * colour.mean(axis=-1, keepdims=True)


def frame_tracks(track: np.ndarray, n_frames: int, fps: float) -> np.ndarray:
    """Mean of a track (CONTROL_HZ values a second) over each frame's time [k/fps, (k+1)/fps): so lips fit the sound."""
    area = np.concatenate([[0.0], np.cumsum((track[1:] + track[:-1]) / 2)])
    edges = np.interp(np.arange(n_frames + 1) * CONTROL_HZ / fps, np.arange(area.size), area)
    return np.diff(edges) * fps / CONTROL_HZ


def render_face(
    face: Face, opening: np.ndarray, width: np.ndarray, rng: np.random.Generator,
    n_frames: int, fps: float, size: int, portrait: bool = False,
) -> np.ndarray:  # fmt: skip
    """Film a face: uint8 [n_frames, size, size, 3] RGB, as a face crop, or with `portrait` head, shoulders and background.

    opening and width are mouth tracks at CONTROL_HZ; light, background, pose, blinks and sway are drawn from rng.
    """
    canvas = size * SUPERSAMPLING
    # A crop is framed as utils.faces.cropper frames a portrait of the same face.
    scale = canvas * (0.32 if portrait else 0.54) * rng.uniform(0.95, 1.05)
    centre = canvas * (np.array([0.5, 0.47 if portrait else 0.42]) + rng.uniform(-0.025, 0.025, 2))
    light = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.6, -0.1), 1.0])
    painted = _paint_head(face, light / np.linalg.norm(light), rng.uniform(0.9, 1.08), scale)
    background = _background(face, rng, canvas, centre, scale)
    grid = np.stack(np.meshgrid(np.arange(canvas), np.arange(canvas)), axis=-1).astype(np.float32)
    mouth_opening = np.clip(frame_tracks(opening, n_frames, fps), 0, 1) ** 0.85 * LONGEST_OPENING
    mouth_width = frame_tracks(width, n_frames, fps)
    sway = [_sway(rng, n_frames, fps) for _ in range(5)]
    lids = _blinks(rng, n_frames, fps)
    frames = np.empty((n_frames, size, size, 3), np.uint8)
    for k in range(n_frames):
        moved = centre + scale * 0.02 * np.array([sway[0][k], sway[1][k]])
        view = _View(moved, scale, 0.035 * sway[2][k], 0.04 * sway[3][k], 0.45 * float(mouth_opening[k]))
        image = _composite(painted, background, grid, view, scale)
        _draw_eyes(image, face, view, float(lids[k]), float(sway[3][k]))
        _draw_brows(image, face, view, 0.02 * float(sway[4][k]) + 0.05 * float(mouth_opening[k]))
        _draw_mouth(image, face, view, float(mouth_opening[k]), float(mouth_width[k]))
        frames[k] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return frames


def _sway(rng: np.random.Generator, n_frames: int, fps: float) -> np.ndarray:
    at_sec = np.arange(n_frames) / fps
    return sum(
        weight * np.sin(2 * np.pi * rng.uniform(low, high) * at_sec + rng.uniform(0, 2 * np.pi))
        for weight, low, high in ((0.6, 0.1, 0.3), (0.3, 0.3, 0.7), (0.1, 0.8, 1.5))
    )


def _blinks(rng: np.random.Generator, n_frames: int, fps: float) -> np.ndarray:
    """How far the eyes are open, 0..1, per frame."""
    at_sec = np.arange(n_frames) / fps
    lids = np.ones(n_frames)
    blink_sec = rng.uniform(0.3, 3.0)
    while blink_sec < n_frames / fps:
        lids = np.minimum(lids, np.clip(np.abs(at_sec - blink_sec) / 0.1 - 0.2, 0, 1))
        blink_sec += rng.uniform(1.5, 4.0)
    return lids


def _inside(signed_distance: np.ndarray, softness: float) -> np.ndarray:
    return np.clip(0.5 - signed_distance / softness, 0, 1)


def _spot(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x_size: float, y_size: float) -> np.ndarray:
    return np.exp(-(((x - x0) / x_size) ** 2) - ((y - y0) / y_size) ** 2)


def _paint_head(face: Face, light: np.ndarray, brightness: float, scale: float) -> np.ndarray:
    """The head without eyes, brows and mouth at `scale` pixels a unit: float32 [h, w, 4], 0..255 times alpha, alpha."""
    columns = np.arange(round((RIGHT - LEFT) * scale)) / scale + LEFT
    rows = np.arange(round((BOTTOM - TOP) * scale)) / scale + TOP
    x, y = np.meshgrid(columns, rows)
    edge = 2.5 / scale
    taper = face.half_width * (1 - face.chin * np.clip(y, 0, 1) ** 2)
    radius = np.sqrt((x / taper) ** 2 + y**2)
    head = _inside((radius - 1) * 0.8, edge)
    ears = _inside((np.hypot((np.abs(x) - face.half_width - 0.02) / 0.1, (y - 0.02) / 0.2) - 1) * 0.1, edge)
    depth = np.sqrt(np.clip(1 - np.minimum(radius, 1) ** 2, 0, 1))
    facing = np.clip(x / face.half_width * 0.8 * light[0] + y * 0.8 * light[1] + depth * light[2], 0, None)
    shade = brightness * (0.58 + 0.45 * facing)
    for side in (-1, 1):
        shade -= 0.42 * _spot(x, y, side * face.eye_gap, -0.18, 0.22, 0.14)
        shade += 0.16 * _spot(x, y, side * 0.4, 0.18, 0.22, 0.16)
        shade -= 0.10 * _spot(x, y, side * 0.13, 0.26, 0.05, 0.07)
        shade -= 0.30 * _spot(x, y, side * 0.07, 0.31, 0.035, 0.022)
        shade -= 0.06 * _spot(x, y, side * 0.3, 0.42, 0.04, 0.16)
    shade += 0.12 * _spot(x, y, 0, 0.0, 0.06, 0.25) + 0.10 * _spot(x, y, 0, 0.22, 0.08, 0.08)
    shade -= 0.12 * _spot(x, y, 0, 0.34, 0.14, 0.03) + 0.08 * _spot(x, y, 0, 0.76, 0.2, 0.05)
    colour = face.skin * shade[..., None]
    blush = sum(_spot(x, y, side * 0.42, 0.25, 0.2, 0.15) for side in (-1, 1))
    colour += blush[..., None] * np.array([10, -6, -4])
    beard = face.stubble * _inside(0.32 - y, 0.3) * (1 - _spot(x, y, 0, 0.1, 0.4, 0.3))
    colour += (face.hair * 0.8 - colour) * beard[..., None]
    strands = 0.85 + 0.25 * facing + 0.06 * np.sin(34 * x + 5 * np.sin(3 * y))
    hair_colour = face.hair * strands[..., None]
    fringe = face.hairline + 0.35 * (x / face.half_width) ** 2 + 0.03 * np.sin(9 * x)
    cap = _inside((np.hypot(x / (face.half_width + 0.1), y / 1.1) - 1) * 0.9, edge)
    on_top = cap * _inside(y - fringe, edge * 2)
    sides = np.hypot(x / (face.half_width + 0.2), (y - 0.1) / 1.25) - 1
    neck = np.maximum(np.abs(x) - 0.36, 0.4 - y)
    behind = _inside(np.maximum(np.maximum(sides * 0.8, y - face.hair_length), -neck), edge * 2) * (face.hair_length > 0)
    alpha, paint = behind, hair_colour * behind[..., None]
    for mask, layer in ((ears, colour * 0.92), (head, colour), (on_top, hair_colour)):
        paint = paint * (1 - mask[..., None]) + layer * mask[..., None]
        alpha = alpha * (1 - mask) + mask
    return np.dstack([np.clip(paint, 0, 255 * alpha[..., None]), alpha]).astype(np.float32)


def _background(face: Face, rng: np.random.Generator, canvas: int, centre: np.ndarray, scale: float) -> np.ndarray:
    """Blurred room, neck and shoulders: float32 [canvas, canvas, 3]."""
    ends = _muted(rng.uniform(50, 210, (2, 3)))
    ramp = np.linspace(0, 1, canvas)[:, None, None]
    room = np.broadcast_to(ends[0] * (1 - ramp) + ends[1] * ramp, (canvas, canvas, 3)).astype(np.float32).copy()
    for _ in range(rng.integers(2, 7)):
        corner, extent = rng.integers(0, canvas, 2), rng.integers(canvas // 10, canvas // 2, 2)
        colour = [float(value) for value in _muted(rng.uniform(30, 230, 3))]
        cv2.rectangle(room, corner.tolist(), (corner + extent).tolist(), colour, cv2.FILLED)
    room = cv2.GaussianBlur(room, (0, 0), canvas / 40)
    view = _View(centre, scale, 0.0, 0.0, 0.0)
    side = np.linspace(-1, 1, 41)
    shoulders = np.stack([side * 1.75, 1.35 + 0.55 * np.abs(side) ** 2.2], axis=1)
    body = np.concatenate([shoulders, [[1.9, 6.0], [-1.9, 6.0]]])
    neck = np.array([[-0.4, 0.4], [0.4, 0.4], [0.44, 1.3], [0.2, 1.52], [0, 1.58], [-0.2, 1.52], [-0.44, 1.3]])
    _fill(room, view.pixels(body), face.shirt)
    _fill(room, view.pixels(neck), face.skin * 0.68)
    return room


def _composite(painted: np.ndarray, room: np.ndarray, grid: np.ndarray, view: _View, scale: float) -> np.ndarray:
    x, y = view.head_plane(grid)
    layer = cv2.remap(painted, (x - np.float32(LEFT)) * np.float32(scale), (y - np.float32(TOP)) * np.float32(scale),
                      cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)  # fmt: skip
    return np.clip(room * (1 - layer[..., 3:]) + layer[..., :3], 0, 255).astype(np.uint8)


def _fill(image: np.ndarray, pixels: np.ndarray, colour: np.ndarray | tuple) -> None:
    points = np.round(pixels * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(image, [points], [float(value) for value in np.clip(colour, 0, 255)], cv2.LINE_AA, SHIFT)


def _fill_within(image: np.ndarray, window: np.ndarray, shapes: list[tuple[np.ndarray, np.ndarray | tuple]]) -> None:
    """Fill shapes (pixels [n, 2], colour) in turn, visible only inside the polygon `window` [n, 2]."""
    low = np.maximum(np.floor(window.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(window.max(axis=0)).astype(int) + 2, image.shape[1::-1])
    if np.any(high <= low):
        return
    part = image[low[1] : high[1], low[0] : high[0]]
    layer = part.copy()
    for pixels, colour in shapes:
        _fill(layer, pixels - low, colour)
    mask = np.zeros(part.shape[:2], np.uint8)
    _fill(mask, window - low, (255,))
    alpha = mask[..., None].astype(np.float32) / 255
    part[:] = np.round(part * (1 - alpha) + layer * alpha).astype(np.uint8)


def _ellipse(x0: float, y0: float, x_radius: float, y_radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x0 + x_radius * np.cos(angle), y0 + y_radius * np.sin(angle)], axis=1)


def _draw_eyes(image: np.ndarray, face: Face, view: _View, lid: float, gaze: float) -> None:
    across = np.linspace(-1, 1, 13)
    arch = (1 - across**2) ** 0.7
    for side in (-1, 1):
        x0, y0 = side * face.eye_gap, -0.12
        upper = np.stack([x0 + 0.15 * across, y0 + 0.02 - arch * (0.085 * lid + 0.004)], axis=1)
        lower = np.stack([x0 + 0.15 * across, y0 + 0.02 + arch * 0.045], axis=1)[::-1]
        if lid < 1:
            _fill(image, view.pixels(_ellipse(x0, y0 - 0.01, 0.16, 0.09)), face.skin * 0.82)
        if lid > 0.1:
            iris_x = x0 + 0.02 * gaze
            shapes = [(_ellipse(x0, y0, 0.3, 0.3), (200, 195, 190)), (_ellipse(iris_x, y0, 0.078, 0.078), face.eye),
                      (_ellipse(iris_x, y0, 0.034, 0.034), (12, 10, 10)),
                      (_ellipse(iris_x - 0.025, y0 - 0.03, 0.014, 0.014), (250, 250, 250))]  # fmt: skip
            window = np.concatenate([upper, lower])
            _fill_within(image, view.pixels(window), [(view.pixels(shape), colour) for shape, colour in shapes])
        lash = np.concatenate([upper - [0, 0.018], upper[::-1] + [0, 0.008]])
        _fill(image, view.pixels(lash), face.skin * 0.25)


def _draw_brows(image: np.ndarray, face: Face, view: _View, lift: float) -> None:
    across = np.linspace(-1, 1, 9)
    colour = np.minimum(face.hair * 0.7, face.skin * 0.5)
    for side in (-1, 1):
        line = np.stack([side * (face.eye_gap + 0.02) + 0.19 * across, -0.36 - lift - 0.05 * (1 - across**2)], axis=1)
        thick = np.stack([np.zeros(9), face.brow * (1 - 0.5 * (across * side + 1) / 2)], axis=1)
        _fill(image, view.pixels(np.concatenate([line - thick / 2, (line + thick / 2)[::-1]])), colour)


def _draw_mouth(image: np.ndarray, face: Face, view: _View, opening: float, width: float) -> None:
    """Lips around an opening of the given height and relative width, teeth behind the upper lip, tongue below."""
    half = face.mouth_half_width * (1 + 0.8 * (width - 1)) * (1 - 0.25 * opening)
    across = np.linspace(-1, 1, 25)
    arch = np.clip(1 - across**2, 0, 1) ** 0.8
    bow = arch * (1 - 0.28 * np.exp(-((across / 0.16) ** 2)))
    x = half * across
    upper_in, lower_in = MOUTH_Y - 0.25 * opening * arch, MOUTH_Y + 0.75 * opening * arch + 0.004
    upper_out, lower_out = upper_in - 0.075 * bow - 0.012, lower_in + 0.095 * arch + 0.012

    def between(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return view.pixels(np.concatenate([np.stack([x, top], 1), np.stack([x, bottom], 1)[::-1]]))

    _fill(image, between(upper_out, lower_out), face.lip)
    _fill(image, between(upper_out, upper_in), face.lip * 0.86)
    shine = lower_in + 0.035 * arch
    _fill(image, between(shine, shine + 0.02 * arch), np.minimum(face.lip * 1.18, 255))
    shapes = [(between(upper_in - 0.2, lower_in + 0.2), (52, 14, 18))]
    if opening > 0.02:
        shapes.append((view.pixels(_ellipse(0, MOUTH_Y + 0.72 * opening, half * 0.62, 0.3 * opening)), (168, 72, 76)))
        shapes.append((between(upper_in - 0.2, upper_in + min(0.06, 0.35 * opening) * (0.4 + 0.6 * arch)), (238, 232, 220)))
    _fill_within(image, between(upper_in, lower_in), shapes)
