"""Intervals, paired tests, corrections and ROC-AUC against scipy and against the definitions written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from utils.scores.stats import compare_paired, holm, interval_method, mean_by, mean_interval, roc_auc


def test_an_interval_is_the_percentile_bootstrap_written_out() -> None:
    values = np.random.default_rng(3).standard_normal(17)
    rng = np.random.default_rng(5)
    means = [rng.choice(values, len(values)).mean() for _ in range(500)]
    assert mean_interval(values, resamples=500, seed=5) == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_an_interval_ignores_nan_and_needs_two_values() -> None:
    assert mean_interval([1.0, 2.0, 4.0, math.nan]) == mean_interval([1.0, 2.0, 4.0])
    assert all(math.isnan(bound) for bound in mean_interval([1.0, math.nan]))
    assert all(math.isnan(bound) for bound in mean_interval([1.0, 2.0, 3.0], groups=["a", "a", "a"]))
    with pytest.raises(ValueError, match="3 values and 2 groups"):
        mean_interval([1.0, 2.0, 3.0], groups=["a", "b"])


def test_values_that_belong_together_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(6), 30)
    values = rng.standard_normal(6)[speakers] + 0.1 * rng.standard_normal(180)
    alone, together = mean_interval(values), mean_interval(values, groups=speakers)
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])
    # As many equal copies as one likes say no more than one of each.
    one_each = mean_interval(np.arange(6.0))
    assert mean_interval(np.repeat(np.arange(6.0), 9), groups=np.repeat(list("abcdef"), 9)) == pytest.approx(one_each)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = mean_interval(rng.standard_normal(40), resamples=400)
        hits += low <= 0 <= high
    assert 176 <= hits <= 199  # 95 % of 200 are 190; the percentile interval is a little too narrow


def test_few_groups_have_students_interval() -> None:
    values = np.random.default_rng(6).standard_normal(9)
    wanted = scipy_stats.t.interval(0.95, 8, values.mean(), scipy_stats.sem(values))
    assert mean_interval(values) == pytest.approx(wanted)
    assert mean_interval(np.repeat(values, 4), groups=np.repeat(np.arange(9), 4)) == pytest.approx(wanted)
    low, high = mean_interval([1.0, 1.0, 1.0, 5.0, 3.0], groups=["a", "a", "a", "b", "c"])
    assert low < 2.2 < high and low + high == pytest.approx(2 * 2.2)  # around the mean of the values, whatever the sizes
    rng = np.random.default_rng(7)
    intervals = (mean_interval(rng.standard_normal(5)) for _ in range(400))
    assert sum(low <= 0 <= high for low, high in intervals) >= 368  # 95 % are 380; a bootstrap has about 340
    assert (interval_method(9), interval_method(10)) == ("Student's t", "bootstrap")


def test_paired_tests_are_scipys() -> None:
    rng = np.random.default_rng(2)
    baseline = rng.standard_normal(25)
    ours = baseline + 0.3 + 0.5 * rng.standard_normal(25)
    found = compare_paired(ours, baseline)
    t = scipy_stats.ttest_rel(ours, baseline)
    assert (found.t, found.p_t) == pytest.approx((t.statistic, t.pvalue))
    assert found.p_wilcoxon == pytest.approx(scipy_stats.wilcoxon(ours, baseline).pvalue)
    assert found.cohens_d == pytest.approx(t.statistic / 5)  # d_z = t / sqrt(n)
    assert found.n == 25 and found.mean == pytest.approx(np.mean(ours - baseline))
    assert found.low < found.mean < found.high
    assert compare_paired([*ours, math.nan, 1.0], [*baseline, 1.0, math.nan]) == found


def test_what_cannot_be_compared_says_so() -> None:
    same = compare_paired([1.0, 2.0], [1.0, 2.0])
    assert (same.mean, same.cohens_d, same.p_t, same.p_wilcoxon) == (0, 0, 1, 1)
    assert math.isnan(compare_paired([1.0], [0.5]).p_t) and compare_paired([], []).n == 0
    shifted = compare_paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert shifted.cohens_d == math.inf
    with pytest.raises(ValueError, match="pairs"):
        compare_paired([1.0], [1.0, 2.0])


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03 times 3, 2, 1, never falling.
    assert holm({"c": 0.03, "a": 0.01, "b": 0.02}) == pytest.approx({"c": 0.04, "a": 0.03, "b": 0.04})
    corrected = holm({"a": 0.01, "gone": math.nan, "b": 0.6})
    assert corrected["a"] == pytest.approx(0.02) and corrected["b"] == 0.6 and math.isnan(corrected["gone"])
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_roc_auc_counts_pairs() -> None:
    rng = np.random.default_rng(4)
    scores, labels = rng.integers(0, 6, 60), rng.random(60) < 0.4
    pairs = itertools.product(scores[labels], scores[~labels])
    wanted = np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs])
    assert roc_auc(scores, labels) == pytest.approx(wanted)
    assert math.isnan(roc_auc([1.0, 2.0], [True, True]))


def test_values_of_one_key_are_averaged_and_keys_keep_their_order() -> None:
    found = mean_by(["b", "a", "b"], [(1.0, 2.0), (5.0, 6.0), (3.0, 6.0)])
    assert list(found) == ["b", "a"] and found["b"].tolist() == [2.0, 4.0] and found["a"].tolist() == [5.0, 6.0]
