"""One visitor's recording through the model: what the page plays, shows and gives to download. It runs in a `Job`."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from dataloaders.mixing import active_samples
from evaluation.reporting.spectrograms import spectrogram_figure
from evaluation.web.recording import Limits, Recording, Wish, read_recording
from models.inference.enhancer import Enhancer
from models.inference.files.enhance_file import write_wav
from models.inference.results import EnhanceResult
from models.timing import latency_samples
from utils.media.clip_writer import ClipWriter, write_clip
from utils.media.decode import MediaError, open_media, video_stream
from utils.media.frame_grid import grid_frames, video_size
from utils.media.replace_sound import CONTAINERS, replace_sound
from utils.media.sound import resample
from utils.scores.metrics import METRICS, require_scorers, score_many

SCREEN_DPI = 110
CROP_SIDE = 192  # pixels of a face crop as it is shown: twice what the model sees
MOST_GAIN_DB = 20.0  # by which the sound after may be turned up or down for comparing
# The codecs that every browser plays when a pixel has 8 bits, with the container that we write for them.
BROWSERS_PLAY = {"h264": ".mp4", "av1": ".mp4", "vp8": ".webm", "vp9": ".webm"}
PIXELS_PLAYED = ("yuv420p", "yuvj420p")
PREVIEW_SIDE, PREVIEW_FPS = 480, 25  # of a video that had to be encoded anew to be played: pixels of the longer side
Tell = Callable[[float, str], object]  # is called with the share that is done, and what is being done


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the page shows. It grows from step to step; None stands for what is not there, or not yet."""

    name: str  # of the recording
    before: Path  # a video where one was given that can be played, else wav; as it was heard
    after: Path  # the same kind, enhanced, as loud as `before`
    size: tuple[int, int] | None  # width and height of those two in pixels, upright; None where they are sounds
    enhanced: Path  # wav to download, at its own level
    video: Path | None = None  # to download: the given video with the enhanced sound
    facts: dict[str, str]  # by key of `results.FACTS`
    notes: tuple[str, ...]
    figure: Path | None = None  # png
    crops: Path | None = None  # mp4
    scores: dict[str, tuple[float, float]] | None = None  # by metric: before, after
    scored_against: str = ""
    unscored: tuple[str, ...] = ()  # why a score is missing


def loudness_gain_db(before: np.ndarray, after: np.ndarray, sample_rate: int = 16000) -> float:
    """The gain that makes `after` as loud as `before`: mean power where each is active; 0 where either is silent."""
    powers = []
    for sound in (before, after):
        active = active_samples(sound, sample_rate)
        if not active.any():
            return 0.0
        powers.append(float(np.mean(np.square(sound[active], dtype=np.float64))))
    return float(np.clip(10 * math.log10(powers[0] / powers[1]), -MOST_GAIN_DB, MOST_GAIN_DB))


