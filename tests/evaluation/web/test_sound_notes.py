"""The page tells a visitor what was not as it should be in the sound."""

from __future__ import annotations

from pathlib import Path

from evaluation.web.recording import Limits, Wish, read_recording
from helpers.tiny import bytes_file, voice, wav_file
from models.inference.enhancer import Enhancer


def test_a_cut_recording_is_heard_as_far_as_it_goes_and_the_page_says_so(tmp_path: Path, causal_checkpoint: Path) -> None:
    whole = wav_file(tmp_path / "a.wav", voice(3.0)).read_bytes()
    path = bytes_file(tmp_path / "b.wav", whole[: 44 + 2 * 20000])
    made = read_recording(Enhancer.from_checkpoint(causal_checkpoint, "cpu"), Wish(audio=path), Limits())
    assert len(made.noisy) == 20000 and made.notes == ("b.wav: ends early at 1.25 s.",)
