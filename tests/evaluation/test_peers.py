"""Other programs over a folder: the sound is neither late nor longer, and what is missing is said in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluation import peers
from evaluation.peers import GTCRN, enhance
from helpers.delayed import Delayed
from helpers.tiny import only_line


def speechlike(n_samples: int) -> np.ndarray:
    """Noise below 4 kHz, which two conversions of the rate leave as it is, with silence at both ends."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(0.1 * rng.standard_normal(n_samples))
    spectrum[n_samples // 4 :] = 0
    return (np.fft.irfft(spectrum, n_samples) * np.hanning(n_samples)).astype(np.float32)


@pytest.mark.parametrize("n_samples", [160, 8000, 12345])
def test_the_sound_is_neither_late_nor_longer(n_samples: int) -> None:
    wav = speechlike(n_samples)
    made, spent = enhance(Delayed, wav)
    assert made.shape == wav.shape and made.dtype == np.float32
    np.testing.assert_allclose(made, wav, atol=1e-3)
    assert len(spent) == -(-(3 * n_samples + Delayed.delay) // Delayed.frame) and min(spent) >= 0


def test_each_sound_begins_from_a_state_of_its_own() -> None:
    wav = speechlike(4000)
    np.testing.assert_array_equal(enhance(Delayed, wav)[0], enhance(Delayed, wav)[0])


class _Unchanged:
    """An ONNX session whose network leaves the spectrum and its caches as they are."""

    def run(self, _names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert given["mix"].shape == (1, 257, 1, 2) and given["mix"].dtype == np.float32
        return [given["mix"], given["cache"] + 1]


def test_gtcrns_windows_overlap_to_the_sound_itself() -> None:
    class Unchanged(GTCRN):
        def __init__(self) -> None:
            self._begin(_Unchanged(), {"cache": np.zeros(1, np.float32)})

    wav = speechlike(5000)
    made, spent = enhance(Unchanged, wav)
    np.testing.assert_allclose(made, wav, atol=1e-6)
    one = Unchanged()
    for _ in range(3):
        one.step(wav[:256])
    assert one._caches["cache"] == 3


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(peers.PEERS, "gtcrn", Delayed)
    (tmp_path / "noisy").mkdir()
    wav = speechlike(8000)
    soundfile.write(tmp_path / "noisy" / "s1_noise_+0dB.flac", wav, 16000)
    (tmp_path / "noisy" / "notes.txt").write_text("no sound")
    command = ["gtcrn", "--input_dir", str(tmp_path / "noisy"), "--output_dir", str(tmp_path / "made")]
    assert peers.main(command) == 0
    assert "Delayed: 1 sounds" in capsys.readouterr().out
    made, rate = soundfile.read(tmp_path / "made" / "s1_noise_+0dB.wav", dtype="float32")
    assert rate == 16000
    np.testing.assert_allclose(made, wav, atol=1e-3)
    assert peers.main([*command[:-1], str(tmp_path / "noisy")]) == 2
    assert "overwrite" in only_line(capsys.readouterr().err)
    assert peers.main(["gtcrn", "--input_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "made")]) == 2
    assert "--input_dir" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["deepfilternet3", "gtcrn"])
def test_a_package_that_is_missing_is_named_with_its_command(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    soundfile.write(tmp_path / "a.wav", np.zeros(160), 16000)
    assert peers.main([name, "--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "made")]) == 2
    assert "pip install" in only_line(capsys.readouterr().err)
    assert not list((tmp_path / "made").glob("*.wav"))
