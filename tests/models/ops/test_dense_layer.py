"""The compiled depthwise convolution over several sources against torch's own in float64, and the dense block on it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from models.codec_module import LiteDenseBlock
from models.ops.dense_layer import compiled_for, dense_forward, depthwise_forward, depthwise_rows, pack_layer
from utils.config import complete_config


@pytest.fixture(autouse=True)
def default_backend(monkeypatch):
    monkeypatch.delenv("LITEAVSE_SCAN", raising=False)


def inputs(B: int, T: int, bins: int, C: int, S: int, past: int) -> tuple[list, list, torch.Tensor]:
    """Sources, the frames before them and the weight, in float64."""
    rng = torch.Generator().manual_seed(B + 10 * T + 100 * bins + C + S)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return [draw(B, T, bins, C) for _ in range(S)], [draw(B, past, bins, C) for _ in range(S)], draw(S * C, 1, 3, 3)


def oracle(sources, before, weight, dilation):
    x = torch.cat(sources, dim=3)
    reach = 2 * dilation
    if before is None:
        x = F.pad(x, (0, 0, 0, 0, reach, 0))
    else:
        x = torch.cat((torch.cat(before, dim=3)[:, before[0].shape[1] - reach :], x), dim=1)
    x = F.pad(x.permute(0, 3, 1, 2), (1, 1))
    return F.conv2d(x, weight, groups=weight.shape[0], dilation=(dilation, 1)).permute(0, 2, 3, 1)


def run(function, sources, before, weight, dilation, dtype):
    """The result and the gradients of everything under one fixed weighting."""
    leaves = [x.to(dtype).requires_grad_() for x in (*sources, *(before or ()), weight)]
    n = len(sources)
    y = function(leaves[:n], leaves[n:-1] if before else None, leaves[-1], dilation)
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    return [y.detach(), *torch.autograd.grad((y * weighting).sum(), leaves)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(B=st.integers(1, 3), T=st.integers(1, 70), bins=st.integers(1, 12), C=st.sampled_from((16, 32, 48, 64, 80)),
       S=st.integers(1, 4), dilation=st.sampled_from((1, 2, 4, 8)), stream=st.booleans())  # fmt: skip
def test_values_and_gradients(B, T, bins, C, S, dilation, stream):
    sources, before, weight = inputs(B, T, bins, C, S, 16)
    before = before if stream else None
    expected = run(oracle, sources, before, weight, dilation, torch.float64)
    actual = run(depthwise_rows, sources, before, weight, dilation, torch.float32)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5 * max(1.0, float(e.abs().max())))


def test_frames_before_are_read_without_gradients_too():
    sources, before, weight = inputs(2, 5, 7, 32, 3, 16)
    with torch.no_grad():
        y = depthwise_rows([x.float() for x in sources], [x.float() for x in before], weight.float(), 8)
    torch.testing.assert_close(y.double(), oracle(sources, before, weight, 8), rtol=1e-4, atol=1e-4)


def test_slices_and_turned_round_tensors_are_read_where_they_are():
    sources, _, weight = inputs(2, 9, 6, 32, 2, 0)
    wide = torch.cat(sources, dim=3).float()
    planar = sources[1].float().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # channels far apart
    y = depthwise_rows([wide[..., :32], planar], None, weight.float(), 2)
    torch.testing.assert_close(y.double(), oracle(sources, None, weight, 2), rtol=1e-4, atol=1e-4)


def test_nan_stays_where_the_kernel_reaches():
    sources, _, weight = inputs(1, 12, 9, 16, 1, 0)
    x = sources[0].float()
    x[0, 5, 4, 3] = torch.nan
    bad = depthwise_rows([x], None, weight.float(), 2).isnan()
    expected = torch.zeros_like(bad)
    expected[0, 5:10:2, 3:6, 3] = True
    assert torch.equal(bad, expected)


def test_no_frames_give_no_frames():
    y = depthwise_rows([torch.zeros(2, 0, 9, 16)], None, torch.ones(16, 1, 3, 3), 4)
    assert y.shape == (2, 0, 9, 16)


def test_result_does_not_depend_on_the_number_of_threads():
    sources, _, weight = inputs(2, 80, 50, 32, 2, 0)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(run(depthwise_rows, sources, None, weight, 4, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_who_may_use_it(monkeypatch):
    x = torch.zeros(1, 32, 4, 9)
    assert compiled_for(x, 32)
    assert not compiled_for(x.double(), 32)
    assert not compiled_for(x, 24)
    monkeypatch.setenv("LITEAVSE_SCAN", "reference")
    assert not compiled_for(x, 32)


def test_torch_sees_a_whole_operator():
    sources, _, weight = inputs(1, 5, 6, 16, 2, 0)
    leaves = [x.float().requires_grad_() for x in sources]
    torch.library.opcheck(depthwise_forward, (leaves, [], weight[:, 0].float().requires_grad_(), 2))


def test_flop_counter_counts_it():
    sources, _, weight = inputs(2, 5, 6, 16, 3, 0)
    leaves, weight = [x.float().requires_grad_() for x in sources], weight.float().requires_grad_()
    with FlopCounterMode(display=False) as forward:
        y = depthwise_rows(leaves, None, weight, 1)
    once = 2 * 9 * y.numel()
    assert forward.get_total_flops() == once
    with FlopCounterMode(display=False) as both:
        depthwise_rows(leaves, None, weight, 1).sum().backward()
    assert both.get_total_flops() == 3 * once


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("channels, bins", [(16, 11), (32, 4), (64, 1), (80, 7)])
@pytest.mark.parametrize("pieces", [(40,), (1,) * 40, (4, 17, 19), (3, 37)])
def test_dense_block_compiled_and_plain_agree_whole_and_in_pieces(pieces, channels, bins, gradients, monkeypatch):
    torch.manual_seed(0)
    block = LiteDenseBlock(complete_config({"model_cfg": {"hid_feature": channels, "causal": True}}))
    with torch.no_grad():
        for parameter in block.parameters():  # norms and slopes that are not 1 and 0.25
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, channels, 40, bins).contiguous(memory_format=torch.channels_last)
    monkeypatch.setenv("LITEAVSE_SCAN", "reference")
    with torch.no_grad():
        plain = copy.deepcopy(block).double()(x.double()).float()
    with torch.set_grad_enabled(gradients):
        for backend in ("numba", "reference"):
            monkeypatch.setenv("LITEAVSE_SCAN", backend)
            torch.testing.assert_close(block(x), plain, rtol=1e-3, atol=2e-5)
            state, outputs = block.init_state(x), []
            for piece in x.split(pieces, dim=2):
                y, state = block.step(piece, state)
                outputs.append(y)
            torch.testing.assert_close(torch.cat(outputs, dim=2), plain, rtol=1e-3, atol=2e-5)


def test_a_whole_layer_is_one_operator_without_gradients():
    block = LiteDenseBlock(complete_config({"model_cfg": {"hid_feature": 16, "causal": True}}))
    x = torch.randn(1, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with FlopCounterMode(display=False) as whole:
            block(x)
        conv, norm, activation = block.dense_block[0]
        packed = pack_layer(conv.depthwise.weight, conv.pointwise.weight, conv.pointwise.bias, norm.weight, norm.bias,
                            activation.weight)  # fmt: skip
        torch.library.opcheck(dense_forward, ([x.permute(0, 2, 3, 1)], [], packed, 1, 1e-5))
    with FlopCounterMode(display=False) as parts:
        block(x)
    assert list(whole.get_flop_counts()["Global"]) == [torch.ops.liteavse.dense_forward]
    assert whole.get_total_flops() == parts.get_total_flops()
