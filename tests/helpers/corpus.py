"""A corpus of a few seconds for the evaluation's tests: talking clips of several speakers, noises, their lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from helpers.tiny import face_crops, voice
from utils.media.clip_writer import write_clip

SPEAKERS = ("ann", "bob", "cleo", "dan")


def make_corpus(folder: Path, clips_per_speaker: int = 1, duration_sec: float = 1.0) -> tuple[Path, Path]:
    """(list of clips, list of noises), both below `folder`."""
    clips = []
    for number, speaker in enumerate(SPEAKERS):
        for take in range(clips_per_speaker):
            path = folder / speaker / f"take{take}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = 10 * number + take
            pause = np.zeros(round(0.1 * 16000), np.float32)
            sound = np.concatenate([pause, voice(duration_sec - 0.2, seed=seed), pause])
            write_clip(path, face_crops(round(25 * duration_sec), seed=seed), sound)
            clips.append({"video": str(path.relative_to(folder))})
    noises = []
    for number in range(3):
        noise = 0.05 * np.random.default_rng(number).standard_normal(24000)
        soundfile.write(folder / f"noise{number}.wav", noise, 16000)
        noises.append(f"noise{number}.wav")
    for name, items in (("clips.json", clips), ("noise.json", noises)):
        (folder / name).write_text(json.dumps(items))
    return folder / "clips.json", folder / "noise.json"
