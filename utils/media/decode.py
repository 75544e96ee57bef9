"""Opening media files through FFmpeg (PyAV): which stream is read, and its frames past damaged packets."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from utils.media.formats import FORMATS

PREROLL_SEC = 1.0  # decoded before a seek target: decoders settle, key frames are rarely exact
MOST_GAP_SEC = 1800.0  # of silence, or of nothing to see, that timestamps alone can ask for: a user waits for each second
MOST_DEMUX_ERRORS = 64
MOST_TRACKS = 16  # sound tracks that are tried
SELF_CONTAINED = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
SUFFIX_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # what is written here
STILL_CODECS = frozenset(("png", "mjpeg", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegxl"))
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

# From PyAV 17 on a conversion spreads over every core unless told not to; each loader worker has one to use.
ONE_THREAD = {"threads": 1} if tuple(map(int, av.__version__.split(".")[:2])) >= (17, 0) else {}


class MediaError(ValueError):
    """A media file that cannot be used; the message is one line that names it."""


class EndsBefore(MediaError):
    """A recording that ends before the wanted window begins, whatever its header says."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file's header says, and what trying it found; see `probe_media`."""

    duration_sec: float | None
    has_audio: bool
    has_video: bool
    width: int = 0
    height: int = 0
    fps: float = 0.0
    damaged_packets: int = 0


@dataclass(frozen=True)
class SoundTrack:
    """The sound track that is read: its stream's index, the time of its first sample, a note where there are several."""

    index: int
    start_sec: float
    note: str | None = None


