"""The page tells a visitor what was not as it should be in the sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.web.recording import Complaint, Limits, Wish, read_recording
from helpers.bad_media import BAD_MEDIA, RIGHT
from helpers.tiny import bytes_file, voice, wav_file
from models.inference.enhancer import Enhancer


def test_a_cut_recording_is_heard_as_far_as_it_goes_and_the_page_says_so(tmp_path: Path, causal_checkpoint: Path) -> None:
    whole = wav_file(tmp_path / "a.wav", voice(3.0)).read_bytes()
    path = bytes_file(tmp_path / "b.wav", whole[: 44 + 2 * 20000])
    made = read_recording(Enhancer.from_checkpoint(causal_checkpoint, "cpu"), Wish(audio=path), Limits())
    assert len(made.noisy) == 20000 and made.notes == ("b.wav: ends early at 1.25 s.",)


@pytest.mark.skipif(not BAD_MEDIA.is_dir(), reason="shared/bad_media is not here")
def test_recordings_from_bug_reports_are_read_rightly_by_the_page(causal_checkpoint: Path) -> None:
    enhancer, limits = Enhancer.from_checkpoint(causal_checkpoint, "cpu"), Limits()
    for name, (seconds, said) in RIGHT.items():
        path = BAD_MEDIA / name
        wish = Wish(video=path) if path.suffix in (".mkv", ".ts", ".m2ts") else Wish(audio=path)
        made = read_recording(enhancer, wish, limits)
        assert len(made.noisy) / made.rate == pytest.approx(seconds, abs=0.06), name
        assert said is None or any(said in note for note in made.notes), name
        assert np.sqrt(np.mean(made.noisy[-len(made.noisy) // 2 :] ** 2)) > 0.01, name
    with pytest.raises(Complaint, match="headerless_pcm.raw is neither sound nor video"):
        read_recording(enhancer, Wish(audio=BAD_MEDIA / "headerless_pcm.raw"), limits)
