"""What is enhanced: which files belong together, and what is written where."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.distributed import Group
from utils.media.formats import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from utils.media.replace_sound import CONTAINERS, check_video_output

SOUND_FORMATS = {".wav": "WAV", ".flac": "FLAC"}  # suffix -> soundfile's name of it
OUTPUT_FORMATS = ("wav", "flac", "video")
DEFAULT_OUTPUT = Path("results")
MOST_NAMED = 5  # files that are left out, in the line that counts them


@dataclass(frozen=True)
class Job:
    """One recording: the file with the sound, the file with the video (it may be the same), and the file to write."""

    audio: Path
    video: Path | None
    output: Path
    crops: Path | None = None  # where the face crops that the model sees are written, with the sound

    @property
    def writes_video(self) -> bool:
        """Whether the output is a video with the enhanced sound."""
        return self.output.suffix.lower() in CONTAINERS

    @property
    def label(self) -> str:
        return self.audio.name if self.video in (None, self.audio) else f"{self.audio.name} + {self.video.name}"


def is_there(path: Path) -> bool:
    """Return whether the file exists; a name that the file system does not take is that of no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def same_file(one: Path, other: Path) -> bool:
    """Return whether both paths name the same file or folder, also through links, and also if it does not exist yet."""
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return one.resolve() == other.resolve()


def output_suffix(output_format: str, video: Path | None) -> str:
    """Return the suffix of an output that gets its name here.

    "video" means the video's own container, or .mkv where that cannot be written. A recording without a video is then
    written as .wav.
    """
    if output_format != "video":
        return f".{output_format}"
    if video is None:
        return ".wav"
    return video.suffix.lower() if video.suffix.lower() in CONTAINERS else ".mkv"


def single_job(
    audio: Path | None, video: Path | None, output: Path | None, output_format: str = "wav", suffix: str = "_enhanced"
) -> Job:
    """Return the job for one recording.

    `output` is a file (.wav and .flac hold the sound; .mp4, .m4v, .mov, .mkv and .webm hold the video with it), a folder, or
    None, which means results. In a folder the name is <stem><suffix> and what `output_suffix` gives. FileNotFoundError or
    ValueError for a sound that does not exist, and for an output that would replace the input or cannot be written.
    """
    sound = audio if audio is not None else video
    assert sound is not None
    if not sound.exists():
        raise FileNotFoundError(f"{sound} does not exist")
    if sound.is_dir():
        raise ValueError(f"{sound} is a folder; give it by position or as --input_folder")
    output = output or DEFAULT_OUTPUT
    if output.is_dir() or not output.suffix:
        output = output / f"{sound.stem}{suffix}{output_suffix(output_format, video)}"
    if output.suffix.lower() not in SOUND_FORMATS:
        if video is None and output.suffix.lower() not in CONTAINERS:
            raise ValueError(
                f"output {output}: a sound cannot be written as {output.suffix}; choose .wav or .flac, or a folder "
                "(one whose name has a dot must exist)"
            )
        check_video_output(output)
        if video is None:
            raise ValueError(f"output {output} is a video: give the video that belongs to the sound as --input_video")
    job = Job(sound, video, output)
    _refuse_overwriting([job], (source for source in (sound, video) if source is not None))
    return job


