"""What the face gains, by kind, SNR and corpus, on scores whose answer is known."""

from __future__ import annotations

import pytest
from scipy import stats

from evaluation.reporting.face_tables import corpora_table, face_gains, scores_table
from utils.scores.metrics import METRICS

GAINS = {"s5": 0.04, "u5": 0.02, "T1": 0.00, "T4": -0.02}  # of STOI, by speaker


def rows() -> list[dict[str, str]]:
    """Two mixtures of each speaker at 0 dB and one at 20 dB, where the face gains nothing."""
    found = []
    for speaker, gain in GAINS.items():
        for number, (kind, snr) in enumerate((("noise", "0"), ("one_speaker", "0"), ("noise", "20"))):
            for row, stoi in (("noisy", 0.5), ("audio_only", 0.6), ("audio_visual", 0.6 + gain * (snr == "0"))):
                about = {"sample_id": f"{speaker}{number}", "row": row, "speaker": speaker, "kind": kind, "snr_db": snr}
                found.append(about | dict.fromkeys(METRICS, "1.0") | {"stoi": str(stoi)})
    return found


def gain(found: list[dict[str, str]], **conditions: str) -> dict[str, str]:
    (one,) = [g for g in found if all(g[key] == value for key, value in conditions.items())]
    return one


def test_a_gain_is_students_t_over_the_speakers_of_the_corpus() -> None:
    found = gain(face_gains(rows()), corpus="all", kind="noise", snr_db="0", metric="stoi")
    low, high = stats.ttest_1samp(list(GAINS.values()), 0.0).confidence_interval()
    assert [float(found[key]) for key in ("mean", "low", "high")] == pytest.approx([0.01, low, high], abs=1e-6)
    assert (found["n"], found["n_speakers"], found["audio_only"], found["audio_visual"]) == ("4", "4", "0.600000", "0.610000")
    for corpus, expected in (("GRID", 0.02), ("ELOSPHERES", -0.02 / 3)):
        found = gain(face_gains(rows()), corpus=corpus, kind="all", snr_db="all", metric="stoi")
        assert float(found["mean"]) == pytest.approx(expected, abs=1e-6)


def test_a_mixture_without_a_score_does_not_count() -> None:
    scores = rows()
    scores[2]["stoi"] = ""  # s5, noise at 0 dB, audio-visual
    found = gain(face_gains(scores), corpus="all", kind="noise", snr_db="0", metric="stoi")
    assert (found["n"], float(found["mean"])) == ("3", pytest.approx(0.0))
    assert "| noise | audio only | 1.00 | 0.600 |" in scores_table(scores)


def test_tables_hold_means_and_gains() -> None:
    scores = scores_table(rows())
    assert "| noise | audio only | 1.00 | 0.600 | 1.000 | 1.00 |" in scores
    assert "| all kinds of noise | audio-visual | 1.00 | 0.610 |" in scores and "| gain of the face | +0.000 " in scores
    assert [line.split(" | ")[:3] for line in corpora_table(rows()).splitlines()[2:]] == [
        ["| GRID", "2", "6"], ["| ELOSPHERES", "2", "6"], ["| both", "4", "12"],
    ]  # fmt: skip
