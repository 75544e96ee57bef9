"""The benchmark measures what it says and writes it down; how fast anything is is not tested."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path

import pytest
import torch

from evaluation import benchmark
from evaluation.benchmarks import faces as benchmark_faces
from evaluation.benchmarks import live as benchmark_live
from evaluation.benchmarks import loader as benchmark_loader
from evaluation.benchmarks import network as benchmark_parts
from helpers.tiny import face_crops, only_line, voice
from utils.config import complete_config
from utils.media.clip_writer import write_clip
from utils.media.decode import probe_media
from utils.util import write_json

TINY = complete_config({
    "model_cfg": {"hid_feature": 8, "num_tfmamba": 1, "d_state": 4, "expand": 1, "causal": True},
    "visual_cfg": {"visual_dim": 16}, "lite_cfg": {"visual_encoder_type": "custom3d"},
})  # fmt: skip


def test_medians_leave_the_first_call_out_and_take_turns():
    calls: list[str] = []
    seconds = benchmark_parts.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert set(seconds) == {"a", "b"} and all(value >= 0 for value in seconds.values())


def test_the_scan_table_is_written_with_ratios_against_the_reference(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_parts, "SCAN_SHAPES", {"tiny": (2, 3, 4, 2)})
    assert benchmark.main(["--only", "scan", "--repeats", "1", "--output_dir", str(tmp_path), "--device", "cpu"]) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["tables"]["Selective scan"]
    assert {(row["pass"], row["backend"]) for row in rows} >= {("forward", "reference"), ("forward + backward", "reference")}
    reference = {row["pass"]: row["ms"] for row in rows if row["backend"] == "reference"}
    for row in rows:
        assert row["times reference"] == pytest.approx(reference[row["pass"]] / row["ms"])
    assert "| tiny | forward |" in (tmp_path / "benchmark.md").read_text() and "threads" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_one_line(tmp_path, capsys):
    assert benchmark.main(["--device", "abacus", "--output_dir", str(tmp_path)]) == 2
    assert "abacus" in only_line(capsys.readouterr().err)


def test_a_live_stream_is_timed_with_its_crops(monkeypatch):
    monkeypatch.setattr(benchmark_live, "LIVE_SEC", 1)
    only = {"LiteAVSE_small": ("LiteAVSEMamba", TINY), "LiteAVSE": ("LiteAVSEMamba", TINY)}
    monkeypatch.setattr(benchmark_live, "recipes", lambda: only)
    rows = benchmark_live.bench_streaming(torch.device("cpu"))
    assert [row["input"] for row in rows] == ["sound", "sound and face"] * 2
    for row in rows:
        assert row["latency ms"] == 25.0
        assert 0 < row["median chunk ms"] <= row["worst chunk ms"]
        assert 0 < row["RTF"] <= row["worst chunk ms"] / 25  # it is that of the mean chunk


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_peak_memory_is_that_of_the_call():
    def fill() -> None:
        with mmap.mmap(-1, 64_000_000) as fresh:  # past the allocator, which may have freed memory to hand out
            for _ in range(64):
                fresh.write(b"x" * 1_000_000)
            time.sleep(0.5)  # the memory is sampled meanwhile, also where the machine is busy

    assert 60e6 < benchmark_live._grown_by(1e-3, fill) < 90e6


def test_face_crops_are_timed_and_a_missing_detector_says_why(tmp_path):
    write_clip(tmp_path / "a.mp4", face_crops(10, 144), voice(0.4))
    haar, center, yunet = benchmark_faces.bench_faces(1, tmp_path / "a.mp4")
    assert haar["detector"] == "haar" and center["detector"] == "center" and min(haar["frames/s"], center["frames/s"]) > 0
    assert yunet["detector"] == "yunet" and "LITEAVSE_OFFLINE" in yunet["frames/s"]


def test_the_loaders_table_has_every_way_of_storing_the_same_clips(tmp_path, monkeypatch):
    for k in range(2):
        write_clip(tmp_path / f"{k}.mp4", face_crops(20, 48, k), voice(0.8, seed=k))
    write_json(tmp_path / "clips.json", [{"video": str(tmp_path / f"{k}.mp4")} for k in range(2)])
    read: list[tuple[str, int]] = []

    class Watched(benchmark_loader.AVDataset):
        def __getitem__(self, index):
            read.append((str(self._list), index))
            return super().__getitem__(index)

    monkeypatch.setattr(benchmark_loader, "AVDataset", Watched)
    rows = benchmark_loader.bench_loader(str(tmp_path / "clips.json"), 1)
    assert [row["from"] for row in rows] == ["raw clips, faces looked for", "list of crops", "shards"]
    assert rows[0]["times raw"] == 1 and all(row["clips"] == 2 and row["clips/s"] > 0 for row in rows)
    assert rows[2]["times raw"] == pytest.approx(rows[2]["clips/s"] / rows[0]["clips/s"])
    assert sorted({(Path(source).name, index) for source, index in read}) == [
        (name, k) for name in ("clips.tar", "crops.json", "raw.json") for k in range(2)
    ]


def test_clips_drawn_for_the_loader_have_video_and_sound(tmp_path):
    entries = benchmark_loader.drawn_clips(tmp_path, copies=1, seconds=0.4)
    assert len(entries) == 4
    info = probe_media(entries[0]["video"])
    assert (info.width, info.height, info.has_audio) == (360, 288, True)
