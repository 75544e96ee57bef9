"""Scores per clip, in parallel, with every failure named and none averaged in."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from helpers.odd_estimates import Interrupted, Killer
from helpers.tiny import voice
from utils.scores import dnsmos, metrics
from utils.scores.metrics import METRICS, TABLE, ScoringPool, mean_score, number, score_clip, score_many, si_sdr


def noisy(clean: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(99).standard_normal(len(clean))
    return clean + noise * np.sqrt(np.mean(clean**2.0)) * 10 ** (-snr_db / 20)


# --- SI-SDR ---


@pytest.mark.parametrize("snr_db", [-30, -5, 0, 10, 60])
def test_si_sdr_of_orthogonal_noise_is_the_snr(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 4000))
    noise -= (noise @ clean) / (clean @ clean) * clean
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)
    assert si_sdr(clean, clean + noise) == pytest.approx(snr_db, abs=1e-9)
    assert si_sdr(clean, -7e-3 * (clean + noise)) == pytest.approx(snr_db, abs=1e-9)


def test_si_sdr_of_single_precision_input_is_computed_in_double() -> None:
    clean = voice(1.0)
    estimate = (clean * np.float32(1 + 1e-6)).astype(np.float32)
    expected = si_sdr(clean.astype(np.float64), estimate.astype(np.float64))
    assert si_sdr(clean, estimate) == expected
    assert expected > 120


def test_zero_mean_ignores_an_offset() -> None:
    clean = voice(1.0).astype(np.float64)
    estimate = noisy(clean, 10)
    plain = si_sdr(clean, estimate, zero_mean=True)
    assert si_sdr(clean, estimate + 0.5, zero_mean=True) == pytest.approx(plain)
    assert si_sdr(clean, estimate + 0.5) < plain - 10


def test_a_perfect_clip_has_a_finite_score() -> None:
    clean = voice(1.0)
    assert score_clip(clean, clean, metrics=("si_sdr",)) == {"si_sdr": 100.0, "errors": {}}


# --- one clip ---


def test_scores_rise_with_the_snr() -> None:
    clean = voice(1.5)
    low, high = (score_clip(clean, noisy(clean, snr_db)) for snr_db in (0, 20))
    for metric in METRICS:
        assert low[metric] < high[metric]
        assert math.isfinite(high[metric])
    assert low["errors"] == high["errors"] == {}
    assert set(low) == {*METRICS, "errors"}
    assert 1 <= low["pesq"] <= high["pesq"] <= 4.65
    assert low["si_sdr"] == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("silent reference", "reference is silent"), ("silent estimate", "estimate is silent"),
        ("nan estimate", "estimate holds NaN"), ("infinite reference", "reference holds NaN or infinite"),
        ("empty", "empty"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_unusable_clips_are_nan_with_the_reason(case: str, reason: str) -> None:
    clean, estimate = voice(1.0), noisy(voice(1.0), 5)
    if case == "silent reference":
        clean = 1e-9 * clean
    elif case == "silent estimate":
        estimate = 0 * estimate
    elif case == "nan estimate":
        estimate[100] = np.nan
    elif case == "infinite reference":
        clean[5] = np.inf
    else:
        clean, estimate = clean[:0], estimate[:0]
    result = score_clip(clean, estimate)
    for metric in METRICS:
        assert math.isnan(result[metric])
        assert reason in result["errors"][metric]


@pytest.mark.filterwarnings("error")
def test_a_clip_too_short_for_some_metrics_keeps_the_others() -> None:
    clean = voice(0.2)
    result = score_clip(clean, noisy(clean, 10))
    assert math.isfinite(result["si_sdr"])
    assert set(result["errors"]) == {"pesq", "stoi", "estoi"}
    assert "short" in result["errors"]["pesq"]
    assert "too little" in result["errors"]["stoi"]  # and not pystoi's 1e-5
    assert math.isnan(result["stoi"])


def test_a_clip_too_long_for_pesqs_arrays_is_not_given_to_it() -> None:
    clean = np.tile(voice(1.0), 61)
    result = score_clip(clean, noisy(clean, 10), metrics=("pesq",))
    assert "60 s" in result["errors"]["pesq"]


def test_lengths_must_be_equal_unless_aligned() -> None:
    clean = voice(1.0)
    estimate = noisy(clean, 10)
    with pytest.raises(ValueError, match="16000 samples, the estimate 15987"):
        score_clip(clean, estimate[:-13], metrics=("si_sdr",))
    cut = score_clip(clean, estimate[:-13], metrics=("si_sdr",), align=True)
    assert cut == score_clip(clean[:-13], estimate[:-13], metrics=("si_sdr",))
    with pytest.raises(ValueError, match="same recording"):
        score_clip(clean, estimate[:8000], align=True)
    with pytest.raises(ValueError, match="mono"):
        score_clip(np.stack((clean, clean)), np.stack((clean, clean)))


def test_other_rates_and_unknown_metrics_are_refused() -> None:
    clean = voice(1.0)
    with pytest.raises(ValueError, match="16000 Hz, not 8000 Hz"):
        score_clip(clean, clean, sample_rate=8000)
    with pytest.raises(ValueError, match="not 44100 Hz"):
        score_many([(clean, clean)], sample_rate=44100)
    assert 0.9 < score_clip(clean, clean, sample_rate=8000, metrics=("stoi",))["stoi"] <= 1
    with pytest.raises(ValueError, match="'sdr' is not known"):
        score_clip(clean, clean, metrics=("sdr",))


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pesq" else found(name, *rest))
    clean = voice(1.0)
    for call in (lambda: score_clip(clean, clean), lambda: score_many([(clean, clean)])):
        with pytest.raises(ValueError, match=r"pip install pesq") as error:
            call()
        assert "\n" not in str(error.value)
    assert score_clip(clean, noisy(clean, 5), metrics=("stoi", "si_sdr"))["errors"] == {}


def test_scoring_leaves_the_global_generator_alone() -> None:
    clean = voice(1.0)
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = score_clip(clean, noisy(clean, 5), metrics=("estoi",))
    assert np.random.rand() == expected  # noqa: NPY002
    assert score_clip(clean, noisy(clean, 5), metrics=("estoi",)) == first


# --- many clips ---


def test_parallel_equals_serial_in_order() -> None:
    clean = voice(0.6)
    pairs = [(clean, noisy(clean, snr_db)) for snr_db in (20, 0, 10, -5)]
    pairs.insert(2, (clean, 0 * clean))
    pairs.append((clean, clean[:100]))  # no pair at all: fails, and stops nobody
    done: list[int] = []
    serial = score_many(pairs)
    parallel = score_many(iter(pairs), workers=2, progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    np.testing.assert_equal(parallel, serial)
    assert "silent" in serial[2]["errors"]["pesq"]
    assert "equal length" in serial[5]["errors"]["stoi"]
    assert serial[0]["pesq"] > serial[3]["pesq"] > 1


def test_a_generator_is_read_no_faster_than_needed() -> None:
    clean = voice(0.3)
    read = 0

    def pairs():
        nonlocal read
        for _ in range(60):
            read += 1
            yield clean, clean

    ahead: list[int] = []
    score_many(pairs(), workers=2, metrics=("si_sdr",), progress=lambda n: ahead.append(read - n))
    assert len(ahead) == 60
    assert max(ahead) <= 16


def test_a_crash_costs_one_clip_only_and_an_interrupt_none() -> None:
    clean = voice(0.3)
    with ScoringPool(1) as pool:
        results = score_many([(clean, clean), (clean, Killer()), (clean, Interrupted(clean))], metrics=("si_sdr",), pool=pool)
        assert "crashed" in results[1]["errors"]["si_sdr"] and math.isnan(results[1]["si_sdr"])
        assert [results[0]["si_sdr"], results[2]["si_sdr"]] == [100.0, 100.0]
        assert score_many([(clean, clean)], metrics=("si_sdr",), pool=pool)[0]["si_sdr"] == 100.0  # the pool is kept


def test_no_clips_no_scores() -> None:
    assert score_many([], workers=2) == []
    assert math.isnan(mean_score([], "pesq"))


# --- means ---


def test_means_are_over_scored_clips() -> None:
    results = [
        {"pesq": 2.0, "si_sdr": 10.0, "errors": {}},
        {"pesq": math.nan, "si_sdr": 20.0, "errors": {"pesq": "silent"}},
        {"pesq": 3.0, "si_sdr": math.nan, "errors": {"si_sdr": "odd"}},
        {"pesq": math.nan, "si_sdr": 0.0, "errors": {"pesq": "silent"}},
    ]
    assert mean_score(results, "pesq") == 2.5
    assert mean_score(results, "si_sdr") == 10.0
    assert math.isnan(mean_score(results[1:2], "pesq"))


def test_every_metric_has_a_label_and_is_shown_with_its_digits() -> None:
    assert set(TABLE) >= {*metrics.ALL_METRICS, *dnsmos._POLYNOMIALS, "dnsmos_p808"}
    assert [TABLE[metric].heading for metric in METRICS] == ["PESQ-WB", "STOI", "ESTOI", "SI-SDR in dB"]
    assert number(2.345678, "pesq") == "2.35" and number(0.98765, "stoi") == "0.988" and number(math.nan, "estoi") == "-"


def test_importing_the_scorer_needs_no_torch() -> None:
    """Scoring processes are spawned: what this module imports, each of them imports again."""
    source = Path(metrics.__file__).read_text()
    assert "import torch" not in source
    assert "\nimport pesq" not in source
    assert "\nfrom pystoi" not in source


# --- published clips ---


@pytest.mark.parametrize(
    ("folder", "pesq", "si_sdr_db"),
    [
        ("ref_noisy", 1.295, 4.64),
        pytest.param("SEMamba_advanced", 3.747, 19.02, marks=pytest.mark.slow),
        pytest.param("SEMamba_advanced_PCS400", 3.906, 8.80, marks=pytest.mark.slow),
    ],
)
def test_published_clips_score_as_published(shared_data: Path, folder: str, pesq: float, si_sdr_db: float) -> None:
    clips = shared_data / "semamba_published"
    names = sorted(path.name for path in (clips / "ref_clean").glob("*.wav"))
    assert len(names) == 20
    pairs = ((sf.read(clips / "ref_clean" / name)[0], sf.read(clips / folder / name)[0]) for name in names)
    results = score_many(pairs, workers=2, metrics=("pesq", "si_sdr"), align=True)
    assert not any(result["errors"] for result in results)
    assert mean_score(results, "pesq") == pytest.approx(pesq, abs=0.01)
    assert mean_score(results, "si_sdr") == pytest.approx(si_sdr_db, abs=0.02)
