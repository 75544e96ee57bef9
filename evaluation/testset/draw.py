"""Draws the mixtures of a test set: clips, maskers, places in them, SNRs and rooms, all from one seed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataloaders.augment_rir import RIRAugmentor
from dataloaders.clip_dataset import read_paths, resolve
from dataloaders.mixing import snr_db
from evaluation.testset.conditions import CLEAN, check_condition
from evaluation.testset.manifest import (
    KINDS,
    NOISE,
    NOISE_IN_ROOM,
    SAMPLE_RATE_HZ,
    TALKERS,
    Masker,
    Sample,
    json_sha256,
    load_speech,
    sum_maskers,
    write_manifest,
)
from utils.console import one_line
from utils.util import load_json_file

SNRS_DB = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
LIMITS_DB = (-40.0, 60.0)
LISTS = ("test_json", "noise_json", "masker_json", "rir_json")
DRAWS = 20  # attempts to find a masker that is audible while the clip's speaker speaks


@dataclass(frozen=True)
class Clip:
    """One entry of a list."""

    name: str
    speaker: str
    audio: str
    video: str | None
    masked: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What a test set is made of; see `add_mixture_options`."""

    clips: list[Clip]
    noises: list[str]
    talkers: list[Clip]  # whose voices disturb
    rooms: list[str]
    kinds: Sequence[str]
    snrs_db: Sequence[float]
    visuals: Sequence[str]
    room_share: float
    seed: int
    max_sec: float


def needs_noises(kinds: Sequence[str]) -> bool:
    """Whether one of `kinds` is made of recordings of the noise list."""
    return any(kind not in TALKERS for kind in kinds)


def read_clips(path: str | Path, option: str) -> list[Clip]:
    """Clips of a list; an entry's "speaker", or else the name of its folder, says who speaks."""
    clips: list[Clip] = []
    for number, item in enumerate(load_json_file(path, option)):
        item = {"audio": item} if isinstance(item, str) else item
        usable = isinstance(item, dict) and all(isinstance(item.get(key), (str, type(None))) for key in ("audio", "video"))
        if not usable or not (item.get("audio") or item.get("video")):
            raise ValueError(f'{option}: entry {number} of {path} should be {{"video": path, "audio": path}}, not {item!r}')
        video, audio = (
            resolve(item[key], Path(path).parent) if item.get(key) else None for key in ("video", "audio")
        )
        shown = Path(video or audio)
        speaker = str(item.get("speaker") or shown.parent.name)
        try:
            masked = tuple((int(first), int(end)) for first, end in item.get("mask") or ())
        except (ValueError, TypeError):
            wanted = "[first, end] pairs of frames"
            raise ValueError(f'{option}: "mask" of entry {number} of {path} should be {wanted}, not {item["mask"]!r}') from None
        clips.append(Clip(f"{speaker}_{shown.stem}", speaker, audio or video, video, masked))
    names: dict[str, int] = {}
    for index, clip in enumerate(clips):
        names[clip.name] = names.get(clip.name, 0) + 1
        if names[clip.name] > 1:
            clips[index] = replace(clip, name=f"{clip.name}_{names[clip.name]}")
    return clips


def _others(clip: Clip, clips: Sequence[Clip]) -> list[Clip]:
    """Clips of other speakers; where there are none, the same speaker's other clips."""
    other = [each for each in clips if each.speaker != clip.speaker]
    return other or [each for each in clips if each.audio != clip.audio]


def _draw_voices(clips: Sequence[Clip], count: int, rng: np.random.Generator) -> list[str]:
    """Sounds of `count` different clips by as many people; where there are too few people some are heard more than once."""
    by_speaker: dict[str, set[str]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, set()).add(clip.audio)
    speakers = sorted(by_speaker)
    drawn: list[str] = []
    for which in rng.choice(len(speakers), min(count, len(speakers)), replace=False):
        sounds = sorted(by_speaker[speakers[int(which)]] - set(drawn))
        drawn += [sounds[int(rng.integers(len(sounds)))]] if sounds else []
    others = sorted({clip.audio for clip in clips} - set(drawn))
    return drawn + [others[int(which)] for which in rng.choice(len(others), count - len(drawn), replace=False)]


