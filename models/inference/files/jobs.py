"""What to enhance: which files belong together, and what is written where."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.media.formats import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from utils.media.replace_sound import CONTAINERS, check_video_output

SOUND_FORMATS = {".wav": "WAV", ".flac": "FLAC"}  # suffix -> soundfile's name of it
OUTPUT_FORMATS = ("wav", "flac", "video")


@dataclass(frozen=True)
class Job:
    """One recording to enhance: the file with the sound, the file with the picture (maybe the same), where to write."""

    audio: Path
    video: Path | None
    output: Path
    crops: Path | None = None  # where the face crops that the model sees are written, with the sound

    @property
    def with_picture(self) -> bool:
        """Whether the output holds the picture as well."""
        return self.output.suffix.lower() in CONTAINERS

    @property
    def label(self) -> str:
        return self.audio.name if self.video in (None, self.audio) else f"{self.audio.name} + {self.video.name}"


def same_file(one: Path, other: Path) -> bool:
    """Whether both paths lead to one place, through links and whether or not it exists yet."""
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return one.resolve() == other.resolve()


def output_suffix(output_format: str, video: Path | None) -> str:
    """Suffix of an output that gets its name here: "video" is the video's own container, .mkv where that cannot be written.

    A recording without a video is then written as .wav.
    """
    if output_format != "video":
        return f".{output_format}"
    if video is None:
        return ".wav"
    return video.suffix.lower() if video.suffix.lower() in CONTAINERS else ".mkv"


def single_job(audio: Path | None, video: Path | None, output: Path | None, output_format: str = "wav") -> Job:
    """Job for one recording.

    `output` is a file (.wav and .flac: the sound; .mp4, .m4v, .mov, .mkv, .webm: the picture, too), a folder, or None
    (results); in a folder the name is <stem>_enhanced and what `output_suffix` says. FileNotFoundError or ValueError for
    a sound that is not there, or an output that would replace the input or cannot be.
    """
    sound = audio if audio is not None else video
    assert sound is not None
    if not sound.exists():
        raise FileNotFoundError(f"{sound} does not exist")
    if sound.is_dir():
        raise ValueError(f"{sound} is a folder; give it as --input_folder")
    output = output or Path("results")
    if output.is_dir() or not output.suffix:
        output = output / f"{sound.stem}_enhanced{output_suffix(output_format, video)}"
    if output.suffix.lower() not in SOUND_FORMATS:
        check_video_output(output)
        if video is None:
            raise ValueError(f"output {output} is to show a picture: give the video with it as --input_video")
    for source in (sound, video):
        if source is not None and same_file(source, output):
            raise ValueError(f"output {output} is the input itself; choose another name")
    return Job(sound, video, output)


def folder_jobs(
    folder: Path, output: Path, use_video: bool = True, suffix: str = "_enhanced", output_format: str = "wav"
) -> list[Job]:
    """Jobs for the recordings that lie in `folder` itself, by name: a sound with the video of the same stem beside it, or
    a video with its own sound (with use_video=False sound files only). Outputs are output/<stem><suffix> and what
    `output_suffix` says; where several recordings share a stem, <stem>_<extension> takes its place.

    FileNotFoundError or ValueError when there is no such folder, nothing in it, or `output` is that folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"input folder {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(f"input folder {folder} is a file; give a single recording as --input_audio or --input_video")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file; for a folder of recordings it should be a folder")
    if same_file(folder, output):
        raise ValueError(f"output folder {output} is the input folder; choose another, inputs are never overwritten")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    sounds = [path for path in files if path.suffix.lower() in AUDIO_EXTENSIONS]
    videos = [path for path in files if path.suffix.lower() in VIDEO_EXTENSIONS] if use_video else []
    partner: dict[str, Path] = {}
    for path in videos:
        partner.setdefault(path.stem, path)
    heard = {path.stem for path in sounds}
    pairs: list[tuple[Path, Path | None]] = [(path, partner.get(path.stem)) for path in sounds]
    pairs += [(path, path) for path in videos if path.stem not in heard]
    if not pairs:
        kinds = "sound or video" if use_video else "sound"
        raise ValueError(f"input folder {folder} holds no {kinds} files itself (subfolders are not searched)")
    pairs.sort(key=lambda pair: pair[0].name)
    return [
        Job(sound, video, output / f"{name}{suffix}{output_suffix(output_format, video)}")
        for (sound, video), name in zip(pairs, _output_names([sound for sound, _ in pairs]), strict=True)
    ]


def _output_names(sounds: Sequence[Path]) -> list[str]:
    """A name for each output, none twice, nor where case does not count: the stem where it is the only one of its kind,
    else <stem>_<extension>, with a number after it where that is taken.
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
