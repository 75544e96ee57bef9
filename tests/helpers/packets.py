"""What lies in a media file, packet by packet."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av

from utils.media.decode import open_media, video_stream


def packets(path: Path) -> list[tuple[str, Fraction, bool]]:
    """(content, time shown, key picture) of the picture's packets."""
    with av.open(str(path), options={"fflags": "+genpts"}) as container:
        stream = video_stream(container)
        return [
            (hashlib.sha256(bytes(packet)).hexdigest(), packet.pts * packet.time_base, packet.is_keyframe)
            for packet in container.demux(stream) if packet.size
        ]  # fmt: skip


def same_picture(one: Path, other: Path, within_sec: float = 0.0) -> bool:
    first, second = packets(one), packets(other)
    assert len(first) == len(second) > 0
    return all(
        a[0] == b[0] and a[2] == b[2] and abs(a[1] - b[1]) <= within_sec for a, b in zip(first, second, strict=True)
    )


def sound_header(path: Path) -> tuple[str, int, float | None]:
    """(codec, rate, seconds by the header or None) of a file's only sound."""
    with open_media(path) as container:
        assert len(container.streams.audio) == 1
        stream = container.streams.audio[0]
        return stream.codec_context.name, stream.rate, stream.duration and float(stream.duration * stream.time_base)
