"""The compiled Mamba layer against its parts, one by one, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from models.mamba import MambaState
from models.mamba_block import ResidualMixer
from models.ops import mamba_layer as mixer


@pytest.fixture(autouse=True)
def default_backend(monkeypatch):
    monkeypatch.delenv("LITEAVSE_SCAN", raising=False)


def layer(C: int, N: int, K: int, expand: int) -> ResidualMixer:
    torch.manual_seed(C + N + K + expand)
    made = ResidualMixer(C, 1, d_state=N, d_conv=K, expand=expand, norm_epsilon=1e-5).eval()
    with torch.no_grad():
        made.norm.weight.uniform_(0.5, 1.5)
        made.mixer.D.uniform_(-1, 1)
    return made


def inputs(made: ResidualMixer, B: int, L: int) -> tuple[torch.Tensor, MambaState]:
    m, rng = made.mixer, torch.Generator().manual_seed(B + L)
    state = (B, m.conv1d.kernel_size[0] - 1, m.d_inner), (B, m.d_inner, m.d_state)
    x, *state = (torch.randn(s, generator=rng) for s in ((B, L, m.in_proj.in_features), *state))
    return x, MambaState(*state)


def assert_near(actual, expected):
    """Outputs and states, those in the order (y, (conv, h))."""
    for a, e in zip((actual[0], *actual[1]), (expected[0], *expected[1]), strict=True):
        largest = float(e.abs().max()) if e.numel() else 0.0
        torch.testing.assert_close(a.double(), e.double(), rtol=1e-4, atol=1e-5 * max(1.0, largest))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(B=st.integers(1, 4), L=st.integers(1, 14), C=st.sampled_from((3, 8, 32, 64, 70)), N=st.integers(1, 20),
       K=st.integers(1, 5), expand=st.integers(1, 4), fresh=st.booleans(), reverse=st.booleans())  # fmt: skip
def test_equals_its_parts_in_float64(B, L, C, N, K, expand, fresh, reverse):
    made = layer(C, N, K, expand)
    x, state = inputs(made, B, L)
    exact = copy.deepcopy(made).double()
    with torch.no_grad():
        assert mixer.usable(x)
        actual = made.step(x, MambaState() if fresh else state, reverse)
        expected = exact.step(x.double(), MambaState(*(0 * s.double() if fresh else s.double() for s in state)), reverse)
    assert_near(actual, expected)


def test_pieces_equal_the_whole():
    made = layer(32, 8, 4, 2)
    x, state = inputs(made, 3, 23)
    with torch.no_grad():
        whole = made.step(x, state)
        outputs = []
        for piece in x.split([1, 4, 2, 11, 5], dim=1):
            y, state = made.step(piece, state)
            outputs.append(y)
    assert_near((torch.cat(outputs, dim=1), state), whole)


def test_changed_weights_are_packed_anew():
    made = layer(8, 4, 4, 2)
    x, _ = inputs(made, 2, 5)
    with torch.no_grad():
        before = made(x)
        made.mixer.out_proj.weight.mul_(2.0)
        torch.testing.assert_close(made(x) - x, 2 * (before - x), rtol=1e-4, atol=1e-5)
        made.load_state_dict(layer(8, 4, 4, 2).state_dict())
        torch.testing.assert_close(made(x), before)


def test_gradients_take_the_road_of_single_operators():
    made = layer(8, 4, 4, 2)
    x, _ = inputs(made, 2, 5)
    assert not mixer.usable(x)
    made(x).sum().backward()
    assert all(p.grad is not None for p in made.parameters())


def test_the_reference_backend_is_left_alone(monkeypatch):
    monkeypatch.setenv("LITEAVSE_SCAN", "reference")
    with torch.no_grad():
        assert not mixer.usable(torch.zeros(1, 2, 3))


def test_slices_are_read_where_they_are_and_nan_stays_in_its_sequence():
    made = layer(8, 4, 4, 2)
    x, _ = inputs(made, 2, 9)
    with torch.no_grad():
        wide = torch.cat((x, x), dim=2)[..., 8:]
        assert torch.equal(made(wide), made(x))
        x[0, 4, 2] = torch.nan
        bad = made(x).isnan()
    assert bad[0, 4:].all() and not bad[0, :4].any() and not bad[1].any()


def test_result_does_not_depend_on_the_number_of_threads():
    made = layer(64, 16, 4, 4)
    x, state = inputs(made, 9, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            with torch.no_grad():
                results.append(made.step(x, state)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_torch_sees_a_whole_operator_and_counts_what_the_parts_would():
    made = layer(16, 4, 4, 2)
    x, state = inputs(made, 2, 6)
    with torch.no_grad():
        arguments = (x, made._packed(*made._weights()), state[0], state[1].transpose(1, 2), 32, 4, 1e-5, False)
        torch.library.opcheck(mixer.mixer_forward, arguments)
        with FlopCounterMode(display=False) as whole:
            made(x)
    with FlopCounterMode(display=False) as parts:
        made(x)
    assert whole.get_total_flops() == parts.get_total_flops() > 0
