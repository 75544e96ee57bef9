"""What TensorBoard shows of a training: the sound of a few validation clips, their spectrograms, alpha and the gate."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import Dataset

from dataloaders.clip_dataset import UnreadableClip
from evaluation.reporting.spectrograms import spectrogram_figure
from models.inference.enhancer import Enhancer
from models.inference.results import EnhanceResult
from utils.training.run_folder import ShownClip

SCREEN_DPI = 80


def shown_clips(dataset: Dataset, enhancer: Enhancer, count: int) -> Iterator[ShownClip]:
    """The first `count` clips of a fixed split that can be read, enhanced with the weights that the enhancer has now."""
    left = count
    for index in range(len(dataset)):
        if not left:
            return
        try:
            item = dataset[index]
        except UnreadableClip:  # the validation has said so
            continue
        left -= 1
        gain, rate = item.gain.numpy(), enhancer.sample_rate
        noisy, clean = item.noisy_audio.numpy() / gain, item.clean_audio.numpy() / gain
        face = {}
        if item.video.shape[1]:
            face = {"video": item.video.numpy().transpose(1, 2, 3, 0), "video_mask": item.video_mask.numpy()}
        result = enhancer.enhance(noisy, rate, return_details=True, **face)
        sounds = {"noisy": noisy, "enhanced": result.wav, "clean": clean}
        yield ShownClip(f"clip {index}", sounds, rate, _figure(f"validation clip {index}", sounds, result, enhancer))


def _figure(title: str, sounds: Mapping[str, np.ndarray], result: EnhanceResult, enhancer: Enhancer) -> np.ndarray | None:
    """Spectrograms, alpha and gate as uint8 [H, W, 3]; None without matplotlib, which must not end a training."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.png"
        stft = enhancer.cfg["stft_cfg"]
        spectrogram_figure(path, title, sounds, result, stft, difference=False, gate_over_time=True, dpi=SCREEN_DPI)
        return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])  # OpenCV's order of colours is BGR
