"""The benchmark's table of face crops: a video file decoded, its face found and cropped, on one core."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from evaluation.benchmarks.network import Row, medians
from utils.faces.detectors import settle_method
from utils.faces.video_crops import load_video_frames

CLIP = Path(__file__).resolve().parents[2] / "samples" / "talker_awb.mp4"


def bench_faces(repeats: int, clip: Path = CLIP) -> list[Row]:
    """Frames per second from the file to the crops for every detector; a row says why a detector cannot be used."""
    ways, missing = {}, []
    for method in ("yunet", "haar", "center"):
        try:
            settle_method(method)
            ways[method] = partial(load_video_frames, clip, face_crop=method)
        except ValueError as error:
            missing.append({"detector": method, "frames/s": f"{error}"})
    n_frames = len(load_video_frames(clip, face_crop="center")[0])
    seconds = medians(ways, repeats)
    return [{"detector": method, "frames/s": n_frames / spent} for method, spent in seconds.items()] + missing