def equally_loud(noisy: np.ndarray, enhanced: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The two sounds to compare, equally loud and within full scale, and the gain in dB of the second over the first."""
    gain_db = loudness_gain_db(noisy, enhanced, rate)
    after = enhanced * 10 ** (gain_db / 20)
    both = 1.0 / max(1.0, float(np.abs(noisy).max()), float(np.abs(after).max()))
    return both * noisy, both * after, gain_db


def write_players(
    recording: Recording, sounds: tuple[np.ndarray, np.ndarray], rate: int, video: Path | None, folder: Path, tell: Tell
) -> tuple[Path, Path, tuple[int, int] | None, list[str]]:
    """The files that the page plays before and after, their size, and notes: videos with those sounds, or the sounds alone."""
    paths = [folder / f"{recording.name}_{which}.wav" for which in ("before", "after")]
    for path, sound in zip(paths, sounds, strict=True):
        write_wav(path, sound, rate)
    if video is None:
        return *paths, None, []
    try:
        source = playable(video, folder / "preview.mp4", len(sounds[0]) / rate, tell)
        films = [path.with_suffix(codec_container(source)) for path in paths]
        for film, sound in zip(films, sounds, strict=True):
            replace_sound(source, sound, rate, film)
        size = video_size(source)
    except (MediaError, OSError):
        return *paths, None, ["The video cannot be played here, so only its sound is."]
    for path in paths:
        path.unlink()
    return *films, size, []


def codec_container(video: Path) -> str | None:
    """The suffix under which browsers play the video's frames as they are; None where they do not."""
    with open_media(video) as container:
        stream = video_stream(container)
        if stream is None or stream.codec_context.pix_fmt not in PIXELS_PLAYED:
            return None
        return BROWSERS_PLAY.get(stream.codec_context.codec.canonical_name)


def playable(video: Path, preview: Path, duration_sec: float, tell: Tell) -> Path:
    """A video that browsers play: `video` itself, or a small H.264 version of its first seconds, written to `preview`."""
    if codec_container(video) is not None:
        return video
    frames = small_frames(video, duration_sec, tell)
    first = next(frames, None)
    if first is None:
        raise MediaError(f"{video} has no frame that can be decoded")
    with ClipWriter(preview, None, PREVIEW_FPS, first.shape[:2]) as writer:
        for frame in itertools.chain([first], frames):
            writer.add(frame[None])
        writer.finish([])
    return preview


def small_frames(video: Path, duration_sec: float, tell: Tell) -> Iterator[np.ndarray]:
    """Frames uint8 [h, w, 3] of one size; where one is missing the last is repeated, before the first the first."""
    last, missing = None, 0
    for tick, frame in enumerate(grid_frames(video, 0.0, duration_sec, PREVIEW_FPS)):
        if tick % PREVIEW_FPS == 0:
            tell(0.7, "preparing the video for the player")
        if frame is not None:
            scale = min(1.0, PREVIEW_SIDE / max(frame.shape[:2]))
            height, width = (max(2, round(side * scale) // 2 * 2) for side in frame.shape[:2])
            last = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        if last is None:
            missing += 1
            continue
        yield from [last] * (missing + 1)
        missing = 0


def describe(enhancer: Enhancer, recording: Recording, result: EnhanceResult) -> dict[str, str]:
    """What there is to say about speed and face, by key of `results.FACTS`."""
    lookahead_ms = enhancer.cfg["visual_cfg"]["visual_lookahead_ms"] if enhancer.uses_video else 0.0
    samples = latency_samples(enhancer.cfg["stft_cfg"]["n_fft"], enhancer.sample_rate, lookahead_ms)
    facts = {}
    if result.alpha is not None:
        facts["trust"] = f"{100 * result.mean_alpha:.0f} %"
        facts["seen"] = f"{100 * (1 - result.masked_share):.0f} %"
    if recording.faces:
        facts["faces"] = recording.faces
    facts["time"] = f"{result.seconds:.1f} s for {result.duration_sec:.1f} s"
    facts["delay"] = f"{1e3 * samples / enhancer.sample_rate:g} ms" if enhancer.model.causal else "not possible live"
    return facts


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
    return None, ["There is no video to download: its frames would have to be encoded anew."]


def score(recording: Recording, enhanced: np.ndarray, rate: int) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """({metric: (before, after)}, notes on those that have no value); `enhanced` is at the model's rate."""
    metrics, notes = [], []
    for metric in METRICS:
        try:
            require_scorers([metric])
            metrics.append(metric)
        except ValueError as error:
            notes.append(str(error))
    reference = recording.reference
    before, after = score_many([(reference, recording.heard), (reference, enhanced)], 1, rate, metrics)
    reasons = dict.fromkeys(f"{metric}: {why}" for values in (before, after) for metric, why in values["errors"].items())
    return {metric: (before[metric], after[metric]) for metric in metrics}, notes + list(reasons)


def work(packed: bytes, threads: int, wish: Wish, limits: Limits, folder: Path, tell: Tell) -> Iterator[Answer]:
    """`answer` with an Enhancer that was packed by `pickle`: what a `Job` does for a visitor."""
    torch.set_num_threads(threads)
    yield from answer(pickle.loads(packed), wish, limits, folder, tell)


def answer(
    enhancer: Enhancer, wish: Wish, limits: Limits, folder: Path, tell: Tell = lambda share, what: None
) -> Iterator[Answer]:
    """Enhance as wished; files go to `folder`. First comes what can be heard, then the figures, then the scores.

    Complaint for what cannot be used. An exception in `tell` ends the work.
    """
    recording = read_recording(enhancer, wish, limits, tell)
    rate = recording.rate
    tell(0.3, "loading the model")
    enhancer.warm_up()
    result = enhancer.enhance(
        recording.noisy, rate, recording.crops, recording.mask, return_details=True, attenuation_limit_db=wish.limit_db,
        progress=lambda share: tell(0.3 + 0.4 * share, "enhancing"),
    )  # fmt: skip
    enhanced = folder / f"{recording.name}_enhanced.wav"
    notes = [*recording.notes, *result.notes]
    if write_wav(enhanced, result.wav, rate) < 0:
        notes.append("The sound to download is turned down, for it would be louder than a file can hold.")
    video, why = None, []
    film = wish.video if recording.has_video else None
    if film is not None:
        video, why = write_video(film, result, folder / f"{recording.name}_enhanced")
    *sounds, gain_db = equally_loud(recording.noisy, result.wav, rate)
    before, after, size, trouble = write_players(recording, tuple(sounds), rate, film, folder, tell)
    notes += [*why, *trouble]
    if abs(gain_db) >= 0.05:
        turned = "up" if gain_db > 0 else "down"
        notes.append(f"For comparing, “after” is turned {turned} by {abs(gain_db):.1f} dB to be as loud as “before”; "
                     "the downloads are not.")  # fmt: skip
    shown = Answer(
        name=recording.name, before=before, after=after, size=size, enhanced=enhanced, video=video,
        facts=describe(enhancer, recording, result), notes=tuple(notes),
    )
    yield shown
    tell(0.8, "drawing")
    model_rate = enhancer.sample_rate  # at which figure and scores are made
    result = replace(result, wav=resample(result.wav, rate, model_rate), sample_rate=model_rate)
    shown = replace(shown, **draw(enhancer, recording, result, folder))
    yield shown
    if recording.reference is not None:
        tell(0.9, "scoring")
        scores, missing = score(recording, result.wav, model_rate)
        yield replace(shown, scores=scores, scored_against=recording.reference_name, unscored=tuple(missing))


def draw(enhancer: Enhancer, recording: Recording, result: EnhanceResult, folder: Path) -> dict[str, Path]:
    """The figure, and what the model saw where it saw something, with what it made of the sound; all at the model's rate."""
    made = {"figure": folder / f"{recording.name}.png"}
    way = "sound only" if result.alpha is None else "sound and face"
    sounds = {"before": recording.heard, f"after, {way}": result.wav}
    if recording.reference is not None:
        sounds["reference"] = recording.reference
    spectrogram_figure(
        made["figure"], "", sounds, result, enhancer.cfg["stft_cfg"],
        difference=recording.reference is None, dpi=SCREEN_DPI,
    )  # fmt: skip
    if recording.crops is not None:
        shown = [cv2.resize(crop, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_CUBIC) for crop in recording.crops]
        made["crops"] = folder / f"{recording.name}_face.mp4"
        write_clip(made["crops"], np.stack(shown), result.wav, result.sample_rate, enhancer.video_fps)
    return made
