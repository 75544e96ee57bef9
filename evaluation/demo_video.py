"""Records the web page in use, with its sound: an example before and after, a degraded video, and the live tab.

    python -m evaluation.demo_video --output results/demo_video.mp4

It needs Chromium and Playwright. A clip of samples/ takes the place of microphone and camera.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile
from PIL import Image

from utils import console
from utils.distributed import free_port
from utils.media.clip_writer import ClipWriter
from utils.media.replace_sound import replace_sound
from utils.media.sound import load_audio

ROOT = Path(__file__).resolve().parents[1]
FPS, CRF, RATE_HZ = 10, 30, 16000
WIDTH, HEIGHT = 1280, 800  # of the window; the video is shown at FILM_WIDTH
FILM_WIDTH = 960
WAIT_MS = 60_000
POINTER = """
const dot = document.createElement('div');
dot.id = 'pointer';
dot.style.cssText = 'position:fixed;left:640px;top:400px;width:22px;height:22px;margin:-11px;border-radius:50%;z-index:9999;' +
  'background:#e67e2299;border:2px solid #e67e22;pointer-events:none;transition:all .45s ease';
document.body.append(dot);
"""


class Film:
    """The screenshots of a page and the sounds that it plays, each with its time."""

    def __init__(self, page) -> None:
        self.page = page
        self._began = time.monotonic()
        self._frames: list[tuple[float, bytes]] = []
        self._sounds: list[tuple[float, np.ndarray]] = []
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._take)
        self._session.send("Page.startScreencast", {"format": "jpeg", "quality": 90, "everyNthFrame": 2})

    def now_sec(self) -> float:
        return time.monotonic() - self._began

    def _take(self, event: dict) -> None:
        self._frames.append((self.now_sec(), base64.b64decode(event["data"])))
        self._session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    def rest(self, seconds: float) -> None:
        self.page.wait_for_timeout(1000 * seconds)

    def hear(self, samples: np.ndarray) -> None:
        """From now on these samples are heard in place of earlier ones."""
        self._sounds.append((self.now_sec(), samples))

    def click(self, selector: str) -> None:
        """Move the pointer there, and click."""
        where = self.page.locator(selector).first
        where.scroll_into_view_if_needed()
        box = where.bounding_box()
        spot = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        style = "([x, y]) => Object.assign(document.getElementById('pointer').style, {left: `${x}px`, top: `${y}px`})"
        self.page.evaluate(style, spot)
        self.rest(0.7)
        where.click()

    def write(self, path: Path) -> None:
        """Writes everything as one .mp4 of FPS frames a second."""
        times = np.array([at for at, _ in self._frames])
        size = (FILM_WIDTH, FILM_WIDTH * HEIGHT // WIDTH)
        n_frames, last, frame = int(self.now_sec() * FPS), -1, None
        sound = np.zeros(n_frames * RATE_HZ // FPS, np.float32)
        for at_sec, samples in self._sounds:
            first = int(at_sec * RATE_HZ)
            sound[first:] = 0
            sound[first : first + len(samples)] = samples[: max(0, len(sound) - first)]
        with tempfile.TemporaryDirectory(prefix="liteavse_") as folder:
            silent = Path(folder, "film.mp4")
            with ClipWriter(silent, None, FPS, size[::-1], CRF) as clip:
                for tick in range(n_frames):
                    index = max(0, int(np.searchsorted(times, tick / FPS, side="right")) - 1)
                    if index != last:
                        decoded = cv2.imdecode(np.frombuffer(self._frames[index][1], np.uint8), cv2.IMREAD_COLOR)
                        frame = cv2.cvtColor(cv2.resize(decoded, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
                        last = index
                    clip.add(frame[None])
                clip.finish([])
            replace_sound(silent, sound, RATE_HZ, path)


def fake_devices(clip: Path, folder: Path) -> list[str]:
    """Chromium's options for a microphone that plays the clip, and a camera that shows it."""
    microphone, camera = folder / "microphone.wav", folder / "camera.y4m"
    soundfile.write(microphone, load_audio(clip, 48000), 48000)
    with av.open(str(clip)) as container, open(camera, "wb") as file:
        stream = container.streams.video[0]
        file.write(f"YUV4MPEG2 W{stream.width} H{stream.height} F25:1 Ip A1:1 C420jpeg\n".encode())
        for frame in container.decode(stream):
            file.write(b"FRAME\n" + frame.to_ndarray(format="yuv420p").tobytes())
    return [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required",
        f"--use-file-for-fake-audio-capture={microphone}", f"--use-file-for-fake-video-capture={camera}",
    ]  # fmt: skip


