"""Face crops: found, followed, smoothed, and never invented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from helpers.drawn_faces import Script, columns, drawn_face, numbered
from helpers.paths import SHARED_DATA
from utils.faces.cropper import FaceBox, FaceCropper, HaarDetector, crop_faces, cut_square
from utils.faces.video_crops import load_video_frames


def crop(found: dict[int, Sequence[FaceBox]], count: int) -> tuple[np.ndarray, np.ndarray]:
    return FaceCropper(20, "auto", detector=Script(found))(numbered(count))


def test_a_short_miss_is_bridged_and_a_long_one_is_masked() -> None:
    box = FaceBox(40, 30, 20)
    found = {k: [box] for k in range(0, 50, 5) if k not in (10, 25, 30, 35)}
    _, mask = crop(found, 50)
    assert mask[:23].all()  # only frame 10 was missed: 0.4 s between detections
    assert list(np.flatnonzero(~mask)) == list(range(23, 38))  # 20 to 40 is 0.8 s; half a step around each is kept


def test_a_face_that_comes_late_and_leaves_is_masked_outside() -> None:
    box = FaceBox(40, 30, 20)
    crops, mask = crop({k: [box] for k in range(20, 41, 5)}, 75)
    assert list(np.flatnonzero(mask)) == list(range(18, 43))
    assert not crops[~mask].any() and crops[mask].any()


def test_no_face_at_all_gives_black_and_masked() -> None:
    crops, mask = crop({}, 12)
    assert crops.shape == (12, 20, 20, 3) and not crops.any() and not mask.any()


def test_jitter_of_the_detector_is_smoothed_and_motion_followed() -> None:
    rng = np.random.default_rng(0)
    still = {k: [FaceBox(40 + rng.normal(0, 2), 30, 20 + rng.normal(0, 2))] for k in range(0, 100, 5)}
    crops, _ = crop(still, 96)
    assert np.std(columns(crops)) < 1.0
    moving = {k: [FaceBox(20 + 0.4 * k, 30, 20)] for k in range(0, 100, 5)}
    crops, _ = crop(moving, 96)
    inner = slice(15, 80)
    assert np.abs(columns(crops)[inner] - (20 + 0.4 * np.arange(96))[inner]).max() < 1.5


def test_one_head_is_followed_among_several() -> None:
    target, small = FaceBox(55, 30, 24), FaceBox(15, 30, 14)
    found: dict[int, list[FaceBox]] = {k: [small, target] for k in range(0, 50, 5)}
    found[20] = [small]  # the detector missed the larger one: no jump to the other head
    found[35] = [target, FaceBox(20, 40, 40)]  # a false alarm, larger than both
    crops, mask = crop(found, 50)
    assert mask.all() and np.abs(columns(crops) - 55).max() < 1.0


def test_stretches_of_one_video_continue_the_same_head() -> None:
    left, right = FaceBox(20, 30, 20), FaceBox(60, 30, 20.5)
    script = Script({**{k: [left] for k in range(50)}, **{k: [left, right] for k in range(50, 100)}})
    cropper = FaceCropper(20, "haar", detector=script)
    cropper(numbered(50))
    crops, mask = cropper(numbered(50, first=50))
    assert mask.all() and np.abs(columns(crops) - 20).max() < 1.0
    assert len(script.asked) < 30  # every few frames, not all


def test_a_crop_over_the_edge_is_black_beyond_it() -> None:
    picture = np.full((40, 40, 3), 200, np.uint8)
    out = cut_square(picture, FaceBox(0, 20, 20), 20)
    assert not out[:, :9].any() and (out[:, 11:] == 200).all()
    assert not cut_square(picture, FaceBox(500, 20, 20), 20).any()


def test_center_and_none() -> None:
    frames = numbered(3)
    crops, mask = crop_faces(frames, 60, "center")
    assert mask.all() and np.array_equal(crops, frames[:, :, 10:70])
    crops, mask = crop_faces(frames, 30, "none")
    assert mask.all() and crops.shape == (3, 30, 30, 3) and abs(columns(crops).mean() - 40) < 1
    assert crop_faces(np.zeros((0, 8, 8, 3), np.uint8), 16)[0].shape == (0, 16, 16, 3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="yolo"):
        crop_faces(numbered(2), 32, "yolo")
    with pytest.raises(ValueError, match="uint8"):
        crop_faces(numbered(2).astype(np.float32), 32, "center")


def test_the_cascade_finds_a_drawn_face_and_nothing_in_noise() -> None:
    boxes = HaarDetector()(drawn_face(150, 100, 60))
    assert len(boxes) == 1
    assert abs(boxes[0].x - 150) < 12 and abs(boxes[0].y - 108) < 15 and 80 < boxes[0].side < 160
    rng = np.random.default_rng(0)
    assert not crop_faces(rng.integers(0, 256, (6, 120, 160, 3), np.uint8), 32)[1].any()


@pytest.fixture(scope="module")
def grid_clips() -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    if not SHARED_DATA.is_dir():
        pytest.skip("shared data is not here")
    paths = [sorted((SHARED_DATA / "grid" / "raw" / f"s{n}").glob("*.mpg"))[k] for n in range(1, 6) for k in (0, 9)]
    yield [load_video_frames(path, face_crop="haar") for path in paths]


def test_grid_faces_are_found(grid_clips: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert np.mean([mask.mean() for _, mask in grid_clips]) > 0.95


def test_grid_crops_hold_still(grid_clips: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for crops, _ in grid_clips:
        # Upper half: hair, eyes, background. A box that jumps shows as large steps between neighbouring frames.
        steps = np.abs(np.diff(crops[:, :40].astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
        assert np.percentile(steps, 95) < 8
