"""The web page: what is on it and what its buttons do. The work is done in enhance.py and live.py."""

from __future__ import annotations

import html
import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute

from evaluation.web.enhance import Answer, answer
from evaluation.web.live import LiveRoom
from evaluation.web.recording import AS_IT_IS, CORRUPTIONS, OFF, Complaint, Limits, Wish, sample_noise, spoken
from evaluation.web.uploads import UploadLimit
from models.inference.enhancer import Enhancer
from utils.media.frame_grid import grid_frames
from utils.scores.metrics import TABLE, ScoringPool

HERE = Path(__file__).resolve().parent
# Of samples/: what the button says. Clips that are not there have no button.
EXAMPLES = {"cafe_slt": "Café babble, 3 dB", "pink_rms": "Pink noise, 5 dB", "hum_kal16": "Hum and knocks, 2 dB",
            "talker_awb": "Another talker, 0 dB"}  # fmt: skip
PICTURES = {"as it is": AS_IT_IS, "video off": OFF, "corrupted: blurred": "blur", "corrupted: noisy": "noise",
            "corrupted: dark": "dim", "corrupted: mouth covered": "patch", "corrupted: black": "black",
            "corrupted: frozen": "freeze", "corrupted: frames lost": "drop"}  # fmt: skip
assert set(PICTURES.values()) == {AS_IT_IS, OFF, *CORRUPTIONS}
FACES = {"the one that talks": None, "the leftmost": 1, "the 2nd from the left": 2, "the 3rd from the left": 3}
NO_NOISE = "none"
NO_LIMIT_DB = 40  # the slider's end
YIELD_SEC = 0.05  # between the pieces of a recording while somebody streams live: who streams cannot wait
KEPT_SEC, SWEEP_SEC = 3600, 300  # files of visitors: removed at this age, looked for this often
SWITCH_JS = """
const sounds = () => ["before", "after"].map((name) => document.querySelector(`#${name} audio`));
document.addEventListener("play", (event) => {  // one at a time
  if (sounds().includes(event.target)) for (const other of sounds()) if (other && other !== event.target) other.pause();
}, true);
element.querySelector("button").addEventListener("click", () => {
  const [before, after] = sounds();
  if (!before || !after) return;
  const [from, to] = after.paused ? [before, after] : [after, before];
  to.currentTime = from.ended ? 0 : from.currentTime;
  from.pause();
  to.play().catch(() => {});  // paused again before it began
});
"""

_log = logging.getLogger(__name__)


class LeftError(Exception):
    """The visitor has closed the page."""


