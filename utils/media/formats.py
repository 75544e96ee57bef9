"""Which files are sound and which are video: the one list of suffixes, and of the formats that FFmpeg may open."""

from __future__ import annotations

AUDIO_EXTENSIONS = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".m4b", ".m4r", ".mka", ".weba",
    ".caf", ".w64", ".rf64", ".au", ".snd", ".aifc", ".ac3", ".eac3", ".mp2", ".spx", ".tta", ".wv", ".voc", ".latm", ".amr",
    ".ape", ".sph",
)  # fmt: skip
VIDEO_EXTENSIONS = (
    ".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".ts", ".mts", ".3gp", ".wmv", ".flv", ".mxf", ".m2ts",
    ".vob", ".ogv", ".asf", ".3g2", ".f4v", ".qt",
)  # fmt: skip

# Formats that FFmpeg may open, by its names for them: those that hold their content themselves. FFmpeg knows others (playlists,
# lists of files to join, numbered images) that name further files and addresses; it would open those for whoever wrote them.
FORMATS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "h264", "hevc", "m4v", "asf", "flv", "mxf", "nut", "dv", "ivf",
    "wav", "w64", "flac", "mp3", "ogg", "aac", "loas", "ac3", "eac3", "dts", "aiff", "caf", "au", "amr", "ape", "wv", "tta",
    "voc", "nistsphere", "ircam", "avr", "pvf", "iff", "mpc", "mpc8", "tak", "truehd", "gxf", "wtv",
)  # fmt: skip

# Sound files in which the library soundfile finds any sample at once: containers that state their length, with samples of a
# fixed size, and FLAC. The first bytes tell them from those that it would open and guess at.
PLAIN_MARKS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff", b"caff", b".snd", b"dns.", b"NIST", b"fLaC")
PLAIN_CONTAINERS = frozenset(("WAV", "WAVEX", "RF64", "AIFF", "W64", "CAF", "AU", "NIST"))
PLAIN_CODINGS = frozenset(("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"))
# Codings that FFmpeg does not know, or takes for others; soundfile reads them from the beginning only.
SEQUENTIAL_CODINGS = frozenset(
    ("NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32", "G721_32", "G723_24", "G723_40", "DWVW_12", "DWVW_16", "DWVW_24", "DWVW_N")
)

# FFmpeg's names of formats with a clock of their own, which says when each packet is heard. In the others packets only follow
# each other, and a clock that is set back means that a second recording was appended.
CLOCKED_FORMATS = frozenset(("mov", "matroska", "avi", "mpeg", "mpegts", "asf", "flv", "mxf", "nut", "gxf", "wtv"))

# FFmpeg's names of formats that do not state how long their sound is: what FFmpeg says is an estimate.
UNSTATED_LENGTHS = frozenset(("mpeg", "mpegts", "aac", "loas", "ac3", "eac3", "dts", "amr", "truehd", "asf", "flv"))

# FFmpeg's names of formats whose header states the length well enough to draw windows by.
HEADER_LENGTHS = frozenset(("mov", "matroska", "avi", "mpeg", "mpegts", "asf", "flv", "mxf", "gxf", "wtv", "wav", "w64", "caf"))
