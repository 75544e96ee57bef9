"""Means with intervals over the rows of a run, as text, CSV and LaTeX."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL, NOISY
from utils.scores.metrics import METRICS, TABLE, number
from utils.scores.stats import FEW_GROUPS, mean_interval
from utils.util import atomic_write

ALL = "all"
ROW_LABELS = {NOISY: "noisy", AUDIO_ONLY: "audio only", AUDIO_VISUAL: "audio-visual"}
SUMMARY_COLUMNS = (
    "row", "kind", "snr_db", "metric", "n", "n_failed", "mean", "low", "high", "gain", "gain_low", "gain_high",
)  # fmt: skip
INTERVAL_NOTE = (
    f"95 % intervals: bootstrap over clips, all mixtures of a clip together (below {FEW_GROUPS} clips: Student's t). A mixture "
    "that lacks a score in one row is left out of every row."
)


def by_sample(rows: Sequence[Mapping]) -> dict[str, dict[str, Mapping]]:
    """{sample_id: {row: scores}}, in order."""
    found: dict[str, dict[str, Mapping]] = defaultdict(dict)
    for row in rows:
        found[row["sample_id"]][row["row"]] = row
    return dict(found)


def complete(samples: Sequence[Mapping[str, Mapping]], metric: str) -> list[Mapping[str, Mapping]]:
    """The samples that have a score of `metric` in every row, so that the means of all rows are over the same samples."""
    return [rows for rows in samples if not any(math.isnan(row.get(metric, math.nan)) for row in rows.values())]


def common_means(samples: Sequence[Mapping[str, Mapping]], metrics: Sequence[str] = METRICS) -> dict[str, dict[str, float]]:
    """{row: {metric: mean}}, over the samples that have a score of the metric in every row; NaN where there are none."""
    means: dict[str, dict[str, float]] = {row: {} for row in (samples[0] if samples else ())}
    for metric in metrics:
        kept = complete(samples, metric)
        for row, found in means.items():
            found[metric] = mean([sample[row][metric] for sample in kept])
    return means


def summarize_rows(rows: Sequence[Mapping], reference: str = NOISY, metrics: Sequence[str] = METRICS) -> list[dict]:
    """One entry per row, kind, SNR and metric (SUMMARY_COLUMNS); `gain` is over `reference`.

    Kind and SNR are also "all" where there are several.
    """
    samples = list(by_sample(rows).values())
    cells: dict[tuple, list] = defaultdict(list)
    for sample in samples:
        first = next(iter(sample.values()))
        for kind in (first["kind"], ALL):
            for snr in (first["snr_db"], ALL):
                cells[kind, snr].append(sample)
    order = sorted(cells, key=lambda key: (key[0] != ALL, key[0], key[1] == ALL, key[1] if key[1] != ALL else 0))
    for place in range(2):
        if len({key[place] for key in order}) == 2:  # with one kind, or one SNR, "all" would repeat its numbers
            order = [key for key in order if key[place] != ALL]
    found = []
    for kind, snr in order:
        for metric in metrics:
            kept = complete(cells[kind, snr], metric)
            groups = [sample[reference]["clip"] for sample in kept]
            for row in cells[kind, snr][0]:
                values = [sample[row][metric] for sample in kept]
                gains = [sample[row][metric] - sample[reference][metric] for sample in kept]
                low, high = mean_interval(values, groups=groups)
                gain_low, gain_high = mean_interval(gains, groups=groups)
                found.append({
                    "row": row, "kind": kind, "snr_db": snr, "metric": metric, "n": len(kept),
                    "n_failed": len(cells[kind, snr]) - len(kept), "mean": mean(values), "low": low, "high": high,
                    "gain": mean(gains), "gain_low": gain_low, "gain_high": gain_high,
                })  # fmt: skip
    return found


def row_label(row: str) -> str:
    """What a row is called; one that another program made has its own name."""
    return ROW_LABELS.get(row, row)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def gain_number(value: float, metric: str) -> str:
    """A difference of scores with its sign. Gains in dB have two digits, all others three, since many are below 0.01."""
    return "-" if math.isnan(value) else f"{value:+.{2 if TABLE[metric].unit == 'dB' else 3}f}"


def gain_interval(mean: float, low: float, high: float, metric: str) -> str:
    """A difference of scores with its interval."""
    return f"{gain_number(mean, metric)} [{gain_number(low, metric)}, {gain_number(high, metric)}]"


def kind_label(kind: str) -> str:
    return "all kinds of noise" if kind == ALL else kind.replace("_", " ")


class Grid:
    """A summary as a table: grid.at(row, kind, snr, metric) is an entry; rows, kinds, snrs and metrics are in their order."""

    def __init__(self, summary: Sequence[Mapping]) -> None:
        self._cells = {(c["row"], c["kind"], c["snr_db"], c["metric"]): c for c in summary}
        keys = "row", "kind", "snr_db", "metric"
        self.rows, self.kinds, self.snrs, self.metrics = (list(dict.fromkeys(c[key] for c in summary)) for key in keys)

    def at(self, row: str, kind: str, snr: float | str, metric: str) -> Mapping:
        return self._cells[row, kind, snr, metric]

    def n_mixtures(self, kind: str) -> int:
        """How many mixtures of a kind there are, at all SNRs, scored or not."""
        cell = self.at(self.rows[0], kind, self.snrs[-1], METRICS[0])  # of all SNRs, or of the only one
        return cell["n"] + cell["n_failed"]


def snr_label(snr: float | str) -> str:
    return str(snr) if snr == ALL else f"{snr:g}"


def text_table(summary: Sequence[Mapping], kind: str) -> str:
    """Means of one kind of noise by SNR, a block per metric."""
    grid = Grid(summary)
    lines = []
    for metric in grid.metrics:
        lines.append(f"{TABLE[metric].heading:<16}" + "".join(f"{snr_label(snr):>9}" for snr in grid.snrs) + "  (SNR in dB)")
        for row in grid.rows:
            cells = (number(grid.at(row, kind, snr, metric)["mean"], metric) for snr in grid.snrs)
            lines.append(f"{row_label(row):<16}" + "".join(f"{value:>9}" for value in cells))
    worst = max(cell["n_failed"] for cell in summary)
    lines.append(f"{kind}: {grid.n_mixtures(kind)} mixtures; at most {worst} left out of a mean because a row failed")
    return "\n".join(lines)


def latex_escape(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, escaped)
    return text


def latex_table(summary: Sequence[Mapping], kind: str, note: str) -> str:
    """A table with a block for each metric: rows by SNR, each mean above its interval, the best in bold. It needs booktabs."""
    grid = Grid(summary)
    width = len(grid.snrs) + 1
    said = f"{kind.replace('_', ' ')}: {grid.n_mixtures(kind)} mixtures, of {note}. {INTERVAL_NOTE}"
    lines = [
        r"\begin{table*}[t]", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{latex_escape(said)}}}",
        rf"\label{{tab:snr-{kind.replace('_', '-')}}}", rf"\begin{{tabular}}{{l{'r' * len(grid.snrs)}}}", r"\toprule",
        "SNR in dB & " + " & ".join(snr_label(snr).replace("-", "$-$") for snr in grid.snrs) + r" \\",
    ]  # fmt: skip
    for metric in grid.metrics:
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\textit{{{TABLE[metric].heading}}}}} \\"]
        best_of = max if TABLE[metric].more_is_better else min
        best = {}
        for snr in grid.snrs:
            means = [grid.at(row, kind, snr, metric)["mean"] for row in grid.rows]
            best[snr] = number(best_of((m for m in means if not math.isnan(m)), default=math.nan), metric)
        for row in grid.rows:
            means, intervals = [], []
            for snr in grid.snrs:
                cell = grid.at(row, kind, snr, metric)
                text = number(cell["mean"], metric).replace("-", "$-$")
                bold = cell["n"] and number(cell["mean"], metric) == best[snr]  # equal numbers are equally bold
                means.append(rf"\textbf{{{text}}}" if bold else text)
                bounds = (number(cell[key], metric).replace("-", "$-$") for key in ("low", "high"))
                intervals.append(r"\tiny[" + ", ".join(bounds) + "]")
            lines.append(f"{latex_escape(row_label(row))} & " + " & ".join(means) + r" \\[-2pt]")
            lines.append(" & " + " & ".join(intervals) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
