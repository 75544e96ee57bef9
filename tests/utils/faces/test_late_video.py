"""Pictures that are late, whatever clock their file has; and clips written piece by piece."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from helpers.grey_video import STEP, noise, numbers, regular, write_video
from utils.faces.video_crops import load_video_frames
from utils.media import clip_writer, frame_grid
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError, probe_media
from utils.media.sound import load_audio


@pytest.mark.parametrize("with_sound", [True, False])
@pytest.mark.parametrize(("late_sec", "shown"), [(0.12, range(3, 25)), (-0.08, range(23)), (0.02, range(25))])
def test_a_picture_that_is_late_is_shown_earlier(tmp_path: Path, with_sound: bool, late_sec: float, shown: range) -> None:
    path = write_video(tmp_path / "a.mkv", regular(25, 25), sound=noise(1.0) if with_sound else None)
    pictures = list(frame_grid.grid_frames(path, 0.0, 1.0, late_sec=late_sec))
    first = round(max(0.0, -late_sec) * 25)  # nothing is there before an early picture begins
    assert [picture is None for picture in pictures[: first + 1]] == [True] * first + [False]
    seen = numbers(np.stack([picture for picture in pictures if picture is not None]))
    assert seen[: len(shown)] == list(shown) and set(seen[len(shown) :]) <= {24}  # the last one is held for a while


def test_a_late_picture_in_a_file_without_any_clock(tmp_path: Path) -> None:
    path = tmp_path / "a.h264"  # the bare stream
    with av.open(str(path), "w", format="h264") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt, video.options = 64, 64, "yuv420p", {"crf": "4", "bf": "0"}
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 + STEP * index, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    shown = (frame_grid.grid_frames(path, late_sec=late) for late in (0.0, 0.12))
    pictures = [[picture for picture in frames if picture is not None] for frames in shown]
    assert numbers(np.stack(pictures[0])) == list(range(25)) and numbers(np.stack(pictures[1])) == list(range(3, 25))


def test_a_late_picture_in_a_window_far_into_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", regular(57, 5.0), fps=5.0, sound=noise(11.4))
    whole = [picture for picture in frame_grid.grid_frames(path, late_sec=0.4) if picture is not None]
    part = [picture for picture in frame_grid.grid_frames(path, 9.0, 0.52, late_sec=0.4) if picture is not None]
    assert numbers(np.stack(part)) == numbers(np.stack(whole))[225:238]


def test_a_clip_written_piece_by_piece_is_the_same(tmp_path: Path) -> None:
    frames = np.stack([np.full((64, 64, 3), 20 + STEP * k, np.uint8) for k in range(30)])
    sound = noise(1.2)
    write_clip(tmp_path / "whole.mp4", frames, sound)
    with clip_writer.ClipWriter(tmp_path / "pieces.mp4", 16000, 25.0, (64, 64)) as clip:
        for first in (0, 7, 8):
            clip.add(frames[first : {0: 7, 7: 8, 8: 30}[first]])
        clip.finish(np.split(sound, [1, 5000, 17000]))
    with clip_writer.ClipWriter(tmp_path / "mute.mp4", None, 25.0, (64, 64)) as clip:
        clip.add(frames)
        clip.finish([])
    assert np.array_equal(load_audio(tmp_path / "pieces.mp4"), load_audio(tmp_path / "whole.mp4"))
    for name in ("pieces.mp4", "mute.mp4"):
        assert np.array_equal(load_video_frames(tmp_path / name, face_crop="none")[0],
                              load_video_frames(tmp_path / "whole.mp4", face_crop="none")[0])  # fmt: skip
    assert not probe_media(tmp_path / "mute.mp4").has_audio
    with pytest.raises(MediaError, match="cannot be written"):
        write_clip(tmp_path / "nowhere" / "a.mp4", frames, sound)
