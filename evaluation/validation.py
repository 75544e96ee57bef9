"""Scores of a model on a fixed list of mixtures, by the same pipeline that enhances a user's file.

    python -m evaluation.validation --checkpoint_file ckpts/LiteAVSE_small.pth --data_json clips.json --noise_json noise.json

prints the scores of the noisy input, of the enhanced sound without the video, and of the enhanced sound with it.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from dataloaders.clip_dataset import UnreadableClip
from dataloaders.dataloader_av import AVDataset, AVItem
from evaluation.reporting.tables import common_means
from evaluation.testset.conditions import NONE, check_condition, degrade
from evaluation.testset.score_rows import NOISY
from models.inference.enhancer import Enhancer
from utils.config import complete_config
from utils.console import EXIT_FAILED, Parser, run
from utils.distributed import Group
from utils.scores.metrics import METRICS, TABLE, number, require_scorers, score_many

ENHANCED = "enhanced"

_log = logging.getLogger(__name__)


class Validation:
    """Mean PESQ-WB, STOI, ESTOI and SI-SDR (dB) over a dataset's mixtures, and their gains over the noisy input.

    dataset: a dataloaders.dataloader_av.AVDataset with split "valid" or "test". The noisy input is scored only once.
    Clips that cannot be read are left out, with a warning each time; ValueError when none can be read.

    training: section training_cfg of a recipe. valid_conditions: each clip is enhanced once under each of these conditions
    of its video. valid_criterion: weights of the mean scores; their weighted sum, "criterion", chooses the best checkpoint.
    group: processes that share the clips out; each of them gets the scores of all.
    """

    def __init__(
        self, dataset: Dataset, workers: int = 1, training: Mapping | None = None, group: Group | None = None
    ) -> None:
        require_scorers()
        training = training or {}
        self.conditions, self.criterion = training.get("valid_conditions") or [], training.get("valid_criterion")
        for name in self.conditions:
            check_condition(name)
        self.dataset, self.workers, self.group = dataset, max(1, workers), group or Group()
        self._noisy: dict[int, dict] = {}  # scores, by index

    def __call__(self, enhancer: Enhancer, use_video: bool = True) -> dict[str, float]:
        """{"pesq": mean, "pesq_improvement": mean gain, ..., "n": clips, "n_failed": clips that lack a score,
        "n_unreadable": clips that were left out}.

        Means and gains are over the clips that have a score both before and after.
        """
        rows = {name: name for name in self.conditions} or {ENHANCED: use_video}
        clips, unreadable = self.score(enhancer, rows)
        means = common_means(clips)
        means[ENHANCED] = {m: float(np.mean([means[row][m] for row in rows])) for m in METRICS}
        result = means[ENHANCED] | {f"{m}_improvement": means[ENHANCED][m] - means[NOISY][m] for m in METRICS}
        failed = sum(any(_failed(scores) for scores in clip.values()) for clip in clips)
        for row in self.conditions:
            result |= {f"{row}_{m}": means[row][m] for m in METRICS}
        if self.criterion:
            result["criterion"] = sum(weight * means[ENHANCED][m] for m, weight in self.criterion.items())
        return result | {"n": len(clips), "n_failed": failed, "n_unreadable": len(unreadable)}

    def score(self, enhancer: Enhancer, rows: Mapping[str, bool | str]) -> tuple[list[dict[str, dict]], list[str]]:
        """The scores of each clip by row, and for each clip that could not be read the reason.

        A clip has the row NOISY and one of the enhanced sound for each of `rows`: {name: True with the video, False without,
        or a condition of the video}.
        """
        share = range(self.group.rank, len(self.dataset), self.group.size)
        everybodys = self.group.gather(self.group.together(lambda: self._score_share(share, enhancer, rows)))
        clips = dict(sorted((index, clip) for scored, _ in everybodys for index, clip in scored.items()))
        unreadable = dict(sorted((index, why) for _, failed in everybodys for index, why in failed.items()))
        if unreadable:
            first = next(iter(unreadable.values()))
            said = f"{len(unreadable)} of {len(self.dataset)} validation clips cannot be read; first: {first}"
            self.group.together(lambda: None if clips else _refuse(said))
            if self.group.is_main:
                _log.warning("%s; the means are over the others", said)
        return list(clips.values()), list(unreadable.values())

    def _score_share(
        self, share: range, enhancer: Enhancer, rows: Mapping[str, bool | str]
    ) -> tuple[dict[int, dict[str, dict]], dict[int, str]]:
        """`score` of some clips, by index."""
        clean, noisy, enhanced, read, unreadable = [], [], {row: [] for row in rows}, [], {}
        for index in share:
            try:
                item = self.dataset[index]
            except UnreadableClip as error:
                unreadable[index] = str(error)
                continue
            read.append(index)
            gain = item.gain.numpy()
            clean.append(item.clean_audio.numpy() / gain)
            noisy.append(item.noisy_audio.numpy() / gain)
            for row, shown in rows.items():
                video, mask = self._video(item, index, shown, enhancer)
                enhanced[row].append(enhancer.enhance(noisy[-1], enhancer.sample_rate, video=video, video_mask=mask).wav)
        if not self._noisy:
            self._noisy = dict(zip(read, self._score(clean, noisy, enhancer.sample_rate), strict=True))
        # AVDataset does not try again to read what it could not read once, so every clip here has its noisy scores.
        scored = {NOISY: [self._noisy[index] for index in read]}
        scored |= {row: self._score(clean, wavs, enhancer.sample_rate) for row, wavs in enhanced.items()}
        clips = [dict(zip(scored, clip, strict=True)) for clip in zip(*scored.values(), strict=True)]
        return dict(zip(read, clips, strict=True)), unreadable

    def _video(
        self, item: AVItem, index: int, shown: bool | str, enhancer: Enhancer
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Crops [V, S, S, 3] and mask [V] of an item, as they are or under a condition; (None, None): without the video."""
        if shown is False or shown == NONE or not item.video.shape[1]:
            return None, None
        crops, mask = item.video.numpy().transpose(1, 2, 3, 0), item.video_mask.numpy()
        if shown is True:
            return crops, mask
        other = self.dataset[self._somebody_else(index)]
        theirs = other.video.numpy().transpose(1, 2, 3, 0), other.video_mask.numpy()
        degraded = degrade(shown, crops, mask, enhancer.video_fps, index, theirs)
        return degraded.crops, degraded.mask

    def _somebody_else(self, index: int) -> int:
        """The next item from another folder, which is another speaker's; the next item where there is only one folder."""
        folders = [Path(self.dataset.name(k)).parent for k in range(len(self.dataset))]
        for step in range(1, len(folders)):
            place = (index + step) % len(folders)
            if folders[place] != folders[index]:
                return place
        return (index + 1) % len(folders)

    def _score(self, references: list[np.ndarray], estimates: list[np.ndarray], sample_rate: int) -> list[dict]:
        return score_many(list(zip(references, estimates, strict=True)), self.workers, sample_rate)


