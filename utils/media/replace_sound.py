"""A video with another sound: its images are copied packet by packet, and nothing of them is encoded anew.

Through FFmpeg's own muxers (PyAV, already here for decoding): they know edit lists, rotation and encoder delay.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from utils.media.decode import MOST_GAP_SEC, Decoder, MediaError, create_media, find_sound, open_media, video_stream
from utils.media.sound import resampled_pieces, to_pcm16
from utils.util import atomic_write

# Suffix -> FFmpeg's name of the container, encoder of the sound. Opus counts in 48 kHz, whatever its input.
CONTAINERS = {
    ".mp4": ("mp4", "aac"), ".m4v": ("mp4", "aac"), ".mov": ("mov", "aac"), ".mkv": ("matroska", "flac"),
    ".webm": ("webm", "libopus"),
}  # fmt: skip
QUICKTIME = {"mp4", "mov"}
AAC_BITS_PER_SAMPLE, LEAST_BIT_RATE, MOST_BIT_RATE = 6, 64_000, 192_000  # mono; 6 is the most AAC can use
WRITTEN_BY_THE_MUXER = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
PIECE_SAMPLES = 16000
MOST_REORDERED = 2  # frames between decoding and showing, of common encoders


def check_video_output(output: str | os.PathLike) -> None:
    """ValueError when a video cannot be written to a file of this name."""
    suffix = Path(output).suffix.lower()
    if suffix not in CONTAINERS:
        raise ValueError(
            f"output {output}: a video cannot be written as {suffix or 'a file without a suffix'}; choose .mkv, which takes "
            f"nearly all, {', '.join(s for s in CONTAINERS if s != '.mkv')}, or .wav for the sound alone"
        )


def replace_sound(
    video: str | os.PathLike, wav: np.ndarray | Iterable[np.ndarray], sample_rate: int, output: str | os.PathLike,
    gain: float = 1.0,
) -> list[str]:
    """Write the images of `video` untouched to `output` with `wav` as its only sound; gives notes, one line each.

    wav: mono float [L], or its pieces [n] in order (then memory is bounded), at sample_rate Hz, full scale 1, times
    `gain`; what is louder is clipped. Its first sample is heard when the first of the video's own sound was, or with the
    first frame of a video without sound. MP4, M4V, MOV: AAC; MKV: 16-bit FLAC; WEBM: Opus. Rotation, timestamps,
    chapters and metadata are kept; streams other than the video are left out, with a note. `output` is written whole
    or not at all. ValueError for a suffix that none of these is; FileNotFoundError, MediaError for a video without a
    readable video track, or one that the container does not take.
    """
    check_remux(video, output)
    pieces = (wav[k : k + PIECE_SAMPLES] for k in range(0, len(wav), PIECE_SAMPLES)) if isinstance(wav, np.ndarray) else wav
    with open_media(video, {"fflags": "+genpts"}) as source:  # AVI stores no showing order
        video_track = _video_track(source, video)
        try:
            with atomic_write(output) as temporary:
                return _Remux(source, video_track, os.fspath(video), temporary, sample_rate).run(pieces, gain)
        except av.FFmpegError as error:
            raise MediaError(f"{output} cannot be written with the images of {video}: {error.strerror}") from None


def check_remux(video: str | os.PathLike, output: str | os.PathLike) -> None:
    """The errors of `replace_sound` that can be known before there is a sound."""
    check_video_output(output)
    suffix = Path(output).suffix.lower()
    with open_media(video) as source:
        video_track = _video_track(source, video)
        try:
            with av.open(io.BytesIO(), "w", format=CONTAINERS[suffix][0]) as target:
                _add_video(target, source, video_track, suffix)
                target.start_encoding()  # writes the header, or refuses
        except av.FFmpegError:
            raise _unfit(source, video_track, suffix) from None


def _video_track(source: av.container.InputContainer, video: str | os.PathLike) -> av.video.stream.VideoStream:
    stream = video_stream(source)
    if stream is None:
        raise MediaError(f"{video} has no video to keep; write the sound alone, as .wav")
    return stream


def _unfit(source: av.container.InputContainer, video_track: av.video.stream.VideoStream, suffix: str) -> MediaError:
    codec = video_track.codec_context.codec.name if video_track.codec_context else "in a codec unknown here"
    with av.open(io.BytesIO(), "w", format="matroska") as widest:
        remedy = "choose .mkv" if codec in widest.supported_codecs else "write the sound alone, as .wav"
    return MediaError(f"{source.name}: its video ({codec}) does not fit into {suffix} as it is; {remedy}")


def _add_video(
    target: av.container.OutputContainer, source: av.container.InputContainer, video_track: av.video.stream.VideoStream,
    suffix: str,
) -> av.video.stream.VideoStream:
    """A stream for the video's packets as they are; MediaError where this kind of file does not take them."""
    try:
        # opaque: no encoder is looked for, there may be none
        kept = target.add_stream_from_template(video_track, opaque=True)
    except ValueError:
        raise _unfit(source, video_track, suffix) from None
    if CONTAINERS[suffix][0] in QUICKTIME:
        if source.format.name.startswith("mov"):
            kept.codec_context.codec_tag = video_track.codec_context.codec_tag
        elif video_track.codec_context.codec.name == "hevc":
            kept.codec_context.codec_tag = "hvc1"  # the one that Apple's players take
    if video_track.sample_aspect_ratio:
        kept.codec_context.sample_aspect_ratio = video_track.sample_aspect_ratio
    _copy_metadata(video_track, kept)
    return kept


