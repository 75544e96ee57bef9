"""Fetches corpora that may be fetched freely: GRID, speaker by speaker, from its public record on Zenodo.

    python data/download.py grid --speakers s1 s2 --output_dir data/grid

What was broken off goes on where it stopped, what is there is left alone, and every archive is checked before it is unpacked.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from data.tools.archives import DownloadError, RemoteFile, fetch, md5_of, read_record, unpack
from utils.console import EXIT_FAILED, Parser, one_line, run
from utils.util import write_json

BASE_URL = "https://zenodo.org"
GRID_RECORD = "3625687"
GRID_SPEAKERS = [f"s{n}" for n in range(1, 35) if n != 21]  # s21 was published without video
GRID_SOUND = "audio_25k"  # all speakers' sound before it went through MP2


def _note(file: RemoteFile, folder: Path) -> Path:
    """The file which marks an archive as unpacked; it is hidden, so that no search takes it for data."""
    return folder / f".{file.name}.json"


def get_archive(file: RemoteFile, folder: Path, keep: bool) -> str:
    """Fetch and unpack one archive unless that was done before; what to say about it.

    A note beside the data, written last, holds that an archive of this checksum was unpacked.
    """
    note, archive = _note(file, folder), folder / file.name
    if note.is_file():
        held = json.loads(note.read_text(encoding="utf-8"))
        if held["md5"] == file.md5 and all((folder / name).is_file() for name in held["files"]):
            return "is there"
    if not (archive.is_file() and archive.stat().st_size == file.size and md5_of(archive) == file.md5):
        fetch(file, archive)
    names = unpack(archive, folder)
    write_json(note, {"md5": file.md5, "files": names})
    if not keep:
        archive.unlink()
    return f"{len(names)} files"


def _check_space(files: Sequence[RemoteFile], folder: Path) -> None:
    """DownloadError where the disk has no room for the unpacked archives (hardly larger than packed) and one packed archive."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = sum(file.size for file in files) + max(file.size for file in files), shutil.disk_usage(there).free
    if free < needed:
        raise DownloadError(
            f"{folder} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left; name fewer --speakers"
        )


def _grid_archives(args: argparse.Namespace, files: dict[str, RemoteFile]) -> list[RemoteFile]:
    """The archives that the arguments ask for, by the record's list."""
    wanted = [f"{speaker}.zip" for speaker in dict.fromkeys(args.speakers)] + ([f"{GRID_SOUND}.zip"] if args.audio else [])
    missing = [name for name in wanted if name not in files]
    if missing:
        held = ", ".join(sorted(files))
        raise DownloadError(f"{missing[0]} is not in record {GRID_RECORD} of {args.base_url}; it holds {held}")
    return [files[name] for name in wanted]


def _speaker(name: str) -> str:
    speaker = f"s{name.lower().removeprefix('s').lstrip('0')}"
    if speaker == "s21":
        raise argparse.ArgumentTypeError("s21 was published without video; leave it out")
    if speaker not in GRID_SPEAKERS:
        raise argparse.ArgumentTypeError(f"{name!r} is no GRID speaker; they are s1 to s34, without s21")
    return speaker


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 1 when some of the archives could not be had."""
    parser = Parser("download.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = parser.add_subparsers(dest="corpus", required=True)
    grid = corpora.add_parser("grid", help="GRID: 33 speakers with video, 1000 sentences each, CC BY 4.0")
    grid.add_argument(
        "--speakers", nargs="+", type=_speaker, default=GRID_SPEAKERS, metavar="sN", help="default: all that have video"
    )
    grid.add_argument("--output_dir", required=True, help="each speaker becomes a folder in it")
    grid.add_argument("--audio", action="store_true", help=f"fetch {GRID_SOUND}.zip too: the sound before its compression")
    grid.add_argument("--keep_archives", action="store_true", help="do not delete archives that were unpacked")
    grid.add_argument("--base_url", default=BASE_URL, help="another server that answers as Zenodo does")
    args = parser.parse_args(argv)

    def work() -> int:
        folder, failed = Path(args.output_dir), 0
        archives = _grid_archives(args, read_record(args.base_url, GRID_RECORD))
        new = [file for file in archives if not _note(file, folder).is_file()]
        if new:
            _check_space(new, folder)
        for file in archives:
            try:
                print(f"{file.name}: {get_archive(file, folder, args.keep_archives)}", flush=True)
            except (DownloadError, ValueError) as error:  # the next one may come; a full disk stops all
                failed += 1
                print(f"{file.name}: {one_line(error)}", file=sys.stderr, flush=True)
        return EXIT_FAILED if failed else 0

    return run("download", work)


if __name__ == "__main__":
    sys.exit(main())
