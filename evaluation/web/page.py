"""The web page's buttons and what they do: recordings go into the line and their answers come back, step by step."""

from __future__ import annotations

import asyncio
import logging
import pickle
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route, WebSocketRoute

from evaluation.web import layout
from evaluation.web.connections import Connection
from evaluation.web.enhance import Answer, work
from evaluation.web.gate import Gate, Names, visitor_of
from evaluation.web.job import Failure, Job, Progress, start_job_server
from evaluation.web.line import Line, Turn
from evaluation.web.live import LiveRoom
from evaluation.web.recording import AS_IT_IS, Complaint, Limits, Wish, sample_noise
from evaluation.web.results import facts_html, figures_html, player_html, progress_html, scores_html, sentence
from models.inference.enhancer import Enhancer

MEMORY_BYTES = 4 * 2**30  # that the work on one recording may take on a CPU
TELL_SEC = 0.4  # between two looks at the clock on the page
KEPT_EACH = 4  # results of one visitor that are kept
FAILED = "Something failed on the server, and its log says what. Other recordings may well work."

_log = logging.getLogger(__name__)


class Page:
    """The page's state on the server: one model for all visitors, and whose recordings are under way.

    samples: the folder with the examples. folder: holds made/, where results go, and cache/, where Gradio keeps uploads.
    threads: torch threads of each recording.
    """

    def __init__(
        self, enhancer: Enhancer, limits: Limits, samples: Path, folder: Path, live_visitors: int = 2, threads: int = 1
    ) -> None:
        self.enhancer, self.limits, self.folder, self.threads = enhancer, limits, folder, threads
        self.room, self.line = LiveRoom(enhancer, live_visitors), Line()
        self.samples = {name: samples / f"{name}.mp4" for name in layout.EXAMPLES if (samples / f"{name}.mp4").is_file()}
        self._packed = pickle.dumps(enhancer)
        self._under_way: dict[str, threading.Event] = {}  # by session: is set when the work is not wanted any more
        self._made: dict[str, deque[Path]] = {}  # by visitor: folders of results, the oldest first
        self._lock = threading.Lock()
        start_job_server()

    def stop(self, request: gr.Request) -> None:
        """The visitor does not want what is under way: the Stop button was pressed, or the page closed."""
        with self._lock:
            wanted = self._under_way.get(str(request.session_hash))
        if wanted is not None:
            wanted.set()

    def noise(self, label: str | None) -> np.ndarray | None:
        """The noise of the example so labelled; None for none."""
        name = next((name for name in self.samples if layout.EXAMPLES[name] == label), None)
        if name is None:
            return None
        video = self.samples[name]
        return sample_noise(video, video.with_name(f"{name}_clean.flac"), self.enhancer.sample_rate)

    def example(self, name: str) -> tuple:
        """The values of the inputs that make up an example."""
        video = self.samples[name]
        clean = video.with_name(f"{name}_clean.flac")
        reference = str(clean) if clean.is_file() else None
        return str(video), None, reference, layout.NO_NOISE, 0, AS_IT_IS, layout.NO_LIMIT_DB, layout.TALKS

    def enhance(
        self, video: str | None, audio: str | None, reference: str | None, noise: str, snr_db: float, video_mode: str,
        limit_db: float, face: str, request: gr.Request,
    ) -> Iterator[tuple]:
        """What the Enhance button does: yields the values of `layout.OUTPUTS`, more of them from step to step."""
        session, unwanted = str(request.session_hash), threading.Event()
        with self._lock:  # a new wish takes the place of an older one
            older, self._under_way[session] = self._under_way.get(session), unwanted
        if older is not None:
            older.set()
        try:
            wish = Wish(
                video=_path(video), audio=_path(audio), reference=_path(reference), noise=self.noise(noise),
                snr_db=float(snr_db), video_mode=str(video_mode), face=layout.FACES.get(face),
                limit_db=None if limit_db >= layout.NO_LIMIT_DB else float(limit_db),
            )  # fmt: skip
            visitor = visitor_of((request.client.host if request.client else "",))
            turn = self.line.enter(visitor)
            try:
                yield from self._work(wish, visitor, turn, unwanted)
            finally:
                self.line.leave(turn)
        except Complaint as error:
            yield self._ended(unwanted, str(error), "bad")
        except Exception:  # whatever it was, it ends one visitor's wait and not the server; the log has the traceback
            _log.exception("enhancing failed")
            yield self._ended(unwanted, FAILED, "bad")
        finally:
            with self._lock:
                if self._under_way.get(session) is unwanted:
                    del self._under_way[session]

    def _work(self, wish: Wish, visitor: str, turn: Turn, unwanted: threading.Event) -> Iterator[tuple]:
        folder = self.folder / "made" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        began_sec = told_sec = time.monotonic()
        progress, shown = Progress(0.0, "waiting"), None
        memory_bytes = MEMORY_BYTES if self.enhancer.device.type == "cpu" else None  # CUDA maps far more than it takes
        args = self._packed, self.threads, wish, self.limits, folder
        yield begun(progress)
        try:
            with Job(work, *args, memory_bytes=memory_bytes) as job:
                while not unwanted.is_set():
                    if self.line.may_work(turn):
                        job.go()
                    else:
                        job.rest()
                    try:
                        given = job.receive(0.1)
                    except EOFError:
                        yield self._ended(unwanted, f"{shown.name} is done." if shown else FAILED)
                        return
                    if isinstance(given, Complaint):
                        raise given
                    if isinstance(given, Failure):
                        raise RuntimeError(given.why)
                    if isinstance(given, Progress):
                        progress = given
                    elif isinstance(given, Answer):
                        yield answered(given, shown)
                        shown = given
                    if time.monotonic() - told_sec > TELL_SEC:
                        told_sec = time.monotonic()
                        yield at_work(self._said(progress, turn), told_sec - began_sec)
            yield self._ended(unwanted, "Stopped.")
        finally:
            self._keep(visitor, folder, shown is not None)

    def _ended(self, unwanted: threading.Event, text: str, kind: str = "") -> tuple:
        """The outputs at the end; none where a newer wish of the visitor's has them already."""
        with self._lock:
            return ended(text, kind) if unwanted in self._under_way.values() else (gr.skip(),) * len(layout.OUTPUTS)

    def _said(self, progress: Progress, turn: Turn) -> Progress:
        before = self.line.before(turn)
        if turn.since_sec is None and before:
            return progress._replace(what=f"waiting, {before} recording{'s' if before > 1 else ''} before this one")
        return progress

    def _keep(self, visitor: str, folder: Path, is_shown: bool) -> None:
        """Keep what is shown, and of each visitor no more than KEPT_EACH of it."""
        if not is_shown:
            shutil.rmtree(folder, ignore_errors=True)
            return
        with self._lock:
            kept = self._made.setdefault(visitor, deque())
            kept.append(folder)
            oldest = [kept.popleft() for _ in range(len(kept) - KEPT_EACH)]
            self._made = {name: held for name, held in self._made.items() if any(path.exists() for path in held)}
        for path in oldest:
            shutil.rmtree(path, ignore_errors=True)

    async def made(self, request: Request) -> FileResponse:
        """The endpoint of made/: a file of a result, for whoever was told its folder."""
        path = self.folder / "made" / request.path_params["folder"] / request.path_params["name"]
        if not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, headers={"cache-control": "private, no-store"})


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def begun(progress: Progress) -> tuple:
    """The outputs when the work begins: what an earlier one left is gone."""
    return "", progress_html(progress, 0.0), "", "", "", "", gr.update(interactive=True)


