"""The selective scan and causal convolution against a recurrence written out step by step, and the choice of a backend."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.scans import assert_close, conv_inputs, scan_by_hand, scan_inputs, single
from models.ops import backend as backends
from models.ops import scan
from models.ops import scan_cuda as scan_mamba_ssm
from models.ops.backend import available_backends, describe_backend, resolve_backend
from models.ops.scan import causal_conv1d, selective_scan

CPU_BACKENDS = ["reference", "numba"]
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("LITEAVSE_SCAN", raising=False)


def conv_by_hand(x, weight, bias=None, initial_state=None, reverse=False):
    x, weight = x.numpy(), weight.numpy()
    order = slice(None, None, -1 if reverse else 1)
    K = weight.shape[1]
    state = np.zeros((x.shape[0], K - 1, x.shape[2])) if initial_state is None else initial_state.numpy()
    joined = np.concatenate((state, x[:, order]), axis=1)
    pre = np.zeros_like(x)
    for t in range(x.shape[1]):
        pre[:, t] = (joined[:, t : t + K] * weight.T).sum(1) + (0 if bias is None else bias.numpy())
    return torch.from_numpy((pre / (1 + np.exp(-pre)))[:, order].copy()), torch.from_numpy(joined[:, x.shape[1] :])


absent = st.sets(st.sampled_from(OPTIONAL))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), L=st.integers(0, 40), D=st.integers(1, 70), N=st.integers(1, 64), without=absent,
       softplus=st.booleans(), reverse=st.booleans())  # fmt: skip
def test_scan_is_the_recurrence(backend, B, L, D, N, without, softplus, reverse):
    tensors = scan_inputs(B, L, D, N, without=without)
    if not softplus:  # steps of negative length would make states grow
        tensors |= {name: tensors[name].abs() for name in ("delta", "delta_bias") if name in tensors}
    y, last = selective_scan(**single(tensors), delta_softplus=softplus, reverse=reverse, backend=backend)
    expected = scan_by_hand(**tensors, softplus=softplus, reverse=reverse)
    assert y.dtype == last.dtype == torch.float32
    assert_close(y, expected[0])
    assert_close(last, expected[1])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), L=st.integers(0, 40), D=st.integers(1, 70), K=st.integers(1, 20),
       without=st.sets(st.sampled_from(("bias", "initial_state"))), reverse=st.booleans())  # fmt: skip
def test_convolution_is_the_sum_of_taps(backend, B, L, D, K, without, reverse):
    tensors = conv_inputs(B, L, D, K, without=without)
    y, last = causal_conv1d(**single(tensors), reverse=reverse, backend=backend)
    expected = conv_by_hand(**tensors, reverse=reverse)
    assert_close(y, expected[0])
    assert_close(last, expected[1])


@pytest.mark.parametrize("reverse", [False, True])
def test_reference_gradients_are_those_of_finite_differences(reverse):
    tensors = {name: x.requires_grad_() for name, x in scan_inputs(2, 4, 2, 3).items()}
    function = lambda *args: selective_scan(*args, reverse=reverse, backend="reference")  # noqa: E731
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))
    tensors = {name: x.requires_grad_() for name, x in conv_inputs(2, 4, 2, 3).items()}
    function = lambda *args: causal_conv1d(*args, reverse=reverse, backend="reference")  # noqa: E731
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


def test_the_references_backward_needs_memory_in_proportion_to_the_length():
    def allocated_bytes(length):
        tensors = {name: x.requires_grad_() for name, x in single(scan_inputs(1, length, 64, 2)).items()}
        y, _ = selective_scan(**tensors, backend="reference")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            y.sum().backward()
        return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())

    assert allocated_bytes(160) < 2.3 * allocated_bytes(80)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("cuts", [[0, 23], [0, 1, 2, 10, 23], [0, 0, 17, 17, 23]])
def test_pieces_with_carried_state_equal_the_whole(backend, cuts):
    tensors = single(scan_inputs(2, 23, 9, 5))
    whole, end = selective_scan(**tensors, backend=backend)
    state, pieces = tensors["initial_state"], []
    for first, stop in zip(cuts, cuts[1:], strict=False):
        part = {k: x[:, first:stop] if k in ("u", "delta", "B", "C", "z") else x for k, x in tensors.items()}
        y, state = selective_scan(**{**part, "initial_state": state}, backend=backend)
        pieces.append(y)
    assert_close(torch.cat(pieces, 1), whole, 1e-6)
    assert_close(state, end, 1e-6)

    tensors = single(conv_inputs(2, 23, 9, 4))
    whole, end = causal_conv1d(**tensors, backend=backend)
    state, pieces = tensors["initial_state"], []
    for first, stop in zip(cuts, cuts[1:], strict=False):
        piece = {**tensors, "x": tensors["x"][:, first:stop], "initial_state": state}
        y, state = causal_conv1d(**piece, backend=backend)
        pieces.append(y)
    assert_close(torch.cat(pieces, 1), whole, 1e-6)
    assert torch.equal(state, end)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_reverse_is_flip_scan_flip(backend):
    tensors = single(scan_inputs(2, 19, 7, 4))
    flipped = {k: x.flip(1) if k in ("u", "delta", "B", "C", "z") else x for k, x in tensors.items()}
    y, last = selective_scan(**tensors, reverse=True, backend=backend)
    y_flipped, last_flipped = selective_scan(**flipped, backend=backend)
    assert_close(y, y_flipped.flip(1), 1e-6)
    assert_close(last, last_flipped, 1e-6)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("where", ["u", "delta", "z", "B", "C"])
def test_nan_in_is_nan_out_from_there_on(backend, where):
    tensors = single(scan_inputs(1, 12, 70, 3))
    tensors[where][0, 5, 2] = float("nan")
    y, last = selective_scan(**tensors, backend=backend)
    assert torch.isfinite(y[:, :5]).all()
    assert torch.isnan(y[0, 5, 2])
    if where in ("u", "delta"):
        assert torch.isnan(y[0, 5:, 2]).all() and torch.isnan(last[0, 2]).all()
        assert torch.isfinite(y[0, :, 3]).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nan_in_convolution_and_a(backend):
    tensors = single(conv_inputs(1, 12, 70, 4))
    tensors["x"][0, 5, 2] = float("nan")
    y, _ = causal_conv1d(**tensors, backend=backend)
    assert torch.isnan(y[0, 5:9, 2]).all() and torch.isfinite(y[0, 9:]).all() and torch.isfinite(y[0, :5]).all()
    tensors = single(scan_inputs(1, 12, 70, 3))
    tensors["A"][4, 1] = float("nan")
    y, last = selective_scan(**tensors, backend=backend)
    assert torch.isnan(y[0, :, 4]).all() and torch.isnan(last[0, 4, 1]) and torch.isfinite(last[0, 5]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_half_precision_computes_in_float32_and_returns_the_input_type(backend, dtype):
    tensors = {k: x.to(dtype) for k, x in scan_inputs(2, 9, 8, 4).items()}
    y, last = selective_scan(**tensors, backend=backend)
    expected = scan_by_hand(**{k: x.double() for k, x in tensors.items()})
    assert y.dtype == dtype and last.dtype == torch.float32
    assert_close(last, expected[1])
    assert_close(y, expected[0], torch.finfo(dtype).eps)
    x, _ = causal_conv1d(tensors["u"], torch.ones(8, 2, dtype=dtype), backend=backend)
    assert x.dtype == dtype


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autocast_leaves_the_scan_in_float32(backend):
    tensors = single(scan_inputs(2, 9, 8, 4))
    plain = selective_scan(**tensors, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = selective_scan(**tensors, backend=backend)
    assert cast[0].dtype == torch.float32
    assert torch.equal(plain[0], cast[0]) and torch.equal(plain[1], cast[1])


def test_float64_stays_in_float64_whatever_the_backend():
    tensors = scan_inputs(2, 9, 8, 4)
    y, last = selective_scan(**tensors, backend="numba")
    expected = scan_by_hand(**tensors)
    assert y.dtype == last.dtype == torch.float64
    assert_close(y, expected[0], 1e-13)
    assert_close(last, expected[1], 1e-13)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_non_contiguous_inputs(backend):
    tensors = single(scan_inputs(2, 11, 6, 4))
    expected = selective_scan(**tensors, backend=backend)
    wide = torch.cat([tensors["z"], tensors["u"], tensors["B"]], dim=-1)
    z, u, b = wide.split((6, 6, 4), dim=-1)  # slices of a projection
    transposed = {k: tensors[k].transpose(0, -1).contiguous().transpose(0, -1) for k in ("delta", "C", "A")}
    given_so = {**tensors, **transposed, "z": z, "u": u, "B": b, "D": tensors["D"].repeat_interleave(2)[::2]}
    assert not any(given_so[k].is_contiguous() for k in ("u", "z", "B", "delta", "C", "A", "D"))
    for actual, wanted in zip(selective_scan(**given_so, backend=backend), expected, strict=True):
        assert_close(actual, wanted, 1e-6)
    weight = torch.randn(6, 4)
    plain = causal_conv1d(tensors["u"], weight, backend=backend)
    sliced = causal_conv1d(u, weight.t().contiguous().t(), backend=backend)
    assert_close(sliced[0], plain[0], 1e-6)
    assert_close(sliced[1], plain[1], 0)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", *OPTIONAL])
def test_shape_mismatch_is_named(name):
    tensors = single(scan_inputs(2, 5, 6, 4))
    tensors[name] = torch.zeros(*tensors[name].shape, 1)
    with pytest.raises(ValueError, match=rf"^{name} "):
        selective_scan(**tensors)


def test_other_unusable_inputs_are_named():
    tensors = single(scan_inputs(2, 5, 6, 4))
    with pytest.raises(ValueError, match=r"u must be \[B, L, D\]"):
        selective_scan(**{**tensors, "u": tensors["u"][0]})
    with pytest.raises(ValueError, match="floating point"):
        selective_scan(**{**tensors, "u": tensors["u"].long()})
    with pytest.raises(ValueError, match="B is on meta, u on cpu"):
        selective_scan(**{**tensors, "B": tensors["B"].to("meta")})
    with pytest.raises(ValueError, match="weight has shape"):
        causal_conv1d(tensors["u"], torch.zeros(5, 4))
    with pytest.raises(ValueError, match="initial_state has shape"):
        causal_conv1d(tensors["u"], torch.zeros(6, 4), initial_state=torch.zeros(2, 4, 6))


def test_backend_choice(monkeypatch):
    assert available_backends()[:2] == ["reference", "numba"]
    assert resolve_backend("cpu") == "numba"
    assert resolve_backend("meta") == "reference"
    monkeypatch.setenv("LITEAVSE_SCAN", "reference")
    assert resolve_backend("cpu") == "reference"
    assert resolve_backend("cpu", "numba") == "numba"
    assert "reference (CPU" in describe_backend("cpu") and "LITEAVSE_SCAN" in describe_backend("cpu")
    monkeypatch.setenv("LITEAVSE_SCAN", "fastest")
    with pytest.raises(ValueError, match="LITEAVSE_SCAN=fastest is not a scan backend; available on cpu: reference, numba"):
        resolve_backend("cpu")


def test_a_backend_for_other_devices_is_refused():
    with pytest.raises(ValueError, match="backend='numba' cannot be used: it runs on cpu, not on meta"):
        resolve_backend("meta", "numba")
    tensors = single(scan_inputs(1, 2, 3, 4))
    with pytest.raises(ValueError, match="mamba_ssm.*available on cpu: reference, numba"):
        selective_scan(**tensors, backend="mamba_ssm")


def test_describe_names_backend_and_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert describe_backend("cpu") == "selective scan: numba (CPU, 1 thread)"
        torch.set_num_threads(2)
        assert describe_backend("cpu") == "selective scan: numba (CPU, 2 threads)"
    finally:
        torch.set_num_threads(threads)


def test_without_numba_the_slow_path_works_and_says_so():
    program = """
