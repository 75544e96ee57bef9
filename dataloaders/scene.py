"""Draws scenes of several voices, noise and rooms, in which only the face tells which voice is wanted (training_cfg.scene).

A scene has a target voice, up to three competing talkers (of other clips with faces, or of recordings without) and noise.
In a pair scene the same mixture is given twice, once with the face of each of its first two voices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders.augment_rir import RIRAugmentor
from dataloaders.clip_sources import Clip, draw_window
from dataloaders.mixing import active_samples, scale_noise

SPEED_STEPS = 100  # speeds are multiples of 1/100: resampled by a ratio of small integers
EQUALIZER_HZ = (80.0, 250.0, 700.0, 1800.0, 4000.0, 7500.0)
EQUALIZER_DB = 8.0  # either way, in each of these places
NARROW_BAND_HZ = (300.0, 3400.0)  # a telephone's
CLIP_LEVELS = (0.25, 0.9)  # of the loudest sample
QUIET_DB = -30.0  # a frame this far below the loudest one has a closed mouth in clean speech
FEWEST_QUIET_FRAMES = 5

Generator = np.random.Generator


class Voice(NamedTuple):
    """One talker's window: L samples, and where its video is."""

    heard: np.ndarray  # [L] at the microphone
    target: np.ndarray  # [L] what of it should be given back
    clip: Clip
    first_frame: int  # video frame of the clip at which the window begins
    n_real: int  # samples before zero padding
    speed: float  # of sound and video; 1: as recorded


class Scene(NamedTuple):
    """The mixture and its target, before the level is set."""

    noisy: np.ndarray  # [L]
    target: np.ndarray  # [L] the voice of the face that is shown; zeros where its mouth is closed
    everybody: np.ndarray  # [L] all voices without noise: wanted where no face says whom to keep
    shown: Voice
    frames: np.ndarray  # [V] frames of the shown clip, in the order in which they are seen


def speaker_of(clip: Clip) -> str:
    """The speaker of a clip: the one that its list names, else its folder."""
    return getattr(clip, "speaker", None) or Path(clip.name).parent.name


def equalize(audio: np.ndarray, gains_db: Sequence[float], sample_rate: int) -> np.ndarray:
    """audio [L] coloured by gains at EQUALIZER_HZ, straight lines over log frequency between them -> [L]."""
    spectrum = np.fft.rfft(audio)
    hz = np.fft.rfftfreq(len(audio), 1 / sample_rate)
    curve_db = np.interp(np.log(np.maximum(hz, 1.0)), np.log(EQUALIZER_HZ), gains_db)
    return np.fft.irfft(spectrum * 10 ** (curve_db / 20), len(audio))


def narrow_band(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """audio [L] as a telephone passes it on -> [L]."""
    from scipy.signal import butter, sosfilt  # here, not above: it costs every start of a program half a second

    return sosfilt(butter(4, NARROW_BAND_HZ, "bandpass", fs=sample_rate, output="sos"), audio)


def quiet_frames(clip: Clip, fps: float, sample_rate: int) -> np.ndarray:
    """The longest run of video frames of a clip during which it is silent: [n], empty when there is none worth showing."""
    sound, hop = clip.sound(), sample_rate / fps
    count = int(len(sound) / hop)
    power = np.array([np.mean(np.square(sound[int(k * hop) : int((k + 1) * hop)])) for k in range(count)])
    quiet = power < power.max(initial=0.0) * 10 ** (QUIET_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], quiet.astype(int), [0]))))
    runs = sorted(zip(edges[::2], edges[1::2], strict=True), key=lambda run: run[0] - run[1])
    if not runs or runs[0][1] - runs[0][0] < FEWEST_QUIET_FRAMES:
        return np.zeros(0, np.int64)
    return np.arange(*runs[0])


