"""The compiled CPU kernels: gradients, extremes, threads, forks, and what torch's machinery sees of them."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from helpers.paths import LONGEST_SEC
from helpers.scans import assert_close, conv_inputs, scan_by_hand, scan_inputs, single
from models.ops import scan_cpu as scan_ops
from models.ops.kernels import threads as kernel_threads
from models.ops.scan import causal_conv1d, selective_scan

OPTIONAL = ("D", "z", "delta_bias", "initial_state")


@pytest.fixture(autouse=True)
def default_backend(monkeypatch):
    monkeypatch.delenv("LITEAVSE_SCAN", raising=False)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def outputs_and_gradients(function, tensors, outputs, **kwargs):
    """y, last state and the gradients of a random weighting of the outputs named."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    y, last = function(**leaves, **kwargs)
    rng = torch.Generator().manual_seed(9)
    loss = 0
    for name, x in (("y", y), ("last", last)):
        weight = torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.dtype)
        loss = loss + ((x * weight).sum() if name in outputs else 0)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {"y": y.detach(), "last": last.detach()} | dict(zip(leaves, grads, strict=True))


def assert_same(function, tensors, outputs=("y", "last"), **kwargs):
    expected = outputs_and_gradients(function, tensors, outputs, backend="reference", **kwargs)
    actual = outputs_and_gradients(function, single(tensors), outputs, backend="numba", **kwargs)
    for name, x in expected.items():
        if x is None:  # the reference did not use it at all
            assert actual[name] is None or not actual[name].any(), name
        else:
            assert_close(actual[name], x)


some_outputs = st.sampled_from([("y", "last"), ("y",), ("last",)])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), L=st.integers(0, 70), D=st.integers(1, 70), N=st.integers(1, 64),
       without=st.sets(st.sampled_from(OPTIONAL)), softplus=st.booleans(), reverse=st.booleans(),
       outputs=some_outputs)  # fmt: skip
def test_scan_gradients(B, L, D, N, without, softplus, reverse, outputs):
    tensors = scan_inputs(B, L, D, N, without=without)
    if not softplus:  # steps of negative length would make states grow
        tensors |= {name: tensors[name].abs() for name in ("delta", "delta_bias") if name in tensors}
    assert_same(selective_scan, tensors, outputs, delta_softplus=softplus, reverse=reverse)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), L=st.integers(0, 70), D=st.integers(1, 70), K=st.integers(1, 20),
       without=st.sets(st.sampled_from(("bias", "initial_state"))), reverse=st.booleans(),
       outputs=some_outputs)  # fmt: skip
def test_convolution_gradients(B, L, D, K, without, reverse, outputs):
    assert_same(causal_conv1d, conv_inputs(B, L, D, K, without=without), outputs, reverse=reverse)


@pytest.mark.parametrize("shape", [(20, 33, 70, 16), (1, 200, 257, 5)])
def test_many_tasks_on_two_threads(two_threads, shape):
    B, L, D, N = shape
    assert B * L * D * N > kernel_threads.SERIAL_WORK
    assert_same(selective_scan, scan_inputs(B, L, D, N), reverse=True)
    assert_same(causal_conv1d, conv_inputs(B, L, D, 4))


def test_a_batch_of_none():
    tensors = single(scan_inputs(0, 4, 5, 3))
    actual = outputs_and_gradients(selective_scan, tensors, ("y", "last"))
    assert actual["y"].shape == (0, 4, 5) and not actual["A"].any()


@pytest.mark.parametrize("delta", [-200.0, -100.0, -40.0, -10.0, 0.0, 19.0, 30.0, 1000.0])
def test_step_sizes_from_vanishing_to_huge(delta):
    tensors = scan_inputs(1, 6, 5, 3, without=("delta_bias",))
    tensors["delta"] = torch.full_like(tensors["delta"], delta)
    y, last = selective_scan(**single(tensors))
    expected = scan_by_hand(**tensors)
    assert_close(y, expected[0])
    assert_close(last, expected[1])
    zero = {**tensors, "initial_state": torch.zeros(1, 5, 3, dtype=torch.float64), "u": torch.ones(1, 6, 5).double()}
    last = selective_scan(**single(zero))[1].double()
    reference = scan_by_hand(**zero)[1]
    if delta > -80:  # below, float32 itself has no such small numbers
        torch.testing.assert_close(last, reference, rtol=1e-4, atol=1e-30)  # small steps keep their digits
    assert_same(selective_scan, tensors)


def test_growing_states_and_infinity():
    tensors = scan_inputs(1, 6, 5, 3)
    tensors["A"] = tensors["A"].abs()
    y, last = selective_scan(**single(tensors))
    expected = scan_by_hand(**tensors)
    assert_close(y, expected[0])
    tensors["A"] = tensors["A"] * 0 + 100.0
    tensors["delta"] = tensors["delta"] * 0 + 10.0
    assert not torch.isfinite(selective_scan(**single(tensors))[1]).any()
    negative_steps = {**tensors, "A": -tensors["A"] / 100, "delta": -tensors["delta"] / 20}
    y, _ = selective_scan(**single(negative_steps), delta_softplus=False)
    assert_close(y, scan_by_hand(**negative_steps, softplus=False)[0])


