"""What the browser tests share: Chromium with fake devices, and what a visitor does on the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import av
import pytest
import soundfile

from helpers.paths import LONGEST_SEC
from helpers.web import ROOT
from utils.media.sound import load_audio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARKS = [
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium: apt-get install chromium"),
    pytest.mark.timeout(2 * LONGEST_SEC),
]
WAIT_MS = 1000 * LONGEST_SEC
# Counts the streams of the server's messages that are open: the server ends them when it has said everything.
COUNT_STREAMS = """
(() => {
  const ask = window.fetch;
  window.streams = 0;
  window.fetch = async (...given) => {
    const reply = await ask(...given);
    if (reply.url.includes("/queue/data")) {
      window.streams += 1;
      reply.clone().text().catch(() => {}).finally(() => { window.streams -= 1; });
    }
    return reply;
  };
})();
"""
# Everything of the page has come, and nothing moves any more but what moves for ever.
SETTLED = """() => !document.querySelector(".loading") && document.fonts.status === "loaded"
  && [...document.images].every((it) => it.complete)
  && !document.getAnimations().some((it) => it.playState === "running" && it.effect.getComputedTiming().endTime !== Infinity)"""
# A recording of 5 s would end before a slow machine has looked at it.
SLOWLY = "() => ['before', 'after'].forEach((id) => { document.getElementById(id).playbackRate = 0.1; })"
SAMPLE = ROOT / "samples" / "cafe_slt.mp4"


def fake_devices(folder: Path) -> list[str]:
    """Chromium's options for a microphone that plays the sample, and a camera that shows it."""
    soundfile.write(folder / "mic.wav", load_audio(SAMPLE, 48000), 48000)
    with av.open(str(SAMPLE)) as container, open(folder / "camera.y4m", "wb") as file:
        file.write(b"YUV4MPEG2 W240 H240 F25:1 Ip A1:1 C420jpeg\n")
        for frame in container.decode(video=0):
            file.write(b"FRAME\n" + frame.to_ndarray(format="yuv420p").tobytes())
    return [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'mic.wav'}", f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}",
    ]  # fmt: skip


def give(page, where: str, path: Path) -> None:
    """Upload a file into a component, and wait until the page has it."""
    with page.expect_response(re.compile("/upload")):
        page.set_input_files(f"#{where} input[type=file]", str(path))
    page.wait_for_function("(where) => !document.querySelector(`#${where} input[type=file]`)", arg=where)


def durations(page) -> dict[str, float]:
    found = {}
    for which in ("before", "after"):
        page.wait_for_function(f"document.querySelector('#{which}')?.duration > 0")
        found[which] = page.evaluate(f"document.querySelector('#{which}').duration")
    return found


def finished(page, name: str = "") -> None:
    """Wait for the last step, and until the server has said everything."""
    page.wait_for_selector(f"#told:has-text('{name} is done.')")
    page.wait_for_function("window.streams === 0")
    assert page.locator("#progress progress").count() == 0


def download(page, which: str, folder: Path) -> Path:
    with page.expect_download() as downloading:
        page.click(f"#{which}")
    path = folder / downloading.value.suggested_filename
    downloading.value.save_as(path)
    return path


def choose(page, which: str, label: str) -> None:
    """Choose from a drop-down, which must be closed afterwards."""
    page.click(f"#{which} input")
    page.click(f"[role=option]:has-text('{label}')")
    page.wait_for_selector("[role=option]", state="detached")
