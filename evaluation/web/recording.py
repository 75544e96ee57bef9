"""What a visitor of the web page gives, checked by its content and its size, and made ready for the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloaders.augment_video import VisualDegradation
from dataloaders.mixing import mix_audio
from models.inference.enhancer import Enhancer
from models.inference.upper_band import has_upper_band
from utils.console import one_line
from utils.faces.cropper import FaceOptions, FaceReport
from utils.faces.lip_sync import SoundTrack
from utils.media.decode import MediaError, MediaInfo, probe_media
from utils.media.frame_grid import MOST_PIXELS
from utils.media.sound import own_rate_pieces, resample, resampled_pieces, sound_pieces
from utils.scores.metrics import aligned

AS_IT_IS, OFF = "as it is", "off"
# The ways in which the face crops can be spoilt; each is applied to the whole recording.
CORRUPTIONS = ("blur", "noise", "black", "dim", "patch", "freeze", "drop")
SILENCE = 1e-4  # of full scale; sound in which nothing is louder is silent
TYPES_TO_GIVE = "give a video (mp4, mov, mkv, webm, mpg, avi) or a sound (wav, flac, mp3, ogg, m4a)"


class Complaint(ValueError):
    """Says in a sentence for the page why a recording cannot be used; it names no folder of the server."""


@dataclass(frozen=True)
class Limits:
    """What a visitor may give."""

    longest_sec: float = 120.0
    largest_mb: int = 200


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a visitor asks for."""

    video: Path | None = None  # shows the face, and has the sound too where `audio` is None
    audio: Path | None = None
    reference: Path | None = None  # the clean sound, to score against
    noise: np.ndarray | None = None  # float [k] at the model's rate, to be added
    snr_db: float = 0.0
    video_mode: str = AS_IT_IS  # or OFF, or one of CORRUPTIONS
    face: int | None = None  # the number of the face to follow, counted from the left; None: the one that talks
    limit_db: float | None = None  # the noise is turned down by so much at most; None: as far as the model can


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A visitor's recording, made ready."""

    name: str
    noisy: np.ndarray  # float32 [L], what is enhanced
    rate: int  # Hz, of `noisy`: the file's own where it is above the model's, else the model's
    heard: np.ndarray  # float32 [n], `noisy` at the model's rate
    reference: np.ndarray | None  # float32 [n] at the model's rate, what to score against
    reference_name: str
    crops: np.ndarray | None  # uint8 [V, S, S, 3]
    mask: np.ndarray | None  # bool [V]
    faces: str  # how many faces there are, and what found them; "" where no face was looked for
    has_video: bool  # whether a video was given that shows something
    notes: tuple[str, ...]


def complaint(error: BaseException, paths: Sequence[Path | None]) -> Complaint:
    """The error as a sentence in which the visitor's files are called by their names alone, without their folders."""
    text = one_line(error)
    for path in paths:
        if path is not None:
            text = text.replace(str(path), path.name)
    return Complaint(f"{text}.")


def check_file(path: Path, limits: Limits, wanted: str) -> MediaInfo:
    """What is in a file; Complaint when it is too large or too long, or holds no sound where "audio" is wanted."""
    size_mb = path.stat().st_size / 1e6 if path.is_file() else 0.0
    if size_mb > limits.largest_mb:
        raise Complaint(f"{path.name} has {size_mb:.0f} MB; up to {limits.largest_mb} MB are taken here.")
    try:
        info = probe_media(path, most_pixels=MOST_PIXELS)
    except (MediaError, OSError) as error:
        raise Complaint(f"{path.name} is neither sound nor video that can be read; {TYPES_TO_GIVE}.") from error
    if info.width * info.height > MOST_PIXELS:
        raise Complaint(f"{path.name} has frames of {info.width} x {info.height} pixels; up to 4096 x 4096 are taken here.")
    if info.duration_sec is not None and info.duration_sec > limits.longest_sec:
        raise too_long(path, limits, info.duration_sec)
    if wanted == "audio" and not info.has_audio:
        kind = "shows a video but holds no sound: add the sound as a file of its own" if info.has_video else "holds no sound"
        raise Complaint(f"{path.name} {kind}.")
    return info


def too_long(path: Path, limits: Limits, duration_sec: float | None = None) -> Complaint:
    """The Complaint about a recording that is longer than the limit."""
    length = f"lasts {spoken(duration_sec)}" if duration_sec else "is too long"
    return Complaint(
        f"{path.name} {length}; up to {spoken(limits.longest_sec)} are taken here. "
        "inference_av.py, on the command line, takes any length."
    )


def spoken(duration_sec: float) -> str:
    """A duration in words."""
    return f"{duration_sec:.0f} seconds" if duration_sec < 100 else f"{duration_sec / 60:.1f} minutes".replace(".0 ", " ")


