"""One visitor's recording through the model: players, figure, face crops, scores and downloads for the web page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from dataloaders.mixing import active_samples
from evaluation.reporting.spectrograms import spectrogram_figure
from evaluation.web.recording import Limits, Recording, Wish, read_recording
from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import write_wav
from models.inference.results import EnhanceResult
from models.timing import latency_samples
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError
from utils.media.replace_sound import CONTAINERS, replace_sound
from utils.scores.metrics import METRICS, ScoringPool, require_scorers, score_many

SCREEN_DPI = 110
CROP_SIDE = 192  # pixels of the crop as it is shown: twice what the model sees
MOST_GAIN_DB = 20.0  # by which the second player may be turned up or down


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the page shows; grows from step to step, None stands for what is not there (yet)."""

    name: str  # of the recording
    before: Path  # wav, as heard
    after: Path  # wav, matched in loudness to `before`
    enhanced: Path  # wav to download, at its own level
    facts: dict[str, str]
    notes: tuple[str, ...]
    figure: Path | None = None  # png
    crops: Path | None = None  # mp4
    video: Path | None = None  # to download: the video as it came, with the enhanced sound
    scores: dict[str, tuple[float, float]] | None = None  # by metric: before, after
    scored_against: str = ""


def loudness_gain_db(before: np.ndarray, after: np.ndarray, sample_rate: int = 16000) -> float:
    """What makes `after` as loud as `before`: mean power where each is active; 0 where either is silent."""
    powers = []
    for sound in (before, after):
        active = active_samples(sound, sample_rate)
        if not active.any():
            return 0.0
        powers.append(float(np.mean(np.square(sound[active], dtype=np.float64))))
    return float(np.clip(10 * math.log10(powers[0] / powers[1]), -MOST_GAIN_DB, MOST_GAIN_DB))


def write_players(recording: Recording, result: EnhanceResult, folder: Path, rate: int) -> tuple[Path, Path, float]:
    """The two sounds to compare, equally loud and never over full scale, and the gain in dB of the second over the first."""
    gain_db = loudness_gain_db(recording.noisy, result.wav, rate)
    after = result.wav * 10 ** (gain_db / 20)
    peak = max(float(np.abs(recording.noisy).max()), float(np.abs(after).max()))
    both = 1.0 / peak if peak > 1 else 1.0
    paths = folder / f"{recording.name}_before.wav", folder / f"{recording.name}_after.wav"
    for path, sound in zip(paths, (recording.noisy, after), strict=True):
        write_wav(path, both * sound, rate)
    return *paths, gain_db


def describe(enhancer: Enhancer, recording: Recording, result: EnhanceResult) -> dict[str, str]:
    """Name and value of what there is to say about speed and picture."""
    lookahead_ms = enhancer.cfg["visual_cfg"]["visual_lookahead_ms"] if enhancer.uses_video else 0.0
    samples = latency_samples(enhancer.cfg["stft_cfg"]["n_fft"], enhancer.sample_rate, lookahead_ms)
    latency = f"{1e3 * samples / enhancer.sample_rate:g} ms" if enhancer.model.causal else "the whole recording"
    facts = {
        "sound": f"{result.duration_sec:.1f} s",
        "enhanced in": f"{result.seconds:.1f} s",
        "RTF": f"{result.rtf:.2f}",
        "latency": latency,
    }
    if result.alpha is not None:
        facts["mean alpha"] = f"{result.mean_alpha:.2f}"
        facts["face seen"] = f"{100 * (1 - result.masked_share):.0f} %"
    if recording.faces:
        facts["in the picture"] = recording.faces
    return facts


def write_crops(recording: Recording, result: EnhanceResult, fps: float, path: Path) -> None:
    """What the model saw, with what it made of the sound."""
    assert recording.crops is not None
    shown = [cv2.resize(crop, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_CUBIC) for crop in recording.crops]
    write_clip(path, np.stack(shown), result.wav, result.sample_rate, fps)


