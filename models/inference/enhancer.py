"""From a recording to its enhanced sound: every script, evaluation and app calls `Enhancer`.

A waveform is resampled to the model's rate. A causal model processes it piece by piece, any other model as a whole. The
result is resampled to the input's rate and has the input's level.
"""

from __future__ import annotations

import math
import numbers
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.generator import SEMamba
from models.inference.crop_stream import CropStream, check_crops, check_mask
from models.inference.overlap import enhance_overlapped
from models.inference.results import AlphaTrack, EnhanceResult, Outcome, Stretch, Whole
from models.inference.stream_batch import PIECE_FRAMES, StreamBatch
from models.inference.upper_band import FULL, Between, UpperBand, check_band, has_upper_band, top_octave_gain
from models.inference.waveform import float_waveform, mix_back, noisy_share
from models.level import level_gain
from models.ops.backend import describe_backend
from models.pretrained import load_generator
from models.stfts import mag_phase_istft, mag_phase_stft
from utils.faces.cropper import FaceOptions, FaceReport
from utils.faces.lip_sync import SoundTrack
from utils.faces.video_crops import crop_stretches, load_video_frames
from utils.media.short_resampler import convert
from utils.media.sound import resample
from utils.util import pick_device

SHIPPED = Path(__file__).resolve().parents[2] / "ckpts" / "LiteAVSE_small.pth"  # there in a clone and in the installed package
HIGHEST_RATE_HZ = 10_000_000
LONGEST_WHOLE_SEC = 30  # of sound that a model which is not causal takes at once


