"""A document of headings, text, tables, listings, images and sounds, written as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.reporting.tables import write_text

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#222}"
    "pre{background:#f4f4f4;padding:.8em;overflow-x:auto;font-size:12px}img{max-width:100%}"
    "table{border-collapse:collapse;font-size:13px}caption{text-align:left;padding:.4em 0;font-weight:600}"
    "td,th{padding:.15em .6em;text-align:right;border-bottom:1px solid #ccc;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto;margin:1em 0}"
    "figure{margin:1em 0}figcaption{font-weight:600}.players label{display:inline-block;margin-right:1em}audio{width:18em}"
)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class Document:
    """The parts of a document. Each method adds one at its end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._markdown, self._html = [f"# {title}"], [f"<h1>{html.escape(title)}</h1>"]
        self._files: list[Path] = []

    def heading(self, text: str) -> None:
        self._markdown.append(f"## {text}")
        self._html.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._markdown.append(text)
        self._html.append(f"<p>{html.escape(text)}</p>")

    def listing(self, text: str) -> None:
        self._markdown.append(f"```\n{text.rstrip()}\n```")
        self._html.append(f"<pre>{html.escape(text.rstrip())}</pre>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
        if caption:
            self._markdown.append(caption)
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        self._markdown.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        cells += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._html.append(f"<div class=wide><table>{told}" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table></div>")

    def image(self, path: Path, caption: str) -> None:
        """Adds a .png: the HTML contains it, the Markdown links to it, and to the .pdf beside it where there is one."""
        printed = path.with_suffix(".pdf")
        self._markdown.append(f"![{caption}]({self._link(path)})")
        if printed.is_file():
            self._markdown.append(f"{caption}. [For print]({self._link(printed)})")
        shown = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{_base64(path)}">'
        self._html.append(f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>")

    def players(self, caption: str, sounds: Mapping[str, Path]) -> None:
        """Adds .flac files by name: the HTML contains them and plays them, the Markdown links to them."""
        links = ", ".join(f"[{name}]({self._link(path)})" for name, path in sounds.items())
        self._markdown.append(f"{caption}: {links}")
        shown = "".join(
            f"<label>{html.escape(name)}<br><audio controls preload=none "
            f'src="data:audio/flac;base64,{_base64(path)}"></audio></label>'
            for name, path in sounds.items()
        )
        self._html.append(f"<figure class=players><figcaption>{html.escape(caption)}</figcaption>{shown}</figure>")

    def _link(self, path: Path) -> str:
        """What stands for a file until it is known where the document is written."""
        self._files.append(path)
        return f"{{{len(self._files) - 1}}}"

    def write(self, folder: Path, stem: str) -> None:
        """Write folder/stem.md and folder/stem.html."""
        markdown = "\n\n".join(self._markdown) + "\n"
        for number, path in enumerate(self._files):
            markdown = markdown.replace(f"]({{{number}}})", f"]({Path(os.path.relpath(path, folder)).as_posix()})")
        write_text(folder / f"{stem}.md", markdown)
        head = f"<!doctype html><meta charset=utf-8><title>{html.escape(self._title)}</title><style>{STYLE}</style>"
        write_text(folder / f"{stem}.html", head + "\n".join(self._html) + "\n")