def write_video(video: Path, result: EnhanceResult, target: Path) -> tuple[Path | None, list[str]]:
    """The video with the enhanced sound, in its own container where that can be written, else .mp4, else .mkv; and notes."""
    own = video.suffix.lower()
    peak = float(np.abs(result.wav).max())
    for suffix in dict.fromkeys((own if own in CONTAINERS else ".mp4", ".mkv")):
        try:
            path = target.with_name(target.name + suffix)
            return path, replace_sound(video, result.wav, result.sample_rate, path, 1 / max(1.0, peak))
        except (MediaError, OSError):
            continue
    return None, ["no video to download: its picture can only be written anew"]


def score(
    recording: Recording, enhanced: np.ndarray, rate: int, pool: ScoringPool
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """({metric: (before, after)}, notes on those that have no value)."""
    metrics, notes = [], []
    for metric in METRICS:
        try:
            require_scorers([metric])
            metrics.append(metric)
        except ValueError as error:
            notes.append(str(error))
    reference = recording.reference
    before, after = score_many([(reference, recording.noisy), (reference, enhanced)], 1, rate, metrics, pool=pool)
    reasons = dict.fromkeys(f"{metric}: {why}" for values in (before, after) for metric, why in values["errors"].items())
    return {metric: (before[metric], after[metric]) for metric in metrics}, notes + list(reasons)


def answer(
    enhancer: Enhancer, wish: Wish, limits: Limits, folder: Path, pool: ScoringPool,
    progress: Callable[[float, str], object] = lambda share, what: None,
) -> Iterator[Answer]:
    """Enhance as wished, files going to `folder`: first what can be heard, then the pictures, then the scores.

    Complaint for what cannot be used. `progress` may raise to end it.
    """
    rate = enhancer.sample_rate
    recording = read_recording(enhancer, wish, limits, progress)
    result = enhancer.enhance(
        recording.noisy, rate, recording.crops, recording.mask, return_details=True, attenuation_limit_db=wish.limit_db,
        progress=lambda share: progress(0.3 + 0.4 * share, "enhancing"),
    )  # fmt: skip
    before, after, gain_db = write_players(recording, result, folder, rate)
    enhanced = folder / f"{recording.name}_enhanced.wav"
    notes = [*recording.notes, *result.notes]
    if write_wav(enhanced, result.wav, rate) < 0:
        notes.append("the download is turned down to full scale")
    if abs(gain_db) >= 0.05:
        turned = "up" if gain_db > 0 else "down"
        notes.append(f"“after” is turned {turned} by {abs(gain_db):.1f} dB in the player, to be as loud as “before”; "
                     "downloads are not")  # fmt: skip
    shown = Answer(
        name=recording.name, before=before, after=after, enhanced=enhanced, facts=describe(enhancer, recording, result),
        notes=tuple(notes),
    )
    yield shown
    progress(0.75, "drawing")
    shown = replace(shown, **draw(enhancer, recording, result, folder))
    if wish.video is not None:
        video, why = write_video(wish.video, result, folder / f"{recording.name}_enhanced")
        shown = replace(shown, video=video, notes=(*shown.notes, *why))
    yield shown
    if recording.reference is not None:
        progress(0.9, "scoring")
        scores, why = score(recording, result.wav, rate, pool)
        yield replace(
            shown, scores=scores, scored_against=recording.reference_name, notes=(*shown.notes, *why)
        )


def draw(enhancer: Enhancer, recording: Recording, result: EnhanceResult, folder: Path) -> dict[str, Path]:
    """The figure, and the crops where there are any."""
    made = {"figure": folder / f"{recording.name}.png"}
    way = "sound only" if result.alpha is None else "sound and picture"
    sounds = {"before": recording.noisy, f"after, {way}": result.wav}
    if recording.reference is not None:
        sounds["reference"] = recording.reference
    spectrogram_figure(
        made["figure"], "", sounds, result, enhancer.cfg["stft_cfg"],
        difference=recording.reference is None, dpi=SCREEN_DPI,
    )  # fmt: skip
    if recording.crops is not None:
        made["crops"] = folder / f"{recording.name}_face.mp4"
        write_crops(recording, result, enhancer.video_fps, made["crops"])
    return made
