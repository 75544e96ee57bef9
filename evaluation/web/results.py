"""The answers as HTML, in words for visitors; the technical words stand behind question marks."""

from __future__ import annotations

import html
import math
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from evaluation.web.enhance import Answer
from evaluation.web.job import Progress
from utils.scores.metrics import TABLE

# By key of `Answer.facts`: what the visitor reads, and what stands behind the question mark.
FACTS = {
    "trust": ("trust in the face", "The mean of alpha, between 0 and 1, over the recording. Alpha weighs what the video adds "
              "to the sound at each moment; at 0 the output is the one of sound alone."),
    "seen": ("face seen", "The share of the sound during which the video shows the face that is followed."),
    "faces": ("in the video", "How many faces there are, and the detector that found them."),
    "time": ("time needed", "The first number divided by the second is the real-time factor (RTF)."),
    "delay": ("delay when live", "The algorithmic latency of the model: one STFT window, and the video it looks ahead."),
}  # fmt: skip
SCORES = {
    "pesq": ("sound quality", "PESQ, wide band (ITU-T P.862.2): from 1, bad, to 4.6, excellent."),
    "stoi": ("intelligibility", "STOI: from 0, nothing is understood, to 1, everything."),
    "estoi": ("intelligibility in changing noise", "ESTOI: as STOI, for noise that comes and goes."),
    "si_sdr": ("speech over noise", "SI-SDR: speech over everything else, in decibels."),
}


def why(name: str, text: str) -> str:
    """A question mark that opens an explanation; also by keyboard."""
    return (f'<details class="why"><summary aria-label="What does “{html.escape(name)}” mean?">?</summary>'
            f"<p>{html.escape(text)}</p></details>")  # fmt: skip


def sentence(text: str, kind: str = "") -> str:
    return f'<div class="sentence {kind}">{html.escape(text)}</div>' if text else ""


def progress_html(progress: Progress, elapsed_sec: float) -> str:
    """A bar, what is being done and a clock; sent again and again, so that the clock goes on whatever the work does."""
    return (
        f'<div class="progress"><progress max="100" value="{100 * progress.share:.0f}" aria-label="how far it is"></progress> '
        f"<span>{html.escape(progress.what)} · {elapsed_sec:.0f} s</span></div>"
    )


def link(path: Path) -> str:
    """Where the page finds a file of made/, whose folder is a secret between this visitor and the server."""
    return f"made/{path.parent.name}/{quote(path.name)}"


def player_html(shown: Answer) -> str:
    """Both recordings, with one clock and one switch (player.js), and the downloads.

    The videos' size is stated, as that of everything that loads: what is below must not move away from who points at it.
    """
    tag, sides = "audio", ""
    if shown.size is not None:
        tag, sides = "video", f'width="{shown.size[0]}" height="{shown.size[1]}" '
    screens = "".join(
        f'<figure class="{which}"><{tag} id="{which}" src="{link(path)}" {sides}preload="auto" playsinline '
        f'aria-label="{said}" tabindex="-1"></{tag}>{f"<figcaption>{said}</figcaption>" if shown.size else ""}</figure>'
        for which, said, path in (("before", "Before", shown.before), ("after", "After", shown.after))
    )
    switch = "".join(
        f'<label><input type="radio" name="heard" value="{which}"{" checked" if which == "after" else ""}> {said}</label>'
        for which, said in (("before", "Before"), ("after", "After"))
    )
    downloads = "".join(
        f'<a class="button" id="{which}" href="{link(path)}" download="{html.escape(path.name)}">{said}</a>'
        for which, said, path in (("mp4", "Download video", shown.video), ("wav", "Download sound", shown.enhanced))
        if path is not None
    )
    return (
        f'<section class="player" aria-label="Before and after"><div class="screens {tag}">{screens}</div>'
        '<div class="player-bar"><button type="button" class="button primary" id="play">Play</button>'
        '<input type="range" id="clock" min="0" max="1" step="0.01" value="0" aria-label="position in seconds">'
        '<span id="time">0:00 / 0:00</span>'
        f'<span class="switch" role="radiogroup" aria-label="Listen to">{switch}</span></div>'
        f'<div class="downloads">{downloads}</div></section>'
    )


def facts_html(shown: Answer) -> str:
    tiles = "".join(
        f'<div id="fact-{key}"><dt>{FACTS[key][0]} {why(*FACTS[key])}</dt><dd>{html.escape(value)}</dd></div>'
        for key, value in shown.facts.items()
    )
    return f'<dl class="tiles">{tiles}</dl>{notes_html(shown.notes)}'


def notes_html(notes: tuple[str, ...]) -> str:
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{listed}</ul>' if listed else ""


def scores_html(shown: Answer) -> str:
    if shown.scores is None:
        return ""
    rows = ""
    for metric, (before, after) in shown.scores.items():
        form = f".{TABLE[metric].digits}f"
        cells = [f"{value:{form}}" if math.isfinite(value) else "–" for value in (before, after)]
        change = after - before
        better = "up" if change > 0 else "down"
        cells.append(f'<span class="{better}">{change:+{form}}</span>' if math.isfinite(change) else "–")
        name = f"{SCORES[metric][0]} <small>{TABLE[metric].heading}</small> {why(*SCORES[metric])}"
        rows += f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    head = "".join(f'<th scope="col">{name}</th>' for name in ("score", "before", "after", "change"))
    return (
        f'<table class="scores"><caption>Compared with {html.escape(shown.scored_against)}; more is better.</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes_html(shown.unscored)}"
    )


def figures_html(shown: Answer) -> str:
    """What explains the result, behind folds."""
    if shown.figure is None:
        return ""
    said = "Spectrograms before and after, then the trust in the face (alpha) over time and the gate over frequency"
    with Image.open(shown.figure) as figure:
        width, height = figure.size
    folds = (f'<details class="fold" id="figure"><summary>Spectrograms, and trust over time</summary>'
             f'<img src="{link(shown.figure)}" width="{width}" height="{height}" alt="{said}"></details>')  # fmt: skip
    if shown.crops is not None:
        folds += (f'<details class="fold" id="crops"><summary>What the model saw</summary><video src="{link(shown.crops)}" '
                  'controls playsinline preload="metadata" aria-label="what the model saw"></video></details>')  # fmt: skip
    return folds
