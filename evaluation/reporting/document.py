"""A document of headings, text, tables, listings and images, written as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path

from evaluation.reporting.tables import write_text

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "pre{background:#f4f4f4;padding:.8em;overflow-x:auto;font-size:12px}img{max-width:100%}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.15em .6em;text-align:right;border-bottom:1px solid #ccc}"
    "td:first-child,th:first-child{text-align:left;white-space:nowrap}.wide{overflow-x:auto}"
)


class Document:
    """The parts of a document. Each method adds one at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._markdown, self._html = [f"# {title}"], [f"<h1>{html.escape(title)}</h1>"]
        self._images: list[Path] = []

    def heading(self, text: str) -> None:
        self._markdown.append(f"## {text}")
        self._html.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._markdown.append(text)
        self._html.append(f"<p>{html.escape(text)}</p>")

    def listing(self, text: str) -> None:
        self._markdown.append(f"```\n{text.rstrip()}\n```")
        self._html.append(f"<pre>{html.escape(text.rstrip())}</pre>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        self._markdown.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        self._html.append("<div class=wide><table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table></div>")

    def image(self, path: Path, caption: str) -> None:
        """Adds a .png: the HTML contains it, the Markdown links to it."""
        self._markdown.append(f"![{caption}]({{{len(self._images)}}})")
        self._images.append(path)
        data = base64.b64encode(path.read_bytes()).decode()
        self._html.append(f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>')

    def write(self, folder: Path, stem: str) -> None:
        """Write folder/stem.md and folder/stem.html."""
        markdown = "\n\n".join(self._markdown) + "\n"
        for number, path in enumerate(self._images):
            markdown = markdown.replace(f"]({{{number}}})", f"]({Path(os.path.relpath(path, folder)).as_posix()})")
        write_text(folder / f"{stem}.md", markdown)
        head = f"<!doctype html><meta charset=utf-8><title>{html.escape(self._title)}</title><style>{STYLE}</style>"
        write_text(folder / f"{stem}.html", head + "\n".join(self._html) + "\n")
