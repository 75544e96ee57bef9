"""A causal model on live sound: it processes each STFT frame once, as soon as its samples are there.

The signal path is that of whole clips (level, centred STFT with mirrored edges, model, inverse STFT), for several
independent streams that advance together. STFT frame t is centred on sample t * hop and needs the n_fft / 2 samples after
that. Output sample n needs the frames up to (n + n_fft / 2) // hop, so at most n_fft - 1 samples after n, and more if
visual_cfg.visual_lookahead_ms lets the sound wait for the video.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from models.generator import Enhanced, ModelState, SEMamba
from models.inference.crop_stream import check_crops, check_mask
from models.inference.stream_video import CropQueue, VideoSide
from models.inference.upper_band import top_octave_gain
from models.level import RunningLevel
from models.stfts import mag_phase_stft
from models.timing import latency_samples

PIECE_FRAMES = 40  # STFT frames (0.25 s) per call of the model: they fit the CPU's caches; pieces of 1 s take 15 % longer


@dataclass
class _Carried:
    """What one call passes on to the next. No tensor in it is changed in place, so a shallow copy is a snapshot."""

    level: RunningLevel
    wave: torch.Tensor  # [B, n] samples at the model's level, from sample `start` on
    gains: torch.Tensor  # [B, n] gain of the samples that were fed and are not returned yet
    tail: torch.Tensor  # [B, n_fft - hop] sum of overlapping frames that later frames will complete
    weight: torch.Tensor  # [n_fft - hop] the sum of squared windows there
    model: ModelState
    start: int = 0
    heard: int = 0
    given: int = 0
    frames: int = 0
    mirrored: bool = False
    flushed: bool = False


class _Made(NamedTuple):
    """What a call gives besides sound: lists of arrays, one for each call of the model."""

    alpha: list[np.ndarray]  # [B, t]
    gate: list[np.ndarray]  # [B, t, F']
    upper: list[np.ndarray]  # [B, t]


class StreamBatch:
    """`streams` independent sounds through one causal model; each call advances all by the same number of samples.

    Samples are float32 at the model's rate and at the recording's own level. No stream has an effect on another. A call
    that raises an error does not change the streams. `alpha` is a list of arrays [B, t], the trust in the video for the
    frames of the last call, 0 where no face is seen; with keep_gate `gate` is a list of arrays [B, t, F'], and with keep_upper
    `upper` is a list of arrays [B, t], the gain of the band above the model's (models/inference/upper_band.py).
    """

    def __init__(
        self, model: SEMamba, cfg: Mapping, streams: int = 1, hold_sec: float | None = None, keep_gate: bool = False,
        keep_upper: bool = False,
    ) -> None:
        if not model.causal:
            raise ValueError("this model is not causal (model_cfg.causal: false): it cannot stream, it needs whole recordings")
        stft = cfg["stft_cfg"]
        self.model, self.streams, self.keep_gate, self.keep_upper = model, streams, keep_gate, keep_upper
        self.n_fft, self.hop, self.win = stft["n_fft"], stft["hop_size"], stft["win_size"]
        self.sample_rate: int = stft["sampling_rate"]
        self.compress: float = cfg["model_cfg"]["compress_factor"]
        self.n_freq_enc: int = cfg["lite_cfg"]["n_freq_enc"]
        self.face_size: int = cfg["visual_cfg"]["face_size"]
        weight = next(model.parameters(), None)
        self.device = torch.device("cpu") if weight is None else weight.device
        self.uses_video = bool(getattr(model, "use_visual", False))
        lookahead_ms = model.timing["lookahead_ms"] if self.uses_video else 0.0
        # Output sample n is returned by the call that feeds input sample n + latency_samples - 1, or earlier.
        self.latency_samples = latency_samples(self.n_fft, self.sample_rate, lookahead_ms)
        self._wait = self.latency_samples - self.n_fft // 2  # what an STFT frame's centre waits for
        self._hold_sec = hold_sec
        side = (self.n_fft - self.win) // 2
        window = F.pad(torch.hann_window(self.win), (side, self.n_fft - self.win - side))
        self._window = window.to(self.device)  # [n_fft]
        self.reset()

    @property
    def backlog_samples(self) -> int:
        """Samples that were fed and are not returned yet."""
        return self._now.heard - self._now.given

    @torch.inference_mode()
    def reset(self) -> None:
        """Begin new streams; the model stays loaded."""
        blank = torch.zeros(self.streams, self.n_fft // 2 + 1, 0, device=self.device)
        overlap = self.n_fft - self.hop
        self._now = _Carried(
            level=RunningLevel(self.sample_rate, self.streams),
            wave=blank.new_zeros(self.streams, 0),
            gains=blank.new_zeros(self.streams, 0),
            tail=blank.new_zeros(self.streams, overlap),
            weight=blank.new_zeros(overlap),
            model=self.model.init_state(blank),
        )
        self.video = None
        if self.uses_video:
            self.video = VideoSide(self.model.visual_encoder, self.model.timing, self.streams, self._hold_sec)
        self.alpha: list[np.ndarray] = []
        self.gate: list[np.ndarray] = []
        self.upper: list[np.ndarray] = []

    def add_video(
        self, crops: np.ndarray, timestamps: np.ndarray, mask: np.ndarray | None = None, stream: int = 0
    ) -> None:
        """Add face crops [V, S, S, 3] to one stream, visible from timestamps [V] (seconds since its sound began) on.

        stream_video.CropQueue says what happens with late or missing frames and with other rates. ValueError for crops,
        timestamps or a mask that cannot be used, for a model without a visual branch, and after `flush`.
        """
        if self.video is None:
            raise ValueError(f"this {type(self.model).__name__} checkpoint has no visual branch: it takes no video")
        self._refuse_after_flush()
        crops = check_crops(crops, self.face_size)
        queue: CropQueue = copy.copy(self.video.queues[stream])
        queue.add(crops, timestamps, check_mask(mask, len(crops)))
        self.video.queues[stream] = queue

    @torch.inference_mode()
    def feed(self, samples: np.ndarray) -> np.ndarray:
        """Any number of further samples [B, n] -> the enhanced samples that are ready now, float32 [B, m]."""
        self._refuse_after_flush()
        return self._carry_on(self._hearing(samples))

    @torch.inference_mode()
    def flush(self, samples: np.ndarray | None = None) -> np.ndarray:
        """End the sound, after these last samples [B, n] -> the last output [B, m]: as many are returned in all as were fed."""
        self._refuse_after_flush()
        return self._carry_on([*([] if samples is None else self._hearing(samples)), self._end])

    def _hearing(self, samples: np.ndarray) -> list[Callable[[_Carried, _Made], torch.Tensor]]:
        """Return the parts of `_carry_on` that hear samples [B, n]."""
        size = PIECE_FRAMES * self.hop
        pieces = [samples[:, first : first + size] for first in range(0, samples.shape[1], size)]
        return [lambda now, made, piece=piece: self._hear(now, piece, made) for piece in pieces]

    def _refuse_after_flush(self) -> None:
        if self._now.flushed:
            raise ValueError("this stream has ended (flush was called); reset() begins a new one")

    def _carry_on(self, parts: list) -> np.ndarray:
        """Run the parts on a copy of the state, which replaces the state if none of them raises an error."""
        now, queues = copy.copy(self._now), self.video.snapshot() if self.video else None
        now.level = copy.copy(now.level)
        made = _Made([], [], [])
        try:
            outputs = [part(now, made) for part in parts]
            out = np.concatenate([np.zeros((self.streams, 0), np.float32), *(o.cpu().numpy() for o in outputs)], axis=1)
            if not np.isfinite(out).all():
                raise ValueError("the model gave samples that are not finite: its weights are damaged")
        except BaseException:
            if self.video:
                self.video.queues = queues
            raise
        self._now = now
        self.alpha, self.gate, self.upper = made.alpha, made.gate, made.upper
        return out

    def _hear(self, now: _Carried, samples: np.ndarray, made: _Made) -> torch.Tensor:
        samples = np.ascontiguousarray(samples, dtype=np.float32)
        gain = now.level.step(samples)
        now.heard += samples.shape[1]
        now.gains = torch.cat((now.gains, torch.from_numpy(gain).to(self.device)), dim=1)
        now.wave = torch.cat((now.wave, torch.from_numpy(samples * gain).to(self.device)), dim=1)
        if not self._mirror_start(now):
            return now.wave[:, :0]
        return self._run(now, (now.heard - self._wait) // self.hop + 1 - now.frames, now.heard, made)

    def _mirror_start(self, now: _Carried) -> bool:
        """Put the mirrored beginning before the sound as soon as it is long enough; return whether it is there."""
        half = self.n_fft // 2
        if not now.mirrored and now.heard > half:
            now.wave = torch.cat((now.wave[:, 1 : half + 1].flip(1), now.wave), dim=1)
            now.start, now.mirrored = -half, True
        return now.mirrored

    def _end(self, now: _Carried, made: _Made) -> torch.Tensor:
        now.flushed = True
        length = now.heard
        if not length:
            return now.wave
        # As for whole clips, a sound shorter than a window is padded to one, so that it can be mirrored.
        now.wave = F.pad(now.wave, (0, max(0, self.n_fft - length)))
        now.heard = max(length, self.n_fft)
        self._mirror_start(now)
        half = self.n_fft // 2
        now.wave = torch.cat((now.wave, now.wave[:, -half - 1 : -1].flip(1)), dim=1)
        last = self._run(now, now.heard // self.hop + 1 - now.frames, length, made)
        rest = self._complete(now, now.tail / now.weight.clamp(min=1e-11), now.frames * self.hop - half, length)
        now.heard = length
        return torch.cat((last, rest), dim=1)

    def _run(self, now: _Carried, n_frames: int, length: int, made: _Made) -> torch.Tensor:
        """Run n_frames further STFT frames through the model -> the samples before `length` that they complete."""
        if n_frames <= 0:
            return now.wave[:, :0]
        half, first = self.n_fft // 2, now.frames
        offset = first * self.hop - half - now.start
        span = (n_frames - 1) * self.hop + self.n_fft
        sizes = (self.n_fft, self.hop, self.win, self.compress)
        mag, pha, _ = mag_phase_stft(now.wave[:, offset : offset + span], *sizes, center=False)  # [B, F, t]
        noisy = mag
        mag, pha = self._step(now, mag, pha, made)
        if self.keep_upper:
            made.upper.append(top_octave_gain(noisy, mag, self.compress))
        now.frames += n_frames
        # Keep what the next frame needs and what `flush` will mirror.
        cut = max(0, min(now.frames * self.hop - half - now.start, now.wave.shape[1] - half - 1))
        now.wave, now.start = now.wave[:, cut:], now.start + cut
        return self._complete(now, self._overlap_add(now, mag, pha, n_frames), first * self.hop - half, length)

    def _step(self, now: _Carried, mag: torch.Tensor, pha: torch.Tensor, made: _Made) -> tuple[torch.Tensor, torch.Tensor]:
        if self.video is None:
            mag, pha, _, now.model = self.model.step(mag, pha, now.model)
            return mag, pha
        sight = self.video.features(now.frames, mag.shape[2])
        enhanced, now.model = self.model.step_with_gates(mag, pha, *(sight or (None, None)), now.model)
        alpha, gate = self._details(enhanced, mag.shape[2])
        made.alpha.append(alpha)
        if gate is not None:
            made.gate.append(gate)
        return enhanced.mag, enhanced.pha

    def _overlap_add(self, now: _Carried, mag: torch.Tensor, pha: torch.Tensor, n_frames: int) -> torch.Tensor:
        """Spectra [B, F, t] -> the next t * hop samples [B, t * hop], normalised as torch.istft does."""
        spectrum = torch.polar(mag.pow(1.0 / self.compress), pha)
        waves = torch.fft.irfft(spectrum, n=self.n_fft, dim=1) * self._window[:, None]  # [B, n_fft, t]
        squares = self._window.square()[None, :, None].expand(1, -1, n_frames)
        span, overlap = (n_frames - 1) * self.hop + self.n_fft, self.n_fft - self.hop
        total = F.fold(torch.cat((waves, squares)), (1, span), (1, self.n_fft), stride=(1, self.hop)).view(-1, span)
        total[:, :overlap] += torch.cat((now.tail, now.weight[None]))
        done = n_frames * self.hop
        now.tail, now.weight = total[:-1, done:], total[-1, done:]
        return total[:-1, :done] / total[-1, :done].clamp(min=1e-11)

    def _complete(self, now: _Carried, wave: torch.Tensor, position: int, length: int) -> torch.Tensor:
        """Of the samples [B, n] from `position` on, return those inside the sound, at the sound's own level."""
        wave = wave[:, max(0, -position) : max(0, length - position)]
        count = wave.shape[1]
        gain, now.gains = now.gains[:, :count], now.gains[:, count:]
        now.given += count
        return wave / gain

    def _details(self, enhanced: Enhanced, n_frames: int) -> tuple[np.ndarray, np.ndarray | None]:
        """alpha [B, t], and the gate [B, t, F'] if it is kept; both are 0 where no face is seen."""
        alpha, gate = np.zeros((self.streams, n_frames), np.float32), None
        if enhanced.alpha is not None:
            alpha = enhanced.alpha[..., 0].cpu().numpy()
        if self.keep_gate and getattr(self.model, "fsvg", None) is not None:
            gate = np.zeros((self.streams, n_frames, self.n_freq_enc), np.float32)
            if enhanced.gate is not None:
                gate = torch.where(enhanced.alpha > 0, enhanced.gate[:, 0], 0.0).cpu().numpy()
        return alpha, gate
