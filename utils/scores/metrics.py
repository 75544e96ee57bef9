"""Scores of enhanced speech against its clean reference: PESQ-WB, STOI, ESTOI, SI-SDR, and the composite measures.

A clip that cannot be scored is NaN with its reason, and means are taken over scored clips only, so that no failure
hides in a mean. Everything here may be imported without pesq and pystoi; they are needed where something is scored.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.scores.composite import composite_measures
from utils.worker_pool import WHY_LOST, WorkerPool


class Metric(NamedTuple):
    """How a metric is shown in every table and figure."""

    label: str
    digits: int
    unit: str = ""
    more_is_better: bool = True

    @property
    def heading(self) -> str:
        """The label with its unit, for a table or an axis."""
        return f"{self.label} in {self.unit}" if self.unit else self.label


TABLE = {
    "pesq": Metric("PESQ-WB", 2), "stoi": Metric("STOI", 3), "estoi": Metric("ESTOI", 3), "si_sdr": Metric("SI-SDR", 2, "dB"),
    "csig": Metric("CSIG", 2), "cbak": Metric("CBAK", 2), "covl": Metric("COVL", 2),
    "dnsmos_sig": Metric("DNSMOS SIG", 2), "dnsmos_bak": Metric("DNSMOS BAK", 2), "dnsmos_ovr": Metric("DNSMOS OVR", 2),
    "dnsmos_p808": Metric("DNSMOS P.808", 2),
}  # fmt: skip
METRICS = ("pesq", "stoi", "estoi", "si_sdr")
COMPOSITE = ("csig", "cbak", "covl")  # computed from PESQ among other things; only where they are asked for
ALL_METRICS = METRICS + COMPOSITE
_PACKAGE = {"pesq": "pesq", "stoi": "pystoi", "estoi": "pystoi", **dict.fromkeys(COMPOSITE, "pesq")}
PESQ_RATE_HZ = 16000
PESQ_MAX_SEC = 60.0  # the ITU code has room for 50 utterances, and writes past its arrays beyond that
SI_SDR_LIMIT_DB = 100.0  # scores are limited to it, because a perfect clip would make a mean infinite
MAX_ALIGN_SEC = 0.1  # sounds whose lengths differ by more are taken for different recordings
SILENCE_POWER = 10.0 ** (-100 / 10)  # relative to full scale

Pair = tuple[np.ndarray, np.ndarray]  # (reference, estimate)


class _Unscorable(Exception):
    """Why a metric has no value for a clip."""


def si_sdr(reference: np.ndarray, estimate: np.ndarray, zero_mean: bool = False) -> float:
    """SI-SDR in dB, in double precision (Le Roux et al., ICASSP 2019, equation 3); +inf for a perfect estimate.

    reference, estimate [L]. `zero_mean` takes each signal's mean off first, as some toolkits do; the paper does not.
    NaN where the reference or the estimate is silent.
    """
    reference, estimate = np.asarray(reference, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    if zero_mean:
        reference, estimate = reference - reference.mean(), estimate - estimate.mean()
    power_r, power_e = reference @ reference, estimate @ estimate
    if power_r == 0 or power_e == 0:
        return math.nan
    target = (reference @ estimate) / power_r * reference
    noise = estimate - target
    power_n = noise @ noise
    if power_n == 0:
        return math.inf
    power_t = target @ target
    return 10 * math.log10(power_t / power_n) if power_t > 0 else -math.inf


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    return float(np.clip(si_sdr(reference, estimate), -SI_SDR_LIMIT_DB, SI_SDR_LIMIT_DB))


def _pesq(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    if sample_rate != PESQ_RATE_HZ:
        raise ValueError(f"PESQ-WB is defined at {PESQ_RATE_HZ} Hz, not {sample_rate} Hz; resample both signals first")
    if len(reference) > PESQ_MAX_SEC * sample_rate:
        raise _Unscorable(f"longer than {PESQ_MAX_SEC:.0f} s, for which PESQ is not made; cut it into pieces")
    import pesq

    try:
        value = float(pesq.pesq(sample_rate, reference, estimate, "wb"))
    except pesq.NoUtterancesError:
        raise _Unscorable("PESQ finds no utterance in it") from None
    except pesq.BufferTooShortError:
        raise _Unscorable("too short for PESQ, which needs a quarter of a second") from None
    except pesq.PesqError as error:
        raise _Unscorable(f"PESQ failed: {type(error).__name__} {error}") from None
    if not 0 < value < 5:
        raise _Unscorable(f"PESQ gave {value}, which is no score")
    return value


def _stoi(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, extended: bool = False) -> float:
    from pystoi import stoi

    # pystoi adds noise of 1e-16 from NumPy's global generator. It is seeded for this, and set back afterwards.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = float(stoi(reference, estimate, sample_rate, extended=extended))
    finally:
        np.random.set_state(state)  # noqa: NPY002
    if any("Not enough STFT frames" in str(warning.message) for warning in caught):
        raise _Unscorable("under 0.4 s of speech, too little for STOI")
    if not math.isfinite(value):
        raise _Unscorable(f"STOI gave {value}")
    return value


def _estoi(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> float:
    return _stoi(reference, estimate, sample_rate, extended=True)


_SCORERS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "pesq": _pesq, "stoi": _stoi, "estoi": _estoi, "si_sdr": _si_sdr,
}


def require_scorers(metrics: Sequence[str] = METRICS) -> None:
    """ValueError, in one line, for a metric that is unknown or whose package is not installed."""
    for metric in metrics:
        if metric not in ALL_METRICS:
            raise ValueError(f"metric {metric!r} is not known; choose from {', '.join(ALL_METRICS)}")
        package = _PACKAGE.get(metric)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"scoring {metric} needs the {package} package, which is not installed: pip install {package}"
                + (" (it is compiled then: a C compiler is needed)" if package == "pesq" else "")
            )


def aligned(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, align: bool = False) -> Pair:
    """Both signals as float64 [L] of equal length.

    ValueError unless both are [L] and as long as each other; `align=True` cuts the longer one's end when they differ by
    0.1 s or less, which is what an inverse STFT without a length loses.
    """
    reference, estimate = np.asarray(reference, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    if reference.ndim != 1 or estimate.ndim != 1:
        raise ValueError(f"reference {list(reference.shape)} and estimate {list(estimate.shape)} should be mono, [samples]")
    n_r, n_e = len(reference), len(estimate)
    if n_r == n_e:
        return reference, estimate
    lengths = f"the reference has {n_r} samples, the estimate {n_e}"
    if not align:
        raise ValueError(f"{lengths}; give signals of equal length, or align=True")
    if abs(n_r - n_e) > MAX_ALIGN_SEC * sample_rate:
        raise ValueError(f"{lengths}: over {MAX_ALIGN_SEC} s apart, these are hardly the same recording")
    n = min(n_r, n_e)
    return reference[:n], estimate[:n]


def _why_unscorable(reference: np.ndarray, estimate: np.ndarray) -> str | None:
    for name, x in (("reference", reference), ("estimate", estimate)):
        if not len(x):
            return f"the {name} is empty"
        if not np.isfinite(x).all():
            return f"the {name} holds NaN or infinite samples"
        if np.mean(np.square(x)) < SILENCE_POWER:
            return f"the {name} is silent"
    return None


def _no_scores(metrics: Sequence[str], reason: str) -> dict:
    return {**dict.fromkeys(metrics, math.nan), "errors": dict.fromkeys(metrics, reason)}


def score_clip(
    reference: np.ndarray, estimate: np.ndarray, sample_rate: int = 16000,
    metrics: Sequence[str] = METRICS, align: bool = False,
) -> dict:
    """Score one clip: {metric: value, ..., "errors": {metric: reason}}; a metric that has a reason there is NaN.

    reference, estimate [L] at `sample_rate`; SI-SDR is in dB and held to +-100, PESQ a MOS-LQO. ValueError for unequal
    lengths (see `aligned`), another rate than 16 kHz with PESQ, and missing packages.
    """
    require_scorers(metrics)
    reference, estimate = aligned(reference, estimate, sample_rate, align)
    reason = _why_unscorable(reference, estimate)
    if reason is not None:
        return _no_scores(metrics, reason)
    plain = [metric for metric in metrics if metric in _SCORERS]
    composite = [metric for metric in metrics if metric in COMPOSITE]
    needed = plain if "pesq" in plain or not composite else [*plain, "pesq"]
    values, errors = {}, {}
    for metric in needed:
        try:
            values[metric] = _SCORERS[metric](reference, estimate, sample_rate)
        except _Unscorable as why:
            values[metric], errors[metric] = math.nan, str(why)
    if composite:
        found = _composite(reference, estimate, sample_rate, values["pesq"], errors.get("pesq"))
        values |= found[0]
        errors |= found[1]
    return {
        **{metric: values[metric] for metric in metrics},
        "errors": {metric: reason for metric, reason in errors.items() if metric in metrics},
    }


def _composite(
    reference: np.ndarray, estimate: np.ndarray, sample_rate: int, pesq: float, why_no_pesq: str | None
) -> tuple[dict[str, float], dict[str, str]]:
    """({measure: value}, {measure: why it has none})."""
    if why_no_pesq is None:
        try:
            return composite_measures(reference, estimate, sample_rate, pesq)._asdict(), {}
        except ValueError as why:
            why_no_pesq = str(why)
    return dict.fromkeys(COMPOSITE, math.nan), dict.fromkeys(COMPOSITE, why_no_pesq)


_Job = tuple[Pair, dict]  # with score_clip's keyword arguments


def _score_job(job: _Job) -> dict:
    """`score_clip` for one of many: a pair that does not match is a failed clip, not the end of all."""
    (reference, estimate), options = job
    try:
        return score_clip(reference, estimate, **options)
    except ValueError as error:
        return _no_scores(options["metrics"], str(error))


class ScoringPool(WorkerPool):
    """Processes to score in, kept alive between calls of `score_many`: PESQ is C code, and odd clips have crashed it."""

    def __init__(self, workers: int) -> None:
        super().__init__(_score_job, workers, lost=lambda job: _no_scores(job[1]["metrics"], WHY_LOST))


def score_many(
    pairs: Iterable[Pair], workers: int = 1, sample_rate: int = 16000, metrics: Sequence[str] = METRICS,
    align: bool = False, progress: Callable[[int], object] | None = None, pool: ScoringPool | None = None,
) -> list[dict]:
    """Score (reference, estimate) pairs in parallel; the results, as `score_clip`'s, keep the order of `pairs`.

    `pairs` may be a generator: it is read only as fast as it is scored. `progress(n)` is called with the number done.
    Unlike `score_clip`, a pair of unequal lengths is a failed clip with its reason. With `workers` above 1, call it under
    `if __name__ == "__main__":`, for the processes are spawned; `pool` is one to use instead and to keep. ValueError for
    unknown metrics and missing packages.
    """
    require_scorers(metrics)
    if sample_rate != PESQ_RATE_HZ and not {"pesq", *COMPOSITE}.isdisjoint(metrics):
        raise ValueError(f"PESQ-WB is defined at {PESQ_RATE_HZ} Hz, not {sample_rate} Hz; resample the signals first")
    options = {"sample_rate": sample_rate, "metrics": tuple(metrics), "align": align}
    jobs = ((pair, options) for pair in pairs)
    if isinstance(pairs, Sequence):
        workers = min(workers, len(pairs))
    results = []
    with contextlib.ExitStack() as stack:
        if pool is None and workers > 1:
            pool = stack.enter_context(ScoringPool(workers))
        for result in pool.map(jobs) if pool else map(_score_job, jobs):
            results.append(result)
            if progress is not None:
                progress(len(results))
    return results


def mean_score(results: Sequence[Mapping], metric: str) -> float:
    """Mean of one metric over the clips that have it; NaN when none has."""
    values = [result[metric] for result in results if not math.isnan(result[metric])]
    return math.fsum(values) / len(values) if values else math.nan


def number(value: float, metric: str) -> str:
    """A score with the digits of TABLE; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{TABLE[metric].digits}f}"
