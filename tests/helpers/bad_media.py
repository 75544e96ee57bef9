"""The small recordings from bug reports that lie beside the repository, with what is right for each."""

from __future__ import annotations

from helpers.paths import SHARED

BAD_MEDIA = SHARED / "bad_media"
# By name: seconds of sound, and a part of the note that must be given.
RIGHT = {
    "truncated_download.mp3": (1.8, "ends early"), "truncated_12s.mp3": (7.46, "ends early"), "gsm610.wav": (3.0, None),
    "piped_unknown_length.flac": (3.0, None), "truncated.flac": (1.54, "ends early"), "header_length_zero.wav": (2.0, None),
    "concatenated_6s.mp3": (6.0, None), "chained.ogg": (6.0, None), "two.flac": (6.0, None), "rate_changes.ts": (5.95, None),
    "gap70.mkv": (76.0, None), "second_track_default.mkv": (3.03, "second"), "antiphase.wav": (2.0, "cancel"),
    "book.m4b": (3.0, None), "camera.m2ts": (3.02, None),
}  # fmt: skip