class Page:
    """The page's state on the server: one model for all visitors, and who is waiting for what.

    samples: a folder below the system's folder for temporary files that stays while the page is served, with the examples.
    folder: where recordings at work lie, below the same; None: right there.
    """

    def __init__(
        self, enhancer: Enhancer, limits: Limits, samples: Path, live_visitors: int = 2, folder: Path | None = None
    ) -> None:
        self.enhancer, self.limits, self.room = enhancer, limits, LiveRoom(enhancer, live_visitors)
        self.folder = folder
        self.samples = {name: samples / f"{name}.mp4" for name in EXAMPLES if (samples / f"{name}.mp4").is_file()}
        self.pool = ScoringPool(1)  # PESQ is C code that keeps Python's lock: in here, live streams would stumble over it
        quiet = np.zeros(8000)
        self.pool.submit(((quiet, quiet), {"sample_rate": enhancer.sample_rate, "metrics": ()}))  # the process begins now
        self._at_work: dict[str, bool] = {}  # by visitor: whether the page is still open
        self._lock = threading.Lock()

    def leave(self, request: gr.Request) -> None:
        """A page was closed: what is under way for it is not worth finishing."""
        with self._lock:
            if request.session_hash in self._at_work:
                self._at_work[request.session_hash] = False

    def noise(self, label: str | None) -> np.ndarray | None:
        """The noise of the example so labelled; None for none."""
        name = next((name for name in self.samples if EXAMPLES[name] == label), None)
        if name is None:
            return None
        video = self.samples[name]
        return sample_noise(video, video.with_name(f"{name}_clean.flac"), self.enhancer.sample_rate)

    def enhance(
        self, video: str | None, audio: str | None, reference: str | None, noise: str, snr_db: float, picture: str,
        limit_db: float, face: str, request: gr.Request, progress=gr.Progress(),  # noqa: B008 - gradio finds it by its default
    ) -> Iterator[tuple]:
        """What the Enhance button does: yields the values of `outputs`, more of them from step to step."""
        visitor = str(request.session_hash)
        with self._lock:
            self._at_work[visitor] = True

        def tell(share: float, what: str) -> None:
            if not self._at_work.get(visitor, False):
                raise LeftError
            if self.room.visitors:
                time.sleep(YIELD_SEC)
            progress(share, desc=what)

        try:
            wish = Wish(
                video=_path(video), audio=_path(audio), reference=_path(reference), noise=self.noise(noise),
                snr_db=float(snr_db), picture=PICTURES.get(picture, AS_IT_IS),
                face=FACES.get(face), limit_db=None if limit_db >= NO_LIMIT_DB else float(limit_db),
            )  # fmt: skip
            # Gradio copies what is shown into its own cache before it asks for more; then ours can go.
            with tempfile.TemporaryDirectory(prefix="liteavse_", dir=self.folder) as folder:
                for shown in answer(self.enhancer, wish, self.limits, Path(folder), self.pool, tell):
                    yield outputs(shown)
        except Complaint as error:
            gr.Warning(html.escape(str(error)), title="This cannot be enhanced")
            yield refusal(str(error))
        except LeftError:
            _log.info("a visitor left while being served")
        except Exception:  # whatever it was, it ends one visitor's wait and not the server; the log has the traceback
            _log.exception("enhancing failed")
            yield refusal("Something failed on the server, and its log says what. Other recordings may well work.")
        finally:
            with self._lock:
                self._at_work.pop(visitor, None)


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def sentence(text: str, kind: str = "") -> str:
    return f'<div class="sentence {kind}">{html.escape(text)}</div>'


def facts_html(shown: Answer) -> str:
    tiles = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in shown.facts.items()
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in shown.notes)
    return f'<dl class="tiles">{tiles}</dl><ul class="notes">{notes}</ul>'


def scores_html(shown: Answer) -> str:
    if shown.scores is None:
        return ""
    rows = ""
    for metric, (before, after) in shown.scores.items():
        label, form = TABLE[metric].heading, f".{TABLE[metric].digits}f"
        cells = [f"{value:{form}}" if math.isfinite(value) else "–" for value in (before, after)]
        change = after - before
        better = "up" if change > 0 else "down"
        cells.append(f'<span class="{better}">{change:+{form}}</span>' if math.isfinite(change) else "–")
        rows += f"<tr><td>{label}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return (
        f'<table class="scores"><caption>Scored against {html.escape(shown.scored_against)}; more is better</caption>'
        f"<tr><th></th><th>before</th><th>after</th><th>change</th></tr>{rows}</table>"
    )


def outputs(shown: Answer) -> tuple:
    """Values of the page's output components, in the order of `OUTPUTS`."""
    return (
        sentence(f"{shown.name}: what was heard, and what the model made of it."), gr.update(visible=True),
        shown.before, shown.after, facts_html(shown),
        gr.update(value=shown.figure, visible=shown.figure is not None),
        gr.update(value=shown.crops, visible=shown.crops is not None),
        gr.update(value=scores_html(shown), visible=shown.scores is not None),
        gr.update(value=shown.enhanced), gr.update(value=shown.video, visible=shown.video is not None),
    )  # fmt: skip


