"""The table of all recipe keys in docs/recipes.md, made from the fields of utils/config.py and the comments beside them.

    python -m utils.recipe_table

writes it anew; a test compares.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path

from utils.console import Parser
from utils.util import atomic_write

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- keys: made by python -m utils.recipe_table -->\n", "<!-- end of keys -->\n"


def key_table(source: str) -> str:
    """A Markdown table of section.key, default and comment, from the text of utils/config.py."""
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    lines = source.splitlines()

    def rows(name: str, prefix: str) -> list[str]:
        found = []
        for field in classes[name].body:
            if not isinstance(field, ast.AnnAssign):
                continue
            key, kind = f"{prefix}{field.target.id}", ast.unparse(field.annotation)
            section = kind.removesuffix(" | None")
            if section in classes:
                found += rows(section, f"{key}.")
                continue
            comment = lines[field.end_lineno - 1][field.end_col_offset :].partition("#")[2].strip().replace("|", "or")
            default = ast.unparse(field.value).replace("None", "").replace("True", "true").replace("False", "false")
            found.append(f"| `{key}` | {f'`{default}`' if default else ''} | {comment} |")
        return found

    return "\n".join(["| key | default | |", "|---|---|---|", *rows("Config", "")]) + "\n"


def with_table(page: str, table: str, start: str = START, end: str = END, name: str = "docs/recipes.md") -> str:
    """The page with the table between its two marks; ValueError when it lacks them. `name` is what messages call the page."""
    if start not in page or end not in page:
        raise ValueError(f"{name} should hold the lines {start.strip()} and {end.strip()}")
    return page.partition(start)[0] + start + table + end + page.partition(end)[2]


def main(argv: Sequence[str] | None = None) -> int:
    Parser("recipe_table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    page = ROOT / "docs" / "recipes.md"
    text = with_table(page.read_text(encoding="utf-8"), key_table((ROOT / "utils" / "config.py").read_text(encoding="utf-8")))
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