import sys
sys.modules["numba"] = None  # what an import of a missing package finds
import torch
from models.ops.scan import selective_scan
from models.ops.backend import describe_backend
x = torch.ones(1, 3, 4)
y, _ = selective_scan(x, x, -torch.ones(4, 2), x[..., :2], x[..., :2])
assert torch.isfinite(y).all()
print(describe_backend("cpu"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout and "slow path" in done.stdout and "numba cannot be imported" in done.stdout


@pytest.fixture
def forget_backends():
    backends._why_not.cache_clear()
    yield
    backends._why_not.cache_clear()


def test_why_the_cuda_packages_do_not_work_is_found_by_importing_them(monkeypatch, forget_backends, tmp_path):
    modules = {name: tmp_path / f"{name}.py" for name in ("selective_scan_cuda", "causal_conv1d_cuda", "causal_conv1d")}
    monkeypatch.syspath_prepend(tmp_path)
    assert "selective_scan_cuda cannot be imported (No module named" in describe_backend("cuda")
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE" in describe_backend("cuda")
    modules["selective_scan_cuda"].write_text("raise ImportError('undefined symbol: _ZN3c10\\nsecond line')")
    importlib.invalidate_caches()
    assert scan_mamba_ssm.why_not().startswith("selective_scan_cuda cannot be imported (undefined symbol: _ZN3c10): install")
    modules["selective_scan_cuda"].write_text("")
    modules["causal_conv1d_cuda"].write_text("raise OSError('libcudart.so.12: cannot open')")
    monkeypatch.delitem(sys.modules, "selective_scan_cuda", raising=False)
    importlib.invalidate_caches()
    assert "causal_conv1d_cuda cannot be imported (libcudart.so.12" in scan_mamba_ssm.why_not()
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert scan_mamba_ssm.why_not() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert scan_mamba_ssm.why_not() == ""


def _turned(x):
    """[B, D, L] <-> [B, L, D]"""
    return None if x is None else x.transpose(1, 2)


class FakeScan(types.ModuleType):
    """selective_scan_cuda's two functions with its layouts and its limits, made of the reference."""

    def _check(self, u, delta, A, B, C, z):
        assert all(x is None or x.stride(-1) == 1 or x.shape[-1] == 1 for x in (u, delta, z))
        assert B.is_contiguous() and C.is_contiguous()
        assert B.shape == C.shape == (u.shape[0], 1, A.shape[1], u.shape[2]) and u.shape == delta.shape

    def _run(self, u, delta, A, B, C, D, z, bias, softplus):
        sequences = [_turned(x) for x in (u, delta)], [_turned(x[:, 0]) for x in (B, C)]
        y, last = scan._reference_scan(*sequences[0], A, *sequences[1], D, _turned(z), bias, None, softplus, False)
        return _turned(y).contiguous(), last

    def fwd(self, u, delta, A, B, C, D, z, bias, softplus):
        self._check(u, delta, A, B, C, z)
        y, last = self._run(u, delta, A, B, C, D, None, bias, softplus)
        states = torch.stack((torch.full_like(last, float("nan")), last), -1).flatten(2)[:, :, None]  # [B, D, 1, 2 N]
        return [y, states] if z is None else [y, states, self._run(u, delta, A, B, C, D, z, bias, softplus)[0]]

    def bwd(self, u, delta, A, B, C, D, z, bias, gy, states, y, gz, softplus, recompute):
        assert (gy.stride(-1) == 1 or gy.shape[-1] == 1) and (y is None) == (z is None) and gz is None and not recompute
        with torch.enable_grad():
            tensors = [x if x is None else x.detach().requires_grad_() for x in (u, delta, A, B, C, D, bias, z)]
            *first, b, z = tensors
            self.result, _ = self._run(*first, z, b, softplus)
        found = iter(torch.autograd.grad(self.result, [x for x in tensors if x is not None], gy))
        gradients = [None if x is None else next(found) for x in tensors]
        return gradients if z is not None else gradients[:-1]


@pytest.fixture
def stand_ins(monkeypatch):
    """The two packages' compiled functions with their own layouts and limits, made of the reference."""

    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        assert activation == "silu" and weight.shape[1] in (2, 3, 4)
        return scan._reference_conv(x.transpose(1, 2), weight, bias, None, False)[0].transpose(1, 2)

    conv = types.ModuleType("causal_conv1d")
    conv.causal_conv1d_fn = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", FakeScan("selective_scan_cuda"))
    monkeypatch.setitem(sys.modules, "causal_conv1d", conv)
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)  # the package around the kernel need not work


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("without", [(), ("initial_state",), OPTIONAL])
def test_mamba_ssm_gradients_are_right_and_that_of_the_last_state_is_refused(stand_ins, reverse, without):
    tensors = {name: x.requires_grad_() for name, x in scan_inputs(2, 9, 6, 5, without=without).items()}
    every = [tensors.get(k) for k in ("u", "delta", "A", "B", "C", *OPTIONAL)]
    y, last = scan_mamba_ssm.scan(*every, True, reverse)
    wanted, _ = scan._reference_scan(*every, True, reverse)
    gy = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = (torch.autograd.grad(x, list(tensors.values()), gy, retain_graph=True) for x in (y, wanted))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 1e-12)
    with pytest.raises(ValueError, match="no gradient of the last state: set LITEAVSE_SCAN"):
        (y.sum() + last.sum()).backward()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("without", [(), ("initial_state",), OPTIONAL, ("z",)])
@pytest.mark.parametrize("length", [0, 1, 13])
def test_mamba_ssm_adapter(stand_ins, reverse, without, length):
    tensors = scan_inputs(2, length, 6, 5, without=without)
    every = [tensors.get(k) for k in ("u", "delta", "A", "B", "C", *OPTIONAL)]
    y, last = scan_mamba_ssm.scan(*every, True, reverse)
    expected = scan_by_hand(**tensors, reverse=reverse)
    assert_close(y, expected[0], 1e-12)
    assert_close(last, expected[1], 1e-12)
    tensors = conv_inputs(2, length, 6, 4, without=without)
    y, last = scan_mamba_ssm.convolve(*(tensors.get(k) for k in ("x", "weight", "bias", "initial_state")), reverse)
    expected = conv_by_hand(**tensors, reverse=reverse)
    assert_close(y, expected[0], 1e-12)
    assert_close(last, expected[1], 1e-12)