def _refuse(why: str) -> None:
    raise ValueError(why)


def _failed(scores: Mapping) -> bool:
    return any(math.isnan(scores[metric]) for metric in METRICS)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("validation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_file", default="ckpts/LiteAVSE_small.pth")
    parser.add_argument("--data_json", required=True, help="list of clean clips")
    parser.add_argument("--noise_json", required=True, help="list of noises")
    parser.add_argument("--snr_db", type=float, nargs="+", default=[0.0], help="SNRs in dB; the clips take them in turn")
    parser.add_argument("--seed", type=int, default=1234, help="of the choice of noises; the same seed gives the same mixtures")
    parser.add_argument("--workers", type=int, default=1, help="number of processes that score")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> int:
    """Print the table; EXIT_FAILED when a clip could not be read or scored."""
    enhancer = Enhancer.from_checkpoint(args.checkpoint_file, args.device)
    cfg = complete_config({
        **enhancer.cfg, "env_setting": {**enhancer.cfg["env_setting"], "seed": args.seed},
        "training_cfg": {**enhancer.cfg["training_cfg"], "valid_snrs_db": args.snr_db},
    })  # fmt: skip
    validation = Validation(AVDataset(args.data_json, args.noise_json, cfg, "test"), args.workers)
    print(enhancer.describe())
    clips, unreadable = validation.score(enhancer, {"sound only": False, "sound and video": True})
    print(f"{len(clips)} clips, SNR {', '.join(f'{snr:g}' for snr in args.snr_db)} dB, seed {args.seed}")
    print(f"{'':18s}{''.join(f'{TABLE[metric].heading:>14s}' for metric in METRICS)}{'n_failed':>10s}")
    for name, row in common_means(clips).items():
        scores = "".join(f"{number(row[metric], metric):>14s}" for metric in METRICS)
        print(f"{name:18s}{scores}{sum(_failed(clip[name]) for clip in clips):10d}")
    left_out = sum(any(map(_failed, clip.values())) for clip in clips)
    if left_out:
        print(f"{left_out} of {len(clips)} clips could not be scored in some row, and are left out of that metric in every row")
    return EXIT_FAILED if left_out or unreadable else 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    return run("validation.py", lambda: compare(args))


if __name__ == "__main__":
    raise SystemExit(main())
