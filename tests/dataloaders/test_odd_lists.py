"""Lists, shards and clips that hold what they should not: one short line each, and a training goes on where it can."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataloaders.clip_sources import FileClip, ShardClip, draw_window, open_clips
from helpers.tiny import bytes_file, tiny_config, voice, wav_file
from utils.media.decode import MediaError
from utils.media.shards import read_index


@pytest.mark.parametrize(
    "entry",
    [3, ["a.mp4"], {}, {"video": 3}, {"video": "a.mp4", "mask": 3}, {"video": "a.mp4", "mask": [[1]]},
     {"video": "a.mp4", "mask": [[5, 1]]}, {"video": "a.mp4", "mask": [[-1, 4]]}, {"video": "a.mp4", "mask": [["a", "b"]]},
     {"video": "a.mp4", "mask": [[0.5, 1e99]]}, {"video": "a.mp4", "mask": {"0": 5}}, {"video": "a.mp4", "speaker": ["s1"]},
     {"video": "a.mp4", "mask": [[5, 1]] * 100_000}],
)  # fmt: skip
def test_an_odd_entry_of_a_list_is_named_by_its_number(tmp_path: Path, entry: object) -> None:
    path = bytes_file(tmp_path / "list.json", json.dumps([{"video": "b.mp4"}, entry]).encode())
    with pytest.raises(ValueError, match="train_data_json: entry 1 of") as refused:
        open_clips(path, "train_data_json", tiny_config())
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "3", "[]", '"x"'])
def test_a_list_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"list\.json"):
        open_clips(bytes_file(tmp_path / "list.json", text.encode()), "train_data_json", tiny_config())


@pytest.mark.parametrize(
    "note",
    [b"", b"\xff\xfe", b"[]", b"{}", b'{"n_frames": "5", "n_samples": 1}', b'{"n_frames": -1, "n_samples": 5}',
     b'{"n_frames": 1e300, "n_samples": 5}', b'{"n_frames": 5, "n_samples": 5, "mask": "no"}', b"[" * 100_000,
     b'{"n_frames": 5, "n_samples": ' + b"9" * 400 + b"}"],
)  # fmt: skip
def test_an_odd_note_of_a_shard_is_a_clip_that_cannot_be_read(note: bytes) -> None:
    clip = ShardClip("a.tar: 00", lambda: {"json": note, "mp4": b"x", "flac": b"x"}, tiny_config())
    for read in (clip.duration_sec, lambda: clip.frames(0, 5), clip.sound):
        with pytest.raises(MediaError) as refused:
            read()
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "change",
    [{"clips": [["a", -1, 5]]}, {"clips": [["a", 0, 0]]}, {"clips": [["a", 0, 10**30]]},
     {"clips": [["a", 10**9, 10], ["b", 0, 1]]},
     {"clips": 3}, {"clips": [["a"]]}, {"fps": 0}, {"fps": "nan"}, {"face_size": 10**9}, {"sample_rate": 1e400}, {"fps": None}],
)  # fmt: skip
def test_an_odd_index_of_a_shard_is_one_line(tmp_path: Path, change: dict) -> None:
    bytes_file(tmp_path / "a.tar", bytes(100))
    held = {"face_size": 96, "fps": 25.0, "sample_rate": 16000, "clips": [["a", 0, 100]]} | change
    bytes_file(tmp_path / "a.json", json.dumps(held).encode())
    with pytest.raises(ValueError, match="train_data_json") as refused:
        read_index(tmp_path / "a.tar", "train_data_json")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_windows_are_drawn_from_what_a_recording_holds_not_from_what_its_header_says(tmp_path: Path) -> None:
    sound = voice(40.0)
    content = bytearray(wav_file(tmp_path / "a.wav", sound, subtype="ALAW").read_bytes())
    clip = FileClip(None, str(bytes_file(tmp_path / "b.wav", bytes(content))), [], tiny_config())
    clip._duration_sec = 400.0
    heard = clip.sound()
    for seed in range(20):
        stretch, context, first = draw_window(clip, 16000, 16000, 25.0, np.random.default_rng(seed))
        begin = round(first * 640) - context
        assert len(stretch) > context and np.abs(stretch - heard[begin : begin + len(stretch)]).max() < 1e-6
