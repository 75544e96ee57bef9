"""evaluation/validation.py: every row of the table is over the same clips, whichever row a clip failed in."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation import validation
from evaluation.validation import Validation
from utils.scores.metrics import METRICS

CLIPS = 3
SCORES = {"noisy": (1.0, math.nan, 4.0), "sound only": (2.0, 9.0, math.nan), "sound and video": (3.0, 30.0, 300.0)}


class ThreeClips(torch.utils.data.Dataset):
    """Clips whose samples are all 0, 1 or 2, noisy and clean alike."""

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, index: int) -> SimpleNamespace:
        wave = torch.full((16,), float(index))
        return SimpleNamespace(
            gain=torch.tensor(1.0), clean_audio=wave, noisy_audio=wave, video=torch.zeros(3, 2, 4, 4),
            video_mask=torch.ones(2, dtype=torch.bool),
        )  # fmt: skip


class Adds:
    """An enhancer that adds 10 to what has no video, and 20 to what has one."""

    cfg = {"env_setting": {}, "training_cfg": {}}
    sample_rate = 16000

    def enhance(self, wav: np.ndarray, sample_rate: int, video=None, video_mask=None) -> SimpleNamespace:
        return SimpleNamespace(wav=wav + (10 if video is None else 20))

    def describe(self) -> str:
        return "a model"


def scores(pairs: list, workers: int, sample_rate: int) -> list[dict]:
    """What SCORES says about each (reference, estimate)."""
    row = [list(SCORES)[round(estimate[0] - reference[0]) // 10] for reference, estimate in pairs]
    return [dict.fromkeys(METRICS, SCORES[name][round(pair[0][0])]) for name, pair in zip(row, pairs, strict=True)]


@pytest.fixture(autouse=True)
def known_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "score_many", scores)


def test_means_and_gains_are_over_the_clips_scored_before_and_after() -> None:
    found = Validation(ThreeClips())(Adds(), use_video=True)
    assert (found["n"], found["n_failed"]) == (3, 1)  # the second clip's noisy sound
    assert found["pesq"] == pytest.approx((3 + 300) / 2)
    assert found["pesq_improvement"] == pytest.approx((3 + 300) / 2 - (1 + 4) / 2)


def test_the_table_is_over_the_clips_that_no_row_failed_on(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(validation.Enhancer, "from_checkpoint", lambda *_: Adds())
    monkeypatch.setattr(validation, "complete_config", lambda cfg: cfg)
    monkeypatch.setattr(validation, "AVDataset", lambda *_: ThreeClips())
    assert validation.main(["--data_json", "clips.json", "--noise_json", "noise.json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:18].strip(): line[18:].split() for line in lines if line[:18].strip() in SCORES}
    assert {name: (float(cells[0]), int(cells[-1])) for name, cells in rows.items()} == {
        "noisy": (1.0, 1), "sound only": (2.0, 1), "sound and video": (3.0, 0),
    }  # fmt: skip
    assert "2 of 3 clips" in lines[-1]
