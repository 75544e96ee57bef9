"""Compressed-magnitude STFT: SEMamba's numbers, exact lengths, finite gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.paths import GOLDEN
from models.stfts import compress_spectrum, mag_phase_istft, mag_phase_stft

SIZES = (400, 100, 400, 0.3)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "semamba.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def angle_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.remainder(a - b + torch.pi, 2 * torch.pi).sub(torch.pi).abs()


def test_matches_semamba(golden: dict[str, torch.Tensor]) -> None:
    mag, pha, com = mag_phase_stft(golden["wav"], *SIZES)
    assert mag.shape == (2, 201, 33)
    torch.testing.assert_close(mag, golden["mag"], rtol=0, atol=1e-4)
    loud = golden["mag"] > 0.1  # where there is next to nothing, rounding decides the phase
    assert loud.float().mean() > 0.9
    assert angle_between(pha, golden["pha"])[loud].max() < 1e-4
    expected = golden["mag"][..., None] * torch.stack((golden["pha"].cos(), golden["pha"].sin()), dim=-1)
    torch.testing.assert_close(com, expected, rtol=0, atol=1e-4)


def test_addeps_matches_semamba(golden: dict[str, torch.Tensor]) -> None:
    mag, pha, _ = mag_phase_stft(golden["wav"], *SIZES, addeps=True)
    torch.testing.assert_close(mag, golden["mag"], rtol=0, atol=1e-4)
    assert angle_between(pha, golden["pha_eps"])[golden["mag"] > 0.1].max() < 1e-4


def test_inverse_matches_semamba(golden: dict[str, torch.Tensor]) -> None:
    wav = mag_phase_istft(golden["mag"], golden["pha"], *SIZES)
    torch.testing.assert_close(wav, golden["wav"], rtol=0, atol=1e-4)


def test_inverse_gives_every_sample_back_at_any_length() -> None:
    x = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for length in [401, *range(450, 650), 1599, 1600, 1601, 1999, 2000]:
        mag, pha, _ = mag_phase_stft(x[:, :length], *SIZES)
        assert mag.shape[2] == 1 + length // 100
        back = mag_phase_istft(mag, pha, *SIZES, length=length)
        assert back.shape == (1, length)
        assert (back - x[:, :length]).abs().max() < 1e-9, length


def test_one_second_has_161_frames() -> None:
    assert mag_phase_stft(torch.zeros(1, 16000), *SIZES)[0].shape == (1, 201, 161)


def test_compression_is_a_power_of_the_magnitude() -> None:
    x = torch.randn(1, 1600, generator=torch.Generator().manual_seed(1))
    plain = mag_phase_stft(x, 400, 100, 400, 1.0)[0]
    torch.testing.assert_close(mag_phase_stft(x, *SIZES)[0], plain**0.3)


def test_addeps_keeps_the_gradient_of_silence_finite() -> None:
    x = torch.zeros(1, 1600, requires_grad=True)
    mag, _, com = mag_phase_stft(x, *SIZES, addeps=True)
    (mag.sum() + com.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_the_sign_of_a_zero_does_not_turn_the_phase() -> None:
    """FFTs differ in the sign of the zeros that they give for the first and the last bin."""
    real, zero = torch.tensor([-2.0, -2.0, 2.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0, -0.0])
    mag, pha, com = compress_spectrum(torch.complex(real, zero), 0.3)
    assert pha.tolist() == [float(np.float32(np.pi))] * 2 + [0.0] * 4 and not pha.signbit().any()
    assert torch.equal(com[0], com[1]) and torch.equal(mag[2:4], mag[:2])
    other = torch.randn(1000, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compress_spectrum(other, 0.3)[1], other.angle())
