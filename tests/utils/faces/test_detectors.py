"""Which detector is at work, what is said when it is not the first choice, and that both give the same crops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.drawn_faces import drawn_face
from utils.faces import detectors
from utils.faces.cropper import FaceCropper, FaceOptions, FaceReport
from utils.faces.detectors import FaceMethod, YuNetDetector, settle_method
from utils.media.frame_grid import grid_frames


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    settle_method.cache_clear()
    yield
    settle_method.cache_clear()


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_auto_is_haar_without_a_model_and_says_so() -> None:
    settled = settle_method("auto")
    assert settled.method == "haar" and settled.fallback is not None
    for part in ("Haar", "YuNet", str(detectors.YUNET_FILE.path), "--face_model"):
        assert part in settled.fallback
    cropper = FaceCropper(32, "auto")
    assert cropper.report.detector == "Haar cascade" and cropper.report.fallback == settled.fallback


def test_auto_is_the_middle_where_there_is_no_cascade_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.data, "haarcascades", "/nowhere/")
    settled = settle_method("auto")
    assert settled.method == "center" and "Haar" in str(settled.fallback) and "YuNet" in str(settled.fallback)
    with pytest.raises(ValueError, match="no Haar cascades"):
        FaceCropper(32, "haar")


def test_what_was_asked_for_is_never_replaced() -> None:
    with pytest.raises(ValueError, match="YuNet") as caught:
        settle_method("yunet")
    assert "--face_model" in one_line(caught)
    for method in ("haar", "center", "none"):
        assert settle_method(method) == FaceMethod(method)


def test_a_model_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network at all" * 20)
    for method in ("auto", "yunet"):
        with pytest.raises(ValueError, match="is not a file") as caught:
            settle_method(method, str(tmp_path / "gone.onnx"))
        assert "gone.onnx" in one_line(caught)
        with pytest.raises(ValueError, match="not a YuNet") as caught:
            settle_method(method, str(broken))
        assert "broken.onnx" in one_line(caught)
    with pytest.raises(ValueError, match="is for YuNet, but face_crop is haar"):
        settle_method("haar", str(broken))
    monkeypatch.setenv("LITEAVSE_FACE_MODEL", str(broken))
    with pytest.raises(ValueError, match=r"broken\.onnx"):
        settle_method("auto")


def test_nothing_is_fetched_in_vain_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(detectors.PublishedFile, "get", lambda self: asked.append(self.url) or _fail())
    for _ in range(3):
        assert settle_method("auto").method == "haar"
    assert len(asked) == 1 and detectors.YUNET_FILE.timeout_sec <= 5


def _fail() -> None:
    raise ValueError("no network")


@pytest.fixture
def yunet(shared_data: Path) -> str:
    return str(shared_data / "weights" / "face_detection_yunet_2023mar.onnx")


def test_the_model_is_taken_from_the_cache_by_its_digest(yunet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hashlib.sha256(Path(yunet).read_bytes()).hexdigest() == detectors.YUNET_FILE.sha256
    monkeypatch.setenv("LITEAVSE_CACHE", str(tmp_path))
    detectors.YUNET_FILE.path.write_bytes(Path(yunet).read_bytes())
    assert settle_method("auto") == FaceMethod("yunet", str(detectors.YUNET_FILE.path))
    detectors.YUNET_FILE.path.write_bytes(b"something else")
    settle_method.cache_clear()
    assert "remove the file" in str(settle_method("auto").fallback)


def test_yunet_finds_drawn_faces_large_and_small_and_nothing_in_noise(yunet: str) -> None:
    find = YuNetDetector(yunet)
    (box,) = find(drawn_face(150, 100, 60))
    assert abs(box.x - 150) < 12 and abs(box.y - 108) < 15 and 80 < box.side < 160
    large = cv2.resize(drawn_face(150, 100, 60), None, fx=6, fy=6)
    (box,) = find(large)
    assert abs(box.x - 900) < 70 and abs(box.y - 648) < 90
    rng = np.random.default_rng(0)
    for shape in ((120, 160, 3), (1, 1, 3), (2, 3, 3), (8, 8, 3), (9, 500, 3), (17, 17, 3), (40, 17, 3)):
        assert not find(np.zeros(shape, np.uint8)) and not find(rng.integers(0, 256, shape, np.uint8))


def test_both_detectors_give_the_same_crops_of_real_faces(yunet: str, shared_data: Path) -> None:
    apart = []
    for speaker in range(1, 6):
        path = sorted((shared_data / "grid" / "raw" / f"s{speaker}").glob("*.mpg"))[3]
        frames = np.stack([frame for frame in grid_frames(path) if frame is not None])
        heads = []
        for options in (FaceOptions("yunet", yunet), FaceOptions("haar")):
            cropper = FaceCropper(96, options, report=FaceReport())
            _, mask = cropper(frames)
            assert mask.mean() > (0.99 if options.method == "yunet" else 0.95)
            heads.append(cropper._known)
        one, other = heads
        apart.append(((one.x - other.x) / other.side, (one.y - other.y) / other.side, one.side / other.side - 1))
    assert np.abs(apart).max() < 0.08 and np.abs(np.mean(apart, axis=0)).max() < 0.03, apart
