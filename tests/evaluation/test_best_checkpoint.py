"""Choosing the best: kinds of disturbance, conditions of the video, weights of the scores, and the end of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloaders.dataloader_av import AVDataset
from dataloaders.mixing import snr_db
from evaluation.validation import Validation
from helpers.corpus import make_corpus
from helpers.tiny import tiny_config, tiny_model
from models.inference.enhancer import Enhancer

VISUAL = {"face_size": 32, "visual_dim": 32, "face_crop": "none"}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("promises"), clips_per_speaker=2)


def valid_set(lists: tuple[Path, Path], **training: object) -> AVDataset:
    cfg = tiny_config(training_cfg={"valid_snrs_db": [0.0, 5.0], **training}, visual_cfg=VISUAL)
    return AVDataset(*lists, cfg, "valid")


def test_kinds_take_turns_at_every_snr_and_are_the_same_in_every_epoch(lists: tuple[Path, Path]) -> None:
    plain, kinds = valid_set(lists), valid_set(lists, valid_kinds=["noise", "talker", "both"])
    for index in range(6):
        item, before = kinds[index], plain[index]
        target, mixture = ((wave / item.gain).numpy() for wave in (item.clean_audio, item.noisy_audio))
        assert snr_db(target, mixture - target) == pytest.approx([0.0, 5.0][index % 2], abs=0.1)
        same = np.allclose(mixture, (before.noisy_audio / before.gain).numpy(), atol=1e-5)
        assert same == (index < 2)  # the first two are noise, as without the key
        kinds.set_epoch(index)
        assert np.array_equal(kinds[index].noisy_audio, item.noisy_audio)


def test_the_criterion_is_the_weighted_mean_over_the_conditions(lists: tuple[Path, Path]) -> None:
    training = {
        "valid_clips": 4, "valid_conditions": ["none", "clean", "other_face", "shift_+200ms"],
        "valid_criterion": {"pesq": 1.0, "si_sdr": 0.1},
    }  # fmt: skip
    data = valid_set(lists, **training)
    model, cfg = tiny_model(visual_cfg=VISUAL)
    found = Validation(data, 1, training)(Enhancer(model, cfg, "cpu"))
    rows = training["valid_conditions"]
    mean = {metric: np.mean([found[f"{row}_{metric}"] for row in rows]) for metric in ("pesq", "si_sdr")}
    assert found["pesq"] == pytest.approx(mean["pesq"])
    assert found["criterion"] == pytest.approx(mean["pesq"] + 0.1 * mean["si_sdr"])
    assert found["none_si_sdr"] != found["clean_si_sdr"] != found["other_face_si_sdr"]
    # Withheld video is the sound-only row of the validation as it was.
    assert found["none_pesq"] == pytest.approx(Validation(data)(Enhancer(model, cfg, "cpu"), use_video=False)["pesq"])


def test_a_condition_that_is_not_known_is_named(lists: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="upside_down"):
        Validation(valid_set(lists), 1, {"valid_conditions": ["upside_down"]})
