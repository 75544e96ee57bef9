"""Shards on the node's own disk: copied once, whole, and trained on as the originals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataloaders import local_shards
from dataloaders.clip_sources import open_clips
from dataloaders.local_shards import with_local_shards
from helpers.tiny import all_files, face_crops, tiny_config, voice
from utils.distributed import Group
from utils.media.shards import encode_clip, write_shard


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A recipe with two shards of two clips, to be copied to $NODE_DISK."""
    for number in range(2):
        encoded = [encode_clip(face_crops(5), voice(0.2, seed=k), 16000, 25.0, {"mask": []}) for k in range(2)]
        clips = [(f"clip{number}{k}", members) for k, members in enumerate(encoded)]
        write_shard(tmp_path / "corpus" / f"all-{number}.tar", clips, {"face_size": 96, "fps": 25.0, "sample_rate": 16000})
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tiny_config(data_cfg={"train_data_json": str(tmp_path / "corpus"), "copy_shards_to": "$NODE_DISK"})


def content(cfg: dict) -> list[tuple[str, bytes]]:
    clips = open_clips(cfg["data_cfg"]["train_data_json"], "key", cfg)
    return [(clip.name.split(": ")[1], clip._member("flac")) for clip in clips]


def test_copies_are_the_shards_and_made_once(cfg: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = with_local_shards(cfg, Group())
    assert str(tmp_path / "disk") in capsys.readouterr().out
    assert cfg["data_cfg"]["train_data_json"] == str(tmp_path / "corpus")  # what the run's folder keeps
    paths = [Path(path) for path in local["data_cfg"]["train_data_json"].split("::")]
    assert [path.name for path in paths] == ["all-0.tar", "all-1.tar"] and {path.parent.name for path in paths} == {"corpus"}
    assert all(path.is_relative_to(tmp_path / "disk") for path in paths) and len(all_files(tmp_path / "disk")) == 4
    assert content(local) == content(cfg) and len(content(local)) == 4
    inodes = [path.stat().st_ino for path in paths]
    os.utime(tmp_path / "corpus" / "all-1.tar", (1, 1))  # written again since
    with_local_shards(cfg, Group())
    again = [path.stat().st_ino for path in paths]
    assert again[0] == inodes[0] and again[1] != inodes[1]


def test_the_first_process_of_a_node_copies(cfg: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    group.rank = 5
    monkeypatch.setenv("LOCAL_RANK", "1")
    named = with_local_shards(cfg, group)["data_cfg"]["train_data_json"]
    assert not (tmp_path / "disk").exists()
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first of the second node
    assert with_local_shards(cfg, group)["data_cfg"]["train_data_json"] == named and len(all_files(tmp_path / "disk")) == 4


def test_a_copy_that_fails_leaves_nothing_and_says_why(cfg: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_shards.shutil, "copyfile", full)
    with pytest.raises(ValueError, match=r"copy_shards_to: .*all-0.tar cannot be copied.*No space left on device"):
        with_local_shards(cfg, Group())
    assert not all_files(tmp_path / "disk")
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(ValueError, match=r"\$NODE_DISK names a variable that is not set"):
        with_local_shards(cfg, Group())


def test_lists_of_files_are_left_where_they_are(cfg: dict) -> None:
    cfg["data_cfg"]["train_data_json"] = "clips.json"
    assert with_local_shards(cfg, Group()) is cfg
