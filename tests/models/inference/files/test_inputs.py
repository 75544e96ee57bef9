"""Files and folders by position: what is found, what belongs together, what is said before, and where outputs go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import inference
import inference_av
from helpers.tiny import all_files, bytes_file, only_line, voice, wav_file
from models.inference.files.jobs import Job, find_jobs
from models.inference.files.plan import plan_lines, read_facts


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in/: a.wav with a.mp4, b.wav; in/deep/: a.wav, c.mp4; in/.hidden/: d.wav; in/loop, a link back to in."""
    monkeypatch.chdir(tmp_path)
    for folder in ("deep", ".hidden"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for name in ("a.wav", "a.mp4", "b.wav", "deep/a.wav", "deep/c.mp4", ".hidden/d.wav", "notes.txt"):
        bytes_file(tmp_path / "in" / name, b"x")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    return tmp_path


def table(jobs: list) -> list[tuple[str, str | None, str]]:
    return [(str(job.audio), job.video and str(job.video), str(job.output)) for job in jobs]


def test_a_folder_is_searched_as_deep_as_asked(tree: Path) -> None:
    top = [("in/a.wav", "in/a.mp4", "out/a_enhanced.wav"), ("in/b.wav", None, "out/b_enhanced.wav")]
    assert table(find_jobs([Path("in")], Path("out"))) == top
    deep = [("in/deep/a.wav", None, "out/deep/a_enhanced.wav"), ("in/deep/c.mp4", "in/deep/c.mp4", "out/deep/c_enhanced.wav")]
    assert table(find_jobs([Path("in")], Path("out"), recursive=True)) == top + deep


def test_files_are_paired_as_in_a_folder_and_counted_once(tree: Path) -> None:
    files = [Path("in/b.wav"), Path("in/a.mp4"), Path("in/a.wav"), Path("in/../in/b.wav")]
    assert table(find_jobs(files, None)) == [
        ("in/a.wav", "in/a.mp4", "results/a_enhanced.wav"), ("in/b.wav", None, "results/b_enhanced.wav"),
    ]  # fmt: skip
    two = find_jobs([Path("in/a.mp4"), Path("in/deep/a.wav")], Path("out"))  # of different folders: two recordings
    assert [(str(job.audio), job.output.name) for job in two] == [
        ("in/a.mp4", "a_mp4_enhanced.wav"), ("in/deep/a.wav", "a_wav_enhanced.wav"),
    ]  # fmt: skip


def test_several_folders_keep_their_names_apart(tree: Path) -> None:
    outputs = {str(job.output) for job in find_jobs([Path("in"), Path("in/deep"), Path("in/b.wav")], Path("out"))}
    assert outputs == {"out/in/a_enhanced.wav", "out/in/b_enhanced.wav", "out/deep/a_enhanced.wav", "out/deep/c_enhanced.wav"}


def test_a_single_file_is_written_where_asked(tree: Path) -> None:
    assert table(find_jobs([Path("in/a.mp4")], Path("x.mkv"))) == [("in/a.mp4", "in/a.mp4", "x.mkv")]
    assert table(find_jobs([Path("in/b.wav")], None, suffix="")) == [("in/b.wav", None, "results/b.wav")]


def test_a_pattern_that_the_shell_left_is_what_it_stands_for(tree: Path) -> None:
    assert table(find_jobs([Path("in/*.wav")], Path("out"))) == [
        ("in/a.wav", None, "out/a_enhanced.wav"), ("in/b.wav", None, "out/b_enhanced.wav"),
    ]  # fmt: skip
    bytes_file(tree / "in" / "[1] b.wav", b"x")  # a name, not a pattern
    assert table(find_jobs([Path("in/[1] b.wav")], None)) == [("in/[1] b.wav", None, "results/[1] b_enhanced.wav")]


def test_several_channels_are_said_to_become_one(tmp_path: Path) -> None:
    two = wav_file(tmp_path / "two.wav", np.repeat(voice(0.3)[:, None], 2, axis=1))
    jobs = [Job(path, None, tmp_path / "out.wav") for path in (two, wav_file(tmp_path / "one.wav"))]
    lines = plan_lines(jobs, [read_facts(job) for job in jobs])
    assert "16 kHz, 2 channels that become one): sound only" in lines[1] and "16 kHz): sound only" in lines[2]


def test_files_and_folders_are_enhanced_together(tmp_path, causal_checkpoint, talking_clip, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    wav_file(tmp_path / "one.wav", voice(0.3))
    wav_file(tmp_path / "many" / "deep" / "two.wav", voice(0.3))
    bytes_file(tmp_path / "many" / "talk.mp4", talking_clip.read_bytes())
    arguments = ["one.wav", "many", "-r", "-o", "out", "--checkpoint_file", str(causal_checkpoint), "--device", "cpu"]
    assert inference_av.main([*arguments, "--dry_run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3 recordings, 1.6 s of sound") and "LiteAVSEMamba" not in "".join(said)
    assert said[2].startswith("  talk.mp4 (1.0 s, ") and said[2].endswith(
        "16 kHz, video 96x96): sound and video -> out/many/talk_enhanced.wav"
    )
    assert not (tmp_path / "out").exists()
    assert inference_av.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert "LiteAVSEMamba" in said[4]  # what will be done stands before the model
    assert said[-1].startswith("3 of 3 recordings enhanced; out/enhanced.csv")
    assert all_files(tmp_path / "out") == {
        "enhanced.csv", "one_enhanced.wav", "many/talk_enhanced.wav", "many/deep/two_enhanced.wav",
    }  # fmt: skip
    assert inference_av.main([*arguments, "--dry_run", "--skip_existing"]) == 0
    assert capsys.readouterr().out.count("skipped, as its output exists") == 3


def test_the_audio_only_script_takes_positions_too(tmp_path, semamba_checkpoint, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    wav_file(tmp_path / "in" / "deep" / "a.wav", voice(0.3))
    usual = ["--checkpoint_file", str(semamba_checkpoint), "--device", "cpu"]
    assert inference.main(["-r", "in", "-o", "out", *usual]) == 0
    assert all_files(tmp_path / "out") == {"enhanced.csv", "deep/a.wav"}
    assert inference.main(["in/deep/a.wav", "-o", "one.flac", *usual]) == 0 and (tmp_path / "one.flac").is_file()
    capsys.readouterr()
    assert inference.main(["in/deep/a.wav", "-o", "in/deep", *usual]) == 2
    assert "input itself" in only_line(capsys.readouterr().err)