class Enhancer:
    """A loaded model that enhances any waveform, with the speaker's video or without.

    The model is put into eval mode on `device`. Audio-only (SEMamba) models do not use a video that they are given, and the
    result's notes say so. `faces` holds the options for finding the face in video files, unless a call has its own.
    """

    def __init__(
        self, model: SEMamba, cfg: Mapping, device: str | torch.device = "cpu", name: str = "model in memory",
        faces: FaceOptions | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.cfg = cfg
        self.name = name
        self.sample_rate: int = cfg["stft_cfg"]["sampling_rate"]
        self.video_fps: float = cfg["visual_cfg"]["video_fps"]
        self.face_size: int = cfg["visual_cfg"]["face_size"]
        self.uses_video: bool = bool(getattr(model, "use_visual", False))
        self.faces = faces or FaceOptions()

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike = SHIPPED, device: str | torch.device = "auto", config: Mapping | None = None,
        faces: FaceOptions | None = None,
    ) -> Enhancer:
        """Load a checkpoint, by default the small model that comes with this package.

        `config` is needed only for files without one that differ from SEMamba's defaults.

        FileNotFoundError or ValueError, one line, for what is missing, damaged or of another kind.
        """
        target = pick_device(str(device))
        model, cfg = load_generator(path, config, target)
        return cls(model, cfg, target, name=os.fspath(path), faces=faces)

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
        """Enhance 0.1 s of silence, so that compilation and first allocations are not measured as part of a later run."""
        blank = np.zeros((2, self.face_size, self.face_size, 3), np.uint8) if self.uses_video else None
        self.enhance(np.zeros(self.sample_rate // 10, np.float32), self.sample_rate, blank)

    def load_video(
        self, path: str | os.PathLike, duration_sec: float, faces: FaceOptions | None = None,
        sound: SoundTrack | None = None, report: FaceReport | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read the first `duration_sec` of a video as face crops: (uint8 [V, S, S, 3], mask bool [V]), input of `enhance`.

        With `sound` the talking face is chosen among several and the offset between sound and video is measured; `report`
        receives what was done. FileNotFoundError or MediaError when the file or its video is missing.
        """
        options = self._face_options(faces)
        return load_video_frames(
            path, 0.0, duration_sec, self.face_size, self.video_fps, options, sound=sound, report=report
        )

    def _face_options(self, faces: FaceOptions | None) -> FaceOptions:
        options = faces or self.faces
        return replace(options, method=options.method or self.cfg["visual_cfg"]["face_crop"])

    def enhance(
        self, wav: np.ndarray, sample_rate: int, video: str | os.PathLike | np.ndarray | CropStream | None = None,
        video_mask: np.ndarray | None = None, return_details: bool = False, attenuation_limit_db: float | None = None,
        faces: FaceOptions | None = None, progress: Callable[[float], object] | None = None, band: str = FULL,
    ) -> EnhanceResult:
        """Enhance a recording; the output is mono, has as many samples as the input, and its level.

        wav: [L], [L, ch] or [ch, L] of integers or floats (see `float_waveform`) at `sample_rate` Hz. video: a file that
        begins when the sound begins, or face crops [V, S, S, 3] at `video_fps`, uint8 or float in [0, 1], with video_mask
        bool [V] (True: the frame shows a face; default all). Frames after the end of the sound are not used; where no face is
        seen the sound alone is used. return_details returns the gate too. attenuation_limit_db mixes some of the noise
        back (models/inference/waveform.py). `faces` are the options for finding the face in a file (default: the
        Enhancer's). `progress` is called with the share that is done, up to 1, unless the recording is taken at once; an
        exception in it ends the work. Above the model's rate `band` "full" keeps the upper band and treats it
        (models/inference/upper_band.py), and "16k" leaves it out. ValueError names input that cannot be used.

        A causal model processes the sound piece by piece, as it does live (models/inference/stream_batch.py): memory grows
        only with the arrays of samples. Any other model takes up to LONGEST_WHOLE_SEC at once; longer recordings are cut into
        overlapping chunks with cross-fades and one gain for all of them (models/inference/overlap.py).
        """
        started = time.perf_counter()
        number = isinstance(sample_rate, numbers.Real)
        if not number or not 1 <= sample_rate <= HIGHEST_RATE_HZ or int(sample_rate) != sample_rate:
            raise ValueError(f"sample_rate is {sample_rate!r}, it should be a whole number of Hz, e.g. {self.sample_rate}")
        share, sample_rate = noisy_share(attenuation_limit_db), int(sample_rate)
        full = check_band(band) == FULL and has_upper_band(sample_rate, self.sample_rate)
        mono = float_waveform(wav)
        samples = (convert if full else resample)(mono, sample_rate, self.sample_rate)
        if not len(samples):
            samples = np.zeros(1, np.float32)  # the recording is shorter than one sample at the model's rate
        duration_sec = len(mono) / sample_rate
        sound = SoundTrack(lambda first, stop: samples[first:stop], self.sample_rate)
        crop_stream, notes = self.open_crops(video, video_mask, duration_sec, sound, faces)
        outcome, made = self.enhance_samples(samples, duration_sec, crop_stream, return_details, progress)
        restored = self._restore(made.wav, sample_rate, mono, samples, made.upper if full else None)
        return EnhanceResult(
            **vars(outcome) | {"seconds": time.perf_counter() - started, "notes": (*notes, *outcome.notes)},
            wav=mix_back(restored, mono, share), sample_rate=sample_rate,
            gate=None if outcome.alpha is None else made.gate,
        )  # fmt: skip

    def enhance_samples(
        self, samples: np.ndarray, duration_sec: float, crop_stream: CropStream | None, keep_gate: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> tuple[Outcome, Whole]:
        """Enhance float32 [n] at the model's rate with opened crops: what is known about it, and what the model made of it."""
        made = (self._in_steps if self.model.causal else self._offline)(samples, crop_stream, keep_gate, progress)
        self._finite(made.wav)
        return self.outcome(duration_sec, crop_stream, made.alpha), made

    def open_crops(
        self, video: str | os.PathLike | np.ndarray | CropStream | None, mask: np.ndarray | None, duration_sec: float,
        sound: SoundTrack | None = None, faces: FaceOptions | None = None,
    ) -> tuple[CropStream | None, list[str]]:
        """Open the part of a video that belongs to a sound of duration_sec -> (its crops or None, notes that say why None).

        video: a file, crops, or a result of this method. A file is decoded only as far as its crops are read; `faces` and
        `sound` choose the face. FileNotFoundError or MediaError when the file or its video is missing.
        """
        if video is None:
            return None, []
        if not self.uses_video:
            return None, [f"{type(self.model).__name__} checkpoint without a visual branch: video not used"]
        if isinstance(video, CropStream):
            return video, []
        wanted = max(1, math.ceil(duration_sec * self.video_fps - 1e-6))
        if isinstance(video, (str, os.PathLike)):
            report, options = FaceReport(), self._face_options(faces)
            stretches = crop_stretches(
                video, 0.0, duration_sec, self.face_size, self.video_fps, options, sound=sound, report=report
            )
            return CropStream(stretches, wanted, os.fspath(video), report), []
        crops = check_crops(video, self.face_size)
        return CropStream([(crops, check_mask(mask, len(crops)))], wanted), []

    def outcome(self, duration_sec: float, crop_stream: CropStream | None, alpha: np.ndarray | None) -> Outcome:
        """Summarise an enhanced recording; without any frame that shows a face there is no alpha, but a note."""
        if crop_stream is None:
            return Outcome(duration_sec=duration_sec, seconds=0.0)
        report = crop_stream.report
        notes = tuple(report.notes()) if report is not None else ()
        common = {"duration_sec": duration_sec, "seconds": 0.0, "faces": report}
        if not crop_stream.seen:
            return Outcome(**common, notes=(*notes, f"no face in {crop_stream.source}: audio only"))
        return Outcome(**common, alpha=alpha, masked_share=crop_stream.masked_share, notes=notes)

    def stream(
        self, sound: Iterable[np.ndarray], crop_stream: CropStream | None, keep_gate: bool = False
    ) -> Iterator[Stretch]:
        """Enhance pieces of samples float32 [n] at the model's rate; causal models only. The lengths of both sums are equal."""
        batch = StreamBatch(self.model, self.cfg, keep_gate=keep_gate, keep_upper=True)
        heard = 0
        for piece in sound:
            heard += len(piece)
            tick = int(heard / self.sample_rate * self.video_fps) + 1
            for first, crops, mask in crop_stream.until(tick) if crop_stream else ():
                batch.add_video(crops, np.arange(first, first + len(crops)) / self.video_fps, mask)
            yield self._stretch(batch, batch.feed(piece[None]))
        yield self._stretch(batch, batch.flush())

    def _stretch(self, batch: StreamBatch, out: np.ndarray) -> Stretch:
        """What the last call of a batch of one stream gave; its samples are out [1, m]."""
        upper = np.concatenate([np.zeros(0, np.float32), *(gain[0] for gain in batch.upper)])
        return Stretch(self._finite(out[0]), [alpha[0] for alpha in batch.alpha], [gate[0] for gate in batch.gate], upper)

    def _in_steps(
        self, samples: np.ndarray, crop_stream: CropStream | None, keep_gate: bool, progress: Callable[[float], object] | None
    ) -> Whole:
        """Enhance samples [n] through `stream`."""
        size = PIECE_FRAMES * self.cfg["stft_cfg"]["hop_size"]
        pieces = (samples[first : first + size] for first in range(0, len(samples), size))
        enhanced, position, gates, upper = np.empty(len(samples), np.float32), 0, [], []
        alpha = AlphaTrack(self.cfg["stft_cfg"], len(samples))
        for made in self.stream(pieces, crop_stream, keep_gate):
            enhanced[position : position + len(made.wav)] = made.wav
            position += len(made.wav)
            alpha.append(made.alpha)
            gates += made.gate
            upper.append(made.upper)
            if progress is not None:
                progress(position / len(samples))
        return Whole(enhanced, alpha.values, np.concatenate(gates) if gates else None, np.concatenate(upper))

    def _offline(
        self, samples: np.ndarray, crop_stream: CropStream | None, keep_gate: bool,
        progress: Callable[[float], object] | None = None,
    ) -> Whole:
        """Enhance samples [n] by a model that is not causal."""
        gain = level_gain(samples, causal=False, sample_rate=self.sample_rate)
        if len(samples) <= LONGEST_WHOLE_SEC * self.sample_rate:
            made = self.run_whole(samples * gain, crop_stream.rest() if crop_stream else None, keep_gate)
            return made._replace(wav=made.wav / gain)
        enhanced, alpha, upper = enhance_overlapped(
            samples * gain, crop_stream, self.sample_rate, self.video_fps, self.cfg["stft_cfg"]["hop_size"],
            lambda chunk, face: self.run_whole(chunk, face, False), progress,
        )
        return Whole(enhanced / gain, alpha, None, upper)

    @torch.inference_mode()
    def run_whole(
        self, samples: np.ndarray, face: tuple[np.ndarray, np.ndarray] | None, keep_gate: bool
    ) -> Whole:
        """Enhance normalised samples [n] at once, with crops and mask or None."""
        stft = self.cfg["stft_cfg"]
        sizes = (stft["n_fft"], stft["hop_size"], stft["win_size"], self.cfg["model_cfg"]["compress_factor"])
        # The STFT mirrors half a window at each edge, so the sound must be that long.
        padded = np.pad(samples, (0, max(0, stft["n_fft"] - len(samples))))
        wave = torch.from_numpy(padded).to(self.device)[None]  # [1, n]
        noisy, pha, _ = mag_phase_stft(wave, *sizes)  # [1, F, T]
        alpha = gate = None
        if face is None or not face[1].any():
            mag, pha, _ = self.model(noisy, pha)
        else:
            crops = torch.from_numpy(np.ascontiguousarray(face[0])).to(self.device)
            scale = 255.0 if crops.dtype == torch.uint8 else 1.0
            video = (crops.float() / scale).permute(3, 0, 1, 2)[None]  # [1, 3, V, S, S]
            mask = torch.from_numpy(np.ascontiguousarray(face[1])).to(self.device)[None]
            enhanced = self.model.forward_with_gates(noisy, pha, video, mask)
            mag, pha = enhanced.mag, enhanced.pha
            alpha = enhanced.alpha[0, :, 0].cpu().numpy()
            gate = enhanced.gate[0, 0].cpu().numpy() if keep_gate and enhanced.gate is not None else None
        wave = mag_phase_istft(mag, pha, *sizes, length=len(padded))
        upper = top_octave_gain(noisy, mag, sizes[-1])[0]
        return Whole(wave[0, : len(samples)].cpu().numpy(), alpha, gate, upper)

    def _restore(
        self, enhanced: np.ndarray, sample_rate: int, mono: np.ndarray, samples: np.ndarray, upper: np.ndarray | None
    ) -> np.ndarray:
        """Enhanced samples at the model's rate -> float32 [L] at sample_rate, with the recording's upper band if it has a gain.

        mono [L] is the recording, samples [n] its low band at the model's rate.
        """
        if upper is not None:
            return self.upper_band(sample_rate, lambda a, b: mono[a:b], lambda a, b: samples[a:b]).whole(
                enhanced[: len(samples)], upper, len(mono)
            )
        wav = resample(enhanced, self.sample_rate, sample_rate)
        missing = len(mono) - len(wav)
        return np.pad(wav, (0, missing)) if missing > 0 else wav[: len(mono)]

    def upper_band(self, sample_rate: int, own: Between, noisy: Between) -> UpperBand:
        """Return what puts this model's output and the treated upper band of a recording together."""
        stft = self.cfg["stft_cfg"]
        return UpperBand(sample_rate, self.sample_rate, stft["n_fft"], stft["hop_size"], own, noisy)

    def _finite(self, enhanced: np.ndarray) -> np.ndarray:
        if not np.isfinite(enhanced).all():
            raise ValueError(f"{Path(self.name).name} gave samples that are not finite: its weights are damaged")
        return enhanced