def test_a_step_of_no_length_keeps_the_state_bit_for_bit():
    tensors = single(scan_inputs(2, 7, 66, 4, without=("delta_bias",)))
    tensors["delta"].zero_()
    last = selective_scan(**tensors, delta_softplus=False)[1]
    assert torch.equal(last, tensors["initial_state"])


def test_same_bits_for_any_number_of_threads_and_every_time():
    scan, conv = single(scan_inputs(20, 33, 130, 16)), single(conv_inputs(20, 33, 130, 4))
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results = outputs_and_gradients(selective_scan, scan, ("y", "last"))
            runs.append([*results.values(), *outputs_and_gradients(causal_conv1d, conv, ("y", "last")).values()])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(run, runs[0], strict=True))


def test_python_threads_do_the_same_where_openmp_is_unknown(two_threads, monkeypatch):
    tensors = single(scan_inputs(20, 33, 130, 16))
    expected = outputs_and_gradients(selective_scan, tensors, ("y", "last"))
    monkeypatch.setattr(kernel_threads.threads, "openmp", None)
    actual = outputs_and_gradients(selective_scan, tensors, ("y", "last"))
    assert kernel_threads.threads.pool is not None
    assert all(torch.equal(actual[name], x) for name, x in expected.items())


def test_thread_setting_is_left_alone(two_threads):
    torch.set_num_threads(1)
    selective_scan(**single(scan_inputs(20, 33, 130, 16)))
    assert torch.get_num_threads() == 1


def _wait_for(child, seconds=LONGEST_SEC):
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_may_call_the_kernel_after_its_parent(two_threads):
    tensors = single(scan_inputs(20, 33, 130, 16))
    expected = outputs_and_gradients(selective_scan, tensors, ("y",))["y"]
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(selective_scan(**tensors)[0], expected) else 3)
    assert _wait_for(child) == 0
    assert torch.equal(selective_scan(**tensors)[0], expected)


class _Scanning(torch.utils.data.Dataset):
    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return selective_scan(**self.tensors)[0] + index


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers_may_call_the_kernel(two_threads):
    tensors = single(scan_inputs(20, 33, 130, 16))
    expected = selective_scan(**tensors)[0]
    loader = torch.utils.data.DataLoader(_Scanning(tensors), batch_size=None, num_workers=2, timeout=LONGEST_SEC)
    for index, y in enumerate(loader):
        assert torch.equal(y, expected + index)


def _scan_arguments(save=True, grad=True):
    t = {k: x.requires_grad_(grad) for k, x in single(scan_inputs(2, 18, 5, 3)).items()}
    return (t["u"], t["delta"], t["A"].t(), t["B"], t["C"], t["D"], t["z"], t["delta_bias"],
            t["initial_state"].transpose(1, 2), True, False, save)  # fmt: skip


def test_operators_pass_torchs_own_checks():
    torch.library.opcheck(scan_ops.scan_forward, _scan_arguments())
    torch.library.opcheck(scan_ops.scan_forward, _scan_arguments(save=False, grad=False))
    few = (*_scan_arguments()[:5], None, None, None, None, True, True, True)
    torch.library.opcheck(scan_ops.scan_forward, few)
    t = {k: x.requires_grad_() for k, x in single(conv_inputs(2, 18, 5, 4)).items()}
    torch.library.opcheck(scan_ops.conv_forward, (t["x"], t["weight"].t(), t["bias"], t["initial_state"], True))
    torch.library.opcheck(scan_ops.conv_forward, (t["x"], t["weight"].t(), None, None, False))


def test_torch_compile_sees_one_graph():
    tensors = {k: x.requires_grad_() for k, x in single(scan_inputs(2, 18, 5, 3)).items()}
    weight = torch.randn(5, 4)

    def block(u, **rest):
        u, _ = causal_conv1d(u, weight)
        return selective_scan(u, **rest)[0].square().mean()

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(block(**tensors), list(tensors.values()))
    actual = torch.autograd.grad(compiled(**tensors), list(tensors.values()))
    for x, y in zip(actual, expected, strict=True):
        assert_close(x, y, 1e-6)


def test_flop_counter_counts_scan_and_convolution():
    tensors = {k: x.requires_grad_() for k, x in single(scan_inputs(2, 10, 8, 4)).items()}
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        selective_scan(**tensors)
        causal_conv1d(tensors["u"], torch.ones(8, 3))
    assert forward.get_total_flops() == 2 * 2 * 10 * 8 * (3 * 4 + 3)
    with FlopCounterMode(display=False) as both:
        selective_scan(**tensors)[0].sum().backward()
    assert both.get_total_flops() == 2 * 2 * 10 * 8 * 4 * (3 + 8)


def test_backward_needs_no_more_memory_than_three_times_its_inputs():
    t = single(scan_inputs(4, 64, 128, 16))
    with torch.no_grad():
        a, before = t["A"].t().contiguous(), (t["B"], t["C"], t["D"], t["z"], None)
        y, _, chunks = scan_ops.scan_forward(t["u"], t["delta"], a, *before, None, True, False, True)
        with torch.profiler.profile(profile_memory=True) as profile:
            scan_ops.scan_backward(y, None, t["u"], t["delta"], a, *before, chunks, True, False)
    inputs = sum(x.nbytes for x in (y, *(t[name] for name in ("u", "delta", "B", "C", "z"))))
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert 0 < allocated + chunks.nbytes <= 3 * inputs
