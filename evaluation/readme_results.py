"""The table of results in README.md, made from the CSV files in docs/results/LiteAVSE_small.

    python -m evaluation.readme_results

writes it anew; a test compares.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.testset.score_rows import AUDIO_ONLY, AUDIO_VISUAL, NOISY
from utils.console import Parser
from utils.recipe_table import with_table
from utils.scores.metrics import METRICS, TABLE, number
from utils.util import atomic_write, read_csv

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "LiteAVSE_small"
START, END = "<!-- table: made by python -m evaluation.readme_results -->\n", "<!-- end of table -->\n"
SNR_DB = "0"
KINDS = {"noise": "noise", "noise_in_room": "in a room", "one_speaker": "one talker"}
ROWS = {NOISY: "noisy", AUDIO_ONLY: "sound only", AUDIO_VISUAL: "sound and video"}
CONDITIONS = {
    "clean": "the speaker's video", "other_face": "somebody else's", "shift_+400ms": "400 ms late", "freeze": "frozen",
}  # fmt: skip


def _line(name: str, values: Mapping[str, str]) -> str:
    return f"| {name} | " + " | ".join(number(float(values[metric]), metric) for metric in METRICS) + " |"


def results_table(snr: Sequence[Mapping[str, str]], visual: Sequence[Mapping[str, str]]) -> str:
    """Markdown: scores at 0 dB by kind of noise, and with spoilt videos over all kinds, from both summary.csv."""
    lines = ["| | " + " | ".join(TABLE[metric].heading for metric in METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    rows = dict.fromkeys([*ROWS, *(r["row"] for r in snr)])  # ours, and those of other programs under their own names
    for kind, said in KINDS.items():
        for row in rows:
            found = {r["metric"]: r["mean"] for r in snr if (r["row"], r["kind"], r["snr_db"]) == (row, kind, SNR_DB)}
            lines.append(_line(f"{said}: {ROWS.get(row, row)}", found))
    found = {r["metric"]: r["audio_only"] for r in visual if r["condition"] == "clean"}
    lines.append(_line("all kinds: sound only", found))
    for condition, name in CONDITIONS.items():
        found = {r["metric"]: r["audio_visual"] for r in visual if r["condition"] == condition}
        lines.append(_line(f"all kinds: {name}", found))
    return "\n".join(lines) + "\n"


def made() -> str:
    """README.md as it should be."""
    table = results_table(read_csv(RESULTS / "snr" / "summary.csv"), read_csv(RESULTS / "visual" / "summary.csv"))
    return with_table((ROOT / "README.md").read_text(encoding="utf-8"), table, START, END, "README.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    Parser("readme_results.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    text = made()
    with atomic_write(ROOT / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
