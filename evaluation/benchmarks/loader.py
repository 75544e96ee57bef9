"""The benchmark's table of the data loader: mixtures per second from raw clips, from face crops, from shards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader

from dataloaders.dataloader_av import AVDataset
from evaluation.benchmarks.network import ROOT, Row, medians, recipes
from utils.faces.video_crops import load_video_frames
from utils.media.clip_writer import write_clip
from utils.media.shards import encode_clip, write_shard
from utils.media.sound import load_audio
from utils.training.epoch_order import epoch_order, run_order
from utils.util import load_json_file, write_json

MOST_CLIPS = 40
HEIGHT, WIDTH = 288, 360  # GRID's
RECIPE = "LiteAVSE_grid"


def drawn_clips(folder: Path, copies: int = 3, seconds: float = 3.0) -> list[dict]:
    """Entries of clips like those of a corpus, made of the faces in samples/: 360 x 288, H.264, with their sound."""
    rng, entries = np.random.default_rng(0), []
    for source in sorted((ROOT / "samples").glob("*.mp4")):
        crops, _ = load_video_frames(source, 0.0, seconds, face_crop="none")
        sound = load_audio(source, 16000, 0.0, seconds)
        wall = cv2.resize(rng.integers(60, 120, (9, 12, 3)).astype(np.uint8), (WIDTH, HEIGHT))
        faces = [cv2.resize(crop, (160, 160)) for crop in crops]
        for copy in range(copies):
            frames = np.repeat(wall[None], len(faces), axis=0)
            frames[:, 70:230, 60 + 40 * copy : 220 + 40 * copy] = faces
            path = folder / "drawn" / f"{source.stem}_{copy}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_clip(path, frames, sound)
            entries.append({"video": str(path)})
    return entries


def prepare(entries: Sequence[dict], folder: Path, cfg: dict) -> tuple[Path, Path]:
    """The clips' crops as a list of videos, and as one shard: (list, shard)."""
    visual, rate = cfg["visual_cfg"], cfg["stft_cfg"]["sampling_rate"]
    size, fps, listed, clips = visual["face_size"], visual["video_fps"], [], []
    for number, entry in enumerate(entries):
        crops, mask = load_video_frames(entry["video"], face_size=size, fps=fps, face_crop=visual["face_crop"])
        sound = load_audio(entry.get("audio") or entry["video"], rate)
        path = folder / f"crops_{number:04d}.mp4"
        write_clip(path, crops, sound, rate, fps)
        hidden = [[int(frame), int(frame) + 1] for frame in np.flatnonzero(~mask)]
        listed.append({"video": str(path), "mask": hidden})
        clips.append((f"{number:04d}", encode_clip(crops, sound, rate, fps, {"mask": hidden})))
    write_json(folder / "crops.json", listed)
    write_shard(folder / "clips.tar", clips, {"face_size": size, "fps": fps, "sample_rate": rate})
    return folder / "crops.json", folder / "clips.tar"


def read_epoch(data: AVDataset, batch_size: int) -> Callable[[], None]:
    """One epoch through a DataLoader without workers, in the order in which training reads."""
    seed = 0
    order = epoch_order(len(data), None, seed, 0) if data.runs is None else run_order(data.runs, None, seed, 0, 1, 1, 0)

    def read() -> None:
        for _ in DataLoader(data, batch_size=batch_size, sampler=order):
            pass
        if data.failures:
            raise ValueError(f"{len(data.failures)} clips cannot be read; first: {next(iter(data.failures.items()))}")

    return read


def bench_loader(list_path: str | None, repeats: int) -> list[Row]:
    """Mixtures per second and process, for each way to store a list's first clips (default: clips that are made here)."""
    cfg = recipes()[RECIPE][1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # like a loader's worker
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            entries = load_json_file(list_path, "--loader_list")[:MOST_CLIPS] if list_path else drawn_clips(folder)
            write_json(folder / "raw.json", entries)
            rng = np.random.default_rng(0)
            for number in range(4):
                soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(160000), 16000)
            write_json(folder / "noise.json", [f"{number}.wav" for number in range(4)])
            crops, shard = prepare(entries, folder, cfg)
            sources = {"raw clips, faces looked for": folder / "raw.json", "list of crops": crops, "shards": shard}
            sets = {what: AVDataset(source, folder / "noise.json", cfg) for what, source in sources.items()}
            batch_size = min(cfg["training_cfg"]["batch_size"], len(entries))
            seconds = medians({what: read_epoch(data, batch_size) for what, data in sets.items()}, repeats)
    finally:
        torch.set_num_threads(threads)
    slowest = next(iter(seconds.values()))
    return [
        {"from": what, "clips": len(entries), "clips/s": len(entries) / value, "ms per clip": 1e3 * value / len(entries),
         "times raw": slowest / value} for what, value in seconds.items()
    ]  # fmt: skip
