"""The one road from a recording to its enhanced sound: every script, evaluation and app calls this.

prepare (any waveform -> level-normalised samples at the model's rate), the model on spectra, restore (-> samples at the
input's rate and level).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.generator import SEMamba, load_generator
from models.level import level_gain
from models.scan import describe_backend
from models.stfts import mag_phase_istft, mag_phase_stft
from utils.media import load_video_frames, resample, to_mono
from utils.util import pick_device

INTEGER_KINDS = {np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int16), np.dtype(np.int32)}
HIGHEST_RATE_HZ = 10_000_000
LOUDEST = 1e12  # integers stored as floats pass, what would lose precision or overflow further on does not


@dataclass(frozen=True)
class EnhanceResult:
    """What `Enhancer.enhance` gives back: the enhanced sound, and what it was made with."""

    wav: np.ndarray  # float32 [L], as many samples as the input, at its rate and level
    sample_rate: int  # Hz, the input's
    seconds: float  # wall time it took
    alpha: np.ndarray | None = None  # float32 [T], trust in the picture per STFT frame; None when no picture was used
    gate: np.ndarray | None = None  # float32 [T, F'], where the picture helps; only with return_details=True
    masked_share: float = 1.0  # share of the sound's video frames that show no face or do not exist
    notes: tuple[str, ...] = ()  # one line each: what was asked for and could not be done

    @property
    def duration_sec(self) -> float:
        return len(self.wav) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computing per second of sound."""
        return self.seconds / self.duration_sec

    @property
    def mean_alpha(self) -> float | None:
        """Mean trust in the picture over the whole clip (0 where there was none); None when no picture was used."""
        return None if self.alpha is None else float(self.alpha.mean())


@dataclass(frozen=True)
class _Prepared:
    samples: np.ndarray  # float32 [n], mono, at the model's rate, before the gain
    gain: np.ndarray  # float32 [n]
    length: int  # samples of the input
    sample_rate: int  # Hz, of the input

    @property
    def duration_sec(self) -> float:
        return self.length / self.sample_rate


@dataclass(frozen=True)
class _Picture:
    crops: np.ndarray  # uint8 or float [V, S, S, 3], at least one frame
    mask: np.ndarray  # bool [V], at least one True
    masked_share: float


def float_waveform(wav: np.ndarray) -> np.ndarray:
    """Samples of any common type, [L], [L, ch] or [ch, L] (the shorter axis is the channels) -> float32 [L] mono.

    Integers are scaled to full scale 1 (uint8 is centred at 128, as in 8-bit WAV); floats are taken as they are.
    ValueError for no samples, NaN or infinity, complex, boolean or 64-bit integer samples.
    """
    wav = np.asarray(wav)
    if wav.ndim not in (1, 2):
        raise ValueError(f"sound should have the shape [samples] or [samples, channels], not {list(wav.shape)}")
    if wav.size == 0:
        raise ValueError("the sound holds no samples (0 s)")
    if wav.dtype in INTEGER_KINDS:
        bits, centre = 8 * wav.dtype.itemsize, 128 if wav.dtype == np.uint8 else 0
        wav = (wav.astype(np.float32 if bits <= 16 else np.float64) - centre) / 2 ** (bits - 1)
    elif not np.issubdtype(wav.dtype, np.floating):
        raise ValueError(f"samples are {wav.dtype}; give 8, 16 or 32-bit integers, or floats with full scale 1")
    if not np.isfinite(wav).all():
        bad = int(np.count_nonzero(~np.isfinite(wav)))
        raise ValueError(f"the sound holds {bad} samples that are NaN or infinite; repair it or replace them with 0")
    peak = float(np.abs(wav).max())
    if peak > LOUDEST:
        raise ValueError(f"the sound reaches {peak:g}; floats should have full scale 1")
    return to_mono(wav)


