"""app.py's options, and what its page answers without a browser."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.tiny import only_line, voice, wav_file
from helpers.web import ROOT

pytest.importorskip("gradio", reason="the web page's packages are missing: pip install -r requirements-app.txt")

import gradio as gr

import app
from evaluation.web import page as page_module
from evaluation.web.job import Job
from evaluation.web.layout import EXAMPLES, theme
from evaluation.web.page import KEPT_EACH, Page
from evaluation.web.recording import AS_IT_IS, OFF, Limits
from helpers.jobs import fail, never_end
from models.inference.enhancer import Enhancer

TOLD, PROGRESS, PLAYER, FACTS, SCORES, FIGURES, STOP = range(7)  # of the outputs


@pytest.fixture(scope="module")
def page(causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("visitors")
    return Page(Enhancer.from_checkpoint(causal_checkpoint, "cpu"), Limits(longest_sec=20), ROOT / "samples", folder)


def asked(
    page: Page, video=None, audio=None, reference=None, noise="none", snr_db=0, video_mode=AS_IT_IS, limit_db=40,
    face="the one that talks", session="somebody", address="192.0.2.1",
):
    """What the Enhance button makes the page show, step by step."""
    request = SimpleNamespace(session_hash=session, client=SimpleNamespace(host=address))
    paths = (None if path is None else str(path) for path in (video, audio, reference))
    return page.enhance(*paths, noise, snr_db, video_mode, limit_db, face, request)


def shown(page: Page, **wish) -> list:
    """The last value of each output that says something, and the number of steps that changed the results."""
    last = [""] * 7
    for step in asked(page, **wish):
        last = [new if isinstance(new, str) else old for new, old in zip(step, last, strict=True)]
    return last


def made_files(page: Page) -> list[Path]:
    return [path for path in (page.folder / "made").rglob("*") if path.is_file()]


def test_it_is_served_to_this_machine_alone_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    assert app.parse([]).host == "127.0.0.1" and app.parse([]).port == 7860 and app.parse([]).allowed_hosts == []
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # as a Hugging Face Space says it
    monkeypatch.setenv("SPACE_HOST", "somebody-something.hf.space")
    assert app.parse([]).host == "0.0.0.0" and app.parse([]).allowed_hosts == ["somebody-something.hf.space"]


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--longest_sec", "-1"], ["--checkpoint_file", "nowhere.pth"]])
def test_mistakes_on_the_command_line_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = app.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert arguments[1] in only_line(capsys.readouterr().err)


def test_a_port_in_use_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert app.main(["--port", str(port), "--checkpoint_file", str(tmp_path / "never_looked_at.pth")]) == 2
    assert f"--port {port} is in use" in only_line(capsys.readouterr().err)


def test_an_example_is_enhanced_and_scored(page: Page) -> None:
    video = ROOT / "samples" / "hum_kal16.mp4"
    last = shown(page, video=video, reference=video.with_name("hum_kal16_clean.flac"))
    assert "hum_kal16 is done" in last[TOLD] and not last[PROGRESS]
    for name in ("trust in the face", "face seen", "time needed", "25 ms"):
        assert name in last[FACTS]
    for name in ("PESQ-WB", "STOI", "SI-SDR", "sound quality"):
        assert name in last[SCORES]
    for where in ("hum_kal16_before.mp4", "hum_kal16_after.mp4", "hum_kal16_enhanced.mp4", "hum_kal16_enhanced.wav"):
        assert where in last[PLAYER]
    assert "hum_kal16.png" in last[FIGURES] and "hum_kal16_face.mp4" in last[FIGURES]
    links = re.findall(r'(?:src|href)="([^"]+)"', "".join(last))
    assert len(set(links)) == 6 and all((page.folder / link).is_file() for link in links)


def test_video_off_shows_no_trust(page: Page, talking_clip: Path) -> None:
    assert "trust in the face" in shown(page, video=talking_clip)[FACTS]
    off = shown(page, video=talking_clip, video_mode=OFF)
    assert "trust in the face" not in off[FACTS] and 'id="crops"' not in off[FIGURES]
    assert "<video" in off[PLAYER]  # it still plays


def test_added_noise_is_scored_against_what_was_there_before(page: Page, tmp_path: Path) -> None:
    sound = wav_file(tmp_path / "talk.wav", voice(1.0))
    last = shown(page, audio=sound, noise=EXAMPLES["pink_rms"], snr_db=-5)
    assert "before noise was added" in last[SCORES] and "<audio" in last[PLAYER]


def test_a_refusal_is_a_sentence_on_the_page(page: Page, tmp_path: Path) -> None:
    before = made_files(page)
    for path in (wav_file(tmp_path / "quiet.wav", np.zeros(1000)), wav_file(tmp_path / "long.wav", voice(21.0))):
        last = shown(page, audio=path)
        assert path.name in last[TOLD] and str(tmp_path) not in last[TOLD] and not last[PLAYER]
    assert made_files(page) == before


def test_names_of_files_are_not_taken_for_markup(page: Page, tmp_path: Path) -> None:
    for sound in (np.zeros(1000), voice(0.5)):
        last = shown(page, audio=wav_file(tmp_path / '"><img src=x>.wav', sound))
        assert "<img src=x" not in "".join(last) and "&lt;img" in last[TOLD]


def test_a_bug_is_one_sentence_and_goes_to_the_log(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page_module, "work", fail)
    monkeypatch.setattr(page_module, "Job", lambda function, *_, **__: Job(fail))
    monkeypatch.setattr(page_module, "answered", lambda shown, earlier: ("",) * 7)
    last = shown(page, audio=wav_file(tmp_path / "a.wav"))
    assert "a bug" not in last[TOLD] and "server" in last[TOLD]
    assert "a bug" in caplog.text


def test_stop_ends_the_work_under_way_and_keeps_nothing(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted((page.folder / "made").iterdir())
    monkeypatch.setattr(page_module, "Job", lambda *_, **__: Job(never_end))
    sound = wav_file(tmp_path / "a.wav", voice(1.0))
    steps = asked(page, audio=sound, session="gone")
    next(steps)
    page.stop(SimpleNamespace(session_hash="gone"))
    began = time.monotonic()
    (*_, last) = steps
    assert "Stopped" in last[TOLD] and time.monotonic() - began < 20
    page.stop(SimpleNamespace(session_hash="gone"))  # and once more changes nothing
    assert sorted((page.folder / "made").iterdir()) == before


def test_a_new_wish_takes_the_place_of_the_older_one(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = wav_file(tmp_path / "a.wav", voice(1.0))
    with monkeypatch.context() as patched:
        patched.setattr(page_module, "Job", lambda *_, **__: Job(never_end))
        first = asked(page, audio=sound, session="same")
        next(first)
    assert "a is done" in shown(page, audio=sound, session="same")[TOLD]
    *_, last = first
    assert all(value == gr.skip() for value in last)  # the outputs are the newer one's by now


def test_its_clock_runs_on_whatever_the_work_does(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "Job", lambda *_, **__: Job(never_end))
    steps = asked(page, audio=wav_file(tmp_path / "a.wav"), session="slow")
    assert next(steps)[PLAYER] == ""  # nothing old is left beside it
    clocks = []
    for step in steps:
        clocks.append(step[PROGRESS])
        if "2 s" in clocks[-1]:
            break
    assert any("1 s" in clock for clock in clocks)
    steps.close()


def test_who_works_endlessly_holds_nobody_up(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.line, "slice_sec", 0.5)
    sound, threads, unwanted = wav_file(tmp_path / "a.wav", voice(1.0)), [], []
    with monkeypatch.context() as patched:
        patched.setattr(page_module, "Job", lambda *_, **__: Job(never_end))
        for k in range(3):
            steps = asked(page, audio=sound, session=f"endless {k}", address="192.0.2.9")
            next(steps)
            threads.append(threading.Thread(target=lambda steps=steps: unwanted.append(list(steps))))
            threads[-1].start()
    refused = shown(page, audio=sound, session="endless 4", address="192.0.2.9")
    assert "You have 3 recordings under way" in refused[TOLD]
    assert "a is done" in shown(page, audio=sound, session="other", address="192.0.2.1")[TOLD]
    for k in range(3):
        page.stop(SimpleNamespace(session_hash=f"endless {k}"))
    for thread in threads:
        thread.join(60)
    assert len(unwanted) == 3


def test_of_each_visitor_the_newest_results_are_kept(page: Page, tmp_path: Path) -> None:
    sound, links = wav_file(tmp_path / "a.wav", voice(0.3)), []
    for _ in range(KEPT_EACH + 1):
        links.append(re.search('src="(made/[^"]+)"', shown(page, audio=sound, address="192.0.2.77")[PLAYER])[1])
    assert [(page.folder / link).exists() for link in links] == [False] + [True] * KEPT_EACH


def contrast(first: str, second: str) -> float:
    """WCAG's contrast of two colours "#rrggbb"."""
    lights = []
    for colour in (first, second):
        shares = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(lights) / min(lights)


def test_text_can_be_read() -> None:
    soft = theme()

    def colour(name: str) -> str:
        value = getattr(soft, name)
        return getattr(soft, value[1:]) if value.startswith("*") else value

    assert contrast(colour("body_text_color_subdued"), "#ffffff") > 4.5
    for name in ("block_label_text_color", "block_title_text_color"):
        assert contrast(colour(name), soft.primary_100) > 4.5, name
    for name in ("block_label_background_fill_dark", "block_title_background_fill_dark"):
        assert contrast(colour(name), "#ffffff") > 4.5, name
    for name in ("button_primary_background_fill", "button_primary_background_fill_hover"):
        assert contrast(colour(name), "#ffffff") > 4.5 and contrast(colour(f"{name}_dark"), "#ffffff") > 4.5, name
