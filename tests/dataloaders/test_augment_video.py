"""Picture degradation: how often, how badly, and labelled where it happened."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dataloaders.augment_video import DEFAULT_SHARES, JITTER_DRIFT, JITTER_SHIFT, CropJitter, VisualDegradation

KINDS = [kind for kind in DEFAULT_SHARES if kind != "none"]


@pytest.fixture
def frames() -> np.ndarray:
    """A textured clip that moves, uint8 [25, 48, 48, 3], no frame like another."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(30, 226, (45, 45, 3), np.uint8), (120, 120), interpolation=cv2.INTER_CUBIC)
    return np.stack([texture[20 : 68, 2 * k : 2 * k + 48] for k in range(25)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_is_where_the_picture_changed(kind: str, frames: np.ndarray) -> None:
    degrade = VisualDegradation()
    lengths = set()
    for seed in range(40):
        before = frames.copy()
        out, label = degrade.apply(kind, frames, np.random.default_rng(seed))
        assert np.array_equal(frames, before) and out.shape == frames.shape and out.dtype == np.uint8
        changed = (out != frames).any(axis=(1, 2, 3))
        assert label.dtype == np.float32 and np.array_equal(label == 1, changed)
        lengths.add(int(label.sum()))
    assert len(lengths) > 3 and max(lengths) >= (24 if kind != "drop" else 10)


def test_untouched_is_untouched(frames: np.ndarray) -> None:
    out, label = VisualDegradation({"none": 1.0})(frames, np.random.default_rng(0))
    assert np.array_equal(out, frames) and not label.any() and out is not frames


def test_each_kind_does_what_its_name_says(frames: np.ndarray) -> None:
    degrade = VisualDegradation()

    def hit(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        out, label = degrade.apply(kind, frames, np.random.default_rng(seed))
        where = label == 1
        return out[where].astype(np.float32), frames[where].astype(np.float32)

    for seed in range(20):
        assert not hit("black", seed)[0].any()
        dim, clear = hit("dim", seed)
        assert dim.mean() < 0.25 * clear.mean()
        noisy, clear = hit("noise", seed)
        assert np.abs(noisy - clear).mean() > 12
        blurred, clear = hit("blur", seed)
        assert np.abs(np.diff(blurred, axis=1)).mean() < 0.6 * np.abs(np.diff(clear, axis=1)).mean()
        frozen, _ = hit("freeze", seed)
        assert len(frozen) == 0 or (frozen == frozen[0]).all()
        patched, clear = hit("patch", seed)
        covered = (patched != clear).any(axis=-1).mean()
        assert 0.05 < covered < 0.45
        assert (patched[:, 24:] != clear[:, 24:]).mean() > (patched[:, :24] != clear[:, :24]).mean()


def test_dropped_frames_are_black_or_shown_again(frames: np.ndarray) -> None:
    seen = set()
    for seed in range(30):
        out, label = VisualDegradation().apply("drop", frames, np.random.default_rng(seed))
        for index in np.flatnonzero(label):
            black, again = not out[index].any(), index > 0 and np.array_equal(out[index], out[index - 1])
            assert black or again
            seen.add("black" if black else "again")
    assert seen == {"black", "again"}


def test_shares_are_kept(frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def remember(self: VisualDegradation, kind: str, clip: np.ndarray, rng: np.random.Generator) -> tuple:
        drawn.append(kind)
        return clip, np.zeros(len(clip), np.float32)

    monkeypatch.setattr(VisualDegradation, "apply", remember)
    rng, degrade, count = np.random.default_rng(0), VisualDegradation(), 6000
    for _ in range(count):
        degrade(frames[:1], rng)
    total = sum(DEFAULT_SHARES.values())
    for kind, share in DEFAULT_SHARES.items():
        p = share / total
        assert abs(drawn.count(kind) / count - p) < 4 * np.sqrt(p * (1 - p) / count)
    assert 0.54 < drawn.count("none") / count < 0.62


def test_draws_follow_the_generator(frames: np.ndarray) -> None:
    degrade = VisualDegradation({"drop": 1, "noise": 1, "patch": 1})
    for seed in range(5):
        a, b = (degrade(frames, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert degrade(frames[:0], np.random.default_rng(0))[1].shape == (0,)


@pytest.mark.parametrize("shares", [{"rain": 1.0}, {"blur": -1.0, "none": 2.0}, {"none": 0.0}, {}])
def test_wrong_shares_are_refused(shares: dict) -> None:
    with pytest.raises(ValueError, match="degradation"):
        VisualDegradation(shares)


def dot(frame: np.ndarray) -> np.ndarray:
    """(column, row) of the middle of what is bright."""
    rows, columns = np.nonzero(frame.mean(axis=2) > 128)
    return np.array([columns.mean(), rows.mean()])


def test_a_jittered_face_is_elsewhere_but_moves_as_it_did() -> None:
    frames = np.full((25, 96, 96, 3), 20, np.uint8)
    for index, row in enumerate(48 + 10 * np.sin(np.arange(25))):
        cv2.circle(frames[index], (48, round(float(row))), 5, (235, 235, 235), -1)
    before = np.array([dot(frame) for frame in frames])
    most = (JITTER_SHIFT + JITTER_DRIFT / 2) * 96 + 3  # and what turning and scaling about the middle make of 10 pixels
    places, sides = [], set()
    for seed in range(60):
        given = frames.copy()
        out = CropJitter()(frames, np.random.default_rng(seed))
        assert np.array_equal(frames, given) and out.shape == frames.shape and out.dtype == np.uint8
        after = np.array([dot(frame) for frame in out])
        assert np.corrcoef(np.diff(before[:, 1]), np.diff(after[:, 1]))[0, 1] > 0.98
        assert (np.abs(after - before) <= most).all()
        places.append(after.mean(axis=0) - before.mean(axis=0))
        sides.add(out[0].mean() > frames[0].mean())
    assert (np.std(places, axis=0) > 0.03 * 96).all() and len(sides) == 2  # darker and brighter


def test_jitter_mirrors_half_of_the_time(frames: np.ndarray) -> None:
    left = np.zeros((2, 64, 64, 3), np.uint8)
    left[:, :, :32] = 255
    mirrored = [CropJitter()(left, np.random.default_rng(seed))[0, :, :8].mean() < 128 for seed in range(80)]
    assert 25 <= sum(mirrored) <= 55
    same = [CropJitter()(frames, np.random.default_rng(7)) for _ in range(2)]
    assert np.array_equal(*same)