class Enhancer:
    """A loaded model with everything around it: any waveform, with or without the speaker's video, in and out.

    The model is put into eval mode on `device`. Audio-only (SEMamba) checkpoints work alike; video given to them is left
    unused, and the result's notes say so.
    """

    def __init__(
        self, model: SEMamba, cfg: Mapping, device: str | torch.device = "cpu", name: str = "model in memory"
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.cfg = cfg
        self.name = name
        self.sample_rate: int = cfg["stft_cfg"]["sampling_rate"]
        self.video_fps: float = cfg["visual_cfg"]["video_fps"]
        self.face_size: int = cfg["visual_cfg"]["face_size"]
        self.uses_video: bool = bool(getattr(model, "use_visual", False))

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike, device: str | torch.device = "auto", config: Mapping | None = None
    ) -> Enhancer:
        """Load a checkpoint; `config` is needed only for files without one that differ from SEMamba's defaults.

        FileNotFoundError or ValueError, one line, for what is missing, damaged or of another kind.
        """
        target = pick_device(str(device))
        model, cfg = load_generator(path, config, target)
        return cls(model, cfg, target, name=os.fspath(path))

    def describe(self) -> str:
        """One line for logs: checkpoint, architecture, size, device, scan backend."""
        parameters = sum(weight.numel() for weight in self.model.parameters())
        kind = "causal" if self.model.causal else "offline"
        sight = "with video" if self.uses_video else "audio only"
        return (
            f"{self.name}: {type(self.model).__name__} ({kind}, {sight}), {parameters / 1e6:.2f} M parameters, "
            f"on {self.device}, {describe_backend(self.device)}"
        )

    def warm_up(self) -> None:
        """Run once on next to nothing, so that compiling and first allocations are not counted in anyone's RTF."""
        blank = np.zeros((2, self.face_size, self.face_size, 3), np.uint8) if self.uses_video else None
        self.enhance(np.zeros(self.sample_rate // 10, np.float32), self.sample_rate, blank)

    def load_video(self, path: str | os.PathLike, duration_sec: float) -> tuple[np.ndarray, np.ndarray]:
        """Face crops of a video for the first `duration_sec`: (uint8 [V, S, S, 3], mask bool [V]), as `enhance` takes them.

        FileNotFoundError or MediaError when there is no such file or no picture in it.
        """
        return load_video_frames(
            path, 0.0, duration_sec, self.face_size, self.video_fps, self.cfg["visual_cfg"]["face_crop"]
        )

    def enhance(
        self, wav: np.ndarray, sample_rate: int, video: str | os.PathLike | np.ndarray | None = None,
        video_mask: np.ndarray | None = None, return_details: bool = False,
    ) -> EnhanceResult:
        """Enhance a recording; the output is mono, exactly as long and as loud as went in.

        wav: [L], [L, ch] or [ch, L] of integers or floats (see `float_waveform`) at `sample_rate` Hz. video: a file whose
        time zero is the sound's, or face crops [V, S, S, 3] at `video_fps`, uint8 or float in [0, 1], with video_mask
        bool [V] (True: a face is seen; default all). Frames beyond the end of the sound are left out, moments without a
        picture are enhanced by sound alone. return_details keeps the gate as well. ValueError names what is unusable;
        nothing is guessed.
        """
        started = time.perf_counter()
        prepared = self._prepare(wav, sample_rate)
        picture, notes = self._picture(video, video_mask, prepared.duration_sec)
        samples, alpha, gate = self._run(prepared.samples * prepared.gain, picture, return_details)
        return EnhanceResult(
            wav=self._restore(samples, prepared),
            sample_rate=prepared.sample_rate,
            seconds=time.perf_counter() - started,
            alpha=alpha,
            gate=gate,
            masked_share=1.0 if picture is None else picture.masked_share,
            notes=tuple(notes),
        )

    def _prepare(self, wav: np.ndarray, sample_rate: int) -> _Prepared:
        if not 1 <= sample_rate <= HIGHEST_RATE_HZ or int(sample_rate) != sample_rate:
            raise ValueError(f"sample_rate is {sample_rate!r}, it should be a whole number of Hz, e.g. {self.sample_rate}")
        mono = float_waveform(wav)
        samples = resample(mono, int(sample_rate), self.sample_rate)
        if not len(samples):
            samples = np.zeros(1, np.float32)  # shorter than one sample of ours
        gain = level_gain(samples, self.model.causal, self.sample_rate)
        return _Prepared(samples, gain, len(mono), int(sample_rate))

    def _picture(
        self, video: str | os.PathLike | np.ndarray | None, mask: np.ndarray | None, duration_sec: float
    ) -> tuple[_Picture | None, list[str]]:
        """The part of the video that the model may use, or None and why."""
        if video is None:
            return None, []
        if not self.uses_video:
            return None, [f"{type(self.model).__name__} checkpoint without a visual branch: video not used"]
        source = "the video"
        if isinstance(video, (str, os.PathLike)):
            source = os.fspath(video)
            video, mask = self.load_video(video, duration_sec)
        crops, mask = self._check_crops(video, mask)
        wanted = max(1, int(np.ceil(duration_sec * self.video_fps - 1e-6)))
        crops, mask = crops[:wanted], mask[:wanted]
        if not mask.any():
            return None, [f"no face in {source}: audio only"]
        return _Picture(crops, mask, 1.0 - int(mask.sum()) / wanted), []

    def _check_crops(self, crops: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        crops, size = np.asarray(crops), self.face_size
        if crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise ValueError(f"video should be face crops [frames, {size}, {size}, 3], not {list(crops.shape)}")
        if crops.dtype != np.uint8:
            if not np.issubdtype(crops.dtype, np.floating):
                raise ValueError(f"video is {crops.dtype}; give uint8, or floats in [0, 1]")
            if crops.size and not (crops.min() >= 0 and crops.max() <= 1):
                raise ValueError("video holds values outside [0, 1] or NaN; give uint8, or floats in [0, 1]")
        mask = np.ones(len(crops), bool) if mask is None else np.asarray(mask).astype(bool)
        if mask.shape != (len(crops),):
            raise ValueError(f"video_mask has the shape {list(mask.shape)}, it should be [{len(crops)}], one per frame")
        return crops, mask

    @torch.inference_mode()
    def _run(
        self, samples: np.ndarray, picture: _Picture | None, keep_gate: bool
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Normalised samples [n] -> (enhanced [n], alpha [T] or None, gate [T, F'] or None)."""
        stft = self.cfg["stft_cfg"]
        sizes = (stft["n_fft"], stft["hop_size"], stft["win_size"], self.cfg["model_cfg"]["compress_factor"])
        # The STFT mirrors half a window at each edge, so there must be that much to mirror.
        padded = np.pad(samples, (0, max(0, stft["n_fft"] - len(samples))))
        wave = torch.from_numpy(padded).to(self.device)[None]  # [1, n]
        mag, pha, _ = mag_phase_stft(wave, *sizes)  # [1, F, T]
        alpha = gate = None
        if picture is None:
            mag, pha, _ = self.model(mag, pha)
        else:
            crops = torch.from_numpy(np.ascontiguousarray(picture.crops)).to(self.device)
            scale = 255.0 if crops.dtype == torch.uint8 else 1.0
            video = (crops.float() / scale).permute(3, 0, 1, 2)[None]  # [1, 3, V, S, S]
            mask = torch.from_numpy(np.ascontiguousarray(picture.mask)).to(self.device)[None]
            enhanced = self.model.forward_with_gates(mag, pha, video, mask)
            mag, pha = enhanced.mag, enhanced.pha
            alpha = enhanced.alpha[0, :, 0].cpu().numpy()
            gate = enhanced.gate[0, 0].cpu().numpy() if keep_gate and enhanced.gate is not None else None
        wave = mag_phase_istft(mag, pha, *sizes, length=len(padded))
        return wave[0, : len(samples)].cpu().numpy(), alpha, gate

    def _restore(self, enhanced: np.ndarray, prepared: _Prepared) -> np.ndarray:
        """Normalised samples at the model's rate -> float32 [L] at the input's level, rate and length."""
        if not np.isfinite(enhanced).all():
            raise ValueError(f"{Path(self.name).name} gave samples that are not finite: its weights are damaged")
        wav = resample(enhanced / prepared.gain, self.sample_rate, prepared.sample_rate)
        missing = prepared.length - len(wav)
        return np.pad(wav, (0, missing)) if missing > 0 else wav[: prepared.length]