def _draw_maskers(
    clip: Clip, speech: np.ndarray, kind: str, plan: Plan, rng: np.random.Generator, broken: dict[str, str]
) -> tuple[Masker, ...]:
    """Maskers for one clip and kind that are audible while its speaker speaks; ValueError when none is found."""
    others = _others(clip, plan.talkers) if kind in TALKERS else []
    n_others = len({each.audio for each in others})
    if kind in TALKERS and n_others < TALKERS[kind]:
        raise ValueError(f"{kind} needs {TALKERS[kind]} other clips, there are {n_others}")
    for _ in range(DRAWS):
        if kind in TALKERS:
            chosen = _draw_voices(others, TALKERS[kind], rng)
        else:
            chosen = [plan.noises[int(which)] for which in rng.choice(len(plan.noises), 1, replace=False)]
        places = rng.random(len(chosen))
        maskers = []
        for path, place in zip(chosen, places, strict=True):
            if path in broken:
                break
            try:
                length = len(load_speech(path, 1e4))
            except (ValueError, OSError) as error:
                broken[path] = one_line(error)
                break
            # A long recording begins where it still lasts for the whole clip; a short one is repeated.
            latest = length - len(speech) if length > len(speech) else length
            maskers.append(Masker(path, int(place * latest)))
        if len(maskers) < len(chosen):
            continue
        if np.isfinite(snr_db(speech, sum_maskers(tuple(maskers), len(speech)), SAMPLE_RATE_HZ)):
            return tuple(maskers)
    raise ValueError(f"no {kind} was audible in {DRAWS} draws")


def make_samples(plan: Plan) -> tuple[list[Sample], dict[str, str]]:
    """The samples, and what could not be used with the reason. The same plan gives the same samples."""
    samples, broken = [], {}
    for number, clip in enumerate(tqdm(plan.clips, unit="clip", disable=None)):
        try:
            speech = load_speech(clip.audio, plan.max_sec)
        except (ValueError, OSError) as error:
            broken[clip.audio] = one_line(error)
            continue
        for kind in plan.kinds:
            # Each has a generator of its own, so that its draws do not depend on the other clips and kinds. Noise in a
            # room begins with that of NOISE, so that the two differ in the room alone.
            drawn_as = NOISE if kind == NOISE_IN_ROOM else kind
            rng = np.random.default_rng([plan.seed, number, KINDS.index(drawn_as)])
            try:
                maskers = _draw_maskers(clip, speech, kind, plan, rng, broken)
            except ValueError as error:
                broken[f"{clip.name} with {kind}"] = one_line(error)
                continue
            other = _others(clip, [each for each in plan.clips if each.video])
            face = other[int(rng.integers(len(other)))] if other else None
            in_room = plan.rooms and rng.random() < (1 if kind == NOISE_IN_ROOM else plan.room_share)
            room = plan.rooms[int(rng.integers(len(plan.rooms)))] if in_room else None
            visual = plan.visuals[int(rng.integers(len(plan.visuals)))]
            seed = int(rng.integers(2**31))
            samples += [
                Sample(
                    f"{clip.name}_{kind}_{snr:+g}dB", clip.name, clip.speaker, clip.audio, clip.video, clip.masked, kind,
                    maskers, float(snr), room, visual, face.video if face else None, face.masked if face else (), seed,
                )
                for snr in plan.snrs_db
            ]  # fmt: skip
    return samples, broken