def refusal(text: str) -> tuple:
    """The same for a recording that cannot be enhanced."""
    return sentence(text, "bad"), gr.update(visible=False), *[gr.skip()] * 8


def thumbnail(video: Path) -> Path:
    """A picture of the clip, a second in, for its button; written beside it."""
    target = video.with_suffix(".png")
    picture = next(grid_frames(video, 1.0, 0.1), None)
    if picture is not None:
        Image.fromarray(picture).resize((152, 152)).save(target)
    return target


def build_page(page: Page) -> gr.Blocks:
    """Lay out the page."""
    enhancer = page.enhancer
    model = f"{Path(enhancer.name).name}, {sum(w.numel() for w in enhancer.model.parameters()) / 1e6:.2f} M parameters"
    with gr.Blocks(title="LiteAVSEMamba", analytics_enabled=False, delete_cache=(SWEEP_SEC, KEPT_SEC)) as blocks:
        gr.HTML(
            f"<h1>LiteAVSEMamba</h1><p>Noisy speech and a video of the speaker's face in, the speech without the noise out. "
            f"Model: {html.escape(model)}, on {html.escape(str(enhancer.device).upper())}.</p>", elem_id="head",
        )  # fmt: skip
        with gr.Tab("Enhance"), gr.Row():
            with gr.Column(scale=5):
                asked, cards, run = _ask(page)
            with gr.Column(scale=7):
                shown = _show()
        with gr.Tab("Live"):
            gr.HTML(
                html_template=(HERE / "live.html").read_text(encoding="utf-8"),
                js_on_load=(HERE / "live.js").read_text(encoding="utf-8"), elem_id="live",
            )  # fmt: skip
        gr.HTML(
            f'<p class="notes">Up to {spoken(page.limits.longest_sec)} and {page.limits.largest_mb} MB. Recordings stay on '
            "this server, are seen by nobody else, and are removed within an hour or so; live streams are never stored.</p>"
        )
        private = {"api_visibility": "private"}
        at_work = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress_on": [shown[0]], **private}
        run.click(page.enhance, asked, shown, **at_work)
        for card, name in cards:
            chosen = card.click(lambda name=name: _example(page, name), None, asked, show_progress="hidden", **private)
            chosen.then(page.enhance, asked, shown, **at_work)
        blocks.unload(page.leave)
    return blocks


def _example(page: Page, name: str) -> tuple:
    """Values of the inputs that make up an example."""
    video = page.samples[name]
    clean = video.with_name(f"{name}_clean.flac")
    return str(video), None, str(clean) if clean.is_file() else None, NO_NOISE, 0, "as it is", NO_LIMIT_DB, next(iter(FACES))


def _ask(page: Page) -> tuple[list, list, gr.Button]:
    """The left side: (inputs of `Page.enhance`, example buttons with their names, the button that starts it)."""
    cards = []
    if page.samples:
        gr.HTML('<p class="step">Try an example: one click</p>')
        with gr.Row(elem_id="examples"):
            for name, video in page.samples.items():
                card = gr.Button(EXAMPLES[name], icon=str(thumbnail(video)), elem_classes="example-card", min_width=100)
                card.keep_in_cache.add(card.icon["path"])  # the sweep of the visitors' files would take it, too
                cards.append((card, name))
    gr.HTML('<p class="step">Or bring your own: a video, a video and a sound, or a sound alone</p>')
    # No button that shares a visitor's recording with anyone.
    player = {"type": "filepath", "waveform_options": gr.WaveformOptions(show_recording_waveform=False), "buttons": []}
    video = gr.Video(label="The speaker's face", sources=["upload", "webcam"], elem_id="video", buttons=[],
                     webcam_options=gr.WebcamOptions(mirror=False))  # fmt: skip
    audio = gr.Audio(label="Noisy sound; without one, the video's own is taken", elem_id="audio",
                     sources=["upload", "microphone"], **player)  # fmt: skip
    picture = gr.Dropdown(list(PICTURES), value="as it is", label="The picture", info="corrupt it, and see alpha fall",
                          elem_id="picture")  # fmt: skip
    with gr.Accordion("More: whose face, leave some noise, add noise, scores", open=False):
        face = gr.Dropdown(list(FACES), value=next(iter(FACES)), label="Of several faces, follow", elem_id="face")
        limit_db = gr.Slider(0, NO_LIMIT_DB, value=NO_LIMIT_DB, step=1, elem_id="limit",
                             label=f"Turn noise down by so many dB at most ({NO_LIMIT_DB}: no limit)")  # fmt: skip
        noises = [NO_NOISE, *(EXAMPLES[name] for name in page.samples)]
        noise = gr.Dropdown(noises, value=NO_NOISE, label="Add the noise of an example", elem_id="noise")
        snr_db = gr.Slider(-10, 20, value=0, step=1, label="SNR of the added noise in dB")
        reference = gr.Audio(label="Clean reference, for scores", sources=["upload"], elem_id="reference", **player)
    run = gr.Button("Enhance", variant="primary", elem_id="run")
    return [video, audio, reference, noise, snr_db, picture, limit_db, face], cards, run


