"""Makes a small talking-face corpus that needs no download: drawn faces, synthetic voices, competing voices and noises."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from data.synthesis.clip import Person, film, generator, write_clip, write_samples, write_sound
from data.synthesis.noise import KINDS, make_noise
from utils.console import Parser, run
from utils.util import write_json

SPLITS = ("train", "valid", "test")
NOISES_PER_KIND = {"train": 4, "valid": 1}
FEWEST_COMPETITORS = 4  # voices that compete in one split; a split with fewer people borrows voices that have no face
LONGEST_SEC = 60.0


@dataclass(frozen=True)
class Plan:
    """(person, clip) numbers of each split, and the numbers of the voices that compete with them."""

    clips: dict[str, list[tuple[int, int]]]
    competitors: dict[str, list[int]]


def make_plan(speakers: int, clips_per_speaker: int) -> Plan:
    """Share people out: an eighth (at least one) each for valid and test, or clips where there are under three people."""
    if speakers >= 3:
        held = max(1, speakers // 8)
        people = {"valid": range(speakers - 2 * held, speakers - held), "test": range(speakers - held, speakers)}
        people["train"] = range(speakers - 2 * held)
        clips = {split: [(person, clip) for person in people[split] for clip in range(clips_per_speaker)] for split in SPLITS}
    else:
        if clips_per_speaker < 3:
            raise ValueError(f"--clips_per_speaker {clips_per_speaker}: under three speakers each needs 3 clips or more")
        held = max(1, clips_per_speaker // 8)
        cuts = {"train": (0, -2 * held), "valid": (-2 * held, -held), "test": (-held, clips_per_speaker)}
        numbers = list(range(clips_per_speaker))
        clips = {split: [(p, clip) for p in range(speakers) for clip in numbers[slice(*cuts[split])]] for split in SPLITS}
    competitors = {}
    for start, split in enumerate(("train", "valid")):
        own = sorted({person for person, _ in clips[split]})
        borrowed = range((start + 1) * 10_000, (start + 1) * 10_000 + max(0, FEWEST_COMPETITORS - len(own)))
        competitors[split] = own + list(borrowed)
    return Plan(clips, competitors)


def make_corpus(args: argparse.Namespace) -> list[str]:
    """Write clips, voices, noises and their lists under args.output_dir; gives one line about each list."""
    plan = make_plan(args.speakers, args.clips_per_speaker)
    root = Path(args.output_dir).resolve()
    people: dict[int, Person] = {}

    def person(number: int) -> Person:
        if number not in people:
            people[number] = Person.draw(args.seed, number, args.voices)
        return people[number]

    report = []
    for split in SPLITS:
        items = []
        for number, clip in tqdm(plan.clips[split], desc=f"{split} clips", disable=None, leave=False):
            speaker = f"s{number + 1:02d}"
            path = root / split / f"{speaker}_{clip:03d}.mp4"
            rng = generator(args.seed, "clip", number, clip)
            frames, utterance = film(person(number), rng, args.duration_sec, args.face_size)
            write_clip(path, frames, utterance.wave)
            items.append({"video": str(path), "speaker": speaker})
        write_json(root / f"synth_{split}.json", items)
        speakers = len({number for number, _ in plan.clips[split]})
        report.append(f"{root / f'synth_{split}.json'}: {len(items)} clips of {speakers} speakers")
    for split, voices in plan.competitors.items():
        paths = []
        for index in tqdm(range(max(8, len(plan.clips[split]))), desc=f"{split} voices", disable=None, leave=False):
            number = voices[index % len(voices)]
            path = root / "voices" / f"{split}_{index:04d}.flac"
            utterance = person(number).voice.speak(generator(args.seed, "competitor", split, index), args.duration_sec)
            write_sound(path, utterance.wave)
            paths.append(str(path))
        write_json(root / f"voices_{split}.json", paths)
        report.append(f"{root / f'voices_{split}.json'}: {len(paths)} utterances of {len(voices)} competing voices")
    for split, count in NOISES_PER_KIND.items():
        paths = []
        for kind in KINDS:
            for index in range(count):
                path = root / "noise" / f"{split}_{kind}_{index}.wav"
                write_sound(path, make_noise(kind, generator(args.seed, "noise", split, kind, index), args.noise_sec))
                paths.append(str(path))
        write_json(root / f"noise_{split}.json", paths)
        report.append(f"{root / f'noise_{split}.json'}: {len(paths)} noises of {len(KINDS)} kinds")
    return report


def _check(args: argparse.Namespace) -> None:
    if not args.output_dir and not args.samples:
        raise ValueError("nothing to make: give --output_dir DIR for a corpus, or --samples DIR")
    for name, low, high in (("speakers", 1, 9999), ("clips_per_speaker", 1, 9999), ("duration_sec", 1.0, LONGEST_SEC),
                            ("noise_sec", 1.0, LONGEST_SEC), ("face_size", 32, 512), ("seed", 0, 2**32 - 1)):  # fmt: skip
        value = getattr(args, name)
        if not low <= value <= high:
            raise ValueError(f"--{name} {value} should lie between {low} and {high}")
    if args.face_size % 2:
        raise ValueError(f"--face_size {args.face_size} should be even (H.264 halves the colours)")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("make_synthetic.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", help="where train/, valid/, test/, voices/, noise/ and the lists go")
    parser.add_argument("--clips_per_speaker", type=int, default=40)
    parser.add_argument("--speakers", type=int, default=8, help="an eighth of them (at least one) each for valid and test")
    parser.add_argument("--duration_sec", type=float, default=3.0, help="length of a clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voices", choices=("formant", "flite"), default="formant", help="flite needs Debian's flite")
    parser.add_argument("--face_size", type=int, default=96, help="pixels, even")
    parser.add_argument("--noise_sec", type=float, default=8.0, help="length of a noise")
    parser.add_argument("--samples", metavar="DIR", help="write the repository's samples/ instead (needs flite)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parse(argv)
    cv2.setNumThreads(1)

    def work() -> int:
        _check(args)
        if args.samples:
            written = write_samples(args.samples, args.seed)
            report = [f"{args.samples}: {len(written)} files, {sum(path.stat().st_size for path in written) / 1e6:.2f} MB"]
        else:
            report = make_corpus(args)
        print("\n".join(report))
        return 0

    return run("make_synthetic", work)


if __name__ == "__main__":
    raise SystemExit(main())
