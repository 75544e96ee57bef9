"""The Triton kernels: run in Triton's interpreter against float64, and compiled for GPUs that are not there.

Triton decides when it is imported whether it interprets, so both happen in processes of their own, once for all tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from evaluation.benchmarks.scan_errors import CONV_CASES, SCAN_CASES
from helpers.autocast_errors import AUTOCAST_WORST
from helpers.scans import scan_inputs, single
from models.ops import backend as backends
from models.ops import scan_triton
from models.ops.backend import describe_backend, resolve_backend
from models.ops.scan import selective_scan

ROOT = Path(__file__).resolve().parents[3]
WORST = {"float32": 1e-5, "bfloat16": 1e-2}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install -e .[gpu-dev]"
)


def _json_of(arguments: list[str], folder: Path, **environment: str) -> dict:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"} | environment
    env.pop("LITEAVSE_SCAN", None)
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return _json_of(["-m", "helpers.triton_properties"], tmp_path_factory.mktemp("interpreted"), TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return _json_of(["-m", "helpers.triton_ahead"], tmp_path_factory.mktemp("compiled"), TRITON_INTERPRET="0")


@needs_triton
@pytest.mark.parametrize("dtype", WORST)
@pytest.mark.parametrize("case", [f"scan {name}" for name in SCAN_CASES] + [f"conv {name}" for name in CONV_CASES])
def test_results_and_gradients_are_those_of_float64(interpreted, case, dtype):
    found = interpreted["errors"][f"{case} {dtype}"]
    assert len(found) >= 4
    assert {name: error for name, error in found.items() if not error <= WORST[dtype]} == {}


@needs_triton
def test_the_interpreter_is_used_only_when_asked_for(interpreted):
    assert interpreted["available"] == ["reference", "triton", "numba"] and interpreted["default"] == "numba"


@needs_triton
def test_gradients_have_the_same_bits_in_each_run(interpreted):
    assert interpreted["same bits"] is True


@needs_triton
def test_pieces_with_carried_state_equal_the_whole(interpreted):
    assert interpreted["pieces"] < 1e-6


@needs_triton
def test_a_layer_under_autocast_is_that_in_float32_to_rounding(interpreted):
    assert set(interpreted["autocast"]) > {"y", "state", "A_log", "in_proj.weight", "conv1d.weight"}
    assert {name: error for name, error in interpreted["autocast"].items() if not error < AUTOCAST_WORST} == {}


@needs_triton
def test_slices_of_a_projection_need_no_copy_to_be_right(interpreted):
    assert interpreted["sliced"] < 1e-6


@needs_triton
def test_nan_in_is_nan_out_from_there_on_in_its_channel(interpreted):
    assert (interpreted["nan before"], interpreted["nan from there"], interpreted["nan elsewhere"]) == (False, True, False)


@needs_triton
def test_operations_are_counted_as_those_of_the_cpu_kernels(interpreted):
    assert interpreted["flops"] == 2 * 2 * 7 * 40 * (3 * 4 + 8 * 4 + 4)


@needs_triton
def test_kernels_compile_for_sm_80_and_sm_90_within_a_threads_registers(compiled):
    assert {key.split()[-1] for key in compiled} == {"sm_80", "sm_90"}
    for key, used in compiled.items():
        assert 0 < used["REG"] <= 255
        assert used["STACK"] <= (64 if "scan backward" in key else 0), key


def _describe(monkeypatch, **fakes) -> str:
    for name, value in fakes.items():
        monkeypatch.setattr(f"torch.cuda.{name}", value)
    backends._why_not.cache_clear()
    try:
        return describe_backend("cuda")
    finally:
        backends._why_not.cache_clear()


def test_what_keeps_triton_from_running_is_said_in_one_line(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("LITEAVSE_SCAN", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton cannot be imported" in _describe(monkeypatch)
    triton = types.ModuleType("triton")
    triton.__version__ = "2.3.1"
    monkeypatch.setitem(sys.modules, "triton", triton)
    assert "triton 2.3.1 is too old: 3.0 or later" in _describe(monkeypatch)
    triton.__version__ = "3.2.0"
    assert "torch sees no CUDA device" in _describe(monkeypatch, is_available=lambda: False)
    old = {"is_available": lambda: True, "get_device_capability": lambda: (7, 5), "get_device_name": lambda: "Tesla T4"}
    assert "Tesla T4 has compute capability 7.5: 8.0 is needed" in _describe(monkeypatch, **old)

    def broken():
        raise RuntimeError("Failed to find C compiler.\nMore text")

    active = types.SimpleNamespace(get_current_device=broken)
    triton.runtime = types.SimpleNamespace(driver=types.SimpleNamespace(active=active))
    said = _describe(monkeypatch, get_device_capability=lambda: (9, 0))
    assert "triton cannot start (Failed to find C compiler.)" in said and "\n" not in said and "slow path" in said
    active.get_current_device = lambda: 0
    assert _describe(monkeypatch) == "selective scan: triton (CUDA)"


def test_triton_on_the_cpu_is_refused_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton' cannot be used: .*available on cpu: reference, numba"):
        resolve_backend("cpu", "triton")


def test_too_long_a_sequence_is_refused():
    x = torch.empty(1, 2**20, 2**12, device="meta")[:, :, :1]
    with pytest.raises(ValueError, match="too long for the triton backend"):
        scan_triton._rows(x)


@pytest.mark.gpu
def test_on_the_gpu_as_in_the_interpreter():
    from evaluation.benchmarks.scan_errors import all_errors

    for case, found in all_errors("triton", "cuda").items():
        assert max(found.values()) <= WORST[case.split()[-1]], (case, found)
    tensors = {name: x.cuda() for name, x in single(scan_inputs(4, 50, 64, 16)).items()}
    first, second = (selective_scan(**tensors, backend="triton")[0] for _ in range(2))
    assert torch.equal(first, second)
