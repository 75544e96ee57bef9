"""Rooms: recorded impulse responses applied to speech, with a target that keeps the early part of the room."""

from __future__ import annotations

import logging
import os
from typing import Literal

import numpy as np

from dataloaders.clip_dataset import read_paths
from utils.media.sound import load_audio

EARLY_SEC = 0.05  # after the direct sound: heard as part of it (Lochner and Burger, 1964)
DIRECT_RANGE_DB = 12.0  # a direct sound may be weaker than a reflection by this much
ATTACK_SEC = 0.001  # from the onset of the direct sound to its peak, at most
SHORTEST_DECAY_SEC = 0.15  # to fall by 60 dB; less is a cable or an anechoic chamber
LARGEST_BEND = 3.0  # late over early decay time; more is a noise floor, not a room
DRIEST_C50_DB = 25.0  # early over late energy; beyond it there is nothing to dereverberate

_log = logging.getLogger(__name__)


def direct_onset(rir: np.ndarray, sample_rate: int = 16000) -> int:
    """Sample at which the direct sound of rir [n] sets in.

    The direct sound is the first peak within 12 dB of the highest one, since a reflection (or two that coincide) can be
    louder than the straight path; its onset is where it first comes within 20 dB of its peak, at most 1 ms before.
    """
    level = np.abs(rir)
    attack = max(1, round(ATTACK_SEC * sample_rate))
    first = int(np.argmax(level >= level.max() * 10 ** (-DIRECT_RANGE_DB / 20)))
    peak = first + int(np.argmax(level[first : first + attack]))
    begin = max(0, peak - attack)
    return begin + int(np.argmax(level[begin : peak + 1] >= 0.1 * level[peak]))


def decay_sec(rir: np.ndarray, sample_rate: int, from_db: float, to_db: float) -> float:
    """Time to fall by 60 dB, from where the backward-integrated energy (Schroeder, 1965) passes two levels below 0.

    NaN when it never gets that far down.
    """
    energy = np.cumsum(np.square(rir, dtype=np.float64)[::-1])[::-1]
    level_db = 10 * np.log10(np.maximum(energy / energy[0], 1e-30))
    begin, end = (np.flatnonzero(level_db < -down) for down in (from_db, to_db))
    if not len(begin) or not len(end):
        return float("nan")
    return float((end[0] - begin[0]) / sample_rate * 60.0 / (to_db - from_db))


def prepare_rir(rir: np.ndarray, sample_rate: int = 16000) -> np.ndarray:
    """Trim an impulse response [n] to begin with its direct sound -> float32 [m]; ValueError when it is no room's."""
    rir = np.asarray(rir, np.float32)
    if not len(rir) or not np.isfinite(rir).all() or np.max(np.abs(rir)) < 1e-6:
        raise ValueError("silent, empty or not finite")
    rir = rir[direct_onset(rir, sample_rate) :]
    early = round(EARLY_SEC * sample_rate)
    late_energy = float(np.sum(np.square(rir[early:], dtype=np.float64)))
    early_energy = float(np.sum(np.square(rir[:early], dtype=np.float64)))
    if late_energy <= early_energy * 10 ** (-DRIEST_C50_DB / 10):
        raise ValueError(f"nothing is left {1000 * EARLY_SEC:.0f} ms after the direct sound, so it is no room")
    steep_sec, decay = decay_sec(rir, sample_rate, 5, 15), decay_sec(rir, sample_rate, 5, 25)
    if not decay >= SHORTEST_DECAY_SEC:
        raise ValueError(f"decays by 60 dB in {decay:.2f} s, too fast for a room")
    if decay > LARGEST_BEND * steep_sec:
        raise ValueError(f"decays in {steep_sec:.2f} s at first and in {decay:.2f} s later: noise, not a room")
    return rir


def reverberate(
    audio: np.ndarray, rir: np.ndarray, rir_target: Literal["early", "reverberant"] = "early", sample_rate: int = 16000
) -> tuple[np.ndarray, np.ndarray]:
    """Speech [L] in a room whose response begins with the direct sound -> (as heard, target), both float32 [L], not delayed.

    "early": the target keeps the direct sound and 50 ms of reflections; "reverberant": the target is what is heard.
    One gain for both gives the direct and early part the RMS of the dry speech.
    """
    from scipy.signal import fftconvolve  # here, not above: it costs every start of a program half a second

    if rir_target not in ("early", "reverberant"):
        raise ValueError(f"rir_target {rir_target!r} is not known; use early or reverberant")
    dry = np.asarray(audio, np.float64)
    early = fftconvolve(dry, rir[: round(EARLY_SEC * sample_rate)])[: len(dry)]
    full = fftconvolve(dry, rir)[: len(dry)]
    power = float(np.sum(np.square(early)))
    gain = np.sqrt(np.sum(np.square(dry)) / power) if power > 0 else 1.0
    heard = (gain * full).astype(np.float32)
    return heard, (gain * early).astype(np.float32) if rir_target == "early" else heard.copy()


def apply_rir(audio: np.ndarray, rir: np.ndarray, sample_rate: int = 16000) -> np.ndarray:
    """Speech [L] as heard in the room of `rir` [n] -> float32 [L], without delay.

    The direct and early part keeps the RMS of the dry speech, so that reverberation comes on top of it.
    """
    rir = np.asarray(rir, np.float32)
    return reverberate(audio, rir[direct_onset(rir, sample_rate) :], sample_rate=sample_rate)[0]


class RIRAugmentor:
    """Puts speech into a random one of the listed rooms with probability `prob`.

    rir_json: list of paths, relative ones looked for beside the list first. Responses that are no room's or cannot be
    read are logged and kept in `skipped`; ValueError when none is left.
    """

    def __init__(self, rir_json: str | os.PathLike, prob: float = 0.3, target_sr: int = 16000) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"rir_prob should be between 0 and 1, not {prob}")
        self._prob, self._rate = prob, target_sr
        self.skipped: dict[str, str] = {}
        self.rirs: list[np.ndarray] = []
        for path in read_paths(rir_json, "data_cfg.train_rir_json"):
            try:
                self.rirs.append(prepare_rir(load_audio(path, target_sr), target_sr))
            except (ValueError, OSError) as error:
                self.skipped[path] = str(error)
                _log.warning("impulse response %s skipped: %s", path, error)
        if not self.rirs:
            raise ValueError(f"data_cfg.train_rir_json: none of the responses in {rir_json} is usable")

    def __call__(
        self, speech: np.ndarray, rng: np.random.Generator, rir_target: Literal["early", "reverberant"] = "early"
    ) -> tuple[np.ndarray, np.ndarray]:
        """speech [L] -> (as heard, target), both float32 [L]; the speech itself twice where no room was drawn."""
        # Both numbers are drawn either way, so that prob changes nothing that is drawn later.
        used, which = rng.random() < self._prob, int(rng.integers(len(self.rirs)))
        if not used:
            return speech, speech
        return reverberate(speech, self.rirs[which], rir_target, self._rate)

    def apply_rir(self, audio: np.ndarray, rir: np.ndarray) -> np.ndarray:
        """`apply_rir` at this augmentor's rate."""
        return apply_rir(audio, rir, self._rate)
