"""Counts checked by hand on single layers, streaming against the whole, and the table from a recipe."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from evaluation import complexity_analysis
from evaluation.complexity_analysis import analyse_peer, count_macs, count_parameters, macs_per_second, read_recipe, streaming
from helpers.delayed import Delayed
from helpers.paths import ROOT
from helpers.tiny import only_line, tiny_config, tiny_model
from models.inference.enhancer import Enhancer
from models.inference.streaming import StreamingEnhancer
from models.mamba import Mamba

RECIPES = ROOT / "recipes"


def test_a_mamba_layer_by_hand() -> None:
    B, L, C, N, K, E = 2, 30, 16, 8, 4, 2
    D, rank = E * C, math.ceil(C / 16)
    layer, x = Mamba(C, d_state=N, d_conv=K, expand=E), torch.randn(B, L, C)
    per_frame = C * 2 * D + K * D + D * (rank + 2 * N) + rank * D + 3 * D * N + D * C
    #           in_proj     conv    x_proj               dt_proj    scan        out_proj
    assert count_macs(lambda: layer(x)) == B * L * per_frame


def test_a_convolution_by_hand() -> None:
    x = torch.randn(1, 16, 12, 10)
    full, depthwise = torch.nn.Conv2d(16, 8, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
    assert count_macs(lambda: full(x)) == 12 * 10 * 16 * 8 * 9
    assert count_macs(lambda: depthwise(x)) == 12 * 10 * 16 * 9


def test_the_plain_scan_is_refused_for_it_would_count_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEAVSE_SCAN", "reference")
    with pytest.raises(ValueError, match="LITEAVSE_SCAN"):
        count_macs(lambda: None)


def test_macs_grow_with_the_crops_and_the_blocks() -> None:
    one, cfg = tiny_model(model_cfg={"causal": True})
    two, cfg_two = tiny_model(model_cfg={"causal": True, "num_tfmamba": 2})
    macs, more = macs_per_second(one, cfg), macs_per_second(two, cfg_two)
    assert 0 < macs["macs_sound_g"] < macs["macs_face_g"]
    assert more["macs_sound_g"] > macs["macs_sound_g"]
    # The visual encoder costs the same whatever hears the sound.
    faces = [found["macs_face_g"] - found["macs_sound_g"] for found in (macs, more)]
    assert faces[0] == pytest.approx(faces[1], rel=1e-9)
    sound_only, cfg = tiny_model("SEMamba")
    assert macs_per_second(sound_only, cfg)["macs_face_g"] is None


def test_parameters_with_and_without_the_visual_encoder() -> None:
    model, _ = tiny_model()
    model.visual_encoder.stem.requires_grad_(False)
    counts = count_parameters(model)
    inside = list(model.visual_encoder.parameters())
    every = sum(weight.numel() for weight in model.parameters())
    assert counts["parameters_m"] == every / 1e6
    assert counts["parameters_without_encoder_m"] == (every - sum(w.numel() for w in inside)) / 1e6
    assert counts["trained_without_encoder_m"] == counts["parameters_without_encoder_m"]
    assert counts["trained_m"] == (every - sum(w.numel() for w in model.visual_encoder.stem.parameters())) / 1e6


def test_a_stream_hears_and_sees_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cfg = tiny_model(model_cfg={"causal": True})
    heard, shown = [], []
    feed, feed_video = StreamingEnhancer.feed, StreamingEnhancer.feed_video
    monkeypatch.setattr(StreamingEnhancer, "feed", lambda self, wav: heard.append(len(wav)) or feed(self, wav))
    monkeypatch.setattr(StreamingEnhancer, "feed_video", lambda self, *given: shown.append(given) or feed_video(self, *given))
    found = streaming(Enhancer(model, cfg, torch.device("cpu")), 0.4, 2)
    second = 16000
    assert sum(heard) == 2 * (0.5 + 2 * 0.4) * second and set(heard) == {second // 40}
    assert len(shown) == 13 + 2 * 10  # crops at 25 fps of half a second, and twice of 0.4 s
    assert min(found["rtf_stream"], found["rtf_stream_face"]) > 0 and found["latency_ms"] == 25
    assert 1e-3 * found["worst_chunk_ms"] / 0.025 >= max(found["rtf_stream"], found["rtf_stream_face"])


def test_a_model_that_cannot_stream_has_no_such_numbers() -> None:
    model, cfg = tiny_model(model_cfg={"causal": False})
    assert set(streaming(Enhancer(model, cfg, torch.device("cpu")), 0.4, 1).values()) == {None}


def test_another_program_is_timed_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(complexity_analysis.PEERS, "gtcrn", Delayed)
    row = analyse_peer("gtcrn", 2, 0.5)
    assert row["recipe"] == Delayed.name and row["parameters_m"] is None
    assert 0 < row["rtf_stream"] == row["rtf_sound"]
    assert row["latency_ms"] == 1e3 * (Delayed.delay + Delayed.frame) / Delayed.rate
    assert set(row) == {"recipe", *complexity_analysis.COLUMNS}


def test_recipes_are_told_apart() -> None:
    assert read_recipe(str(RECIPES / "SEMamba_advanced" / "SEMamba_advanced.yaml"))[1] == "SEMamba"
    assert read_recipe(str(RECIPES / "LiteAVSE" / "ablations" / "LiteAVSE_audio_only.yaml"))[1] == "LiteAVSEMamba"


def test_a_table_from_a_recipe(tmp_path: Path, capsys) -> None:
    import yaml

    recipe, output = tmp_path / "tiny.yaml", tmp_path / "out" / "table.csv"
    recipe.write_text(yaml.safe_dump(tiny_config(model_cfg={"causal": True}), sort_keys=False))
    command = ["--config", str(recipe), "--output_csv", str(output), "--n_runs", "1", "--duration_sec", "0.5", "--threads", "1",
               "--device", "cpu"]  # fmt: skip
    assert complexity_analysis.main(command) == 0
    assert "threads: 1, cpu" in capsys.readouterr().out
    with open(output, newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["recipe"], float(row["latency_ms"]), row["gpu_peak_mb"]) == ("tiny", 25, "")
    for key in ("macs_sound_g", "macs_face_g", "rtf_sound", "rtf_face", "rtf_stream", "rtf_stream_face", "worst_chunk_ms"):
        assert float(row[key]) > 0, key
    assert "tiny & " in output.with_suffix(".tex").read_text()
    assert complexity_analysis.main([*command, "--n_runs", "0"]) == 2
    assert "--n_runs" in only_line(capsys.readouterr().err)