def at_work(progress: Progress, elapsed_sec: float) -> tuple:
    return gr.skip(), progress_html(progress, elapsed_sec), *[gr.skip()] * 5


def answered(shown: Answer, earlier: Answer | None) -> tuple:
    """The outputs for an answer. What has not changed is left alone: it may play, be open, or have the focus."""
    results = []
    for drawn in (player_html, facts_html, scores_html, figures_html):
        new, old = drawn(shown), "" if earlier is None else drawn(earlier)
        results.append(gr.skip() if new == old else new)
    return gr.skip(), gr.skip(), *results, gr.skip()


def ended(text: str, kind: str = "") -> tuple:
    return sentence(text, kind), "", *[gr.skip()] * 4, gr.update(interactive=False)


def serve_page(page: Page, listener: socket.socket, names: Names, frames: str) -> None:
    """Serve the page at a bound socket until the program is interrupted."""
    blocks = layout.build_page(page)
    app = Starlette(routes=[
        WebSocketRoute("/live", page.room.serve), Route("/made/{folder}/{name}", page.made),
    ])  # fmt: skip
    gr.mount_gradio_app(
        app, blocks, path="/", server_name=names.host, server_port=listener.getsockname()[1], footer_links=[],
        run_history=False, show_error=False, max_file_size=page.limits.largest_mb * 10**6, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, theme=layout.theme(), css_paths=layout.HERE / "page.css",
    )  # fmt: skip
    gate = Gate(app, Path(blocks.GRADIO_CACHE), names, page.limits.largest_mb, frames)
    config = uvicorn.Config(
        gate, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=10, ws_max_size=1 << 19, ws_max_queue=64,
        h11_max_incomplete_event_size=1 << 16, server_header=False, http=Connection,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(_is_not_of_the_end)
    uvicorn.Server(config).run(sockets=[listener])


def _is_not_of_the_end(record: logging.LogRecord) -> bool:
    """False for what uvicorn says of pages that are open when the server ends: a traceback for each, as if it had failed."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "timeout graceful shutdown exceeded" not in record.getMessage()
