"""Scores of a model on a fixed list of mixtures, by the same pipeline that enhances a user's file."""

from __future__ import annotations

import math

import numpy as np
from torch.utils.data import Dataset

from models.enhancer import Enhancer
from utils.metrics import METRICS, mean_score, score_many


class Validation:
    """Mean PESQ-WB, STOI, ESTOI and SI-SDR (dB) over a dataset's mixtures, and what was gained over the noisy input.

    dataset: items of dataloaders.dataloader_av.AVDataset with split "valid" or "test". The noisy input is scored once.
    """

    def __init__(self, dataset: Dataset, workers: int = 1) -> None:
        self.dataset, self.workers = dataset, max(1, workers)
        self._noisy: list[dict] | None = None

    def __call__(self, enhancer: Enhancer, use_video: bool = True) -> dict[str, float]:
        """{"pesq": mean, "pesq_improvement": mean gain, ..., "n": clips, "n_failed": those some metric could not score}.

        Means are over the clips that could be scored, gains over those that could be scored before and after.
        """
        clean, noisy, enhanced = [], [], []
        for index in range(len(self.dataset)):
            item = self.dataset[index]
            gain = item.gain.numpy()
            clean.append(item.clean_audio.numpy() / gain)
            noisy.append(item.noisy_audio.numpy() / gain)
            video = mask = None
            if use_video and item.video.shape[1]:
                video, mask = item.video.numpy().transpose(1, 2, 3, 0), item.video_mask.numpy()  # [V, S, S, 3], [V]
            enhanced.append(enhancer.enhance(noisy[-1], enhancer.sample_rate, video=video, video_mask=mask).wav)
        if self._noisy is None:
            self._noisy = self._score(clean, noisy)
        after = self._score(clean, enhanced)
        result = {metric: mean_score(after, metric) for metric in METRICS}
        for metric in METRICS:
            gains = [{metric: new[metric] - old[metric]} for new, old in zip(after, self._noisy, strict=True)]
            result[f"{metric}_improvement"] = mean_score(gains, metric)
        failed = sum(any(math.isnan(clip[metric]) for metric in METRICS) for clip in after)
        return result | {"n": len(after), "n_failed": failed}

    def _score(self, references: list[np.ndarray], estimates: list[np.ndarray]) -> list[dict]:
        return score_many(list(zip(references, estimates, strict=True)), self.workers)
