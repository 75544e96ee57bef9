"""Folders with files of every kind and names of every kind: all that is a recording is taken, and no name stops the others."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import inference_av
from helpers.bad_media import BAD_MEDIA
from helpers.tiny import all_files, bytes_file, only_line, voice, wav_file
from models.inference.files.jobs import folder_jobs
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError, probe_media
from utils.media.formats import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS
from utils.media.sound import load_audio


@pytest.fixture
def run_av(causal_checkpoint: Path):
    return lambda *arguments: inference_av.main([
        "--checkpoint_file", str(causal_checkpoint), "--device", "cpu", *map(str, arguments)
    ])  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_whatever_is_taken_alone_is_taken_in_a_folder(tmp_path: Path, capsys) -> None:
    names = [f"{number}{suffix}" for number, suffix in enumerate(AUDIO_EXTENSIONS + VIDEO_EXTENSIONS)]
    for name in (*names, "notes.txt", "paper.pdf", ".hidden.txt"):
        bytes_file(tmp_path / name, b"x")
    jobs = folder_jobs(tmp_path, tmp_path / "out")
    assert {job.audio.name for job in jobs} == set(names)
    assert "2 files are left out" in capsys.readouterr().out


def test_one_bad_name_stops_no_folder(run_av, tmp_path, capsys) -> None:
    folder = tmp_path / "in"
    wav_file(folder / "a.wav")
    shutil.copy(folder / "a.wav", folder / ("n" * 243 + ".wav"))
    shutil.copy(folder / "a.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    shutil.copy(folder / "a.wav", folder / "2026-11-26T10:30:00.wav")
    os.mkfifo(folder / "pipe.wav")
    for options in ((), ("--skip_existing",)):
        assert run_av("--input_folder", folder, "--output", tmp_path / "out", *options) == 1
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 2 and "nnn" in errors[0] and "1 of 4 recordings failed" in errors[1]
        rows = rows_of(tmp_path / "out" / "enhanced.csv")
        assert sorted(row["status"] for row in rows) == ["done", "done", "done", "failed"]
    assert len(all_files(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    "name", [b"2026-11-26T10:30:00.mp4", b"http:x.mp4", b"caf\xe9.mp4", b"%d.mp4", b"a b\n.mp4", b"-i.mp4"]
)
def test_a_relative_name_is_a_file_whatever_it_looks_like(run_av, tmp_path, monkeypatch, talking_clip, name: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    shutil.copy(talking_clip, path)
    assert probe_media(path).has_video and len(load_audio(path)) > 8000
    output = Path(os.fsdecode(b"out:" + name))
    assert run_av(f"--input_video={path}", f"--output={output}", f"--save_crop=crop_{path}") == 0
    assert len(load_audio(output)) > 8000 and probe_media(output).has_video and probe_media(f"crop_{path}").has_video
    write_clip(f"clip:{path}", np.zeros((5, 32, 32, 3), np.uint8), voice(0.2))
    assert probe_media(f"clip:{path}").has_audio


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_and_never_waited_for(run_av, tmp_path, capsys, kind: str) -> None:
    path = tmp_path / "a.wav"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(MediaError, match="pipe or a device"):
        load_audio(path)
    assert run_av("--input_audio", path) == 1 and "pipe or a device" in only_line(capsys.readouterr().err)


@pytest.mark.skipif(not BAD_MEDIA.is_dir(), reason="shared/bad_media is not here")
def test_a_folder_of_recordings_from_bug_reports(run_av, tmp_path, capsys) -> None:
    assert run_av("--input_folder", BAD_MEDIA, "--output", tmp_path / "out") == 0
    rows = {Path(row["file"]).name: row for row in rows_of(tmp_path / "out" / "enhanced.csv")}
    assert len(rows) == 15 and {row["status"] for row in rows.values()} == {"done"}
    assert "2 files are left out" in capsys.readouterr().out
    for name, said in (
        ("truncated.flac", "ends early at 1.54 s"), ("second_track_default.mkv", "second"), ("antiphase.wav", "cancel"),
    ):  # fmt: skip
        assert said in rows[name]["notes"]
    assert float(rows["gap70.mkv"]["duration_sec"]) == pytest.approx(76, abs=0.05)
