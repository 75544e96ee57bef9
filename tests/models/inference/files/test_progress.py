"""How far a run has come: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.tiny import tiny_model, voice, wav_file
from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import Job
from models.inference.files.progress import Progress, minutes
from models.inference.files.stream_file import stream_file


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def jobs(count: int) -> list[Job]:
    return [Job(Path(f"{number}.wav"), None, Path(f"out/{number}.wav")) for number in range(count)]


@pytest.mark.parametrize(("seconds", "text"), [(0.49, "0.5 s"), (17.4, "0:17"), (150, "2:30"), (3723, "1:02:03")])
def test_lengths_are_easily_read(seconds: float, text: str) -> None:
    assert minutes(seconds) == text


def test_a_line_now_and_then_gives_speed_and_time_left() -> None:
    one, two = jobs(2)
    out, now = io.StringIO(), [0.0]
    progress = Progress({one: 100.0, two: 50.0}, out=out, clock=lambda: now[0])
    now[0] = 500.0  # loading the model is not counted
    progress.begin(one)
    for second in range(100):
        now[0] += 0.5
        progress.reach(second + 1.0)
    progress.end()
    progress.begin(two)
    now[0] += 30.0
    progress.reach(20.0)
    assert out.getvalue().splitlines() == [
        "1 of 2, 0.wav: 1:00 of 2:30, 2.00 x real time, 0:45 left",
        "2 of 2, 1.wav: 2:00 of 2:30, 1.50 x real time, 0:20 left",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    (one,) = jobs(1)
    out, now = Terminal(), [0.0]
    progress = Progress({one: 10.0}, out=out, clock=lambda: now[0])
    progress.begin(one)
    now[0] = 5.0
    progress.reach(2.5)
    progress._bar.refresh()
    assert "0.wav:  25%" in out.getvalue() and "of 10 s" in out.getvalue() and "0.50 x real time" in out.getvalue()
    progress.end()
    progress.close()
    assert out.getvalue().endswith("\r")


def test_a_recording_that_fails_or_has_no_length_does_not_stop_the_count() -> None:
    one, two = jobs(2)
    progress = Progress({one: 10.0, two: 0.0}, out=io.StringIO())
    progress.begin(one)
    progress.end()
    progress.begin(two)
    progress.reach(5.0)
    assert progress.total_sec == 15.0


@pytest.mark.parametrize("causal", [True, False])
def test_files_tell_how_far_they_are(tmp_path: Path, causal: bool) -> None:
    job = Job(wav_file(tmp_path / "a.wav", np.resize(voice(2.0), 16000 * (2 if causal else 33))), None, tmp_path / "b.wav")
    enhancer, told = Enhancer(*tiny_model(model_cfg={"causal": causal})), []
    enhance_file(enhancer, job, progress=told.append)
    length = soundfile.info(job.audio).duration
    assert len(told) > 2 and told == sorted(told) and told[-1] == pytest.approx(length)
    if causal:
        told.clear()
        stream_file(enhancer, job, progress=told.append)
        assert len(told) == 80 and told[-1] == pytest.approx(length)
