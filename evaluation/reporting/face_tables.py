"""What the speaker's own face gains over sound alone, by kind of noise, by SNR and by corpus, from a report's scores.csv.

Intervals are Student's t over speakers: the mixtures of one speaker are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluation.reporting.tables import ALL, by_sample, complete, gain_interval, kind_label, mean, row_label
from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL
from utils.scores.metrics import METRICS, TABLE, number
from utils.scores.stats import mean_interval

# Whose recordings the speakers of docs/results are. Training saw the first corpus, of other people, and none of the second.
CORPORA = {"GRID": {"s5", "u5", "u6", "u7"}, "ELOSPHERES": {"T1", "T4", "T8", "ieee"}}


def _samples(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Mapping]]:
    """[{row: scores}] with numbers in the place of text; NaN where a score is missing."""
    return list(by_sample([{**row, **{key: float(row[key] or math.nan) for key in METRICS}} for row in rows]).values())


def face_gains(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """One entry per corpus, kind, SNR and metric, each also "all": audio-visual minus audio-only, as the text of a CSV.

    rows: those of scores.csv. Keys: corpus, kind, snr_db, metric, n (mixtures), n_speakers, audio_only, audio_visual, mean,
    low, high.
    """
    cells: dict[tuple[str, str, str], list] = {}
    for sample in _samples(rows):
        first = sample[AUDIO_ONLY]
        own = next((name for name, speakers in CORPORA.items() if first["speaker"] in speakers), "other")
        for corpus in (ALL, own):
            for kind in (ALL, first["kind"]):
                for snr in (ALL, first["snr_db"]):
                    cells.setdefault((corpus, kind, snr), []).append(sample)
    return [
        {"corpus": corpus, "kind": kind, "snr_db": snr, "metric": metric, **_gain(samples, metric)}
        for (corpus, kind, snr), samples in cells.items() for metric in METRICS
    ]  # fmt: skip


def _gain(samples: Sequence[Mapping[str, Mapping]], metric: str) -> dict[str, str]:
    kept = complete(samples, metric)
    speakers = [sample[AUDIO_ONLY]["speaker"] for sample in kept]
    ours, base = ([sample[row][metric] for sample in kept] for row in (AUDIO_VISUAL, AUDIO_ONLY))
    gains = [a - b for a, b in zip(ours, base, strict=True)]
    low, high = mean_interval(gains, groups=speakers)
    found = {
        "n": len(kept), "n_speakers": len(set(speakers)), "audio_only": mean(base), "audio_visual": mean(ours),
        "mean": mean(gains), "low": low, "high": high,
    }  # fmt: skip
    return {key: f"{value:.6f}" if isinstance(value, float) else str(value) for key, value in found.items()}


def _interval(found: Sequence[Mapping[str, str]], corpus: str, kind: str, snr: str) -> list[str]:
    """The gain with its interval, for each metric."""
    cells = {g["metric"]: g for g in found if (g["corpus"], g["kind"], g["snr_db"]) == (corpus, kind, snr)}
    return [gain_interval(*(float(cells[metric][key]) for key in ("mean", "low", "high")), metric) for metric in METRICS]


def _lines(first: Sequence[str]) -> list[str]:
    head = [*first, *(TABLE[metric].heading for metric in METRICS)]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def scores_table(rows: Sequence[Mapping[str, str]], snr: str = "0") -> str:
    """Markdown: the means of each kind of noise at one SNR, and what the face gains there."""
    samples, found = [s for s in _samples(rows) if s[AUDIO_ONLY]["snr_db"] == snr], face_gains(rows)
    lines = _lines(["noise", "sound"])
    for kind in [*dict.fromkeys(sample[AUDIO_ONLY]["kind"] for sample in samples), ALL]:
        chosen = [sample for sample in samples if kind in (ALL, sample[AUDIO_ONLY]["kind"])]
        for row in samples[0]:
            means = [number(mean([s[row][metric] for s in complete(chosen, metric)]), metric) for metric in METRICS]
            lines.append(f"| {kind_label(kind)} | {row_label(row)} | " + " | ".join(means) + " |")
        lines.append(f"| {kind_label(kind)} | gain of the face | " + " | ".join(_interval(found, ALL, kind, snr)) + " |")
    return "\n".join(lines) + "\n"


def corpora_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: what the face gains with the speakers of each corpus, over all kinds of noise and all SNRs."""
    found = face_gains(rows)
    lines = _lines(["speakers of", "speakers", "mixtures"])
    for corpus in dict.fromkeys([*CORPORA, ALL]):
        counted = next((g for g in found if (g["corpus"], g["kind"], g["snr_db"]) == (corpus, ALL, ALL)), None)
        if counted is not None:
            gains = " | ".join(_interval(found, corpus, ALL, ALL))
            lines.append(f"| {'both' if corpus == ALL else corpus} | {counted['n_speakers']} | {counted['n']} | {gains} |")
    return "\n".join(lines) + "\n"
