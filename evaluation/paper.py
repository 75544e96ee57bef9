"""docs/paper/paper.md, made from docs/paper/paper.in.md and the result files in docs/results, so that no number is typed.

    python -m evaluation.paper

A placeholder names a CSV file below docs/results, KEY=VALUE conditions that leave one row, and after a colon a column:

    {{LiteAVSE_small/snr/summary.csv kind=noise snr_db=0 row=audio_visual metric=stoi : mean}}
    {{LiteAVSE_small/snr/summary.csv kind=noise snr_db=0 row=audio_visual metric=stoi : gain :+.3f}}

`face_gains` in the place of a file are the rows of evaluation/reporting/face_tables.py. {{table scores}}, {{table corpora}},
{{table sizes}}, {{table ablations}} and {{table claims}} become whole tables.
A score has the digits that it has in every table, unless a format follows; any other text without a format stays as it is.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evaluation.complexity_analysis import COLUMNS, show
from evaluation.reporting.ablation_tables import claims_table, read_results, variants_table
from evaluation.reporting.face_tables import corpora_table, face_gains, scores_table
from utils.console import Parser, run
from utils.scores.metrics import TABLE, number
from utils.util import atomic_write, read_csv

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAPER = ROOT / "docs" / "results", ROOT / "docs" / "paper"
PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
FACE_GAINS = "face_gains"
SCORES = "LiteAVSE_small/snr/scores.csv"
SIZES = (
    "parameters_m", "trained_m", "macs_sound_g", "macs_face_g", "rtf_sound", "rtf_face", "rtf_stream", "rtf_stream_face",
    "cpu_peak_mb",
)  # fmt: skip
NO_ENHANCER = "LiteAVSE_encoder"  # this recipe teaches the visual encoder, and enhances nothing


def sizes_table(results: Path) -> str:
    """Markdown: a line for each recipe of an enhancer, from the CSV of evaluation.complexity_analysis."""
    lines = ["| recipe | " + " | ".join(COLUMNS[key][0] for key in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    for row in read_csv(results / "complexity" / "complexity.csv"):
        if row["recipe"] == NO_ENHANCER:
            continue
        cells = [show(float(row[key]) if row[key] else None, COLUMNS[key][1]) for key in SIZES]
        lines.append(f"| {row['recipe']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


PRINTED = """#set page(margin: 2cm)
#show table: set text(size: 7pt)
#show table: set par(justify: false)
#show figure: set block(breakable: true)
"""
# By name, what makes a whole table from the results.
TABLES: Mapping[str, Callable[[Path], str]] = {
    "scores": lambda results: scores_table(read_csv(results / SCORES)),
    "corpora": lambda results: corpora_table(read_csv(results / SCORES)),
    "ablations": lambda results: variants_table(read_results(results / "ablations")),
    "claims": lambda results: claims_table(read_results(results / "ablations")),
    "sizes": sizes_table,
}


@functools.lru_cache(maxsize=1)
def _face_gains(file: Path) -> Sequence[Mapping[str, str]]:
    return face_gains(read_csv(file))


def _row(file: Path, conditions: Mapping[str, str], name: str) -> Mapping[str, str]:
    """The only row of the file in which every condition holds; `name` is what messages call the placeholder."""
    of_faces = file.name == FACE_GAINS
    file = file.parent / SCORES if of_faces else file
    if not file.is_file():
        raise ValueError(f"{name}: there is no file {file}")
    rows = _face_gains(file) if of_faces else read_csv(file)
    for key in conditions:
        if rows and key not in rows[0]:
            raise ValueError(f"{name}: no column {key}; {file.name} has {', '.join(rows[0])}")
    found = [row for row in rows if all(row[key] == value for key, value in conditions.items())]
    if len(found) != 1:
        raise ValueError(f"{name}: {len(found)} rows of {file.name} fit; the conditions should leave one")
    return found[0]


def value_of(placeholder: str, results: Path) -> str:
    """The text that stands for what is between {{ and }}; ValueError, in one line, where that is not to be had."""
    name = " ".join(placeholder.split())
    if name.startswith("table "):
        if name[6:] not in TABLES:
            raise ValueError(f"{name}: there is no such table; choose from {', '.join(TABLES)}")
        return TABLES[name[6:]](results).rstrip("\n")
    selection, *rest = (part.strip() for part in name.split(" :"))
    words = selection.split()
    if len(rest) not in (1, 2) or not words or not all("=" in word for word in words[1:]):
        raise ValueError(f"{name}: should be FILE KEY=VALUE ... : COLUMN, and may end in a format such as :.2f")
    column, form = rest[0], "".join(rest[1:])
    row = _row(results / words[0], dict(word.split("=", 1) for word in words[1:]), name)
    if column not in row:
        raise ValueError(f"{name}: no column {column}; {words[0]} has {', '.join(row)}")
    metric = row.get("metric", column)
    if not form and metric not in TABLE:
        return row[column]
    try:
        return format(float(row[column]), form) if form else number(float(row[column]), metric)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def rendered(text: str, results: Path = RESULTS) -> str:
    """The text with a value in the place of every placeholder."""
    return PLACEHOLDER.sub(lambda match: value_of(match[1], results), text)


def made() -> str:
    """paper.md as it should be."""
    return rendered((PAPER / "paper.in.md").read_text(encoding="utf-8"))


def write() -> int:
    """Write paper.md; returns the exit code."""
    text = made()
    with atomic_write(PAPER / "paper.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def print_paper(folder: Path = PAPER) -> int:
    """Write paper.tex and paper.pdf from paper.md; ValueError where pandoc or Typst is missing. Returns the exit code.

    Typst makes the PDF because it comes as a wheel of some 20 MB, where LaTeX takes hundreds.
    """
    try:
        import pypandoc
        import typst
    except ImportError as error:
        raise ValueError(f"printing needs pandoc and Typst ({error}): pip install pypandoc_binary typst") from None
    text, source = (folder / "paper.md").read_text(encoding="utf-8"), folder / "paper.typ"
    for form, target, before in (("latex", folder / "paper.tex", ""), ("typst", source, PRINTED)):
        body = pypandoc.convert_text(text, form, format="markdown+tex_math_dollars", extra_args=["--standalone"])
        with atomic_write(target) as temporary:
            temporary.write_text(before + body, encoding="utf-8")
    pdf = typst.compile(str(source), root=str(ROOT))
    source.unlink()
    with atomic_write(folder / "paper.pdf") as temporary:
        temporary.write_bytes(pdf)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser("paper.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="also write paper.tex and paper.pdf, by pandoc and Typst")
    args = parser.parse_args(argv)
    return run("paper.py", lambda: write() or (print_paper() if args.print else 0))


if __name__ == "__main__":
    raise SystemExit(main())