def to_and_fro(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` frames from frames [n], played forwards and backwards in turn, so that the face moves but does not speak."""
    cycle = np.concatenate((frames, frames[-2:0:-1]))
    return np.resize(cycle, count)


class SceneMaker:
    """Draws scenes of clips as `training_cfg.scene` says; everything follows from the generator it is given.

    clips: those of the list. talkers: further recordings, of voices alone. draw_noise(length, active samples, rng):
    noise [L]. cfg: complete recipe.
    """

    def __init__(
        self, clips: Sequence[Clip], talkers: Sequence[Clip], draw_noise: Callable[[np.ndarray, Generator], np.ndarray],
        rooms: RIRAugmentor | None, cfg: Mapping, all_faces: bool = False,
    ) -> None:
        self._all_faces = all_faces  # voices that were not filmed get a face, too
        self._clips, self._talkers, self._draw_noise, self._rooms = clips, talkers, draw_noise, rooms
        self._training, self.options = cfg["training_cfg"], cfg["training_cfg"]["scene"]
        self._rate, self._fps = cfg["stft_cfg"]["sampling_rate"], cfg["visual_cfg"]["video_fps"]
        self._length = self._training["segment_size"]
        self._count = math.ceil(self._length / self._rate * self._fps - 1e-6)
        self._by_speaker: dict[str, list[int]] = {}
        for k in range(len(clips)):
            self._by_speaker.setdefault(speaker_of(clips[k]), []).append(k)

    def other_clip(self, clip: Clip, rng: Generator, with_face: bool, same_speaker: bool = False) -> Clip:
        """Another clip of the list: of the same speaker where that is asked for and possible, else of another one."""
        speaker = speaker_of(clip)
        own = [k for k in self._by_speaker.get(speaker, ()) if self._clips[k].name != clip.name]
        own = [k for k in own if self._clips[k].has_video or not with_face]
        place = float(rng.random())
        if same_speaker and own:
            return self._clips[own[int(place * len(own))]]
        speakers = [name for name in self._by_speaker if name != speaker]
        if with_face:
            speakers = [name for name in speakers if any(self._clips[k].has_video for k in self._by_speaker[name])]
        if not speakers:
            return self._clips[own[int(place * len(own))]] if own else clip
        # Speakers first, by the square root of their clips' number: no voice rules, and no single clip is learnt by heart.
        shares = np.sqrt([len(self._by_speaker[name]) for name in speakers])
        chosen = self._by_speaker[speakers[int(rng.choice(len(speakers), p=shares / shares.sum()))]]
        return self._clips[chosen[int(place * len(chosen))]]

    def voice(self, clip: Clip, rng: Generator) -> Voice:
        """A random window of a clip: its speed, colour and room drawn too."""
        options = self.options
        steps = SPEED_STEPS
        if rng.random() < options["speed_share"]:
            steps = round(SPEED_STEPS * rng.uniform(*options["speed_range"]))
        speed, gains_db = steps / SPEED_STEPS, rng.uniform(-EQUALIZER_DB, EQUALIZER_DB, len(EQUALIZER_HZ))
        coloured = rng.random() < options["equalizer_share"]
        stretch, context, first_frame = draw_window(clip, math.ceil(self._length * speed), self._rate, self._fps, rng)
        if steps != SPEED_STEPS:
            from scipy.signal import resample_poly

            stretch = resample_poly(stretch, SPEED_STEPS, steps)
            context = round(context / speed)
        if coloured:
            stretch = equalize(stretch, gains_db, self._rate)
        stretch = np.asarray(stretch, np.float32)
        heard = target = stretch
        if self._rooms is not None:
            heard, target = self._rooms(stretch, rng, self._training["rir_target"])
        n_real = max(0, min(self._length, len(stretch) - context))
        padding = (0, self._length - n_real)
        heard, target = (np.pad(wave[context : context + n_real], padding).astype(np.float64) for wave in (heard, target))
        return Voice(heard, target, clip, first_frame, n_real, speed)

    def _talker(self, clip: Clip, rng: Generator) -> Clip:
        """A competing talker for a clip: the same person's other clip, another face's voice, or a voice without face."""
        same = rng.random() < self.options["same_speaker_share"]
        of_face, place = rng.random() < 0.5, float(rng.random())
        if same or of_face or not self._talkers:
            return self.other_clip(clip, rng, with_face=False, same_speaker=same)
        return self._talkers[int(place * len(self._talkers))]

    def _voices(self, clip: Clip, rng: Generator, pair: bool) -> list[Voice]:
        shares = np.asarray(self.options["talker_shares"], float)
        n_talkers = int(rng.choice(len(shares), p=shares / shares.sum()))
        voices = [self.voice(clip, rng)]
        if pair:
            same = rng.random() < self.options["same_speaker_share"]
            voices.append(self.voice(self.other_clip(clip, rng, not self._all_faces, same_speaker=same), rng))
        while len(voices) < 1 + n_talkers:
            voices.append(self.voice(self._talker(clip, rng), rng))
        return voices

    def scene(self, clip: Clip, rng: Generator, role: int | None = None) -> Scene:
        """A scene about a clip. role 0, 1: the pair scene of which the first, or second, voice's face is shown."""
        options = self.options
        voices = self._voices(clip, rng, role is not None)
        silent = role is None and len(voices) > 1 and rng.random() < options["silent_share"]
        closed = quiet_frames(clip, self._fps, self._rate) if silent and clip.has_video else np.zeros(0, np.int64)
        silent = silent and len(closed) > 0
        scaled = [(voices[0].heard, voices[0].target)]
        for voice in voices[1:]:
            ratio_db = float(rng.uniform(*options["talker_snr_range"]))
            gained = scale_noise(voices[0].heard, voice.heard, ratio_db, self._rate)
            gain = math.sqrt(np.sum(np.square(gained)) / max(np.sum(np.square(voice.heard)), 1e-12))
            scaled.append((gain * voice.heard, gain * voice.target))
        if silent:
            scaled[0] = (np.zeros(self._length), np.zeros(self._length))
        speech = sum(heard for heard, _ in scaled)
        everybody = sum(target for _, target in scaled)
        noisy = speech
        if rng.random() < options["noise_share"] or len(voices) == 1:
            snr_db = float(rng.uniform(*self._training["snr_range"]))
            noise = self._draw_noise(active_samples(speech, self._rate), rng)
            noisy = speech + scale_noise(speech, noise, snr_db, self._rate)
        shown = voices[role or 0]
        frames = shown.first_frame + np.floor(np.arange(self._count) * shown.speed + 1e-6).astype(np.int64)
        if silent:
            frames = to_and_fro(closed, self._count)
        return Scene(*self._channel(noisy, scaled[role or 0][1], everybody, rng), shown, frames)

    def _channel(
        self, noisy: np.ndarray, target: np.ndarray, everybody: np.ndarray, rng: Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Level, narrow band and clipping of the microphone; the target shares all but the clipping."""
        options = self.options
        narrow, clipped = rng.random() < options["narrow_band_share"], rng.random() < options["clip_share"]
        level_db, ceiling = float(rng.uniform(*options["level_range_db"])), float(rng.uniform(*CLIP_LEVELS))
        waves = [wave * 10 ** (level_db / 20) for wave in (noisy, target, everybody)]
        if narrow:
            waves = [narrow_band(wave, self._rate) for wave in waves]
        if clipped:
            limit = ceiling * float(np.max(np.abs(waves[0]), initial=0.0))
            waves[0] = np.clip(waves[0], -limit, limit)
        return tuple(wave.astype(np.float32) for wave in waves)
