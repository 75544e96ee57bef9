"""Files written whole or not at all, lists read with clear errors, losses and gradients watched."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dataloaders.clip_dataset import ListError
from helpers.paths import ROOT
from helpers.tiny import all_files
from utils.console import one_line
from utils.util import (
    append_whole,
    atomic_write,
    check_loss_health,
    clear_unfinished,
    git_revision,
    initialize_seed,
    load_json_file,
    pick_device,
    safe_backward,
    write_json,
)


def test_atomic_write_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.wav"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".wav"
        assert temporary.parent == path.parent  # the same file system, so that the rename is atomic
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of tw")
        raise RuntimeError("interrupted")
    assert path.read_text() == "one"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.wav"]


def test_what_is_appended_is_all_there_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for line in (b"one\n", b"two\n"):
        append_whole(path, line, sync=True)
    assert path.read_bytes() == b"one\ntwo\n"
    # A limit to the size of files lets a first write be short, without an error, as a full disk does.
    program = (
        "import resource, sys; from utils.util import append_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12, 12))\n"
        "append_whole(sys.argv[1], b'three, four, five')"
    )
    found = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and "File too large" in found.stderr
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named_when_something_is_appended() -> None:
    with pytest.raises(OSError, match="No space left on device: /dev/full; nothing was added to it"):
        append_whole("/dev/full", b"line")


def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_text("old")
    with path.open() as reader:
        with atomic_write(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old"  # a rename: what was opened is not written over
    assert path.read_text() == "new"


def test_atomic_write_makes_ordinary_files(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_a_killed_writer_leaves_what_the_next_run_clears_and_a_living_one_keeps_its_file(tmp_path: Path) -> None:
    code = "import os, sys; sys.path.insert(0, sys.argv[2])\nfrom utils.util import atomic_write\n"
    code += "with atomic_write(sys.argv[1]) as path:\n    path.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.wav"), str(ROOT)], check=False)
    assert len(all_files(tmp_path)) == 1
    with atomic_write(tmp_path / "b.wav") as mine:
        mine.write_text("whole")
        assert clear_unfinished(tmp_path) == 1 and all_files(tmp_path) == {mine.name}
    assert all_files(tmp_path) == {"b.wav"} and clear_unfinished(tmp_path) == 0


@pytest.mark.parametrize("error", [OSError(28, "x"), RuntimeError("inline_container.cc: unexpected pos"), AssertionError()])
def test_a_full_disk_is_named_whatever_a_library_says(tmp_path: Path, monkeypatch, error: Exception) -> None:
    path = tmp_path / "a.pth"
    path.write_text("before")
    space = os.statvfs_result((4096, 4096, 1000, 3, 3, 100, 100, 100, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda folder: space)
    with pytest.raises(OSError, match=r"No space left.*a\.pth"), atomic_write(path):
        raise error
    assert path.read_text() == "before" and all_files(tmp_path) == {"a.pth"}


def test_names_are_taken_that_are_long_or_no_text(tmp_path: Path) -> None:
    for name in (b"n" * 250 + b".wav", b"caf\xe9.wav", b"a:b.wav"):
        with atomic_write(tmp_path / os.fsdecode(name)) as temporary:
            temporary.write_text("x")
        assert (tmp_path / os.fsdecode(name)).read_text() == "x"
    with pytest.raises(OSError, match="too long"), atomic_write(tmp_path / ("n" * 256)):
        pytest.fail("the work was begun")


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["a.wav"]', encoding="utf-8-sig")
    assert load_json_file(tmp_path / "a.json") == ["a.wav"]


def test_json_round_trip_keeps_names(tmp_path: Path) -> None:
    items = [{"audio": "Füße/名前.wav", "video": None}]
    write_json(tmp_path / "list.json", items)
    assert load_json_file(tmp_path / "list.json") == items
    assert "名前" in (tmp_path / "list.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": 1}', "[1,", "", "null", '"text"'])
def test_unusable_lists_name_file_and_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_json_file(path, key="data_cfg.train_data_json")
    message = str(error.value)
    assert "data_cfg.train_data_json" in message
    assert "bad.json" in message
    assert "\n" not in message


def test_missing_lists_say_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data_cfg\.x.*nowhere\.json.*data/"):
        load_json_file(tmp_path / "nowhere.json", key="data_cfg.x")
    with pytest.raises(ValueError, match="make_grid_json"):
        load_json_file("", key="data_cfg.x")
    with pytest.raises(ValueError, match="not a JSON list"):
        load_json_file(tmp_path)


def test_seed_fixes_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    initialize_seed(7)
    first = draw()
    initialize_seed(7)
    assert draw() == first
    initialize_seed(8)
    assert draw() != first


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="'gpu7'"):
        pick_device("gpu7")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cpu"):
            pick_device("cuda")
    else:
        with pytest.raises(ValueError, match=r"'cuda:77' is not there"):
            pick_device("cuda:77")
    for name in ("meta", "vulkan"):  # torch knows them; no model of ours runs there
        with pytest.raises(ValueError, match=f"'{name}' cannot be used"):
            pick_device(name)


def test_git_revision_is_one_word() -> None:
    assert len(git_revision().split()) == 1


def test_check_loss_health_names_the_culprits() -> None:
    losses = {"phase": torch.tensor(1.0, requires_grad=True), "si_sdr": torch.tensor(float("nan")), "time": torch.tensor(2.0)}
    assert check_loss_health({"phase": losses["phase"], "time": losses["time"]}) is None
    sentence = check_loss_health(losses | {"complex": torch.tensor(float("-inf"))})
    assert "si_sdr" in sentence
    assert "complex" in sentence
    assert "time" not in sentence


def test_safe_backward_clips_and_reports_the_norm_before() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    norm, problem = safe_backward((weight**2).sum() / 2, [weight], grad_clip=1.0)
    assert problem is None
    assert norm == pytest.approx(5.0)
    assert weight.grad.norm() == pytest.approx(1.0, rel=1e-4)


def test_safe_backward_drops_a_gradient_that_is_not_finite() -> None:
    good, bad = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))
    norm, problem = safe_backward(good.sum() + bad.sqrt().sum(), [good, bad], grad_clip=1.0)
    assert not np.isfinite(norm)
    assert "gradient" in problem
    assert good.grad is None
    assert bad.grad is None


def test_written_json_is_indented_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1, 2])
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("\n")
    assert json.loads(text) == [1, 2]
    assert len(text.splitlines()) == 4


class _Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise ListError("clips.json: 9 of 9 clips tried cannot be read;\nlast: a.wav: ValueError there")


def test_an_error_in_a_worker_says_what_it_says_elsewhere() -> None:
    with pytest.raises(ListError) as alone:
        next(iter(DataLoader(_Broken(), num_workers=0)))
    with pytest.raises(ListError) as caught:
        next(iter(DataLoader(_Broken(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert one_line(caught.value) == one_line(alone.value)
    assert one_line(alone.value) == "clips.json: 9 of 9 clips tried cannot be read; last: a.wav: ValueError there"
