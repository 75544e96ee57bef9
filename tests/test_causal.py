"""Time convolutions: causal ones run piece by piece and see no future, the others keep nn.ConvNd's numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.causal import TimeConv1d, TimeConv2d, TimeConv3d


def make(kind: str, causal: bool, **kwargs) -> tuple[torch.nn.Module, torch.Tensor]:
    """A seeded convolution and an input with 23 time frames."""
    torch.manual_seed(0)
    if kind == "1d":
        return TimeConv1d(3, 4, 5, causal, **kwargs), torch.randn(2, 3, 23)
    if kind == "2d":
        return TimeConv2d(3, 4, (3, 3), causal, padding=1, **kwargs), torch.randn(2, 3, 23, 9)
    return TimeConv3d(3, 4, (3, 3, 3), causal, padding=1, **kwargs), torch.randn(2, 3, 23, 6, 7)


KINDS = ["1d", "2d", "3d"]


@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_equal_the_whole(kind: str, dilation: int) -> None:
    spread = dilation if kind == "1d" else (dilation,) + (1,) * (int(kind[0]) - 1)
    conv, x = make(kind, causal=True, dilation=spread)
    whole = conv(x)
    assert whole.shape[2] == x.shape[2]
    for sizes in ([1] * 23, [4, 7, 12], [22, 1]):
        state, pieces = conv.init_state(x), []
        for piece in x.split(sizes, dim=2):
            y, state = conv.step(piece, state)
            assert y.shape[2] == piece.shape[2]
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=2), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_output_ignores_the_future(kind: str) -> None:
    conv, x = make(kind, causal=True)
    changed = x.clone()
    changed[:, :, 11:] += 1
    a, b = conv(x), conv(changed)
    assert torch.equal(a[:, :, :11], b[:, :, :11])
    assert not torch.equal(a[:, :, 11], b[:, :, 11])


def test_symmetric_equals_a_padded_convolution() -> None:
    conv, x = make("2d", causal=False, dilation=(2, 1))
    expected = F.conv2d(x, conv.weight, conv.bias, padding=(2, 1), dilation=(2, 1))
    torch.testing.assert_close(conv(x), expected)
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_only_the_time_axis_is_padded_by_the_layer() -> None:
    conv = TimeConv2d(2, 2, (1, 3), causal=True, stride=(1, 2))
    x = torch.randn(1, 2, 5, 201)
    assert conv(x).shape == (1, 2, 5, 100)
    y, state = conv.step(x[:, :, :2], conv.init_state(x))
    assert y.shape == (1, 2, 2, 100)
    assert state.shape[2] == 0


def test_looking_ahead_has_no_stream() -> None:
    conv, x = make("1d", causal=False)
    with pytest.raises(ValueError, match="looks ahead"):
        conv.init_state(x)


def test_time_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="stride"):
        TimeConv1d(2, 2, 3, causal=True, stride=2)
