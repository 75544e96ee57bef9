"""Training on scenes resumes bit for bit; the end of a run may be the best."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.training import log_lines, train, write_recipe
from utils.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("corpus"))


def test_a_run_of_scenes_resumes_bit_for_bit(recipe, tmp_path):
    scene = "training_cfg.scene={pair_share: 0.5, talker_shares: [0, 1], speed_share: 0.5, silent_share: 0.2}"
    shares = "training_cfg.degradation_shares={none: 1, shift: 1, other: 1}"
    assert train(recipe, tmp_path, "whole", scene, shares) == 0
    for last in ("training_cfg.max_steps=1", "training_cfg.max_steps=3", "training_cfg.max_steps=5"):
        assert train(recipe, tmp_path, "parts", scene, shares, last) == 0
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "parts")


def test_the_end_of_a_run_is_a_candidate_for_the_best_where_the_recipe_says_so(recipe, tmp_path):
    options = ("training_cfg.max_steps=3", "training_cfg.valid_criterion={si_sdr: 1.0}")
    assert train(recipe, tmp_path, "plain", *options) == 0
    assert not (tmp_path / "plain" / "best.pth").exists() and not log_lines(tmp_path / "plain", "validation")
    for _ in range(2):  # a finished run is not validated anew
        assert train(recipe, tmp_path, "end", *options, "training_cfg.validate_at_end=true") == 0
    scores = log_lines(tmp_path / "end", "validation")
    assert len(scores) == 1 and scores[0]["step"] == 3
    best = load_checkpoint(tmp_path / "end" / "do_00000003.pth")["best"]
    assert best == {"pesq": scores[0]["pesq"], "criterion": pytest.approx(scores[0]["si_sdr"]), "step": 3}


def test_parts_that_are_not_trained_stay_as_they_are(recipe, tmp_path, capsys):
    weights = []
    for steps in (1, 3):
        options = (f"training_cfg.max_steps={steps}", "training_cfg.train_only=[vce]", "training_cfg.trust_forcing=0.5")
        assert train(recipe, tmp_path, "some", *options) == 0
        weights.append(load_checkpoint(tmp_path / "some" / f"g_{steps:08d}.pth")["generator"])
    changed = {key.split(".")[0] for key, before in weights[0].items() if not before.equal(weights[1][key])}
    assert changed == {"vce"}
    assert train(recipe, tmp_path, "none", "training_cfg.train_only=[ears]") == 2
    assert "no part 'ears'; it has dense_encoder" in capsys.readouterr().err
