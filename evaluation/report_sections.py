"""The sections of a report, each made from the CSV files that the scripts of this package have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from evaluation.complexity_analysis import COLUMNS as SIZE_COLUMNS
from evaluation.complexity_analysis import show
from evaluation.reporting.document import Document
from evaluation.reporting.spectrograms import spectrogram_figure
from evaluation.reporting.tables import ALL, INTERVAL_NOTE, Grid, gain_interval, kind_label, row_label
from evaluation.statistical_test import verdict
from evaluation.testset.conditions import NONE
from evaluation.testset.manifest import SAMPLE_RATE_HZ, Manifest, mix
from evaluation.testset.score_rows import load_crops
from models.inference.enhancer import Enhancer
from utils.scores.metrics import METRICS, TABLE, number
from utils.util import atomic_write, read_csv


def _interval(cell: Mapping[str, str], metric: str) -> str:
    mean, low, high = (number(float(cell[key] or "nan"), metric) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def add_headline(document: Document, folder: Path) -> None:
    """One table, the means at the SNR nearest to 0 dB for each kind of noise, and one figure."""
    grid = Grid(read_csv(folder / "summary.csv"))
    snr = min((snr for snr in grid.snrs if snr != ALL), key=lambda text: abs(float(text)))
    rows = []
    for kind in sorted(grid.kinds, key=lambda name: name == ALL):
        for row in grid.rows:
            cells = {metric: grid.at(row, kind, snr, metric) for metric in grid.metrics}
            means = [number(float(cell["mean"] or "nan"), metric) for metric, cell in cells.items()]
            rows.append([kind_label(kind), row_label(row), cells[METRICS[0]]["n"], *means])
    head = ["noise", "", "mixtures", *(TABLE[metric].heading for metric in grid.metrics)]
    document.table(head, rows, f"Mean scores at {float(snr):g} dB. Intervals, and the other SNRs, stand below.")
    document.image(folder / "snr.png", "Scores against SNR, with 95 % intervals")


def add_snr_tables(document: Document, folder: Path) -> None:
    """For each kind of noise a table per metric: mean [interval] by SNR."""
    grid = Grid(read_csv(folder / "summary.csv"))
    for kind in grid.kinds:
        document.heading(f"Scores by SNR: {kind_label(kind)}")
        for metric in grid.metrics:
            cells = {row: [grid.at(row, kind, snr, metric) for snr in grid.snrs] for row in grid.rows}
            rows = [[row_label(row), *(_interval(cell, metric) for cell in held)] for row, held in cells.items()]
            counts = sorted({int(cell["n"]) for held in cells.values() for cell in held if cell["snr_db"] != ALL})
            count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            said = f"{TABLE[metric].heading}: {count} mixtures at each SNR"
            document.table(["", *(f"{snr} dB" if snr != ALL else ALL for snr in grid.snrs)], rows, said)
    document.text(INTERVAL_NOTE)


def add_tests(document: Document, ours: str, baseline: str, path: Path, note: str) -> None:
    """A paired comparison as a table, from the CSV of evaluation.statistical_test."""
    rows = []
    for line in read_csv(path):
        metric = line["metric"]
        held = {key: float(value or "nan") for key, value in line.items() if key != "metric"}
        rows.append([
            TABLE[metric].heading, number(held["ours"], metric), number(held["baseline"], metric),
            gain_interval(held["mean"], held["low"], held["high"], metric), f"{held['cohens_d']:.2f}",
            f"{held['p_t_holm']:.2g}", f"{held['p_wilcoxon_holm']:.2g}", line["n"], line["n_failed"], verdict(held),
        ])  # fmt: skip
    one, other = row_label(ours), row_label(baseline)
    head = ["", one, other, "difference [95 % interval]", "Cohen's d", "p of t", "p of Wilcoxon", "n", "failed", "verdict"]
    document.table(head, rows, f"{one} against {other}. {note}. p after Holm's correction.")


def add_degradations(document: Document, folder: Path) -> None:
    """What each condition of the video gains or costs against no video, from the CSV of evaluation.visual_degradation."""
    summary = read_csv(folder / "summary.csv")
    rows = []
    for condition in dict.fromkeys(entry["condition"] for entry in summary):
        entries = {entry["metric"]: entry for entry in summary if entry["condition"] == condition}
        cells = []
        for metric in METRICS:
            held = [float(entries[metric][key] or "nan") for key in ("difference", "low", "high")]
            cells.append("0" if condition == NONE else gain_interval(*held, metric))
        alpha, auc = (float(entries[METRICS[0]][key] or "nan") for key in ("mean_alpha", "alpha_auc"))
        trust = ["-" if math.isnan(value) else f"{value:.2f}" for value in (alpha, auc)]
        rows.append([condition, *cells, *trust, entries[METRICS[0]]["n"]])
    head = ["video", *(TABLE[metric].heading for metric in METRICS), "alpha", "AUC", "mixtures"]
    said = (
        "Audio-visual minus audio-only, with 95 % intervals over clips that are not corrected for their number. AUC: how well "
        "a low alpha tells corrupt frames from those of the clean video; 0.5 is chance."
    )
    document.table(head, rows, said)
    document.image(folder / "visual.png", "What each degradation of the video gains or costs")


def add_sizes(document: Document, path: Path, note: str) -> None:
    """Size and speed, a column for each recipe, from the CSV of evaluation.complexity_analysis."""
    lines = read_csv(path)
    rows = [
        [label, *(show(float(line[key]) if line[key] else None, digits) for line in lines)]
        for key, (label, digits) in SIZE_COLUMNS.items() if any(line[key] for line in lines)
    ]  # fmt: skip
    document.table(["", *(line["recipe"] for line in lines)], rows, note)


def add_examples(document: Document, enhancer: Enhancer, held: Manifest, folder: Path) -> None:
    """A mixture of each kind of noise, at the SNR nearest to 0 dB, to listen to; the spectrograms of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, kind in enumerate(dict.fromkeys(sample.kind for sample in held.samples)):
        of_kind = [sample for sample in held.samples if sample.kind == kind]
        sample = min(of_kind, key=lambda each: (abs(each.snr_db), each.video is None))
        made = mix(sample, held.max_sec)
        crops = mask = None
        if sample.video is not None and enhancer.uses_video:
            crops, mask = load_crops(enhancer, sample.video, sample.masked, len(made.noisy) / SAMPLE_RATE_HZ)
        result = enhancer.enhance(made.noisy, SAMPLE_RATE_HZ, crops, mask, return_details=True)
        sounds = {"noisy": made.noisy, "enhanced": result.wav, "clean": made.clean}
        loudest = max(float(np.abs(wave).max()) for wave in sounds.values())
        paths = {}
        for name, wave in sounds.items():
            paths[name] = folder / f"{kind}_{name}.flac"
            with atomic_write(paths[name]) as temporary:  # quieter, all three alike, where one would not fit into the file
                soundfile.write(temporary, wave / max(1.0, loudest), SAMPLE_RATE_HZ, format="FLAC")
        document.players(f"{kind_label(kind)}, {sample.snr_db:g} dB: {sample.sample_id}", paths)
        if not place:
            figure = folder / "example.png"
            spectrogram_figure(figure, sample.sample_id, sounds, result, enhancer.cfg["stft_cfg"], pdf=True)
            document.image(figure, "Spectrograms of the first of them, alpha and gate")
