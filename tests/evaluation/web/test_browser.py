"""The web page in a real browser: Debian's Chromium, driven by Playwright, its microphone and camera fed from files.

Skipped, saying so, where Chromium or Playwright is not installed; `.ci/run` installs Chromium.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.browser import MARKS, SAMPLE, SETTLED, SLOWLY, choose, download, durations, finished, give
from helpers.tiny import bytes_file, voice, wav_file
from helpers.web import Server, status_of
from utils.media.decode import probe_media

pytestmark = MARKS


def test_an_example_in_one_click(visit: Callable, tmp_path: Path) -> None:
    page = visit()
    page.click("text=Café babble")
    finished(page, "cafe_slt")
    assert durations(page) == pytest.approx({"before": 5.0, "after": 5.0}, abs=0.1)
    assert page.locator("#scores tr").count() == 5 and "clean reference" in page.inner_text("#scores")
    for name in ("trust in the face", "time needed", "delay when live"):
        assert name in page.inner_text("#facts")
    sound, video = download(page, "wav", tmp_path), download(page, "mp4", tmp_path)
    assert (sound.name, video.name) == ("cafe_slt_enhanced.wav", "cafe_slt_enhanced.mp4")
    assert soundfile.info(sound).duration == 5.0
    info = probe_media(video, full=True)
    assert info.has_audio and info.has_video and info.duration_sec == pytest.approx(5.0, abs=0.15)
    # The downloads stand above everything but the player; what explains stands behind folds.
    tops = [page.locator(where).bounding_box()["y"] for where in ("#after", "#mp4", "#facts", "#scores", "#figure")]
    assert tops == sorted(tops)
    assert not page.locator("#figure img").is_visible()
    page.click("#figure summary")
    page.wait_for_function("document.querySelector('#figure img').naturalWidth > 500")
    page.click("#crops summary")
    page.wait_for_function("document.querySelector('#crops video').duration > 4.9")
    mark = page.locator("#fact-trust summary")
    assert not page.locator("#fact-trust p").is_visible()
    mark.press("Enter")
    assert "alpha" in page.inner_text("#fact-trust p")


STATE = "() => ['before', 'after'].map((id) => document.getElementById(id)).map((it) => [it.paused, it.muted, it.currentTime])"


def test_results_stay_where_and_as_they_are_until_a_job_ends(visit: Callable) -> None:
    """Nothing that is shown moves, is drawn anew, closes, stops or loses the focus when more of the results come."""
    names = ["before", "after", "play", "clock", "fact-trust", "figure", "crops"]
    page = visit()
    page.evaluate("""(names) => {  // remembers each as it was when it first came
        window.first = {};
        new MutationObserver(() => {
            for (const id of names) window.first[id] ??= document.getElementById(id);
            if (window.first.play) window.top_of_play ??= window.first.play.getBoundingClientRect().top + scrollY;
        }).observe(document.body, { childList: true, subtree: true });
    }""", names)
    page.click("text=Café babble")
    page.wait_for_selector("#fact-trust", state="attached")
    page.evaluate(SLOWLY)
    page.evaluate("['before', 'after'].forEach((id) => { document.getElementById(id).loop = true; })")
    page.click("#play")
    page.click("#fact-trust summary")
    page.wait_for_selector("#crops", state="attached")
    page.click("#figure summary")
    page.focus("#clock")
    finished(page)
    assert page.evaluate("(names) => names.filter((id) => document.getElementById(id) !== first[id])", names) == []
    assert page.evaluate("document.querySelector('#fact-trust details').open && document.getElementById('figure').open")
    assert page.evaluate("document.activeElement.id") == "clock"
    assert not page.evaluate(STATE)[0][0]
    moved = page.evaluate("document.getElementById('play').getBoundingClientRect().top + scrollY - top_of_play")
    assert abs(moved) <= 1


def test_both_videos_run_by_one_clock_and_one_switch(visit: Callable) -> None:
    page = visit()
    page.click("text=Pink noise")
    durations(page)
    finished(page)
    boxes = [page.locator(f"#{which}").bounding_box() for which in ("before", "after")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]  # side by side
    page.evaluate(SLOWLY)
    page.click("#play")
    page.wait_for_function("document.getElementById('before').currentTime > 0.05")
    (before_paused, before_muted, before_sec), (after_paused, after_muted, after_sec) = page.evaluate(STATE)
    assert not before_paused and not after_paused and before_muted and not after_muted
    assert abs(before_sec - after_sec) < 0.25
    page.check("input[name=heard][value=before]")
    (before_paused, before_muted, again_sec), (after_paused, after_muted, _) = page.evaluate(STATE)
    assert not before_paused and not after_paused and not before_muted and after_muted and again_sec >= before_sec
    page.evaluate("document.getElementById('after').currentTime = 4.5")  # whatever drives them apart
    page.wait_for_function(f"Math.abs(({STATE})()[0][2] - ({STATE})()[1][2]) < 0.25")
    page.click("#play")
    assert [state[0] for state in page.evaluate(STATE)] == [True, True]
    page.fill("#clock", "2.5")
    page.wait_for_function("['before', 'after'].every((id) => Math.abs(document.getElementById(id).currentTime - 2.5) < 0.05)")
    page.wait_for_selector("#time:has-text('0:02')")


def test_the_page_is_used_by_keyboard_alone(visit: Callable) -> None:
    page = visit()
    page.focus(".example-card")
    page.keyboard.press("Enter")
    finished(page)
    page.evaluate(SLOWLY)
    page.focus("#play")
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('before').currentTime > 0.05")
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('before').paused")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clock"
    for key, change_sec in (("ArrowRight", 1), ("ArrowUp", 1), ("ArrowLeft", -1)):
        at_sec = page.evaluate(STATE)[0][2]
        page.evaluate("document.getElementById('clock').value = 0")  # as late as a busy browser may show it
        page.keyboard.press(key)
        page.wait_for_function(
            "(sec) => ['before', 'after'].every((id) => Math.abs(document.getElementById(id).currentTime - sec) < 0.1)",
            arg=at_sec + change_sec,
        )
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")  # of the switch
    assert [state[1] for state in page.evaluate(STATE)] == [False, True]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"


def test_enhance_is_in_sight_on_a_small_notebook(visit: Callable) -> None:
    page = visit(1366, 768)
    page.wait_for_function("[...document.images].length > 3 && [...document.images].every((it) => it.complete)")
    for which in ("run", "stop", "video", "audio"):
        box = page.locator(f"#{which}").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 768, which
    camera, box = (page.locator(it).bounding_box() for it in ("#video [aria-label='Capture from camera']", "#video"))
    assert camera["y"] + camera["height"] <= box["y"] + box["height"]  # not cut off


def test_labels_cover_nothing_on_a_phone(visit: Callable) -> None:
    page = visit(390, 844)
    for which in ("video", "audio"):
        label = page.locator(f"#{which} [data-testid=block-label]").bounding_box()
        text = page.locator(f"#{which} :text('Drop')").last.bounding_box()
        assert label["y"] + label["height"] <= text["y"] + 1, which
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [1280, 390])
def test_a_loaded_videos_label_and_toolbar_lie_apart(visit: Callable, width: int) -> None:
    page = visit(width, 844)
    give(page, "video", SAMPLE)
    page.wait_for_selector("#video video")
    label, clear, video = (page.locator(f"#video {it}").bounding_box() for it in ("label", "[aria-label=Clear]", "video"))
    assert label["x"] + label["width"] <= clear["x"]
    assert max(box["y"] + box["height"] for box in (label, clear)) <= video["y"] + 1
    assert page.locator("#video .top-panel button:visible").count() == 1
    page.click("#video [aria-label=Clear]")
    page.wait_for_selector("#video input[type=file]", state="attached")


def test_work_can_be_stopped_and_its_clock_is_no_old_one(visit: Callable, server: Server, tmp_path: Path) -> None:
    """The work is paused when it has begun, so that no browser is too slow to see it; the clock runs on all the same."""
    page = visit()
    page.click("text=Pink noise")
    finished(page)
    give(page, "audio", wav_file(tmp_path / "minutes.wav", voice(110.0)))
    page.click("#run")
    server.pause_next_job()
    page.wait_for_selector("#progress progress")
    assert page.inner_text("#player") == "" and page.inner_text("#told") == ""  # nothing old beside it
    page.wait_for_selector("#progress :text-matches('· [1-9][0-9]* s')")
    page.click("#stop")
    page.wait_for_selector("#told:has-text('Stopped.')")
    page.wait_for_selector("#progress progress", state="detached")
    page.wait_for_selector("#stop[disabled]")


def test_own_files_with_the_video_off_and_a_sound_of_their_own(visit: Callable, tmp_path: Path) -> None:
    page = visit()
    give(page, "video", SAMPLE)
    give(page, "audio", wav_file(tmp_path / "mine.flac", voice(3.0, 44100), 44100))
    page.click("#run")
    finished(page, "mine")
    assert durations(page)["after"] == pytest.approx(5.0, abs=0.1)  # the video's; its sound ends earlier
    assert "trust in the face" in page.inner_text("#facts")
    assert soundfile.info(download(page, "wav", tmp_path)).samplerate == 44100  # its own
    choose(page, "video_mode", "video off")
    page.click("#run")
    page.wait_for_function("document.querySelector('#facts').innerText.includes('time needed') && "
                           "!document.querySelector('#facts').innerText.includes('trust')")  # fmt: skip
    finished(page, "mine")
    assert page.locator("#crops").count() == 0
    page.click("#video [aria-label=Clear]")
    page.click("#run")  # sound alone: the same player without screens
    page.wait_for_selector("audio#after", state="attached")
    assert durations(page) == pytest.approx({"before": 3.0, "after": 3.0}, abs=0.05)


def test_a_recording_made_with_camera_and_microphone(visit: Callable, tmp_path: Path) -> None:
    page = visit()
    page.click("#video [aria-label='Capture from camera']")
    page.click("#video button:has-text('Access Webcam')")
    page.click("#video .capture-button")
    page.wait_for_timeout(1500)  # of recording
    with page.expect_response(re.compile("/upload")):
        page.click("#video .capture-button")
    page.wait_for_selector("#video video[src*='file=']")  # what was recorded, in the camera's place
    page.click("#run")
    finished(page)
    assert "trust in the face" in page.inner_text("#facts") and durations(page)["after"] > 0.5
    video = probe_media(download(page, "mp4", tmp_path), full=True)
    assert video.has_audio and video.has_video


def test_what_cannot_be_enhanced_is_told_in_a_sentence(visit: Callable, server: Server, tmp_path: Path) -> None:
    two_hours = tmp_path / "two_hours.flac"
    soundfile.write(two_hours, np.zeros(2 * 3600 * 1000, np.int16), 1000)
    files = {
        bytes_file(tmp_path / "letter.wav", b"no sound at all " * 100): "letter.wav is neither sound nor video",
        wav_file(tmp_path / "quiet.wav", np.zeros(16000)): "quiet.wav is silent",
        two_hours: "two_hours.flac lasts 120 minutes; up to 2 minutes are taken here",
    }
    page = visit()
    page.click("#run")
    page.wait_for_selector("#told:has-text('Nothing to enhance yet')")
    for path, told in files.items():
        give(page, "audio", path)
        page.click("#run")
        page.wait_for_selector(f"#told:has-text('{told}')")
        assert str(server.temporary) not in page.inner_text("body") and "Traceback" not in page.inner_text("body")
        page.click("#audio [aria-label=Clear]")
    page.click("text=Hum and knocks")  # it goes on
    assert durations(page)["after"] == pytest.approx(5.0, abs=0.1)
    finished(page, "hum_kal16")


def test_two_visitors_at_once_each_get_their_own(visit: Callable) -> None:
    first, second = visit(), visit()
    first.click("text=Café babble")
    second.click("text=Hum and knocks")
    places = {}
    for page, name in ((first, "cafe_slt"), (second, "hum_kal16")):
        finished(page, name)
        places[name] = page.evaluate("[...document.querySelectorAll('#player video, #figure img')].map((it) => it.src)")
        assert len(places[name]) == 3 and all(name in place for place in places[name])
    assert not set(places["cafe_slt"]) & set(places["hum_kal16"])


def test_a_page_closed_midway_is_no_trouble_to_the_next(visit: Callable, server: Server, tmp_path: Path) -> None:
    page, said = visit(), len(server.log())
    give(page, "audio", wav_file(tmp_path / "minute.wav", voice(100.0)))
    page.click("#run")
    server.pause_next_job()
    page.close()
    after = visit()
    after.click("text=Pink noise")
    finished(after, "pink_rms")
    assert status_of(server.url) == 200 and "Traceback" not in server.log()[said:]


def test_nothing_keeps_anybody_out(visit: Callable) -> None:
    """axe-core finds no violation on any tab, before and after a result, with all folds open; on a phone, and in the dark."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="it brings axe-core: requirements-dev.txt").Axe()
    page = visit()

    def violations() -> list[tuple]:
        all_found = []
        for scheme, width, height in (("light", 1280, 900), ("light", 390, 844), ("dark", 390, 844), ("dark", 1280, 900)):
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function("(dark) => !!document.querySelector('.dark') === dark", arg=scheme == "dark")
            page.wait_for_function(SETTLED)
            found = axe.run(page).response
            assert len(found["passes"]) > 10  # it did look
            nodes = [(rule["id"], node["html"][:200]) for rule in found["violations"] for node in rule["nodes"]]
            all_found += [(scheme, width, *node) for node in nodes]
        return all_found

    assert not violations()
    page.click("text=Café babble")
    finished(page)
    page.evaluate("document.querySelectorAll('details').forEach((it) => { it.open = true; })")
    page.click("button:has-text('More: whose face')")
    page.wait_for_selector("#face input")
    assert not violations()
    page.click("role=tab[name='Live']")
    page.wait_for_selector("#live-start")
    assert not violations()