class _Remux:
    """One video copied and one sound encoded into a new file."""

    def __init__(
        self, source: av.container.InputContainer, video_track: av.video.stream.VideoStream, name: str, path: Path,
        sample_rate: int,
    ) -> None:
        self.source, self.video_track, self.name = source, video_track, name
        self.container_name, self.codec = CONTAINERS[path.suffix.lower()]
        self.rate = _encoder_rate(self.codec, sample_rate)
        self.sample_rate, self.path = sample_rate, path
        start_sec = float(video_track.start_time * video_track.time_base) if video_track.start_time is not None else 0.0
        self.sound_track = find_sound(name)
        self.sound_sec = start_sec if self.sound_track is None else self.sound_track.start_sec
        self.misplaced = self.sound_sec - start_sec > MOST_GAP_SEC  # nobody waits for that: the timestamp is wrong
        if self.misplaced:
            self.sound_sec = start_sec
        # Broadcast clocks begin anywhere; those of files at 0, and what is before would not be played.
        begins_anywhere = bool(source.format.flags & av.format.Flags.ts_discont.value)
        self.zero_sec = min(start_sec, self.sound_sec) if begins_anywhere else min(0.0, self.sound_sec)

    def run(self, pieces: Iterable[np.ndarray], gain: float) -> list[str]:
        """Write the file; what could not be kept, one line each."""
        options = {"movflags": "+faststart", "movie_timescale": str(self.rate)} if self.container_name in QUICKTIME else {}
        if self.container_name in QUICKTIME and any(key.startswith("com.") for key in self.source.metadata):
            options["movflags"] += "+use_metadata_tags"  # phones' own keys have no place among the usual ones
        with create_media(self.path, format=self.container_name, container_options=options) as target:
            kept = _add_video(target, self.source, self.video_track, self.path.suffix.lower())
            sound = self._add_sound(target)
            _copy_metadata(self.source, target)
            chapters = self.source.chapters()
            if chapters and not self.zero_sec:
                target.set_chapters(chapters)
            decoder = Decoder(self.source, self.video_track)
            encoded = self._encoded(sound, pieces, gain)
            waiting = next(encoded, None)
            for packet in self._video_packets(decoder, kept):
                # In the order of time, so that neither waits in memory for the other.
                at_sec = packet.dts * packet.time_base
                while waiting is not None and waiting.dts * waiting.time_base <= at_sec:
                    target.mux_one(waiting)
                    waiting = next(encoded, None)
                target.mux_one(packet)
            while waiting is not None:
                target.mux_one(waiting)
                waiting = next(encoded, None)
        return self._notes(decoder.damaged)

    def _add_sound(self, target: av.container.OutputContainer) -> av.audio.stream.AudioStream:
        bit_rate = {"flac": 0}.get(self.codec, min(max(AAC_BITS_PER_SAMPLE * self.rate, LEAST_BIT_RATE), MOST_BIT_RATE))
        sound = target.add_stream(self.codec, rate=self.rate, bit_rate=bit_rate, layout="mono")
        sound.time_base = Fraction(1, self.rate)
        if self.sound_track is not None:
            _copy_metadata(self.source.streams[self.sound_track.index], sound)
        return sound

    def _video_packets(self, decoder: Decoder, kept: av.video.stream.VideoStream) -> Iterator[av.packet.Packet]:
        """The video's packets as they are, on the new file's clock; times rise as every container wants it."""
        shift = round(self.zero_sec / self.video_track.time_base)
        rate = self.video_track.average_rate
        usual = round(1 / rate / self.video_track.time_base) if rate else 0
        last: int | None = None
        for packet in decoder.packets():
            if packet.dts is None and packet.pts is None:
                continue  # the end, or nothing that could be placed
            pts = (packet.pts if packet.pts is not None else packet.dts) - shift
            # Matroska stores no decoding times: begin early enough for what comes later and is shown before.
            dts = packet.dts - shift if packet.dts is not None else pts - MOST_REORDERED * usual
            last = dts if last is None else max(dts, last + 1)
            packet.dts, packet.pts = last, max(pts, last)
            packet.duration = packet.duration or usual
            packet.stream = kept
            yield packet

    def _encoded(
        self, sound: av.audio.stream.AudioStream, pieces: Iterable[np.ndarray], gain: float
    ) -> Iterator[av.packet.Packet]:
        position = round((self.sound_sec - self.zero_sec) * self.rate)
        if self.codec == "aac" and position > 0:
            # A track that begins late cannot skip the encoder's delay as well, and not all players let tracks begin late.
            pieces, position = _after_silence(position * self.sample_rate // self.rate, pieces), 0
        for samples in resampled_pieces(pieces, self.sample_rate, self.rate):
            frame = _audio_frame(np.clip(samples * np.float32(gain), -1.0, 1.0), self.codec)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, position, Fraction(1, self.rate)
            position += len(samples)
            yield from sound.encode(frame)
        yield from sound.encode(None)

    def _notes(self, damaged: int) -> list[str]:
        notes, late_sec = [], self.sound_sec - self.zero_sec
        if self.misplaced:
            notes.append("the sound is said to begin more than half an hour after the video: it begins with the video instead")
        if self.codec == "aac" and late_sec > 0:
            notes.append(f"the sound begins {1e3 * late_sec:.0f} ms after the video: silence before it")
        sounds = len(self.source.streams.audio)
        kept = {"audio", "data"} if self.source.chapters() else {"audio"}  # chapters come with a data stream of their titles
        others = [stream.type for stream in self.source.streams if stream.type not in kept and stream is not self.video_track]
        if sounds > 1:
            others += ["second sound"]
        if others:
            notes.append(f"of {Path(self.name).name} only the video was kept, not: {', '.join(sorted(set(others)))}")
        shape, coded = self.video_track.sample_aspect_ratio, self.video_track.codec_context.sample_aspect_ratio
        if self.container_name not in QUICKTIME and shape not in (None, coded or 1):  # PyAV has no way to write it there
            notes.append(f"the shape of the pixels ({shape}) is lost in {self.path.suffix}; .mp4 keeps it")
        if damaged:
            notes.append(f"left out of the video of {Path(self.name).name}: {damaged} damaged place{'s' * (damaged > 1)}")
        return notes


def _encoder_rate(codec: str, sample_rate: int) -> int:
    """sample_rate where the encoder takes it, else 48 kHz."""
    if codec == "libopus":
        return 48000
    rates = av.Codec(codec, "w").audio_rates
    return sample_rate if not rates or sample_rate in rates else 48000


def _after_silence(n_samples: int, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for first in range(0, n_samples, PIECE_SAMPLES):
        yield np.zeros(min(PIECE_SAMPLES, n_samples - first), np.float32)
    yield from pieces


def _audio_frame(samples: np.ndarray, codec: str) -> av.audio.frame.AudioFrame:
    """float32 [n] in [-1, 1] in the sample format that the encoder takes."""
    if codec == "aac":
        return av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    pcm = to_pcm16(samples)
    return av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")


def _copy_metadata(
    source: av.container.Container | av.stream.Stream, target: av.container.Container | av.stream.Stream
) -> None:
    target.metadata.update({key: value for key, value in source.metadata.items() if key.lower() not in WRITTEN_BY_THE_MUXER})
