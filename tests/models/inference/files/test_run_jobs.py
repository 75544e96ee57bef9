"""A folder of recordings: the table of what was done, going on after an interruption, several processes."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import inference_av
from helpers.processes import torchrun
from helpers.tiny import all_files, bytes_file, only_line, voice, wav_file
from models.inference.enhancer import Enhancer
from models.inference.files import run_jobs as batch
from models.inference.files.enhance_file import enhance_file
from models.inference.files.jobs import folder_jobs
from models.inference.files.run_jobs import COLUMNS, read_rows, row_of, run_jobs
from utils.distributed import rank_device


@pytest.fixture
def run_av(causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> int:
        usual = ["--input_folder", "in", "--output", "out", "--checkpoint_file", str(causal_checkpoint), "--device", "cpu"]
        return inference_av.main([*usual, *map(str, arguments)])

    return call


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_says_what_was_done_to_each(run_av, tmp_path, talking_clip) -> None:
    wav_file(tmp_path / "in" / 'a, "b".wav', voice(0.5))
    bytes_file(tmp_path / "in" / "talk.mp4", talking_clip.read_bytes())
    bytes_file(tmp_path / "in" / "broken.wav", b"no sound")
    assert run_av("--output_format", "flac") == 1
    rows = rows_of(tmp_path / "out" / "enhanced.csv")
    assert all(tuple(row) == COLUMNS for row in rows)
    quoted, broken, talk = rows
    assert quoted["file"] == 'in/a, "b".wav' and quoted["output"] == 'out/a, "b"_enhanced.flac'
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "cannot be opened" in broken["reason"] and not broken["rtf"] and not quoted["reason"]
    assert float(quoted["duration_sec"]) == 0.5 and float(quoted["rtf"]) > 0 and quoted["mean_alpha"] == quoted["video"] == ""
    assert talk["video"] == "in/talk.mp4" and 0 < float(talk["mean_alpha"]) < 1 and float(talk["masked_share"]) == 0
    assert not (tmp_path / "out" / "broken_enhanced.flac").exists()


def test_an_interrupted_folder_goes_on_where_it_was(run_av, tmp_path, monkeypatch, capsys) -> None:
    for name in "abcd":
        wav_file(tmp_path / "in" / f"{name}.wav", voice(0.2))
    done: list[str] = []

    def until_c(enhancer, job, **options):
        if job.audio.stem == "c":
            raise KeyboardInterrupt
        done.append(job.audio.stem)
        return enhance_file(enhancer, job, **options)

    monkeypatch.setattr(inference_av, "enhance_file", until_c)
    assert run_av() == 130
    table = tmp_path / "out" / "enhanced.csv"
    assert [(row["output"], row["status"]) for row in rows_of(table)] == [(f"out/{x}_enhanced.wav", "done") for x in "ab"]
    before = rows_of(table)
    lines = table.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace(f",{before[1]['seconds']},", ",9.999,", 1)  # to be known by: b is made again
    table.write_text("".join([*lines, "in/c.wav,,out/c_enh"]))  # as a machine that lost its power leaves it
    (tmp_path / "out" / "b_enhanced.wav").unlink()
    monkeypatch.setattr(inference_av, "enhance_file", enhance_file)
    capsys.readouterr()
    assert run_av("--skip_existing") == 0
    rows = rows_of(table)
    assert [row["file"] for row in rows] == [f"in/{x}.wav" for x in "abcd"] and {row["status"] for row in rows} == {"done"}
    assert rows[0] == before[0] and rows[1]["seconds"] != "9.999"
    said = capsys.readouterr().out
    assert "1 of 4 recordings were skipped" in said and "3 of 4 recordings enhanced" in said
    table.unlink()
    assert run_av("--skip_existing") == 0
    assert {row["status"] for row in rows_of(table)} == {"skipped"}


def test_what_failed_before_is_tried_again(run_av, tmp_path) -> None:
    source = bytes_file(tmp_path / "broken.wav", b"no sound")
    wav_file(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").symlink_to(source)
    assert run_av("--skip_existing") == 1
    wav_file(source)
    assert run_av("--skip_existing") == 0
    table = tmp_path / "out" / "enhanced.csv"
    assert [row["status"] for row in rows_of(table)] == ["done", "done"]
    bytes_file(source, b"no sound once more")
    assert run_av() == 1  # what was written before is still there
    assert run_av("--skip_existing") == 0
    assert [row["status"] for row in rows_of(table)] == ["done", "skipped"]


@pytest.mark.parametrize("suffix", ["", "_enhanced"])
def test_every_recording_has_an_output_of_its_own(tmp_path, suffix: str) -> None:
    """Also where the name made for one is another's own, and on file systems to which clip and CLIP are one name."""
    for name in ("clip.wav", "clip.WAV", "CLIP.flac", "x.wav", "x.flac", "x_wav.wav", "alone.ogg"):
        bytes_file(tmp_path / name, b"sound")
    jobs = folder_jobs(tmp_path, tmp_path / "out", use_video=False, suffix=suffix)
    names = [job.output.name for job in jobs]
    assert len({name.casefold() for name in names}) == len(jobs) == 7
    assert jobs == folder_jobs(tmp_path, tmp_path / "out", use_video=False, suffix=suffix)
    given = {job.audio.name: job.output.stem.removesuffix("_enhanced") for job in jobs}
    assert given["alone.ogg"] == "alone" and given["x_wav.wav"] == "x_wav" and given["x.flac"] == "x_flac"
    assert given["x.wav"] == "x_wav_2"


