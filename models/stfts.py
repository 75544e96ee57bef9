"""Compressed-magnitude STFT and its inverse (Lu et al., MP-SENet, Interspeech 2023, section 2.1)."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch


def stft_options(cfg: Mapping) -> dict[str, float]:
    """n_fft, hop_size, win_size and compress_factor of a recipe, as keyword arguments of the functions here."""
    sizes = {key: cfg["stft_cfg"][key] for key in ("n_fft", "hop_size", "win_size")}
    return {**sizes, "compress_factor": cfg["model_cfg"]["compress_factor"]}


def _window(win_size: int, like: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
    return _kept_window(win_size, like.device, dtype)


@functools.lru_cache(maxsize=16)
def _kept_window(win_size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # what inference makes first, training must be able to use
        return torch.hann_window(win_size, device=device, dtype=dtype)


def compress_spectrum(
    spectrum: torch.Tensor, compress_factor: float, addeps: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split a complex spectrum [..., F, T] into compressed magnitude, phase and compressed (real, imag) [..., F, T, 2].

    `addeps` keeps the gradient finite where the spectrum is zero; use it for every loss that has gradients.
    """
    if addeps:
        eps = 1e-10
        mag = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + eps)
        pha = torch.atan2(spectrum.imag + eps, spectrum.real + eps)
    else:
        # Of a negative real part the angle is -pi with an imaginary part of -0, and pi with one of +0. FFTs differ in which of
        # the two they give, a CPU's and a GPU's for one; so it is pi.
        mag, pha = spectrum.abs(), spectrum.angle()
        pha = torch.where(spectrum.imag == 0, pha.abs(), pha)
    mag = mag.pow(compress_factor)
    return mag, pha, torch.stack((mag * torch.cos(pha), mag * torch.sin(pha)), dim=-1)


def mag_phase_stft(
    y: torch.Tensor, n_fft: int, hop_size: int, win_size: int, compress_factor: float = 1.0,
    center: bool = True, addeps: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """STFT with a Hann window and reflected edges, magnitude raised to `compress_factor`.

    y [B, L] -> mag [B, F, T], pha [B, F, T] (radians), com [B, F, T, 2], F = n_fft // 2 + 1, T = 1 + L // hop_size.
    """
    spectrum = torch.stft(
        y, n_fft, hop_length=hop_size, win_length=win_size, window=_window(win_size, y),
        center=center, pad_mode="reflect", normalized=False, return_complex=True,
    )
    return compress_spectrum(spectrum, compress_factor, addeps)


def mag_phase_istft(
    mag: torch.Tensor, pha: torch.Tensor, n_fft: int, hop_size: int, win_size: int, compress_factor: float = 1.0,
    center: bool = True, length: int | None = None,
) -> torch.Tensor:
    """Inverse of `mag_phase_stft`: mag [B, F, T], pha [B, F, T] -> waveform [B, L].

    With `length` the waveform has exactly that many samples; without it up to hop_size - 1 samples at the end are lost.
    """
    mag = mag.pow(1.0 / compress_factor)
    spectrum = torch.complex(mag * torch.cos(pha), mag * torch.sin(pha))
    return torch.istft(
        spectrum, n_fft, hop_length=hop_size, win_length=win_size, window=_window(win_size, spectrum),
        center=center, length=length,
    )
