"""Statistics of scores: intervals over groups of clips, paired tests, Holm's correction, ROC-AUC."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEW_GROUPS = 10  # with fewer a bootstrap's intervals are too narrow: with five, 85 % of them hold the mean, not 95 %
_DRAWS_AT_A_TIME = 2_000_000  # random numbers of a bootstrap in memory


def mean_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Confidence interval of the mean: percentile bootstrap, or Student's t below FEW_GROUPS values or groups.

    values: NaN is left out. groups: one label a value; values of one label are drawn together (cluster bootstrap, Davison
    & Hinkley 1997, section 3.8), as they must be where they are not independent. (NaN, NaN) for fewer than two values or
    groups. The same seed gives the same interval.
    """
    values = np.asarray(values, np.float64)
    scored = np.isfinite(values)
    labels = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups, str), return_inverse=True)[1]
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values and {len(labels)} groups; there should be one group a value")
    _, index = np.unique(labels[scored], return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        return math.nan, math.nan
    sums, sizes = np.bincount(index, values[scored]), np.bincount(index)
    if count < FEW_GROUPS:
        return _t_interval(sums, sizes, level)
    rng, means, step = np.random.default_rng(seed), [], max(1, _DRAWS_AT_A_TIME // count)
    for first in range(0, resamples, step):
        drawn = rng.integers(count, size=(min(step, resamples - first), count))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _t_interval(sums: np.ndarray, sizes: np.ndarray, level: float) -> tuple[float, float]:
    """Student's t interval over group means, by their sizes (Cochran 1977, section 6.4); the plain one where they are equal."""
    from scipy import stats

    count, mean = len(sums), sums.sum() / sizes.sum()
    deviations = (sums - mean * sizes) / sizes.mean()
    half = stats.t.ppf((1 + level) / 2, count - 1) * math.sqrt((deviations**2).sum() / (count * (count - 1)))
    return float(mean - half), float(mean + half)


def mean_by(keys: Sequence[Hashable], values: Sequence[Sequence[float]]) -> dict[Hashable, np.ndarray]:
    """The mean [n] of the values [n] that share a key, as the mixtures of one clip do, which are not independent."""
    held: dict[Hashable, list] = {}
    for key, value in zip(keys, values, strict=True):
        held.setdefault(key, []).append(value)
    return {key: np.mean(found, axis=0) for key, found in held.items()}


def interval_method(n_groups: int) -> str:
    """The method of `mean_interval` for this many values or groups, in words."""
    return "bootstrap" if n_groups >= FEW_GROUPS else "Student's t"


@dataclass(frozen=True)
class PairedComparison:
    """The comparison of two systems' scores of the same samples. Differences are ours minus baseline."""

    n: int  # pairs
    mean: float  # of the differences
    low: float  # 95 % interval of that mean
    high: float
    cohens_d: float  # mean over standard deviation of the differences (d_z of Lakens 2013)
    t: float
    p_t: float  # paired t-test, two-sided
    p_wilcoxon: float  # Wilcoxon signed-rank test, two-sided


def compare_paired(
    ours: Sequence[float], baseline: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> PairedComparison:
    """Compare scores pair by pair; `groups` are for the interval alone (see `mean_interval`).

    Pairs in which a score is NaN are left out. With fewer than two pairs all but n and mean are NaN; where no pair
    differs, p is 1 and d is 0.
    """
    ours, baseline = np.asarray(ours, np.float64), np.asarray(baseline, np.float64)
    if ours.shape != baseline.shape or ours.ndim != 1:
        raise ValueError(f"scores come in pairs, not {list(ours.shape)} and {list(baseline.shape)}")
    difference = ours - baseline
    kept = np.isfinite(difference)
    low, high = mean_interval(difference, seed=seed, groups=groups)
    difference = difference[kept]
    n = len(difference)
    if n < 2:
        mean = float(difference[0]) if n else math.nan
        return PairedComparison(n, mean, low, high, math.nan, math.nan, math.nan, math.nan)
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    if not np.any(difference):
        return PairedComparison(n, 0.0, low, high, 0.0, 0.0, 1.0, 1.0)
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns that t is infinite where the spread is zero
        test = stats.ttest_1samp(difference, 0.0)
    wilcoxon = stats.wilcoxon(difference).pvalue
    d = mean / spread if spread > 0 else math.copysign(math.inf, mean)
    return PairedComparison(n, mean, low, high, d, float(test.statistic), float(test.pvalue), float(wilcoxon))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number (Holm 1979), by name; NaN stays NaN and does not count as a test."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    highest = 0.0
    for rank, (p, name) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        corrected[name] = highest
    return corrected


def roc_auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a score with label True is the higher of a pair, ties counting half.

    NaN unless both labels occur.
    """
    from scipy.stats import rankdata

    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return math.nan
    ranks = rankdata(scores)[labels].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))
