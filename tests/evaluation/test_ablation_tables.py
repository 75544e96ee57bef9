"""The tables of the ablations: differences paired by speaker, and how a claim is decided, on scores whose answer is known."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from evaluation.reporting.ablation_tables import (
    CLAIMS,
    Claim,
    Difference,
    Results,
    Side,
    claims_table,
    decide,
    difference,
    variants_table,
)

SPEAKERS = [f"s{number}" for number in range(8)]
FACE = Claim("The face helps.", Side("full", "clean"), Side("full", "audio_only"), ("noise",))


def results(gains: list[float], counts: list[int] | None = None, kind: str = "noise") -> Results:
    """Of a model that reaches STOI .6 without a face, and by speaker so much more with it."""
    scores = [
        {"row": row, "kind": kind, "speaker": speaker, "n": str(n), "stoi": str(0.6 + gain * (row == "clean")),
         "si_sdr": str(3.0 + 10 * gain * (row == "clean"))}
        for speaker, gain, n in zip(SPEAKERS, gains, counts or [2] * 8, strict=True) for row in ("audio_only", "clean")
    ]  # fmt: skip
    return Results({"says": "a model", "cpu_sec": 600, "trained_m": 0.079, "alpha_auc": {"other_face": 0.64}}, scores)


def test_a_difference_is_students_t_over_speakers() -> None:
    gains = [0.01, 0.03, 0.02, 0.05, 0.00, 0.02, 0.04, 0.01]
    found = difference({"full": results(gains)}, FACE, "stoi")
    expected = stats.ttest_1samp(gains, 0.0)
    low, high = expected.confidence_interval()
    assert found == pytest.approx((sum(gains) / 8, low, high, expected.pvalue))


def test_a_speaker_counts_by_the_number_of_mixtures() -> None:
    found = difference({"full": results([0.1] + [0.0] * 7, [9] + [1] * 7)}, FACE, "stoi")
    assert found.mean == pytest.approx(0.1 * 9 / 16)


def test_sides_of_other_mixtures_are_not_compared() -> None:
    with pytest.raises(ValueError, match="full and fewer were not scored on the same mixtures"):
        difference(
            {"full": results([0.0] * 8), "fewer": results([0.0] * 8, [1] * 8)},
            FACE._replace(baseline=Side("fewer", "clean")), "stoi",
        )  # fmt: skip


def test_claims_are_decided_by_their_rule() -> None:
    harmless = FACE._replace(harmless=True)
    assert decide(FACE, Difference(0.02, 0.01, 0.03, 0.001), 0.01) == "held"
    assert decide(FACE, Difference(-0.02, -0.03, -0.01, 0.001), 0.01) == "did not hold"
    assert decide(FACE, Difference(0.02, 0.01, 0.03, 0.02), 0.2) == "undecided"
    assert decide(harmless, Difference(-0.001, -0.004, 0.002, 0.5), math.nan) == "held"
    assert decide(harmless, Difference(-0.006, -0.012, 0.001, 0.1), math.nan) == "undecided"
    assert decide(harmless, Difference(-0.02, -0.03, -0.01, 0.001), math.nan) == "did not hold"


def test_p_is_corrected_for_the_number_of_claims_that_are_tested() -> None:
    gains = [0.01, 0.03, 0.02, 0.05, 0.00, 0.02, 0.04, 0.01]
    claims = [FACE, FACE._replace(says="It helps twice.")]
    table = claims_table({"full": results(gains)}, claims)
    assert table.count(f"| {2 * stats.ttest_1samp(gains, 0.0).pvalue:.2g} | **held** |") == 2
    assert "| +0.023 [" in table and "| +0.23 [" in table  # STOI, and SI-SDR in dB
    missing = claims_table({"full": results(gains)}, [*claims, CLAIMS[-1]])
    assert missing.endswith("| | | | not tested | |\n") and missing.count("**held**") == 2


def test_another_seed_stands_beside_the_verdict_and_does_not_change_it() -> None:
    first, second = results([0.02] * 7 + [0.03]), results([-0.01] * 8)
    alone, both = (claims_table(held, [FACE]) for held in ({"full": first}, {"full": first, "full_seed2": second}))
    assert alone.endswith("| **held** |  |\n")
    assert both == alone.replace("| **held** |  |", "| **held** | -0.010, -0.10 |")


def test_variants_stand_with_their_cost_and_scores() -> None:
    table = variants_table({"full": results([0.05] * 8)})
    assert table.splitlines()[2] == "| full | a model | 10.0 | 79 | 0.650, 3.50 | 0.600, 3.00 | -, - | -, - | 0.64 |"


def test_variants_of_one_recipe_stand_together_and_full_comes_first() -> None:
    of_face, of_sound = (results([0.05] * 8)._replace(about=results([0.05] * 8).about | {"base": base}) for base in "ab")
    table = variants_table({"causal": of_sound, "altered": of_face, "full": of_face})
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| full", "| altered", "| causal"]
