"""Lists for the small model: clips with faces, voices without, noises, talkers and rooms, for training and validation.

--data_root is a folder laid out like this; whatever is missing of it is left out of the lists, and said:

    grid/<any>/<speaker>/*.mpg, *.mp4     clips of talking faces with their sound, a folder for each speaker
    elospheres/<speaker>/*.mp4            the same
    speech/<corpus>/<voice>/*             recordings of one voice a folder, without video
    noise/ambience/*, noise/events/*      noises
    noise/talkers/*                       recordings of other people talking
    rir/*                                 recorded impulse responses of rooms

What validation hears is named in --held_out, once and for all, and gets into no training list. Writes av_, speech_, sound_
(av_ and speech_ in one), noise_, talkers_ and rooms_ + train.json and valid.json. The faces of av_ are cropped once by
data/prepare_faces.py; --crops_list then puts its list in the place of av_, of which held-out speakers are told apart by the
folder of the clip. --drawn_list adds sound_drawn_train.json: sound_train.json, and clips of people who are drawn
(data/make_synthetic.py), each a speaker of their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from utils.console import Parser, run
from utils.media.formats import AUDIO_EXTENSIONS
from utils.util import load_json_file, write_json

VIDEO_EXTENSIONS = (".mpg", ".mp4")
SPLITS = ("train", "valid")
HELD_OUT = "recipes/LiteAVSE/held_out.json"
KEYS = ("speakers", "voices", "talkers", "noises", "rooms", "never_used")


def read_held_out(path: str | Path) -> dict[str, set[str]]:
    """The names of a held-out file by kind; ValueError when it is not one."""
    try:
        named = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--held_out: {path} is not JSON: {error}") from None
    for key in KEYS:
        if not isinstance(named.get(key), list):
            raise ValueError(f"--held_out: {path} should name a list of {key}")
    return {key: set(named[key]) for key in KEYS}


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        print(f"{folder}: not there, left out")
        return []
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _split(paths: Sequence[Path], names: Sequence[str], held_out: set[str]) -> dict[str, list[str]]:
    """Paths by split: those whose name is held out are for validation."""
    pairs = list(zip(paths, names, strict=True))
    return {
        "train": [str(path) for path, name in pairs if name not in held_out],
        "valid": [str(path) for path, name in pairs if name in held_out],
    }


def make_lists(
    root: Path, held: dict[str, set[str]], crops: Sequence[dict] | None = None, drawn: Sequence[dict] | None = None
) -> dict[str, dict[str, list]]:
    """{list: {split: entries}} of a data root laid out as the module says; crops: entries in the place of its clips.

    drawn: further clips for training, whose speakers are "drawn/" and the entry's.
    """
    if not root.is_dir():
        raise ValueError(f"--data_root: {root} is not a folder")
    if crops is None:
        clips = [{"video": str(path)} for part in ("grid", "elospheres") for path in _files(root / part, VIDEO_EXTENSIONS)]
    else:
        clips = list(crops)
    av: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for clip in clips:
        name = Path(clip["video"]).parent.name
        av["valid" if name in held["speakers"] else "train"].append({**clip, "speaker": name})
    voices = [
        path for path in _files(root / "speech", AUDIO_EXTENSIONS)
        if "/".join(path.relative_to(root).parts[:2]) not in held["never_used"]
    ]  # fmt: skip
    names = ["/".join(path.relative_to(root / "speech").parts[:2]) for path in voices]
    speech = {
        split: [{"audio": path, "speaker": str(Path(path).parent.relative_to(root / "speech"))} for path in paths]
        for split, paths in _split(voices, names, held["voices"]).items()
    }
    noises = [path for part in ("ambience", "events") for path in _files(root / "noise" / part, AUDIO_EXTENSIONS)]
    talkers, rooms = _files(root / "noise" / "talkers", AUDIO_EXTENSIONS), _files(root / "rir", AUDIO_EXTENSIONS)
    sound = {split: av[split] + speech[split] for split in SPLITS}
    more = {}
    if drawn is not None:
        people = [{**clip, "speaker": f"drawn/{clip['speaker']}"} for clip in drawn]
        more["sound_drawn"] = {"train": sound["train"] + people}
    return {
        "av": av, "speech": speech, "sound": sound, **more,
        "noise": _split(noises, [path.stem for path in noises], held["noises"]),
        "talkers": _split(talkers, [path.stem for path in talkers], held["talkers"]),
        "rooms": _split(rooms, [path.stem for path in rooms], held["rooms"]),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser("make_av_lists.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", required=True, help="folder with grid/, speech/, noise/, rir/")
    parser.add_argument("--output_dir", default="data/lists")
    parser.add_argument("--held_out", default=HELD_OUT, help="names that are for validation only")
    parser.add_argument("--crops_list", nargs="*", help="lists that data/prepare_faces.py wrote of av_train and av_valid")
    parser.add_argument("--drawn_list", help="list that data/prepare_faces.py wrote of drawn people")
    args = parser.parse_args(argv)

    def work() -> int:
        crops = None
        if args.crops_list:
            crops = [clip for path in args.crops_list for clip in load_json_file(path, "--crops_list")]
        drawn = None
        if args.drawn_list:
            drawn = load_json_file(args.drawn_list, "--drawn_list")
            if not all(isinstance(clip, dict) and isinstance(clip.get("speaker"), str) for clip in drawn):
                raise ValueError(f'--drawn_list: {args.drawn_list} should name a "speaker" with each clip; make it anew')
        lists = make_lists(Path(args.data_root), read_held_out(args.held_out), crops, drawn)
        for name, splits in lists.items():
            for split, entries in splits.items():
                target = Path(args.output_dir) / f"{name}_{split}.json"
                write_json(target, entries)
                print(f"{target}: {len(entries)} entries" + ("" if entries else " (empty)"))
        return 0

    return run("make_av_lists", work)


if __name__ == "__main__":
    raise SystemExit(main())
