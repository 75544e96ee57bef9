"""The map from STFT frames to video frames, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from models.timing import latency_samples, video_frame_index

ONE_HOUR = 3600 * 160


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (25, Fraction(25)), (25.0, Fraction(25)), (30, Fraction(30)), (50.0, Fraction(50)),
        (29.97, Fraction(2997, 100)), (30000 / 1001, Fraction(30000, 1001)), (24000 / 1001, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)), (23.976, Fraction(23976, 1000)),
    ],
)
def test_floor_is_exact_over_an_hour(fps: float, exact: Fraction) -> None:
    index = video_frame_index(ONE_HOUR, 100, 16000, fps).numpy()
    step = exact * 100 / 16000
    t = np.arange(ONE_HOUR, dtype=np.int64)
    np.testing.assert_array_equal(index, t * step.numerator // step.denominator)


def test_first_seconds_by_hand() -> None:
    # 6.4 STFT frames to a video frame: video frame 1 starts at STFT frame 6.4, so frame 7 is the first to see it.
    index = video_frame_index(34, 100, 16000, 25.0).tolist()
    assert index == [0] * 7 + [1] * 6 + [2] * 7 + [3] * 6 + [4] * 6 + [5] * 2


@pytest.mark.parametrize("fps", [25.0, 30000 / 1001])
def test_pieces_are_slices_of_the_whole(fps: float) -> None:
    whole = video_frame_index(5000, 100, 16000, fps)
    for first, count in [(0, 1), (1, 99), (777, 1000), (4999, 1), (100, 0)]:
        piece = video_frame_index(count, 100, 16000, fps, first=first)
        assert piece.tolist() == whole[first : first + count].tolist()


def test_never_sees_a_frame_that_starts_later() -> None:
    for fps in (24.0, 25.0, 29.97, 60.0):
        index = video_frame_index(2000, 100, 16000, fps).numpy()
        start_sec, centre_sec = index / fps, np.arange(2000) * 100 / 16000
        assert (start_sec <= centre_sec + 1e-9).all()
        assert (start_sec + 1 / fps > centre_sec - 1e-9).all()  # and it is the newest of them


def test_latency_is_half_a_window_and_the_longer_of_the_other_half_and_the_later_video() -> None:
    assert latency_samples(400, 16000) == latency_samples(400, 16000, 12.5) == 400
    assert latency_samples(400, 16000, 80.0) == 200 + 1280