def _show() -> list:
    """The right side, in the order of `outputs`."""
    empty = "What comes out will be here: both sounds to compare, their spectrograms, and what the model saw."
    told = gr.HTML(sentence(empty, "empty"), elem_id="told", js_on_load='element.setAttribute("aria-live", "polite")')
    with gr.Column(visible=False, elem_id="results") as results:
        plain = {"interactive": False, "waveform_options": gr.WaveformOptions(show_recording_waveform=False), "buttons": []}
        with gr.Row():
            before = gr.Audio(label="Before", elem_id="before", **plain)
            after = gr.Audio(label="After, as loud as before", elem_id="after", **plain)
        gr.HTML('<button type="button">⇄ switch while it plays</button>', elem_id="switch", js_on_load=SWITCH_JS)
        facts = gr.HTML(elem_id="facts")
        figure = gr.Image(show_label=False, elem_id="figure", type="filepath", interactive=False, visible=False,
                          buttons=["fullscreen", "download"])  # fmt: skip
        with gr.Row():
            with gr.Column(scale=1, min_width=220):
                crops = gr.Video(label="What the model saw", elem_id="crops", interactive=False, height=270, visible=False,
                                 buttons=[])  # fmt: skip
            with gr.Column(scale=2, min_width=260):
                scores = gr.HTML(elem_id="scores", visible=False)
                with gr.Row():
                    wav = gr.DownloadButton("Download sound", elem_id="wav")
                    mp4 = gr.DownloadButton("Download video", elem_id="mp4", visible=False)
    return [told, results, before, after, facts, figure, crops, scores, wav, mp4]


def _theme() -> gr.themes.Base:
    """Soft, with text dark enough to be read: a contrast of 4.5 and more (WCAG AA)."""
    theme = gr.themes.Soft(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(
        body_text_color_subdued="*neutral_600", block_label_text_color="*primary_800", block_title_text_color="*primary_800",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
    )  # fmt: skip


def serve_page(page: Page, host: str, port: int) -> None:
    """Build the page and serve it until the program is interrupted."""
    blocks = build_page(page)
    blocks.queue(max_size=16)
    blocks.launch(
        server_name=host, server_port=port, share=False, ssr_mode=False,
        show_error=False, pwa=False, run_history=False, mcp_server=False, footer_links=[], enable_monitoring=False,
        max_file_size=page.limits.largest_mb * 10**6, state_session_capacity=200,
        app_kwargs={
            "routes": [WebSocketRoute("/live", page.room.serve)],
            "middleware": [Middleware(UploadLimit, folder=blocks.GRADIO_CACHE, largest_mb=page.limits.largest_mb)],
        },
        theme=_theme(),
        css_paths=HERE / "page.css",
    )  # fmt: skip
