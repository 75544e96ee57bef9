"""A checkpoint's level: measured on clean speech, written beside the weights, applied wherever it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.match_level import clean_gain_db, main
from helpers.paths import ROOT
from helpers.tiny import save_tiny_checkpoint, tiny_model, voice
from models.inference.enhancer import Enhancer
from models.inference.streaming import StreamingEnhancer
from models.pretrained import pack_generator, start_from
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.media.sound import load_audio

PLAIN = {"causal": True, "phase_residual": True}  # untrained, it gives the noisy phase


def with_level(path: Path, level: object) -> Path:
    checkpoint = load_checkpoint(path)
    out = path.with_name("louder.pth")
    save_checkpoint(out, checkpoint | {"meta": {"level_db": level}})
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_the_level_is_a_gain_and_nothing_else(tmp_path: Path, causal: bool) -> None:
    plain = save_tiny_checkpoint(tmp_path / "plain.pth", model_cfg={"causal": causal})
    louder, wav = with_level(plain, 6.0), voice(0.5)
    before, after = (Enhancer.from_checkpoint(path).enhance(wav, 16000).wav for path in (plain, louder))
    np.testing.assert_allclose(after, before * 10 ** (6 / 20), atol=2e-5)
    if causal:
        stream = StreamingEnhancer(Enhancer.from_checkpoint(louder))
        streamed = np.concatenate([stream.feed(wav), stream.flush()])
        np.testing.assert_allclose(streamed, after, atol=1e-5)


def test_training_starts_from_the_weights_as_they_were_trained(tmp_path: Path) -> None:
    louder = with_level(save_tiny_checkpoint(tmp_path / "plain.pth"), 6.0)
    model, cfg = tiny_model(seed=1)
    start_from(model, cfg, louder)
    assert model.mask_decoder.lsigmoid.beta == cfg["model_cfg"]["beta"]
    assert "level_db" not in pack_generator(model, cfg)["meta"]


@pytest.mark.parametrize("level", ["loud", True, float("nan"), 300.0, [3.0]])
def test_what_is_no_level_is_refused(tmp_path: Path, level: object) -> None:
    path = with_level(save_tiny_checkpoint(tmp_path / "plain.pth"), level)
    with pytest.raises(ValueError, match="level_db"):
        Enhancer.from_checkpoint(path)


def test_a_matched_checkpoint_gives_clean_speech_its_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sounds = save_tiny_checkpoint(tmp_path / "a.pth", model_cfg=PLAIN), [ROOT / "samples/pink_rms_clean.flac"]
    heard = [load_audio(sounds[0], 16000)]
    assert abs(clean_gain_db(Enhancer.from_checkpoint(path), heard)) > 0.5
    options = ["--checkpoint_file", str(path), "--clean", *map(str, sounds)]
    assert main(options) == 0 and load_checkpoint(path)["meta"] == {}
    assert main([*options, "--output", str(path)]) == 0
    assert abs(clean_gain_db(Enhancer.from_checkpoint(path), heard)) < 0.02
    assert main([*options, "--output", str(path)]) == 0  # a second time changes nothing
    assert "(1 recording) gets" in capsys.readouterr().out
    assert abs(clean_gain_db(Enhancer.from_checkpoint(path), heard)) < 0.02


@pytest.mark.parametrize("name", ["LiteAVSE_small", "LiteAVSE_small_audio"])
def test_what_is_shipped_gives_clean_speech_its_level(name: str) -> None:
    """Where this fails after a training: python -m evaluation.match_level --checkpoint_file PATH --output PATH."""
    enhancer = Enhancer.from_checkpoint(ROOT / "ckpts" / f"{name}.pth")
    sounds = [load_audio(path, 16000) for path in sorted((ROOT / "samples").glob("*_clean.flac"))]
    assert abs(clean_gain_db(enhancer, sounds)) < 0.3
