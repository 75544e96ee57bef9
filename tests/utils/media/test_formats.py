"""Which files are opened: every format by whatever name, and no list that sends the reader on to other files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from helpers.tiny import bytes_file, voice, wav_file
from utils.media.decode import MediaError, open_media, probe_media
from utils.media.formats import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from utils.media.sound import load_audio

CODECS = {
    ".wav": "pcm_s16le", ".rf64": "pcm_s16le", ".w64": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus",
    ".oga": "flac", ".opus": "libopus", ".spx": "libopus", ".weba": "libopus", ".mka": "flac", ".aif": "pcm_s16be",
    ".aiff": "pcm_s16be", ".aifc": "pcm_s16be", ".au": "pcm_s16be", ".snd": "pcm_s16be", ".caf": "pcm_s16be", ".wma": "wmav2",
    ".ac3": "ac3", ".eac3": "eac3", ".mp2": "mp2", ".tta": "tta", ".wv": "wavpack", ".voc": "pcm_u8",
}  # fmt: skip
PICTURE_CODECS = {
    ".mpg": "mpeg1video", ".mpeg": "mpeg2video", ".vob": "mpeg2video", ".ts": "mpeg2video", ".mts": "mpeg2video",
    ".m2ts": "mpeg2video", ".mxf": "mpeg2video", ".webm": "libvpx", ".ogv": "libvpx", ".wmv": "wmv2", ".asf": "wmv2",
    ".flv": "flv1",
}  # fmt: skip
CONTAINERS = {
    ".m4v": "mp4", ".m4b": "mp4", ".m4r": "mp4", ".f4v": "mp4", ".qt": "mov", ".amr": "mp4", ".ape": "mp4", ".sph": "mp4",
    ".mts": "mpegts", ".m2ts": "mpegts", ".wma": "asf", ".wmv": "asf", ".oga": "ogg", ".opus": "ogg", ".spx": "ogg",
    ".ogv": "ogg", ".rf64": "wav", ".weba": "webm", ".mka": "matroska", ".aifc": "aiff", ".snd": "au", ".aac": "adts",
}  # fmt: skip


@pytest.mark.parametrize("suffix", AUDIO_EXTENSIONS)
def test_every_kind_of_sound_is_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", format=CONTAINERS.get(suffix)) as container:
        stream = container.add_stream(CODECS.get(suffix, "aac"), rate=48000, layout="mono")
        stream.bit_rate = 64000
        fifo, frame = av.AudioFifo(), av.AudioFrame.from_ndarray(voice(1.0, 48000)[None], format="fltp", layout="mono")
        frame.sample_rate = 48000
        for piece in av.AudioResampler(stream.format, "mono", 48000).resample(frame):
            fifo.write(piece)
        while piece := fifo.read(stream.frame_size or 1024, partial=True):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    assert probe_media(path).has_audio


@pytest.mark.parametrize("suffix", VIDEO_EXTENSIONS)
def test_every_kind_of_video_is_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", format=CONTAINERS.get(suffix)) as container:
        stream = container.add_stream(PICTURE_CODECS.get(suffix, "mpeg4"), rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for k in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((144, 176, 3), 9 * k, np.uint8))))
        container.mux(stream.encode(None))
    assert probe_media(path).has_video


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n"),
        ("joined.mp4", "ffconcat version 1.0\nfile other.wav\n"),
        ("session.wav", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
    ],
)
def test_a_list_of_other_files_is_refused_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    wav_file(tmp_path / "other.wav", voice(1.0))
    path = bytes_file(tmp_path / name, text.encode())
    for read in (open_media, probe_media, load_audio):
        with pytest.raises(MediaError, match=f"{name}.*a format that is not read here") as refused:
            read(path)
        assert "\n" not in str(refused.value)