@contextlib.contextmanager
def named_errors(path: str | os.PathLike, doing: str = "cannot be read") -> Iterator[None]:
    """Turn whatever a library says inside the `with` block into a MediaError of one line that names the file."""
    try:
        yield
    except (MediaError, FileNotFoundError):
        raise
    except MemoryError:
        raise MediaError(f"{path} {doing}: it asks for more memory than there is") from None
    except (av.FFmpegError, OSError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
        raise MediaError(f"{path} {doing}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def check_file(path: str | os.PathLike) -> os.stat_result:
    """Return what the system says of a file; FileNotFoundError, or MediaError for what is no file that holds something."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise MediaError(f"{path} cannot be opened: {_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path} is a folder, not a media file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path} is a pipe or a device; write what comes from it to a file first")
    if status.st_size == 0:
        raise MediaError(f"{path} is an empty file (0 bytes)")
    return status


def library_name(path: str | os.PathLike) -> str | None:
    """Return the name under which C libraries find a file; None where it holds bytes that are not UTF-8.

    The name is absolute, because FFmpeg takes what is before a colon for a protocol.
    """
    name = os.path.abspath(os.fspath(path))
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return name


def open_media(path: str | os.PathLike, options: dict[str, str] | None = None) -> av.container.InputContainer:
    """Open a file of FORMATS with FFmpeg's `options`; FileNotFoundError, or MediaError in one line that names it."""
    check_file(path)
    refused = f"{path} cannot be opened as sound or video"
    try:
        name = library_name(path)
        source = name if name is not None else open(os.fspath(path), "rb")  # noqa: SIM115 - the container keeps it
        return av.open(source, options={**(options or {}), **SELF_CONTAINED}, metadata_errors="ignore")
    except av.ArgumentError:  # what FFmpeg says of a format that it may not open
        if Path(path).suffix.lower() == ".raw":
            raise MediaError(
                f"{path} holds samples without a header that says their rate and coding; write it as .wav first, "
                "e.g. with: ffmpeg -f s16le -ar 16000 -ac 1 -i in.raw out.wav"
            ) from None
        raise MediaError(f"{refused}: damaged, or a format that is not read here") from None
    except MemoryError:
        raise MediaError(f"{refused}: it asks for more memory than there is") from None
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{refused}: {_reason(error)}") from None


@contextlib.contextmanager
def create_media(path: str | os.PathLike | io.BytesIO, **options: object) -> Iterator[av.container.OutputContainer]:
    """Open a media file to be written; options as av.open takes them. The name may hold colons and any bytes.

    Bytes in memory may take the place of a file; options then name the format.
    """
    name = path if isinstance(path, io.BytesIO) else library_name(path)
    if name is not None:
        with av.open(name, "w", **options) as container:
            yield container
        return
    options.setdefault("format", SUFFIX_FORMATS.get(Path(path).suffix.lower()))
    with open(path, "w+b") as file, av.open(file, "w", **options) as container:
        yield container


def _is_cover(stream: av.video.stream.VideoStream) -> bool:
    """Whether a video stream is a cover image: it is marked as one, or it is a single image."""
    kinds = av.stream.Disposition
    if stream.disposition & (kinds.attached_pic | kinds.still_image | kinds.timed_thumbnails):
        return True
    return stream.codec_context is not None and stream.codec_context.codec.name in STILL_CODECS and stream.frames == 1


def _by_preference(streams: list[av.stream.Stream]) -> list[av.stream.Stream]:
    """Return the streams that there is a decoder for: those flagged as the default before the others, else in their order."""
    known = [stream for stream in streams if stream.codec_context is not None]
    return sorted(known, key=lambda stream: not stream.disposition & av.stream.Disposition.default)


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """Return the video that there is a decoder for, the default one of several; a cover image is none."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    return next(iter(_by_preference(streams)), None)


class Decoder:
    """Frames of one stream, going on after damaged packets, which are counted in `damaged`."""

    def __init__(self, container: av.container.InputContainer, stream: av.stream.Stream) -> None:
        self._container, self._stream, self.damaged = container, stream, 0

    def packets(self) -> Iterator[av.packet.Packet]:
        """The stream's packets as they are, the empty one at the end too."""
        packets = self._container.demux(self._stream)
        errors = 0
        while errors < MOST_DEMUX_ERRORS:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except IndexError:  # a packet of a stream that the header does not know, as damage and broadcasts have them
                packets = self._container.demux(self._stream)
                continue
            except (av.FFmpegError, OSError):
                errors += 1
                self.damaged += 1
                packets = self._container.demux(self._stream)
                continue
            yield packet

    def __iter__(self) -> Iterator[av.frame.Frame]:
        for packet in self.packets():
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError, ValueError, RuntimeError, MemoryError):
                self.damaged += 1
                continue
            yield from frames


def audio_stream(container: av.container.InputContainer) -> av.audio.stream.AudioStream | None:
    """Return the sound track that there is a decoder for, the default one of several; `find_sound` also tries it."""
    return next(iter(_by_preference(list(container.streams.audio))), None)


def find_sound(path: str | os.PathLike) -> SoundTrack | None:
    """Return the sound track that is read: of those that decode the default one, else the first; None without any."""
    status = check_file(path)
    return _find_sound(os.fspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _find_sound(path: str, mtime_ns: int, size: int) -> SoundTrack | None:
    """`find_sound` of a file as it was at `mtime_ns`: opening it once more costs as much as a window of crops."""
    with open_media(path) as container, named_errors(path):
        order = [stream.index for stream in container.streams.audio]
        preferred = [stream.index for stream in _by_preference(list(container.streams.audio))][:MOST_TRACKS]
    for index in preferred:
        with open_media(path) as container, named_errors(path):
            stream = container.streams[index]
            for frame in Decoder(container, stream):
                start_sec = frame.time if frame.time is not None else 0.0
                return SoundTrack(index, start_sec, _track_note(order, stream) if len(order) > 1 else None)
    return None


def _track_note(order: list[int], stream: av.audio.stream.AudioStream) -> str:
    place = order.index(stream.index)
    which = f"the {ORDINALS[place]}" if place < len(ORDINALS) else f"number {place + 1}"
    language = stream.metadata.get("language", "und")
    says = ["flagged as the default"] if stream.disposition & av.stream.Disposition.default else []
    says += [f"language {language}"] if language != "und" else []
    return f"of {len(order)} sound tracks {which} is heard" + (f" ({', '.join(says)})" if says else "")


def sound_start_sec(path: str | os.PathLike) -> float | None:
    """Return the time of the first decoded sound sample on the container's clock; None without sound."""
    track = find_sound(path)
    return None if track is None else track.start_sec


def probe_media(path: str | os.PathLike, full: bool = False, most_pixels: int | None = None) -> MediaInfo:
    """Return what the header says, with proof that the first frame of each stream decodes (`full`: that everything does).

    A stream whose first frame does not decode counts as absent, and so does a video of more than `most_pixels`, which is
    not decoded. MediaError when the file cannot be opened.
    """
    damaged, has_video = 0, False
    track = find_sound(path)
    with open_media(path) as container, named_errors(path):
        duration = container.duration / av.time_base if container.duration else None
        video = video_stream(container)
        shape = (video.width, video.height, float(video.average_rate or 0)) if video is not None else (0, 0, 0.0)
        if video is not None and (most_pixels is None or shape[0] * shape[1] <= most_pixels):
            decoder = Decoder(container, video)
            for _ in decoder:
                has_video = True
                if not full:
                    break
            damaged += decoder.damaged
    if track is not None and full:
        with open_media(path) as container, named_errors(path):
            decoder = Decoder(container, container.streams[track.index])
            for _ in decoder:
                pass
            damaged += decoder.damaged
    return MediaInfo(duration, track is not None, has_video, *shape, damaged_packets=damaged)