def folder_jobs(
    folder: Path, output: Path, use_video: bool = True, suffix: str = "_enhanced", output_format: str = "wav",
    recursive: bool = False,
) -> list[Job]:
    """Return the jobs for the recordings in `folder`; see `find_jobs`."""
    if not folder.exists():
        raise FileNotFoundError(f"input folder {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"input folder {folder} is a file; give a single recording as --input_audio or --input_video")
    return find_jobs([folder], output, use_video, suffix, output_format, recursive)


def find_jobs(
    inputs: Sequence[Path], output: Path | None, use_video: bool = True, suffix: str = "_enhanced",
    output_format: str = "wav", recursive: bool = False,
) -> list[Job]:
    """Return the jobs for files and folders, several at once.

    In a folder, and among files of one folder, a sound belongs to the video of the same stem beside it; a video without such
    a sound has its own (with use_video=False only sound files count). `recursive` searches the folders inside folders, and
    the outputs lie in folders of the same names. Links to folders and hidden files are left out. A single file is a
    `single_job`. Otherwise `output` is a folder (default: results). The outputs are <stem><suffix> and what `output_suffix`
    gives; where several recordings share a stem, <stem>_<extension> replaces it. FileNotFoundError or ValueError in one line
    for an input that does not exist or holds nothing, and for an output that cannot be or would replace an input.
    """
    inputs = [path for given in inputs for path in _matches(given)]
    if len(inputs) == 1 and inputs[0].is_file():
        is_video = use_video and inputs[0].suffix.lower() in VIDEO_EXTENSIONS
        return [single_job(inputs[0], inputs[0] if is_video else None, output, output_format, suffix)]
    output = output or DEFAULT_OUTPUT
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; for several recordings it should be a folder")
    if not output.exists() and output.suffix.lower() in (*SOUND_FORMATS, *CONTAINERS):
        raise ValueError(f"output {output} is the name of one file; for several recordings give a folder")
    groups: dict[Path, list[Path]] = {}  # folder of outputs, relative to `output` -> its recordings
    known: set[Path] = set()
    for place, path in _all_files(inputs, output, recursive):
        if path.resolve() not in known:
            known.add(path.resolve())
            groups.setdefault(place, []).append(path)
    jobs, left_out = [], []
    for place, files in sorted(groups.items()):
        pairs = _pairs(files, use_video)
        taken = {path for pair in pairs for path in pair}
        left_out += [path for path in files if path not in taken]
        for (sound, video), name in zip(pairs, _output_names([sound for sound, _ in pairs]), strict=True):
            jobs.append(Job(sound, video, output / place / f"{name}{suffix}{output_suffix(output_format, video)}"))
    if not jobs:
        kinds = "sound or video" if use_video else "sound"
        where = "" if recursive else " themselves" if len(inputs) > 1 else " itself"
        hint = "" if recursive else " (-r searches the folders inside as well)"
        raise ValueError(f"input folder {', '.join(map(str, inputs))} holds no {kinds} files{where}{hint}")
    _refuse_overwriting(jobs, (source for job in jobs for source in (job.audio, job.video) if source is not None))
    if left_out:
        Group().say(_left_out_line(left_out, use_video))
    return jobs


def _matches(given: Path) -> list[Path]:
    """The input, or what a pattern such as *.mp4 stands for, which not every shell replaces; FileNotFoundError for nothing."""
    if given.exists():
        return [given]
    found = sorted(map(Path, glob.glob(str(given)))) if glob.has_magic(str(given)) else []
    if not found:
        raise FileNotFoundError(f"{given} does not exist")
    return found


def _left_out_line(files: Sequence[Path], use_video: bool) -> str:
    """Say how many files of folders are not enhanced, and name some."""
    count = f"{len(files)} files are" if len(files) > 1 else "1 file is"
    names = ", ".join(path.name for path in files[:MOST_NAMED]) + (", ..." if len(files) > MOST_NAMED else "")
    kinds = "sound or video" if use_video else "sound"
    return f"{count} left out, because the names are not those of {kinds}: {names}"


def _all_files(inputs: Sequence[Path], output: Path, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (folder of the output relative to `output`, file) of everything in `inputs`; a single folder adds no name."""
    for given in inputs:
        if given.is_file():
            yield Path(), given
            continue
        if same_file(given, output):
            raise ValueError(f"output folder {output} is the input folder; choose another, inputs are never overwritten")
        if recursive and output.resolve().is_relative_to(given.resolve()):
            outside = Path("..") / f"{given.resolve().name}_enhanced" if same_file(given, Path()) else f"{given}_enhanced"
            raise ValueError(
                f"output folder {output} lies inside the input folder {given}; with -r choose one outside of it, "
                f"e.g. -o '{outside}'"
            )
        top = Path(given.resolve().name) if len(inputs) > 1 else Path()
        for folder, inside, names in os.walk(given):
            inside[:] = sorted(name for name in inside if recursive and not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and (Path(folder) / name).is_file():
                    yield top / Path(folder).relative_to(given), Path(folder) / name


def _pairs(files: Sequence[Path], use_video: bool) -> list[tuple[Path, Path | None]]:
    """Return (sound, its video or None) for each recording among files, by name; only files of one folder are paired."""
    sounds = [path for path in files if path.suffix.lower() in AUDIO_EXTENSIONS]
    videos = [path for path in files if path.suffix.lower() in VIDEO_EXTENSIONS] if use_video else []
    partner: dict[Path, Path] = {}
    for path in videos:
        partner.setdefault(path.with_suffix(""), path)
    heard = {path.with_suffix("") for path in sounds}
    pairs: list[tuple[Path, Path | None]] = [(path, partner.get(path.with_suffix(""))) for path in sounds]
    pairs += [(path, path) for path in videos if path.with_suffix("") not in heard]
    return sorted(pairs, key=lambda pair: pair[0].name)


def _refuse_overwriting(jobs: Sequence[Job], sources: Iterable[Path]) -> None:
    """Raise ValueError where an output is one of the inputs, also through a link or by a second name of the file."""
    paths, numbers = set(), set()
    for source in sources:
        paths.add(source.resolve())
        if source.exists():
            status = source.stat()
            numbers.add((status.st_dev, status.st_ino))
    for job in jobs:
        status = job.output.stat() if is_there(job.output) else None
        if job.output.resolve() in paths or (status is not None and (status.st_dev, status.st_ino) in numbers):
            raise ValueError(f"output {job.output} is the input itself; choose another name" if len(jobs) == 1 else
                             f"output {job.output} is one of the inputs; choose another folder, inputs are never overwritten")


def _output_names(sounds: Sequence[Path]) -> list[str]:
    """Return a name for each output. No two are equal, also where upper and lower case are the same.

    The name is the stem where only one recording has it, else <stem>_<extension>, with a number after it where that is taken.
    """
    count = Counter(sound.stem.casefold() for sound in sounds)
    taken, names = {stem for stem in count if count[stem] == 1}, []
    for sound in sounds:
        if count[sound.stem.casefold()] == 1:
            names.append(sound.stem)
            continue
        name = wanted = f"{sound.stem}_{sound.suffix[1:].lower()}"
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
