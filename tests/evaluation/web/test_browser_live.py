"""The page's Live tab in a real browser, whose microphone and camera are fed from files."""

from __future__ import annotations

import time
from collections.abc import Callable

from helpers.browser import MARKS
from helpers.paths import LONGEST_SEC

pytestmark = MARKS


def begin_live(page) -> None:
    page.click("role=tab[name='Live']")
    page.click("#live-start")


def number(page, name: str) -> float:
    return float(page.inner_text(f"#live-{name}").split()[0])


def heard(page, seconds: float) -> None:
    page.wait_for_function("(seconds) => parseFloat(document.querySelector('#live-heard').innerText) >= seconds", arg=seconds)


def test_live_sound_goes_out_and_comes_back(visit: Callable) -> None:
    page = visit()
    begin_live(page)
    page.wait_for_selector("#live-status:has-text('Live.')")
    heard(page, 3.0)
    assert page.inner_text("#live-face") == "face found"
    assert 0 < number(page, "alpha") < 1 and number(page, "rtf") > 0
    assert number(page, "backlog") >= 0 and number(page, "latency") >= 25
    crop = "Math.max(...document.querySelector('#live-crop').getContext('2d').getImageData(90, 90, 10, 10).data.slice(0, 3))"
    assert page.evaluate(crop) > 20  # the crop has arrived
    page.select_option("#live-mode", "off")
    page.wait_for_function("document.querySelector('#live-alpha').innerText === '0.00'")
    assert page.inner_text("#live-face") == "video off"
    page.click("#live-stop")
    page.wait_for_selector("#live-status:has-text('Stopped.')")


def test_the_third_live_visitor_waits_until_a_tab_is_closed(visit: Callable) -> None:
    pages = [visit() for _ in range(3)]
    for page in pages[:2]:
        begin_live(page)
        heard(page, 0.5)
    begin_live(pages[2])
    pages[2].wait_for_selector("#live-status:has-text('Others are live')")
    pages[0].close()
    deadline = time.monotonic() + LONGEST_SEC
    while time.monotonic() < deadline:
        pages[2].click("#live-start")
        pages[2].wait_for_selector("#live-status:has-text('Live.'), #live-status:has-text('Others')")
        if "Live." in pages[2].inner_text("#live-status"):
            break
        time.sleep(0.2)
    heard(pages[2], 0.5)
    before = number(pages[1], "heard")
    heard(pages[1], before + 0.5)  # who stayed was not disturbed


def test_a_browser_without_a_microphone_is_told(visit: Callable) -> None:
    page = visit()
    refuse = "async () => { throw new DOMException('', 'NotAllowedError'); }"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refuse}; }}")
    begin_live(page)
    page.wait_for_selector("#live-status:has-text('does not let this page use the microphone')")
