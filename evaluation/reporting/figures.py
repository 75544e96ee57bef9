"""Figures for print: the letters are large enough, and lines can be told apart without colour."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.reporting.tables import ALL, Grid, kind_label, row_label
from utils.scores.metrics import METRICS, TABLE
from utils.util import atomic_write

DPI = 300
LETTERS = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 3.5}
STYLE = {"noisy": ("#666666", ":", "s"), "audio_only": ("#0072b2", "--", "o"), "audio_visual": ("#d55e00", "-", "^")}
OTHERS = (("#009e73", "-.", "v"), ("#cc79a7", (0, (1, 1)), "D"), ("#000000", (0, (5, 1, 1, 1)), "x"))  # other programs' rows


def require_matplotlib() -> None:
    """ValueError, in one line, where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("figures need the matplotlib package, which is not installed: pip install matplotlib")


@contextlib.contextmanager
def drawing(path: Path, width_inch: float, height_inch: float, dpi: int | None = None, pdf: bool = False) -> Iterator:
    """A figure of the size that it has in print, to draw into. It is then written to `path` with `dpi` (None: DPI).

    `pdf` writes it as a .pdf beside that, too.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LETTERS):
        figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        for target in (path, path.with_suffix(".pdf")) if pdf else (path,):
            with atomic_write(target) as temporary:
                # Without a date, so that the same numbers give the same file.
                figure.savefig(temporary, dpi=dpi or DPI, metadata={"CreationDate": None} if target.suffix == ".pdf" else None)


def snr_figure(summary: Sequence[Mapping], path: Path, kinds: Sequence[str]) -> None:
    """Each metric against SNR, a column per kind of noise; bars are 95 % intervals."""
    grid = Grid(summary)
    with drawing(path, max(3.5, 0.6 + 1.65 * len(kinds)), 7.2, pdf=True) as figure:
        axes = figure.subplots(len(METRICS), len(kinds), sharex=True, sharey="row", squeeze=False)
        for line, metric in enumerate(METRICS):
            for column, kind in enumerate(kinds):
                _curves(axes[line, column], grid, kind, metric)
            axes[line, 0].set_ylabel(TABLE[metric].heading)
        for column, kind in enumerate(kinds):
            axes[0, column].set_title(kind_label(kind))
            axes[-1, column].set_xlabel("SNR in dB")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _curves(axis, grid: Grid, kind: str, metric: str) -> None:
    """One metric against SNR, a line per row."""
    snrs = [snr for snr in grid.snrs if snr != ALL]
    for place, row in enumerate(grid.rows):
        cells = [grid.at(row, kind, snr, metric) for snr in snrs]
        middle, low, high = (np.array([cell[key] for cell in cells]) for key in ("mean", "low", "high"))
        colour, dash, mark = STYLE.get(row) or OTHERS[place % len(OTHERS)]
        # The rows are drawn side by side, so that their intervals do not hide each other.
        x = np.array(snrs) + 0.6 * (place - (len(grid.rows) - 1) / 2)
        bars = np.nan_to_num(np.maximum(np.stack([middle - low, high - middle]), 0))
        axis.errorbar(x, middle, bars, color=colour, linestyle=dash, marker=mark, capsize=1.5, elinewidth=0.7,
                      label=row_label(row))  # fmt: skip
    axis.grid(alpha=0.3)
    axis.set_xticks(snrs)
    axis.tick_params(axis="x", labelsize=6)


def visual_figure(summary: Sequence[Mapping], path: Path) -> None:
    """What each condition of the video gains or costs against no video, with 95 % intervals, and the mean alpha."""
    conditions = list(dict.fromkeys(entry["condition"] for entry in summary))
    places = np.arange(len(conditions))[::-1]
    with drawing(path, 7.2, 1.1 + 0.17 * len(conditions), pdf=True) as figure:
        axes = figure.subplots(1, len(METRICS) + 1, sharey=True)
        for axis, metric in zip(axes, METRICS, strict=False):
            entries = [entry for entry in summary if entry["metric"] == metric]
            for place, entry in zip(places, entries, strict=True):
                worse = entry["high"] < 0
                colour = "#d55e00" if worse else "#0072b2"
                axis.plot([entry["low"], entry["high"]], [place, place], color=colour, linewidth=1)
                axis.plot(entry["difference"], place, "v" if worse else "o", color=colour)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_title(f"gain, {TABLE[metric].heading}")
        entries = [entry for entry in summary if entry["metric"] == METRICS[0]]
        axes[-1].plot([entry["mean_alpha"] for entry in entries], places, "s", color="#009e73", label="mean alpha")
        axes[-1].plot([entry["alpha_auc"] for entry in entries], places, "x", color="black", label="AUC")
        axes[-1].axvline(0.5, color="black", linewidth=0.5, linestyle=":")
        axes[-1].set_xlim(-0.05, 1.05)
        axes[-1].set_title("alpha")
        axes[0].set_yticks(places, conditions)
        axes[0].set_ylim(-0.7, len(conditions) - 0.3)
        for axis in axes:
            axis.grid(alpha=0.3)
            axis.locator_params(axis="x", nbins=3, min_n_ticks=2)  # long labels like -0.025 must not touch
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False)
        figure.supxlabel("audio-visual minus audio-only; triangles: 95 % interval below 0", fontsize=8)