def make_testset(args: argparse.Namespace, output: Path) -> int:
    """Write the manifest; returns how many clips and maskers could not be used, each of which is named on stderr."""
    clips = read_clips(args.test_json, "--test_json")
    if args.clips is not None and args.clips < len(clips):
        clips = [clips[i * len(clips) // args.clips] for i in range(args.clips)]
    talkers = read_clips(args.masker_json, "--masker_json") if args.masker_json else clips
    rooms: list[str] = []
    if args.rir_json:
        skipped = RIRAugmentor(args.rir_json).skipped
        rooms = [path for path in read_paths(args.rir_json, "--rir_json") if path not in skipped]
    noises = read_paths(args.noise_json, "--noise_json") if needs_noises(args.kinds) else []
    plan = Plan(
        clips, noises, talkers, rooms, args.kinds, args.snr_db, args.visual, args.room_share, args.seed, args.max_sec
    )
    samples, broken = make_samples(plan)
    for what, why in broken.items():
        print(f"left out: {what}: {why}", file=sys.stderr)
    if not samples:
        raise ValueError(f"{args.test_json}: no mixture could be made; last reason: {list(broken.values())[-1]}")
    speakers = sorted({sample.speaker for sample in samples})
    if len(speakers) == 1 and not args.masker_json:
        print(f"note: all clips are of {speakers[0]}: competing voices and other faces are the same person's")
    used = len({sample.clip for sample in samples})
    note = (
        f"{len(samples)} mixtures of {used} clips by {len(speakers)} speaker{'s' * (len(speakers) > 1)}, "
        f"{', '.join(args.kinds)}, SNR {', '.join(f'{snr:g}' for snr in args.snr_db)} dB, seed {args.seed}"
    )
    speaker_of = {clip.audio: clip.speaker for clip in talkers}
    repeating = {s.clip for s in samples if s.kind in TALKERS and len({speaker_of[m.path] for m in s.maskers}) < len(s.maskers)}
    if repeating:
        note += f", several voices of one person for {len(repeating)} clips (too few other speakers)"
    write_manifest(output, samples, args.max_sec, note, broken)
    print(f"{note}; {len(broken)} things left out; written to {output}")
    return len(broken)


def add_mixture_options(parser: argparse.ArgumentParser, snrs_db: Sequence[float] = SNRS_DB) -> None:
    """Adds the options for mixtures, for every script that makes mixtures."""
    parser.add_argument("--test_json", help="list of clean clips")
    parser.add_argument("--noise_json", help="list of noises")
    parser.add_argument("--masker_json", help="list of clips whose voices disturb (default: those of --test_json)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[NOISE, *TALKERS], help="noise_in_room needs --rir_json")
    parser.add_argument("--snr_db", type=float, nargs="+", default=list(snrs_db))
    parser.add_argument("--clips", type=int, help="number of clips to use, evenly chosen from the list")
    parser.add_argument("--rir_json", help="list of impulse responses, for speech in rooms")
    parser.add_argument("--room_share", type=float, default=0.5, help="share of the clips that are in a room, with --rir_json; "
                        "of noise_in_room all are")  # fmt: skip
    parser.add_argument("--visual", nargs="+", default=[CLEAN], help="degradations of the video, drawn for each clip")
    parser.add_argument("--max_sec", type=float, default=10.0, help="only this much of a longer clip is used")
    parser.add_argument("--seed", type=int, default=1234)


def check_mixture_options(args: argparse.Namespace) -> None:
    """ValueError for options with which no mixture can be made."""
    for option, value in (("--test_json", args.test_json), ("--noise_json", args.noise_json or not needs_noises(args.kinds))):
        if not value:
            raise ValueError(f"{option} is needed: a list made by the scripts in data/")
    if NOISE_IN_ROOM in args.kinds and not args.rir_json:
        raise ValueError(f"--kinds {NOISE_IN_ROOM} needs --rir_json, a list of impulse responses of rooms")
    if not all(LIMITS_DB[0] <= snr <= LIMITS_DB[1] for snr in args.snr_db) or len(set(args.snr_db)) < len(args.snr_db):
        raise ValueError(f"--snr_db should be different numbers between {LIMITS_DB[0]:g} and {LIMITS_DB[1]:g} dB")
    if args.clips is not None and args.clips < 1:
        raise ValueError("--clips should be 1 or more")
    if not 0 <= args.room_share <= 1:
        raise ValueError("--room_share should be between 0 and 1")
    if not 0.5 <= args.max_sec <= 60:
        raise ValueError("--max_sec should be between 0.5 and 60, for PESQ's sake")
    for visual in args.visual:
        check_condition(visual)


def options_of(args: argparse.Namespace) -> str:
    """The options that decide what a manifest holds, with hashes of their lists; equal for runs that ask for the same."""
    names = (*LISTS, "kinds", "snr_db", "clips", "room_share", "visual", "max_sec", "seed")
    given = {name: getattr(args, name) for name in names}
    used = [name for name in LISTS if given[name] and (name != "noise_json" or needs_noises(args.kinds))]
    contents = {f"{name} sha256": json_sha256(load_json_file(given[name], f"--{name}")) for name in used}
    return json.dumps(given | contents, sort_keys=True)
