"""Command-line arguments that the scripts share: what is enhanced, and how the speaker's face is found."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.inference.files.jobs import Job, same_file
from utils.faces.cropper import FACE_METHODS, FaceOptions
from utils.faces.detectors import settle_method

CROP_SUFFIXES = (".mp4", ".mkv")


def _face(text: str) -> int | tuple[float, float]:
    """N or x,y as FaceOptions.face takes them."""
    try:
        return int(text) if "," not in text else tuple(float(part) for part in text.split(","))  # type: ignore[return-value]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number, such as 2, or a place, such as 0.3,0.5") from None


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the inputs that are given by position, and how folders are searched."""
    parser.add_argument("inputs", nargs="*", type=Path, metavar="FILE_OR_FOLDER", help="recordings to enhance: sound files, "
                        "videos and folders, in any number; in a folder a sound belongs to the video of the same name")
    parser.add_argument("-r", "--recursive", action="store_true", help="search the folders inside folders as well")
    parser.add_argument("--dry_run", action="store_true", help="only print what would be done")


def add_face_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the speaker's face")
    group.add_argument("--face_crop", choices=FACE_METHODS, help="detector; auto is YuNet, or Haar where there is no model "
                       "file, and says which; none: the video shows nothing but the face (default: as in training)")
    group.add_argument("--face_model", metavar="PATH", help="YuNet's .onnx (default: $LITEAVSE_FACE_MODEL, or fetched once)")
    group.add_argument("--face", type=_face, metavar="N|X,Y", help="of several faces the N-th from the left, or the one at "
                       "x,y: shares of width and height, or pixels (default: the one that talks, else the largest)")
    group.add_argument("--av_offset_ms", type=float, default=0.0, metavar="MS", help="the video is late by this much: the lips "
                       "move after their sound; a negative number means early (default: 0)")
    group.add_argument("--av_offset", choices=("auto",), help="measure the offset, and use it where the measurement is sure")
    group.add_argument("--save_crop", type=Path, metavar="PATH", help="also write the crops that the model sees, with the "
                       "sound: a .mp4 or .mkv file, or a folder")


def face_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> FaceOptions:
    """Return the options that were given; impossible ones end in parser.error."""
    if args.av_offset and args.av_offset_ms:
        parser.error("give either --av_offset auto or --av_offset_ms")
    try:
        return FaceOptions(args.face_crop, args.face_model, args.face, args.av_offset or args.av_offset_ms)
    except ValueError as error:
        parser.error(str(error))


def check_detector(options: FaceOptions) -> None:
    """Raise ValueError where the wanted detector, or its file, cannot be used. It is called before any work begins."""
    if options.method == "yunet" or options.model is not None:
        settle_method(options.method or "auto", options.model)


def with_crops(jobs: Sequence[Job], save_crop: Path | None) -> list[Job]:
    """Return the jobs with paths for their crops: `save_crop` itself for one job, else <stem>_crop.mp4 in that folder.

    ValueError for a path that cannot be written, or that would replace an input.
    """
    if save_crop is None:
        return list(jobs)
    is_file = save_crop.suffix.lower() in CROP_SUFFIXES and not save_crop.is_dir()
    if is_file and len(jobs) > 1:
        raise ValueError(f"--save_crop {save_crop} is one file, but there are {len(jobs)} recordings; give a folder")
    if not is_file and (save_crop.suffix or save_crop.is_file()) and not save_crop.is_dir():
        raise ValueError(f"--save_crop {save_crop} should be a .mp4 or .mkv file, or a folder")
    placed = []
    for job in jobs:
        crops = save_crop if is_file else save_crop / f"{job.output.stem.removesuffix('_enhanced')}_crop.mp4"
        for source in (job.audio, job.video):
            if source is not None and same_file(source, crops):
                raise ValueError(f"--save_crop {crops} is the input itself; choose another name")
        placed.append(replace(job, crops=crops))
    return placed
