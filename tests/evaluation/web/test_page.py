"""app.py: its options, what its page answers without a browser, and what its server lets nobody reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.tiny import only_line, voice, wav_file
from helpers.web import ROOT

pytest.importorskip("gradio", reason="the web page's packages are missing: pip install -r requirements-app.txt")

import app
from evaluation.web.page import EXAMPLES, PICTURES, Page, _theme
from evaluation.web.recording import Limits
from models.inference.enhancer import Enhancer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gradio")  # gr.Warning, where no page is open


@pytest.fixture(scope="module")
def page(causal_checkpoint: Path) -> Iterator[Page]:
    page = Page(Enhancer.from_checkpoint(causal_checkpoint, "cpu"), Limits(longest_sec=20), ROOT / "samples")
    yield page
    page.pool.close()


def shown(
    page: Page, video=None, audio=None, reference=None, noise="none", snr_db=0, picture="as it is", limit_db=40,
    face="the one that talks", **options,
) -> list[tuple]:
    """All that the Enhance button makes the page show."""
    visitor = SimpleNamespace(session_hash=options.get("visitor", "somebody"))
    paths = (None if path is None else str(path) for path in (video, audio, reference))
    progress = options.get("progress", lambda share, desc: None)
    return list(page.enhance(*paths, noise, snr_db, picture, limit_db, face, visitor, progress))


def test_it_is_served_to_this_machine_alone_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    assert app.parse([]).host == "127.0.0.1" and app.parse([]).port == 7860
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # as a Hugging Face Space says it
    assert app.parse([]).host == "0.0.0.0"


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--longest_sec", "-1"], ["--checkpoint_file", "nowhere.pth"]])
def test_mistakes_on_the_command_line_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = app.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert arguments[1] in only_line(capsys.readouterr().err)


def test_an_example_is_enhanced_and_scored(page: Page) -> None:
    told: list[str] = []
    video = ROOT / "samples" / "hum_kal16.mp4"
    clean = video.with_name("hum_kal16_clean.flac")
    steps = shown(page, video, reference=clean, progress=lambda share, desc: told.append(desc))
    assert len(steps) == 3 and {"enhancing", "drawing", "scoring"} <= set(told)
    facts, scores = steps[-1][4], steps[-1][7]["value"]
    for name in ("RTF", "latency", "25 ms", "mean alpha", "face seen"):
        assert name in facts
    for name in ("PESQ-WB", "STOI", "SI-SDR"):
        assert name in scores
    assert not Path(steps[0][2]).exists()  # its own files are gone: gradio has copied what it shows


def test_video_off_shows_no_alpha(page: Page, talking_clip: Path) -> None:
    assert "mean alpha" in shown(page, talking_clip)[-1][4]
    off = shown(page, talking_clip, picture="video off")[-1]
    assert "mean alpha" not in off[4] and off[6]["visible"] is False


def test_added_noise_is_scored_against_what_was_there_before(page: Page, tmp_path: Path) -> None:
    sound = wav_file(tmp_path / "talk.wav", voice(1.0))
    step = shown(page, audio=sound, noise=EXAMPLES["pink_rms"], snr_db=-5)[-1]
    assert "before noise was added" in step[7]["value"]


def test_a_refusal_is_a_sentence_on_the_page(page: Page, tmp_path: Path) -> None:
    for path in (wav_file(tmp_path / "quiet.wav", np.zeros(1000)), wav_file(tmp_path / "long.wav", voice(21.0))):
        (step,) = shown(page, audio=path)
        assert path.name in step[0] and str(tmp_path) not in step[0]
        assert step[1]["visible"] is False


def test_files_at_work_lie_in_the_pages_folder(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "folder", tmp_path)
    assert tmp_path in Path(shown(page, audio=wav_file(tmp_path / "a.wav"))[0][2]).parents


def test_names_of_files_are_not_taken_for_markup(page: Page, tmp_path: Path) -> None:
    (step,) = shown(page, audio=wav_file(tmp_path / "<img src=x>.wav", np.zeros(1000)))
    assert "<img" not in step[0] and "&lt;img" in step[0]


def test_a_bug_is_one_sentence_and_goes_to_the_log(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"broken in {tmp_path}")

    monkeypatch.setattr(page.enhancer, "outcome", fail)
    (step,) = shown(page, audio=wav_file(tmp_path / "a.wav"))
    assert str(tmp_path) not in step[0] and "server" in step[0]
    assert str(tmp_path) in caplog.text


def test_a_closed_page_ends_the_work_under_way(page: Page, tmp_path: Path) -> None:
    def close(share: float, desc: str) -> None:
        if desc == "enhancing":
            page.leave(SimpleNamespace(session_hash="gone"))

    assert shown(page, audio=wav_file(tmp_path / "a.wav", voice(10.0)), visitor="gone", progress=close) == []
    page.leave(SimpleNamespace(session_hash="gone"))  # and once more changes nothing
    assert len(shown(page, audio=wav_file(tmp_path / "b.wav"), visitor="gone")) == 2


def test_a_recording_makes_room_for_who_streams_live(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("evaluation.web.page.time.sleep", rests.append)
    sound = wav_file(tmp_path / "a.wav", voice(2.0))
    shown(page, audio=sound)
    assert not rests
    monkeypatch.setattr(page.room, "visitors", 1)
    shown(page, audio=sound)
    assert len(rests) >= 8  # every quarter of a second of sound


def test_every_kind_of_picture_has_a_label() -> None:
    assert len(PICTURES) == len(set(PICTURES.values()))


def contrast(first: str, second: str) -> float:
    """WCAG's contrast of two colours "#rrggbb"."""
    lights = []
    for colour in (first, second):
        shares = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(lights) / min(lights)


def test_text_can_be_read() -> None:
    theme = _theme()

    def colour(name: str) -> str:
        value = getattr(theme, name)
        return getattr(theme, value[1:]) if value.startswith("*") else value

    assert contrast(colour("body_text_color_subdued"), "#ffffff") > 4.5
    for name in ("block_label_text_color", "block_title_text_color"):
        assert contrast(colour(name), theme.primary_100) > 4.5, name
    for name in ("button_primary_background_fill", "button_primary_background_fill_hover"):
        assert contrast(colour(name), "#ffffff") > 4.5 and contrast(colour(f"{name}_dark"), "#ffffff") > 4.5, name
