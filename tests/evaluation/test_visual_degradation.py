"""A bad video against none: what is done to the crops, the answer in the first line, and whether alpha sees it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from evaluation import visual_degradation
from evaluation.testset.conditions import AS_IN_TRAINING, CLEAN, CONDITIONS, NONE, OTHER_FACE, degrade
from evaluation.testset.score_rows import AUDIO_ONLY
from evaluation.visual_degradation import answer, compare_conditions, separation, use_of_the_right_face
from helpers.corpus import make_corpus
from helpers.tiny import face_crops, only_line
from utils.scores.metrics import METRICS

FPS = 25.0


def apply(name: str, crops: np.ndarray, mask: np.ndarray | None = None, seed: int = 3, **more):
    return degrade(name, crops, np.ones(len(crops), bool) if mask is None else mask, FPS, seed, **more)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return face_crops(50)


def test_every_condition_gives_as_many_frames_and_the_same_for_a_seed(crops: np.ndarray) -> None:
    before, other = crops.copy(), (face_crops(20, seed=9), np.ones(20, bool))
    for name in CONDITIONS:
        one, two = (apply(name, crops, other=other) for _ in range(2))
        assert np.array_equal(crops, before), f"{name} changed its input"
        if name == NONE:
            assert one is None
            continue
        assert one.crops.shape == crops.shape and one.crops.dtype == np.uint8 and one.mask.all()
        assert np.array_equal(one.crops, two.crops) and np.array_equal(one.corruption, two.corruption)
        assert one.corruption.any() == (name != CLEAN)
        changed = (one.crops != crops).any((1, 2, 3))
        assert not changed[~one.corruption].any(), f"{name}: a frame was changed and is not called corrupt"
        if name in AS_IN_TRAINING:
            assert one.corruption[1:].all(), f"{name} spared a stretch of the clip"


def test_dropped_frames_show_the_one_before(crops: np.ndarray) -> None:
    for share in (10, 50, 90):
        found = apply(f"drop_{share}", crops)
        assert found.corruption.sum() == round(share / 100 * 50)
        for index in np.flatnonzero(found.corruption):
            assert np.array_equal(found.crops[index], found.crops[index - 1])


def test_a_late_video_is_late(crops: np.ndarray) -> None:
    late, early = apply("shift_+200ms", crops), apply("shift_-80ms", crops)
    assert np.array_equal(late.crops[5:], crops[:-5]) and np.array_equal(late.crops[0], crops[0])
    assert np.array_equal(early.crops[:-2], crops[2:]) and np.array_equal(early.crops[-1], crops[-1])


def test_a_frame_without_a_face_stays_one(crops: np.ndarray) -> None:
    mask = np.ones(50, bool)
    mask[10:20] = False
    found = apply("blur", crops, mask)
    assert np.array_equal(found.mask, mask) and found.corruption[10:20].all()
    assert np.array_equal(apply(CLEAN, crops, mask).corruption, ~mask)


def test_another_face_is_another(crops: np.ndarray) -> None:
    other = face_crops(20, seed=9), np.ones(20, bool)
    found = apply(OTHER_FACE, crops, other=other)
    assert np.array_equal(found.crops[20:40], other[0])
    with pytest.raises(ValueError, match="other speaker"):
        apply(OTHER_FACE, crops)
    with pytest.raises(ValueError, match="sepia"):
        apply("sepia", crops)


def rows_with(gains: dict[str, list[float]], alphas: dict[str, float]) -> list[dict]:
    """Scores of as many clips as there are gains over audio-only, the same in every metric."""
    count, rows = len(next(iter(gains.values()))), []
    for clip in range(count):
        base = {"sample_id": f"c{clip}", "clip": f"c{clip}", "errors": {}}
        rows.append(base | {"row": AUDIO_ONLY} | dict.fromkeys(METRICS, 2.0))
        for name, more in gains.items():
            rows.append(
                base | dict.fromkeys(METRICS, 2.0 + more[clip])
                | {"row": name, "mean_alpha": alphas[name], "alpha": [alphas[name]] * 4, "seen": [1, 1, 1, 0],
                   "corrupt": [int(name != CLEAN)] * 4}
            )  # fmt: skip
    return rows


def test_the_answer_follows_from_the_differences() -> None:
    alphas = {CLEAN: 0.9, "blur": 0.2, "noise": 0.9}
    worse = {CLEAN: [0.3, 0.4, 0.5] * 5, "blur": [-0.2, -0.1, -0.3] * 5, "noise": [0.1, -0.3, 0.1] * 5}
    summary = compare_conditions(rows_with(worse, alphas), list(worse))
    text = answer(summary)
    assert text.startswith("Yes: with 1 of 3 videos") and "in the mean with 2" in text and "Holm" in text
    assert "SI-SDR -0.20 dB [-0.24, -0.16] with blur" in text
    unsure = {CLEAN: worse[CLEAN], "noise": worse["noise"]}
    assert answer(compare_conditions(rows_with(unsure, alphas), list(unsure))).startswith("Not beyond chance: with 1 of 2")
    few = {name: gains[:3] for name, gains in worse.items()}
    assert "3 clips are too few" in answer(compare_conditions(rows_with(few, alphas), list(few)))
    fine = {CLEAN: worse[CLEAN], "none": [0.0] * 15}
    text = answer(compare_conditions(rows_with(fine, alphas | {"none": 0.0}), list(fine)))
    assert text.startswith("No: with none of 1 videos")
    auc = {entry["condition"]: entry["alpha_auc"] for entry in summary}
    assert auc["blur"] == 1.0 and auc["noise"] == 0.5


def test_whether_the_right_face_matters() -> None:
    alphas = {CLEAN: 0.9, OTHER_FACE: 0.9}
    text = use_of_the_right_face(rows_with({CLEAN: [0.3, 0.4, 0.5], OTHER_FACE: [0.1, 0.1, 0.1]}, alphas))
    assert "SI-SDR +0.30 dB [+0.05, +0.55]" in text
    assert use_of_the_right_face(rows_with({CLEAN: [0.3]}, alphas)).startswith("Not tested")


def test_chance_alone_is_no_yes() -> None:
    rng = np.random.default_rng(0)
    names, below = [name for name in CONDITIONS if name != NONE], 0
    for _ in range(4):
        gains = {name: list(0.1 * rng.standard_normal(20)) for name in names}
        summary = compare_conditions(rows_with(gains, dict.fromkeys(names, 0.5)), names)
        below += any(entry["high"] < 0 for entry in summary)
        assert answer(summary).startswith("Not beyond chance: "), answer(summary)
    assert below  # the intervals by themselves said otherwise


def test_mixtures_of_a_clip_are_one_trial() -> None:
    rows = rows_with({CLEAN: [-0.1, -0.2, -0.3]}, {CLEAN: 0.5})
    rows = [row | {"sample_id": f"{row['sample_id']}@{snr}"} for snr in range(6) for row in rows]
    entry = compare_conditions(rows, [CLEAN])[0]
    assert (entry["n"], entry["n_clips"], entry["p_wilcoxon"]) == (18, 3, pytest.approx(0.25))


def test_what_failed_in_one_row_leaves_every_row() -> None:
    gains = {CLEAN: [0.1, 0.2, 0.3], "blur": [0.1, 0.1, 0.1], OTHER_FACE: [0.0] * 3}
    rows = rows_with(gains, dict.fromkeys(gains, 0.5))
    next(row for row in rows if row["row"] == "blur")["pesq"] = float("nan")
    for row in rows:
        if row["row"] == OTHER_FACE:  # as where nobody else is filmed: nothing to compare, and no reason to drop the rest
            row |= dict.fromkeys(METRICS, float("nan"))
    summary = {(e["condition"], e["metric"]): e for e in compare_conditions(rows, list(gains))}
    for name in (CLEAN, "blur"):
        assert (summary[name, "pesq"]["n"], summary[name, "pesq"]["n_failed"], summary[name, "stoi"]["n"]) == (2, 1, 3)
    assert summary[CLEAN, "pesq"]["difference"] == pytest.approx(0.25)
    assert (summary[OTHER_FACE, "pesq"]["n"], summary[OTHER_FACE, "pesq"]["n_failed"]) == (0, 3)


def test_separation_looks_at_clean_frames_of_the_clean_video() -> None:
    clean = np.array([0.9, 0.8, 0.1]), np.array([False, False, True])
    degraded = np.array([0.85, 0.3, 0.99]), np.array([True, True, False])
    assert separation(degraded, clean) == pytest.approx(3 / 4)  # of four pairs, 0.85 against 0.8 is the wrong way round
    assert np.isnan(separation(degraded, None))


def test_from_a_checkpoint_to_the_answer(causal_checkpoint: Path, tmp_path: Path, capsys) -> None:
    clips, noises = make_corpus(tmp_path / "corpus")
    output = tmp_path / "out"
    common = ["--test_json", str(clips), "--noise_json", str(noises), "--checkpoint_file", str(causal_checkpoint),
              "--output_dir", str(output), "--kinds", "noise", "--clips", "2", "--device", "cpu", "--workers", "1"]  # fmt: skip
    conditions = [CLEAN, "black", "shift_+400ms", OTHER_FACE, NONE]
    assert visual_degradation.main([*common, "--conditions", *conditions]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(("Yes: ", "No: ", "Not beyond chance: "))
    assert (output / "report.txt").read_text().splitlines()[0] == first
    with open(output / "summary.csv", newline="") as file:
        summary = {(row["condition"], row["metric"]): row for row in csv.DictReader(file)}
    assert set(summary) == {(name, metric) for name in conditions for metric in METRICS}
    withheld = summary[NONE, "pesq"]
    assert float(withheld["difference"]) == 0 and withheld["audio_only"] == withheld["audio_visual"]
    assert float(summary[CLEAN, "si_sdr"]["difference"]) != float(summary["black", "si_sdr"]["difference"])
    assert (output / "visual.png").stat().st_size > 5_000 and (output / "table.tex").read_text().count(r"\\") == 6
    before = (output / "summary.csv").read_bytes()
    assert visual_degradation.main([*common, "--conditions", *conditions]) == 0
    assert "12 of 12 rows were finished before" in capsys.readouterr().err
    assert (output / "summary.csv").read_bytes() == before
    assert visual_degradation.main([*common, "--conditions", "sepia"]) == 2
    assert "sepia" in only_line(capsys.readouterr().err)


def test_a_sound_only_model_has_no_answer(semamba_checkpoint: Path, tmp_path: Path, capsys) -> None:
    clips, noises = make_corpus(tmp_path / "corpus")
    command = ["--test_json", str(clips), "--noise_json", str(noises), "--checkpoint_file", str(semamba_checkpoint),
               "--output_dir", str(tmp_path / "out"), "--device", "cpu"]  # fmt: skip
    assert visual_degradation.main(command) == 2
    assert "uses no video" in capsys.readouterr().err
