"""The web page's layout: what is on it, and which function of `Page` each button calls."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from PIL import Image

from evaluation.web.recording import AS_IT_IS, CORRUPTIONS, OFF, spoken
from utils.media.frame_grid import grid_frames

if TYPE_CHECKING:
    from evaluation.web.page import Page

HERE = Path(__file__).resolve().parent
# Of samples/, what gains most first: what the button says. Clips that are not there have no button.
# By the scores on the page, LiteAVSE_small.pth adds to PESQ 0.34, 0.32, 0.02, 0.00 and to SI-SDR 6.2, 4.9, 0.4, -0.1 dB.
EXAMPLES = {"hum_kal16": "Hum and knocks, 2 dB", "pink_rms": "Pink noise, 5 dB", "cafe_slt": "Café babble, 3 dB",
            "talker_awb": "Another talker, 0 dB"}  # fmt: skip
VIDEO_MODES = {AS_IT_IS: "as it is", OFF: "nothing: video off", "patch": "the mouth covered", "black": "black frames",
               "freeze": "one frozen frame", "drop": "moments lost", "blur": "blurred", "noise": "noisy",
               "dim": "dark"}  # fmt: skip
assert set(VIDEO_MODES) == {AS_IT_IS, OFF, *CORRUPTIONS}
TALKS = "the one that talks"
FACES = {TALKS: None, "the leftmost": 1, "the 2nd from the left": 2, "the 3rd from the left": 3}
OUTPUTS = ("told", "progress", "player", "facts", "scores", "figures", "stop")  # of `Page.enhance`, in its order
NO_NOISE = "none"
NO_LIMIT_DB = 40  # the slider's end
SESSIONS_KEPT = 50  # Gradio keeps 50 kB of each page that was opened, for ever; none of ours needs it once it has its answer.
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def build_page(page: Page) -> gr.Blocks:
    """Lay out the page."""
    enhancer = page.enhancer
    model = f"{Path(enhancer.name).name}, {sum(w.numel() for w in enhancer.model.parameters()) / 1e6:.2f} M parameters"
    with gr.Blocks(title="LiteAVSEMamba", analytics_enabled=False) as blocks:
        gr.HTML(
            "<h1>LiteAVSEMamba</h1><p>Noisy speech and a video of the speaker's face in, the speech without the noise out. "
            f"Model: {html.escape(model)}, on {html.escape(str(enhancer.device).upper())}.</p>", elem_id="head",
        )  # fmt: skip
        with gr.Tab("Enhance"), gr.Row():
            with gr.Column(scale=5, min_width=320):
                asked, cards, run, stop = _ask(page)
            with gr.Column(scale=7, min_width=320):
                shown = [*_show(), stop]
        with gr.Tab("Live"):
            visitors = f"{page.room.most_visitors} visitors" if page.room.most_visitors > 1 else "One visitor"
            live = (HERE / "live.html").read_text(encoding="utf-8")
            gr.HTML(
                html_template=live.replace("LIMITS", f"{visitors} at a time, up to {spoken(page.room.longest_sec)} each"),
                js_on_load=(HERE / "live.js").read_text(encoding="utf-8"), elem_id="live",
            )  # fmt: skip
        gr.HTML(
            f'<p class="notes">Recordings may have {spoken(page.limits.longest_sec)} and {page.limits.largest_mb} MB. They '
            "stay here, are seen by nobody else, and are removed within an hour or so; live streams are never stored.</p>"
        )
        at_work = {"concurrency_limit": None, **PRIVATE}
        run.click(page.enhance, asked, shown, **at_work)
        for card, name in cards:
            chosen = card.click(lambda name=name: page.example(name), None, asked, **at_work)
            chosen.then(page.enhance, asked, shown, **at_work)
        stop.click(page.stop, None, None, **at_work)
        blocks.unload(page.stop)
    blocks.queue(max_size=64)
    blocks.state_session_capacity = SESSIONS_KEPT
    return blocks


def _ask(page: Page) -> tuple[list, list, gr.Button, gr.Button]:
    """The left side: (inputs of `Page.enhance`, example buttons with their names, the buttons that start and stop it)."""
    cards = []
    if page.samples:
        gr.HTML('<h2 class="step">Try an example, the clearest gain first</h2>')
        with gr.Row(elem_id="examples"):
            for name, video in page.samples.items():
                card = gr.Button(EXAMPLES[name], icon=str(thumbnail(video)), elem_classes="example-card", min_width=70)
                cards.append((card, name))
    gr.HTML('<h2 class="step">Or bring your own: video, video and sound, or sound alone</h2>')
    # No button that shares a visitor's recording with anyone.
    player = {"type": "filepath", "waveform_options": gr.WaveformOptions(show_recording_waveform=False), "buttons": []}
    with gr.Row(elem_id="given"):
        video = gr.Video(label="Video of the face", sources=["upload", "webcam"], elem_id="video", buttons=[], min_width=150,
                         webcam_options=gr.WebcamOptions(mirror=False))  # fmt: skip
        audio = gr.Audio(label="Sound, if apart", elem_id="audio", sources=["upload", "microphone"], min_width=150, **player)
    with gr.Row():
        run = gr.Button("Enhance", variant="primary", elem_id="run", min_width=120, scale=3)
        stop = gr.Button("Stop", elem_id="stop", min_width=80, interactive=False)
    modes = [(said, mode) for mode, said in VIDEO_MODES.items()]
    video_mode = gr.Dropdown(modes, value=AS_IT_IS, label="The model sees the face", elem_id="video_mode",
                             info="Trust falls with black and frozen frames, less with a covered mouth.")  # fmt: skip
    with gr.Accordion("More: whose face, leave some noise, add noise, scores", open=False):
        face = gr.Dropdown(list(FACES), value=TALKS, label="Of several faces, follow", elem_id="face")
        limit_db = gr.Slider(0, NO_LIMIT_DB, value=NO_LIMIT_DB, step=1, elem_id="limit",
                             label=f"Turn noise down by so many dB at most ({NO_LIMIT_DB}: no limit)")  # fmt: skip
        noises = [NO_NOISE, *(EXAMPLES[name] for name in page.samples)]
        noise = gr.Dropdown(noises, value=NO_NOISE, label="Add the noise of an example", elem_id="noise")
        snr_db = gr.Slider(-10, 20, value=0, step=1, label="SNR of the added noise in dB")
        reference = gr.Audio(label="Clean sound, for scores", sources=["upload"], elem_id="reference", **player)
    for given in (video, audio):  # an example's clean sound says nothing of a visitor's own recording
        given.upload(None, None, reference, js="() => null")
    return [video, audio, reference, noise, snr_db, video_mode, limit_db, face], cards, run, stop


def _show() -> list:
    """The right side: the outputs of `Page.enhance` but for the Stop button, which is on the left."""
    hint = "What comes out will be here: before and after to compare, both to download, and what the model saw."
    told = gr.HTML(f'<div class="sentence empty">{hint}</div>', elem_id="told",
                   js_on_load='element.setAttribute("role", "status")')  # fmt: skip
    progress = gr.HTML(elem_id="progress")
    player = gr.HTML(elem_id="player", js_on_load=(HERE / "player.js").read_text(encoding="utf-8"))
    return [told, progress, player, gr.HTML(elem_id="facts"), gr.HTML(elem_id="scores"), gr.HTML(elem_id="figures")]


def thumbnail(video: Path) -> Path:
    """A frame of the clip, a second in, for its button; written beside it."""
    target = video.with_suffix(".png")
    frame = next(grid_frames(video, 1.0, 0.1), None)
    if frame is not None:
        Image.fromarray(frame).resize((152, 152)).save(target)
    return target


def theme() -> gr.themes.Base:
    """Soft, with text dark enough to be read: a contrast of 4.5 and more (WCAG AA)."""
    soft = gr.themes.Soft(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return soft.set(
        body_text_color_subdued="*neutral_600", block_label_text_color="*primary_800", block_title_text_color="*primary_800",
        block_label_background_fill_dark="*primary_700", block_title_background_fill_dark="*primary_700",
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800", button_primary_background_fill_hover_dark="*primary_800",
    )  # fmt: skip
