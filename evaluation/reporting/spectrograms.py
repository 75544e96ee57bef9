"""Figures of single recordings: spectrograms before and after, their difference, alpha and the gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from evaluation.reporting.figures import drawing
from models.inference.results import EnhanceResult
from models.stfts import mag_phase_stft

DYNAMIC_RANGE_DB = 70.0  # below the loudest bin of all spectrograms of a figure
LARGEST_DIFFERENCE_DB = 30.0


def spectrogram_db(wav: np.ndarray, stft: Mapping) -> np.ndarray:
    """Level of each bin in dB, [F, T]."""
    wave = torch.from_numpy(np.ascontiguousarray(wav, np.float32))[None]
    mag, _, _ = mag_phase_stft(wave, stft["n_fft"], stft["hop_size"], stft["win_size"], 1.0)
    return 20 * np.log10(np.maximum(mag[0].numpy(), 1e-8))


def spectrogram_figure(
    path: Path, title: str, sounds: Mapping[str, np.ndarray], result: EnhanceResult, stft: Mapping, difference: bool = True,
    gate_over_time: bool = False, dpi: int | None = None, pdf: bool = False,
) -> None:
    """Spectrograms of `sounds` {name: float32 [L]} on one dB scale, then a difference, alpha and the gate, one below the other.

    The difference is the second sound minus the last (of two sounds: minus the first); levels below the scale count as
    silence. The gate is drawn by frequency with its spread over time, or, with `gate_over_time`, by frequency and time.
    `pdf` writes a .pdf beside `path`, too.
    """
    spectra = {name: spectrogram_db(wav, stft) for name, wav in sounds.items()}
    highest = max(float(spectrum.max()) for spectrum in spectra.values())
    shown = {name: np.maximum(spectrum - highest, -DYNAMIC_RANGE_DB) for name, spectrum in spectra.items()}
    duration_sec = len(next(iter(sounds.values()))) / stft["sampling_rate"]
    top_khz = stft["sampling_rate"] / 2000
    place = {"origin": "lower", "aspect": "auto", "extent": (0, duration_sec, 0, top_khz), "interpolation": "nearest"}
    heights = [1.5] * (len(shown) + difference) + [0.9, 1.2]
    with drawing(path, 7.2, 0.6 + sum(heights), dpi, pdf) as figure:
        axes = figure.subplots(len(heights), 1, height_ratios=heights)
        figure.suptitle(title, fontsize=9)
        for axis, (name, level) in zip(axes, shown.items(), strict=False):
            image = axis.imshow(level, cmap="magma", vmin=-DYNAMIC_RANGE_DB, vmax=0, **place)
            axis.set(title=name, ylabel="kHz")
        figure.colorbar(image, ax=list(axes[: len(shown)]), label="dB below the loudest bin", aspect=40, pad=0.01)
        if difference:
            names = list(shown)
            reference = names[-1] if len(names) > 2 else names[0]
            change = shown[names[1]] - shown[reference]
            limit = LARGEST_DIFFERENCE_DB
            image = axes[-3].imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit, **place)
            axes[-3].set(title=f"{names[1].split(',')[0]} minus {reference}", ylabel="kHz")
            figure.colorbar(image, ax=axes[-3], label="dB", pad=0.01, extend="both")
        _draw_alpha(axes[-2], result, duration_sec)
        if not gate_over_time:
            _draw_gate(axes[-1], result, top_khz)
            return
        image = axes[-1].imshow(_gate_image(result), cmap="viridis", vmin=0, vmax=1, **place)
        title = "gate: where the video helps" + _without(result.gate, "no gate to show")
        axes[-1].set(title=title, xlabel="time in s", ylabel="kHz")
        figure.colorbar(image, ax=list(axes[-2:]), label="gate", aspect=25, pad=0.01)


def _gate_image(result: EnhanceResult) -> np.ndarray:
    """The gate [F', T]; NaN, which leaves the place empty, where no video was used: that is not the same as a gate of 0."""
    if result.gate is None:
        return np.full((1, 1), np.nan)
    without = result.alpha[: len(result.gate), None] == 0
    return np.where(without, np.nan, result.gate).T


def _without(values: np.ndarray | None, said: str) -> str:
    return "" if values is not None else f" ({said})"


def draw_recording(path: Path, title: str, noisy: np.ndarray, result: EnhanceResult, stft: Mapping) -> None:
    """Draws both spectrograms, alpha and the gate over time. noisy: float32 [n] at the result's sample rate."""
    way = "audio only" if result.alpha is None else "audio-visual"
    sounds = {"noisy": noisy, f"enhanced, {way}": result.wav}
    spectrogram_figure(path, title, sounds, result, stft, difference=False, gate_over_time=True)


def _draw_alpha(axis, result: EnhanceResult, duration_sec: float) -> None:
    if result.alpha is not None:
        axis.plot(np.linspace(0, duration_sec, len(result.alpha)), result.alpha, color="#009e73")
    title = "alpha: trust in the video" + _without(result.alpha, "no video was used")
    axis.set(title=title, xlabel="time in s", ylabel="alpha", xlim=(0, duration_sec), ylim=(-0.05, 1.05))
    axis.grid(alpha=0.3)


def _draw_gate(axis, result: EnhanceResult, top_khz: float) -> None:
    if result.gate is not None:
        n_freq = result.gate.shape[1]
        centre_khz = (np.arange(n_freq) + 0.5) * top_khz / n_freq
        low, high = np.percentile(result.gate, (10, 90), axis=0)
        axis.fill_between(centre_khz, low, high, color="#0072b2", alpha=0.25, linewidth=0, label="10 % to 90 % of the moments")
        axis.plot(centre_khz, result.gate.mean(axis=0), color="#0072b2", label="mean over time")
        axis.legend(loc="best", frameon=False)
    title = "gate: frequencies that the video helps" + _without(result.gate, "no gate to show")
    axis.set(title=title, xlabel="frequency in kHz", ylabel="gate", xlim=(0, top_khz), ylim=(-0.05, 1.05))
    axis.grid(alpha=0.3)