def read_sound(
    path: Path, limits: Limits, model_rate: int, notes: list[str] | None = None, rate: int | None = None
) -> tuple[np.ndarray, int]:
    """The sound of a file, float32 [L], and its rate: `rate`, or the file's own where it is above the model's, else that.

    Complaint where it cannot be used. Its length is counted, whatever the header says.
    """
    check_file(path, limits, "audio")
    pieces, length = [], 0
    try:
        own_rate, own = own_rate_pieces(path, notes)
        rate = rate or (own_rate if has_upper_band(own_rate, model_rate) else model_rate)
        for piece in resampled_pieces(own, own_rate, rate):
            pieces.append(piece)
            length += len(piece)
            if length > limits.longest_sec * rate:
                raise too_long(path, limits)
    except (MediaError, OSError) as error:
        raise complaint(error, [path]) from error
    if not length:
        raise Complaint(f"{path.name} holds less than one sample of sound.")
    return np.concatenate(pieces), rate


def read_recording(
    enhancer: Enhancer, wish: Wish, limits: Limits, progress: Callable[[float, str], object] = lambda share, what: None
) -> Recording:
    """Decode everything, add noise, spoil or withhold the face as wished; Complaint where that cannot be done."""
    model_rate, source = enhancer.sample_rate, wish.audio or wish.video
    if source is None:
        raise Complaint("Nothing to enhance yet: choose an example, upload a recording, or make one.")
    progress(0.0, "reading the sound")
    odd: list[str] = []  # what was not as it should be in the sound
    sound, rate = read_sound(source, limits, model_rate, odd)
    if float(np.abs(sound).max()) < SILENCE:
        raise Complaint(f"{source.name} is silent: there is nothing to enhance.")
    reference, reference_name = None, ""
    if wish.reference is not None:
        try:
            reference, sound = (
                part.astype(np.float32)
                for part in aligned(read_sound(wish.reference, limits, model_rate, rate=rate)[0], sound, rate, align=True)
            )
        except ValueError as error:
            raise error if isinstance(error, Complaint) else complaint(error, []) from error
        reference_name = "the clean reference"
    elif wish.noise is not None:
        reference, reference_name = sound, "the recording before noise was added"
    noisy = sound if wish.noise is None else mix_audio(sound, resample(wish.noise, model_rate, rate), wish.snr_db, rate)
    heard = resample(noisy, rate, model_rate)
    progress(0.1, "looking for the face")
    report = FaceReport()
    has_video = wish.video is not None and check_file(wish.video, limits, "video").has_video
    crops, mask, notes = None, None, []
    if wish.video is not None and wish.video_mode != OFF:
        if has_video:
            track = SoundTrack(lambda first, stop: heard[first:stop], model_rate)
            crops, mask, notes = read_face(enhancer, wish, track, len(noisy) / rate, report)
        else:
            notes = [f"{wish.video.name} shows no video: it was enhanced by sound alone."]
    return Recording(
        name=source.stem, noisy=noisy, rate=rate, heard=heard,
        reference=None if reference is None else resample(reference, rate, model_rate), reference_name=reference_name,
        crops=crops, mask=mask, faces=report.summary() if report.looked else "", has_video=has_video,
        notes=(*(f"{source.name}: {note}." for note in odd), *notes),
    )  # fmt: skip


def read_face(
    enhancer: Enhancer, wish: Wish, sound: SoundTrack, duration_sec: float, report: FaceReport
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """(crops uint8 [V, S, S, 3], mask bool [V], notes) as the model is to see them; no crops where it is to hear alone.

    The sound decides whom to follow of several faces; `report` receives what was seen.
    """
    assert wish.video is not None
    if not enhancer.uses_video:
        return None, None, ["This model only hears: the video is not used."]
    try:
        crops, mask = enhancer.load_video(wish.video, duration_sec, FaceOptions(face=wish.face), sound, report)
    except (MediaError, OSError) as error:
        return None, None, [f"{complaint(error, [wish.video])} It was enhanced by sound alone."]
    notes = report.notes()
    if not mask.any():
        return None, None, [*notes, f"No face was found in {wish.video.name}: it was enhanced by sound alone."]
    if wish.video_mode in CORRUPTIONS:
        crops, _ = VisualDegradation().apply(wish.video_mode, crops, np.random.default_rng(0), whole_clip=True)
    return crops, mask, notes


@functools.cache
def sample_noise(video: Path, clean: Path, sample_rate: int) -> np.ndarray:
    """The noise of a clip of samples/, which is its noisy sound minus its clean one; float32 [L]."""
    noisy, speech = (np.concatenate(list(sound_pieces(path, sample_rate))) for path in (video, clean))
    n = min(len(noisy), len(speech))
    return noisy[:n] - speech[:n]
