"""A tiny model and tiny recordings, for every test that needs some."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import torch

from models.pretrained import ARCHITECTURES, pack_generator
from utils.checkpoint import save_checkpoint
from utils.config import complete_config


def tiny_config(**sections: dict) -> dict:
    """Complete configuration of the smallest useful model; `sections` are merged over it key by key."""
    tiny = {
        "model_cfg": {"hid_feature": 8, "num_tfmamba": 1, "d_state": 4, "expand": 2, "causal": False},
        "visual_cfg": {"visual_dim": 32, "backbone_weights": "none"},
        "lite_cfg": {"visual_encoder_type": "custom3d"},
    }
    for name, keys in sections.items():
        tiny[name] = {**tiny.get(name, {}), **keys}
    return complete_config(tiny)


def tiny_model(architecture: str = "LiteAVSEMamba", seed: int = 0, **sections: dict) -> tuple[torch.nn.Module, dict]:
    """A tiny model with seeded random weights, in eval mode, and its configuration."""
    cfg = tiny_config(**sections)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture](cfg)
    return model.eval(), cfg


def save_tiny_checkpoint(path: Path, architecture: str = "LiteAVSEMamba", seed: int = 0, **sections: dict) -> Path:
    model, cfg = tiny_model(architecture, seed, **sections)
    save_checkpoint(path, pack_generator(model, cfg))
    return path


def voice(duration_sec: float = 1.0, sample_rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Something speech-like: harmonics and noise that come and go, float32 [L], RMS about 0.05."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_sec * sample_rate)) / sample_rate
    tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    sound = (1.1 + np.sin(2 * np.pi * 4 * t)) * (tone + 0.3 * rng.standard_normal(len(t)))
    return (0.05 * sound / np.sqrt(np.mean(sound**2))).astype(np.float32) if len(t) else np.zeros(0, np.float32)


def face_crops(n_frames: int, size: int = 96, seed: int = 0) -> np.ndarray:
    """A coarse face-like pattern whose lower half moves, uint8 [V, S, S, 3]."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(60, 190, (1, 12, 12, 3)), n_frames, axis=0)
    frames[:, 7:10, 3:9] = rng.integers(0, 255, (n_frames, 3, 6, 3))
    return np.kron(frames, np.ones((1, size // 12, size // 12, 1))).astype(np.uint8)


def write_mpg(path: Path, frames: np.ndarray | None, samples: np.ndarray | None, sample_rate: int = 44100) -> Path:
    """MPEG-1 pictures and MP2 sound, as GRID is distributed; frames uint8 [V, H, W, 3], samples float [L]; None: without."""
    with av.open(str(path), "w", format="mpeg") as container:
        video = audio = None
        if frames is not None:
            video = container.add_stream("mpeg1video", rate=Fraction(25))
            video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if samples is not None:
            audio = container.add_stream("mp2", rate=sample_rate)
            audio.layout = "mono"
        for index, picture in enumerate(frames if frames is not None else ()):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        pcm = np.round(32767 * samples).astype(np.int16) if samples is not None else np.zeros(0, np.int16)
        for first in range(0, len(pcm), 1152):
            frame = av.AudioFrame.from_ndarray(pcm[None, first : first + 1152], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, first, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
        for stream in (video, audio):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def wav_file(path: Path, samples: np.ndarray | None = None, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    """Write samples (default: 0.4 s of `voice`) in the format that the suffix and subtype say."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, voice(0.4, rate) if samples is None else samples, rate, subtype=subtype)
    return path


def all_files(folder: Path) -> set[str]:
    """Every file below `folder`, as paths relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def only_line(text: str) -> str:
    """The one line that `text` is, and no traceback."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def bytes_file(path: Path, content: bytes) -> Path:
    """Write `content`, whatever it is."""
    path.write_bytes(content)
    return path


def broken_inputs(folder: Path) -> dict[str, Path]:
    """Recordings that cannot be enhanced, by a word that the message about each should hold."""
    return {
        "no samples": wav_file(folder / "empty.wav", np.zeros(0)),
        "NaN": wav_file(folder / "nan.wav", np.array([0.1, np.nan] * 500), subtype="FLOAT"),
        "noise.wav": bytes_file(folder / "noise.wav", np.random.default_rng(0).bytes(3000)),
        "0 bytes": bytes_file(folder / "zero.wav", b""),
        "sound": write_mpg(folder / "mute.mpg", face_crops(10), None),
    }