class Rank:
    """One of two processes as far as run_jobs goes, what the other one has done given."""

    def __init__(self, rank: int, other: list) -> None:
        self.rank, self.size, self.is_main, self.other = rank, 2, rank == 0, other

    def wait(self) -> None:
        pass

    def gather(self, value):
        return [value, self.other] if self.is_main else [self.other, value]


def test_shares_make_up_the_whole_and_failures_are_said_once(tmp_path, causal_checkpoint, capsys) -> None:
    for name in "abcde":
        wav_file(tmp_path / "in" / f"{name}.wav", voice(0.2))
    bytes_file(tmp_path / "in" / "d.wav", b"no sound")  # the second one's
    jobs = folder_jobs(tmp_path / "in", tmp_path / "out")
    enhancer, kept = Enhancer.from_checkpoint(causal_checkpoint, "cpu"), []
    seen: dict[int, list[str]] = {0: [], 1: []}

    def work(rank, enhancer, job):
        seen[rank].append(job.audio.stem)
        return enhance_file(enhancer, job)

    others = [row_of(job, "failed" if job.audio.stem == "d" else "done", reason="broken") for job in jobs[1::2]]
    for rank in (1, 0):
        group = Rank(rank, others if rank == 0 else kept)
        mine = [row_of(job, "done") for job in jobs[0::2]]
        kept[:] = mine
        assert run_jobs(enhancer, jobs, functools.partial(work, rank), tmp_path / "out", False, group) == 1
        said = capsys.readouterr().err
        assert ("failed: d.wav" in said) == (rank == 1) and ("1 of 5 recordings failed" in said) == (rank == 0)
    assert seen == {0: ["a", "c", "e"], 1: ["b", "d"]}
    rows = rows_of(tmp_path / "out" / "enhanced.csv")
    assert [Path(row["file"]).stem for row in rows] == list("abcde")
    assert all_files(tmp_path / "out") == {"enhanced.csv"} | {f"{x}_enhanced.wav" for x in "abce"}


def test_parts_of_an_interrupted_run_are_taken_up(tmp_path) -> None:
    jobs = folder_jobs(wav_file(tmp_path / "in" / "a.wav").parent, tmp_path / "out")
    for rank, job in enumerate(jobs):
        batch.Table(tmp_path / "out" / f"enhanced.rank{rank}.csv").write([row_of(job, "done")])
    assert list(read_rows(tmp_path / "out")) == [str(jobs[0].output)]
    bytes_file(tmp_path / "out" / "enhanced.csv", b"\xff\x00 not, a table\n1,2\n")
    assert list(read_rows(tmp_path / "out")) == [str(jobs[0].output)]


def test_two_processes_share_a_folder(tmp_path, causal_checkpoint, talking_clip) -> None:
    for name in "abc":
        wav_file(tmp_path / "in" / f"{name}.wav", voice(0.3, seed=ord(name)))
    bytes_file(tmp_path / "in" / "d.mp4", talking_clip.read_bytes())
    bytes_file(tmp_path / "in" / "e.wav", b"no sound")
    bytes_file(tmp_path / "in" / "f.wav", b"no sound either")
    done = torchrun("inference_av.py", "--input_folder", str(tmp_path / "in"), "--output", str(tmp_path / "out"),
                    "--checkpoint_file", str(causal_checkpoint), "--device", "cpu", "--output_format", "video")  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("one of 2 processes") == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("failed: ") or "recordings failed" in line]
    assert [line.split(":")[0].split(";")[0] for line in said] == ["failed", "failed", "2 of 6 recordings failed"], done.stderr
    assert all_files(tmp_path / "out") == {f"{x}_enhanced.wav" for x in "abc"} | {"d_enhanced.mp4", "enhanced.csv"}
    rows = rows_of(tmp_path / "out" / "enhanced.csv")
    assert [Path(row["file"]).stem for row in rows] == list("abcdef")
    assert [row["status"] for row in rows] == ["done"] * 4 + ["failed"] * 2
    alone = Enhancer.from_checkpoint(causal_checkpoint, "cpu").enhance(soundfile.read(tmp_path / "in" / "c.wav")[0], 16000)
    assert np.abs(soundfile.read(tmp_path / "out" / "c_enhanced.wav")[0] - alone.wav).max() < 1e-4


@pytest.mark.slow
def test_a_mistake_is_said_by_one_of_two_processes(tmp_path) -> None:
    done = torchrun("inference_av.py", "--input_folder", str(tmp_path / "gone"))
    assert done.returncode != 0
    only_line("\n".join(line for line in done.stderr.splitlines() if line.startswith("inference_av.py: ")))


def test_each_process_has_a_gpu_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [rank_device("auto", rank) for rank in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert rank_device("cpu", 5) == torch.device("cpu")
    with pytest.raises(ValueError, match="process 2 .* it has 2"):
        rank_device("auto", 2)
