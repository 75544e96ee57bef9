"""What the list-making scripts share: walking a corpus, trying its clips, and saying what was left out and why."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.media.decode import MediaError, probe_media
from utils.util import write_csv, write_json

SPLITS = ("train", "valid", "test")
CHECKS = ("none", "header", "full")
SHOWN_LINES = 20
AT_ONCE = 1024  # clips between two writes to the cache

Entry = dict[str, str]
Skipped = tuple[str, str]  # path, why


def walk_files(root: Path, suffixes: Collection[str], workers: int) -> list[str]:
    """Paths below `root`, with "/" between their parts, of files with one of these suffixes; sorted, hidden ones left out.

    The folders at the top are walked side by side: a cluster's file system answers slowly, but many at a time.
    """
    endings = tuple(suffixes)

    def below(name: str) -> list[str]:
        found, folders = [], [name]
        while folders:
            folder = folders.pop()
            with os.scandir(root / folder) as items:
                for item in items:
                    if item.name.startswith("."):  # macOS archives carry ._name.mpg
                        continue
                    if item.is_dir():
                        folders.append(f"{folder}/{item.name}")
                    elif item.name.lower().endswith(endings):
                        found.append(f"{folder}/{item.name}")
        return found

    with os.scandir(root) as items:
        top = [(item.name, item.is_dir()) for item in items if not item.name.startswith(".")]
    files = [name for name, is_folder in top if not is_folder and name.lower().endswith(endings)]
    folders = [name for name, is_folder in top if is_folder]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        bar = tqdm(pool.map(below, folders), total=len(folders), desc=root.name, unit="folder", disable=None, leave=False)
        return sorted(files + [name for found in bar for name in found])


def clip_problem(entry: Mapping[str, str], full: bool = False) -> str | None:
    """Why a clip cannot be used, in a few words; None when its video and its sound can be decoded.

    `full` decodes everything and refuses clips with damaged packets; otherwise the first frame of each must decode.
    """
    try:
        video = probe_media(entry["video"], full)
        sound = probe_media(entry["audio"], full) if "audio" in entry else video
    except (MediaError, OSError) as error:
        return str(error).removeprefix(entry["video"]).strip()
    if not video.has_video:
        return "no video that can be decoded"
    if not sound.has_audio:
        return "no sound that can be decoded"
    damaged = video.damaged_packets + (sound.damaged_packets if sound is not video else 0)
    return f"{damaged} damaged packets" if full and damaged else None


class ClipChecker:
    """Tries clips ("header": the first frame of video and sound; "full": all of it; "none": not at all), each once.

    What was found is kept in the file `cache`, by path, size and time of change, so that a run that was interrupted, or
    is repeated with new files, goes on where it was.
    """

    def __init__(self, check: str, workers: int, cache: Path) -> None:
        self._check, self._workers, self._cache = check, max(1, workers), cache
        self._known: dict[str, tuple[list[int], str | None]] | None = None

    def _read_cache(self) -> dict[str, tuple[list[int], str | None]]:
        known = {}
        if self._cache.is_file():
            with open(self._cache, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        key, stamp, problem = json.loads(line)
                        known[key] = (stamp, problem)
                    except (ValueError, TypeError):
                        continue  # a line that was being written
        return known

    def _one(self, entry: Entry) -> tuple[str, list[int], str | None, bool]:
        """(key, stamp, problem or None, whether it was known)."""
        paths = [entry[kind] for kind in ("video", "audio") if kind in entry]
        key = "|".join([self._check, *paths])
        try:
            stamp = [number for path in paths for number in (os.stat(path).st_size, os.stat(path).st_mtime_ns)]
        except OSError as error:
            return key, [], error.strerror or "cannot be read", True
        if key in self._known and self._known[key][0] == stamp:
            return key, stamp, self._known[key][1], True
        return key, stamp, clip_problem(entry, self._check == "full"), False

    def split(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Skipped]]:
        """The clips that can be used, and those that cannot with the reason, both in the order given."""
        if self._check == "none" or not entries:
            return list(entries), []
        self._known = self._read_cache() if self._known is None else self._known
        good, skipped = [], []
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=len(entries), desc=f"checking ({self._check})", unit="clip", disable=None, leave=False)
        with bar, open(self._cache, "a", encoding="utf-8") as cache, ThreadPoolExecutor(self._workers) as pool:
            cache.write("\n" if self._cache.stat().st_size else "")  # ends the line at which an earlier run was killed
            for part in _pieces(entries, AT_ONCE):
                for entry, (key, stamp, problem, known) in zip(part, pool.map(self._one, part), strict=True):
                    if problem is None:
                        good.append(entry)
                    else:
                        skipped.append((entry["video"], problem))
                    if not known:
                        cache.write(json.dumps([key, stamp, problem], ensure_ascii=False) + "\n")
                    bar.update()
                cache.flush()
        return good, skipped


def _pieces(items: Sequence[Entry], size: int) -> Iterator[list[Entry]]:
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


def hold_out(names: Collection[str], share: float, seed: int, option: str = "--valid_share") -> set[str]:
    """A share of the names, one at least, drawn by the seed. ValueError when there are under two, or none would be left."""
    ordered = sorted(names)
    if not 0 < share < 1:
        raise ValueError(f"{option} {share:g} should lie between 0 and 1; VoxCeleb2 is usually given 0.025")
    if len(ordered) < 2:
        raise ValueError(f"{len(ordered)} speakers cannot be shared out to train and validate on; two are needed")
    count = min(len(ordered) - 1, max(1, round(share * len(ordered))))
    return {ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))[:count]}


def write_lists(
    splits: Mapping[str, Sequence[Entry]], output_dir: Path, prefix: str, checker: ClipChecker, skipped: Sequence[Skipped] = ()
) -> None:
    """Check the clips of every split, write PREFIX_SPLIT.json and PREFIX_skipped.csv, and say what is in them.

    `skipped`: what was left out before. Entries keep their order.
    """
    skipped = list(skipped)
    for split, entries in splits.items():
        good, bad = checker.split(entries)
        skipped += bad
        target = output_dir / f"{prefix}_{split}.json"
        write_json(target, good)
        n_speakers = len({entry["speaker"] for entry in good})
        print(f"{target}: {len(good)} clips of {n_speakers} speakers" + ("" if good else " (empty)"))
    report_skipped(skipped, output_dir / f"{prefix}_skipped.csv")


def report_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """Write (path, why) of what was left out as a CSV, and say it in a few lines."""
    write_csv(path, [{"clip": name, "reason": reason} for name, reason in skipped], ("clip", "reason"))
    if not skipped:
        return
    print(f"{len(skipped)} clips skipped, listed in {path}:")
    if len(skipped) <= SHOWN_LINES:
        print("\n".join(f"  {name}: {reason}" for name, reason in skipped))
        return
    first = {reason: name for name, reason in reversed(skipped)}
    for reason, count in Counter(reason for _, reason in skipped).most_common(SHOWN_LINES):
        print(f"  {count} x {reason} (first: {first[reason]})")


def add_checking(parser: argparse.ArgumentParser) -> None:
    """The options that say how clips are tried."""
    parser.add_argument(
        "--check", choices=CHECKS, default="header",
        help="try each clip's first frame and sound (header), all of it (full), or nothing; what was tried once is remembered",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=min(16, 2 * (os.cpu_count() or 1)), help="files looked at side by side")