def play(film: Film, which: str, seconds: float, start_sec: float = 0.0) -> None:
    """Play the page's two videos from start_sec on for a while, and hear the one of that name."""
    address = film.page.evaluate(f"document.getElementById('{which}').src")
    suffix = Path(address).suffix
    with urllib.request.urlopen(address, timeout=30) as answer, tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(answer.read())
        file.flush()
        samples = load_audio(file.name, RATE_HZ)
    film.page.check(f"input[name=heard][value={which}]")
    film.page.fill("#clock", f"{start_sec:g}")
    film.page.click("#play")
    film.hear(samples[int(start_sec * RATE_HZ) :])
    film.rest(seconds)


def act(page, figure: Path | None) -> Film:
    """All that is shown, from the opened page to the end. figure: where a .png of the page goes."""
    page.evaluate(POINTER)
    film = Film(page)
    film.rest(1.0)
    film.click("text=Pink noise")
    page.wait_for_selector("#scores table", timeout=WAIT_MS)
    film.rest(0.5)
    play(film, "before", 3.0)
    film.page.click("#play")  # which now says Pause
    play(film, "after", 5.0)
    film.hear(np.zeros(0, np.float32))
    if figure is not None:
        page.evaluate("document.getElementById('pointer').hidden = true; window.scrollTo(0, 0)")
        figure.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=figure, full_page=True)
        Image.open(figure).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(figure, optimize=True)
        page.evaluate("document.getElementById('pointer').hidden = false")
    page.mouse.wheel(0, 700)
    film.rest(2.0)
    page.evaluate("window.scrollTo({top: 0, behavior: 'smooth'})")
    film.click("#video_mode input")
    film.click("[role=option]:has-text('mouth covered')")
    film.click("#run")
    page.wait_for_selector("#scores table", state="detached", timeout=WAIT_MS)
    page.wait_for_selector("#scores table", timeout=WAIT_MS)
    film.click("#figure summary")
    film.rest(1.0)
    page.mouse.wheel(0, 500)
    film.rest(2.5)
    page.evaluate("window.scrollTo({top: 0, behavior: 'smooth'})")
    film.click("role=tab[name='Live']")
    film.click("#live-start")
    film.rest(6.0)
    page.select_option("#live-mode", "off")
    film.rest(2.5)
    page.select_option("#live-mode", "as it is")
    film.rest(2.5)
    film.click("#live-stop")
    film.rest(0.5)
    return film


def served(checkpoint: Path, folder: Path, body: Callable[[str], None]) -> None:
    """Run `body` with the address of the page, served by app.py."""
    port = free_port()
    command = [sys.executable, str(ROOT / "app.py"), "--checkpoint_file", str(checkpoint), "--port", str(port)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise ValueError(f"app.py ended: {(folder / 'log').read_text(errors='replace').strip()}") from None
                time.sleep(0.2)
        body(f"http://127.0.0.1:{port}/")
    finally:
        server.terminate()
        server.wait(30)


def record(args: argparse.Namespace) -> int:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise ValueError("recording the page needs Chromium: install Debian's chromium, or another's package of it")
    if importlib.util.find_spec("playwright") is None:
        raise ValueError("recording the page needs the playwright package: pip install -r requirements-dev.txt")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="liteavse_film_") as name:
        options = fake_devices(ROOT / "samples" / "pink_rms.mp4", Path(name))
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium has none for root

        def film(address: str) -> None:
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=chromium, args=options)
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
                page.goto(address)
                page.wait_for_selector("#run")
                page.wait_for_function("[...document.images].length > 3 && [...document.images].every((it) => it.complete)")
                act(page, args.figure).write(args.output)
                browser.close()

        served(args.checkpoint_file, Path(name), film)
    print(f"written to {args.output}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser("evaluation.demo_video", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_file", type=Path, default=ROOT / "ckpts" / "LiteAVSE_small.pth",
                        help="default: ckpts/LiteAVSE_small.pth")
    parser.add_argument("--output", type=Path, default=Path("results/demo_video.mp4"), help="default: results/demo_video.mp4")
    parser.add_argument("--figure", type=Path, help="also write a .png of the page with an example's results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return console.run("evaluation.demo_video", lambda: record(args))


if __name__ == "__main__":
    raise SystemExit(main())
