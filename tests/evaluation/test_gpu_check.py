"""The check of a GPU: what it does without one, and that one part's failure costs no other part."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation import gpu_check
from evaluation.benchmarks import gpu, gpu_training

GOOD = {"scan all float32": {"y": 1e-7}, "scan all bfloat16": {"y": 5e-3}}


def test_without_a_gpu_it_says_what_it_would_do_and_compares_the_kernels(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "_interpreter_errors", lambda: GOOD)  # tests/models/ops/test_scan_triton.py runs it
    assert gpu_check.main(["--output_dir", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "no GPU here" in said and all(f"  {line}" in said for line in gpu.plan())
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(report["parts"]) == ["versions", "correctness"] and report["not run"] == {}
    rows = report["parts"]["correctness"]["rows"]
    assert any(row["backend"] == "numba" for row in rows) and {row["right"] for row in rows} == {"True"}


def test_a_wrong_backend_and_a_failing_part_are_reported_and_the_others_run(tmp_path, capsys, monkeypatch):
    path = tmp_path / "gpu_check.json"

    def fails(device):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(gpu, "versions", fails)
    monkeypatch.setattr(gpu, "backends", lambda device: ["numba", "reference"])
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    monkeypatch.setattr(gpu, "all_errors", lambda name, device: GOOD)
    assert not gpu_check.check(torch.device("cpu"), 60, path)
    report = json.loads(path.read_text())
    assert report["not run"] == {"versions": "no such thing"} and "correctness" in report["parts"]
    assert "versions: not run, no such thing" in capsys.readouterr().out

    monkeypatch.setattr(gpu, "versions", lambda device: [])
    assert gpu_check.check(torch.device("cpu"), 60, path)
    monkeypatch.setattr(gpu, "all_errors", lambda name, device: {"scan all float32": {"y": 1e-4}})
    assert not gpu_check.check(torch.device("cpu"), 60, path)
    assert json.loads(path.read_text())["parts"]["correctness"]["rows"][0]["right"] == "False"


def test_no_part_begins_after_the_limit(tmp_path):
    assert not gpu_check.check(torch.device("cpu"), -1, tmp_path / "gpu_check.json")
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["parts"] == {} and set(report["not run"]) == {"versions", "correctness"}


def test_on_a_gpu_every_part_of_the_plan_is_run():
    named = [line.split(":")[0] for line in gpu.plan()]
    assert list(gpu_check.parts_for(torch.device("cuda"), 0.0)) == named


TINY = ("model_cfg.hid_feature=8", "model_cfg.num_tfmamba=1", "model_cfg.d_state=4", "model_cfg.expand=2",
        "visual_cfg.visual_dim=32", "lite_cfg.visual_encoder_type=custom3d", "training_cfg.segment_size=4000",
        "training_cfg.batch_size=2", "env_setting.num_workers=1")  # fmt: skip


@pytest.mark.slow
def test_the_parts_that_train_run_on_a_cpu_too(monkeypatch):
    """With a tiny network; what they find there is no measurement, but right must be right."""
    monkeypatch.setattr(gpu_training, "OPTIONS", (*gpu_training.OPTIONS, *TINY))
    monkeypatch.setattr(gpu_training, "WORKERS", (1,))
    monkeypatch.setattr(gpu_training, "STEPS", 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = {name: part(torch.device("cpu")) for name, part in gpu_training.PARTS.items()}
    assert rows["real steps"][0]["workers"] == 1 and rows["real steps"][0]["steps/s"] > 0
    assert rows["resume"][0]["right"] == rows["terminated"][0]["right"] == "True"
    assert rows["resume"][0]["largest difference"] == 0


def test_a_training_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = gpu_training.start(torch.device("cpu"), tmp_path, "run", ["training_cfg.batch_sise=2"])
    with pytest.raises(ValueError, match="ended with code 2: .*did you mean batch_size"):
        gpu_training.finish(process)
