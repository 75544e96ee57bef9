"""Which picture each moment of the grid shows: on time, late, at other rates, missing."""

from __future__ import annotations

import numpy as np

from models.inference.stream_video import CropQueue

FPS = 25


def shown(queue: CropQueue, last_tick: int, first_tick: int | None = None) -> list[int | None]:
    """First byte of what is encoded when sound of the grid times up to last_tick leaves."""
    ticks = range(queue.next_tick if first_tick is None else first_tick, last_tick + 1)
    return [None if picture is None else int(picture[0, 0, 0]) for picture in queue.due(ticks, memory_frames=6)]


def add(queue: CropQueue, numbers: list[int], times: list[float], faces: list[bool] | None = None) -> None:
    crops = np.stack([np.full((2, 2, 3), number, np.uint8) for number in numbers])
    queue.add(crops, np.array(times), np.array(faces or [True] * len(numbers)))


def test_a_frame_is_shown_until_the_next_one_is_due() -> None:
    queue = CropQueue(FPS)
    add(queue, [1, 2], [0.0, 0.0415])  # 1.5 ms late is on time
    assert shown(queue, 3) == [1, 2] and queue.next_tick == 2
    add(queue, [5], [0.16])
    assert shown(queue, 4) == [2, 2, 5]  # the gap is bridged once its end is known
    assert shown(queue, 4) == []
    add(queue, [20], [0.8])
    assert shown(queue, 20) == [5] * 5 + [None] * 10 + [20]  # but for 0.2 s only


def test_hold_sec_shows_the_last_frame_while_its_successor_is_overdue() -> None:
    queue = CropQueue(FPS, hold_sec=0.1)
    add(queue, [1, 2], [0.0, 0.04])
    assert shown(queue, 9) == [1, 2, 2, 2]


def test_a_late_frame_fills_what_is_not_encoded_yet_and_nothing_else() -> None:
    queue = CropQueue(FPS)
    add(queue, [1], [0.0])
    assert shown(queue, 3) == [1]  # grid times 1 to 3 have left without a picture, and wait
    add(queue, [2, 3, 4, 5], [0.04, 0.08, 0.12, 0.16])
    assert shown(queue, 4) == [2, 3, 4, 5]
    add(queue, [8], [0.32])
    assert shown(queue, 8)[-1] == 8  # 5 to 7 are encoded now
    assert queue.next_tick == 9


def test_a_frame_without_a_face_is_black_and_not_held_over() -> None:
    queue = CropQueue(FPS)
    add(queue, [1, 2, 3], [0.0, 0.04, 0.08], [True, False, True])
    assert shown(queue, 2) == [1, None, 3]


def test_a_long_absence_costs_no_more_than_the_encoders_memory() -> None:
    queue = CropQueue(FPS)
    add(queue, [1], [0.0])
    assert shown(queue, 0) == [1]
    for tick in (1000, 80000):
        assert shown(queue, tick) == []
    add(queue, [9], [90000 / FPS])
    assert shown(queue, 90000, first_tick=90000) == [None] * 6 + [9] and queue.next_tick == 90001
