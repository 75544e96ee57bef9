"""Lists of LRS2, LRS3 and VoxCeleb2 trees shaped as they are distributed: splits, what is skipped, going on after a stop."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from data import make_lrs_json, make_vox_json
from data.tools import listing
from helpers.tiny import face_crops, only_line, voice, wav_file
from utils.media.clip_writer import write_clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clip with sound, one without, and a file that is no clip."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "good.mp4", face_crops(5, 48), voice(0.2))
    write_clip(folder / "mute.mp4", face_crops(5, 48), None)
    (folder / "broken.mp4").write_bytes(b"no video" * 50)
    return {path.stem: path for path in folder.iterdir()}


def put(source: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def names(path: Path, depth: int = 2) -> list[str]:
    """The ends of a list's video paths."""
    return ["/".join(Path(entry["video"]).parts[-depth:]) for entry in read(path)]


def skipped(path: Path) -> dict[str, str]:
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["clip", "reason"]
    return {"/".join(Path(clip).parts[-2:]): reason for clip, reason in rows[1:]}


@pytest.fixture
def lrs2(tmp_path: Path, clips: dict[str, Path]) -> Path:
    """main and pretrain with the official split files in mvlrs_v1, as LRS2's archives unpack."""
    base = tmp_path / "lrs2" / "mvlrs_v1"
    put(clips["good"], *(base / "main" / name for name in (
        "100/00001.mp4", "100/00002.mp4", "200/00001.mp4", "300/00001.mp4", "300/00007.mp4", "400/00001.mp4",
    )), base / "pretrain" / "100" / "00009.mp4")  # fmt: skip
    put(clips["broken"], base / "main" / "200" / "00002.mp4")
    put(clips["mute"], base / "pretrain" / "500" / "00001.mp4")
    (base / "main" / "100" / "00001.txt").write_text("Text:  HELLO")
    (base / "pretrain.txt").write_text("100/00009\n500/00001\n")
    (base / "train.txt").write_text("100/00001\n100/00002\n200/00002\n999/00001\n\n")
    (base / "val.txt").write_text("200/00001\n")
    (base / "test.txt").write_text("300/00001 NF\n300/00007 MV\n")
    return tmp_path / "lrs2"


def lrs(option: str, root: Path, *more: str) -> int:
    return make_lrs_json.main([option, str(root), "--output_dir", str(root.parent / "lists"), *more])


def test_lrs2_follows_its_official_files(lrs2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrs("--lrs2_root", lrs2) == 0
    lists, said = lrs2.parent / "lists", capsys.readouterr().out
    assert names(lists / "lrs_train.json", 3) == ["pretrain/100/00009.mp4", "main/100/00001.mp4", "main/100/00002.mp4"]
    assert names(lists / "lrs_valid.json") == ["200/00001.mp4"]
    base = lrs2 / "mvlrs_v1" / "main" / "300"
    assert read(lists / "lrs_test.json") == [
        {"video": str(base / "00001.mp4"), "speaker": "300", "tag": "NF"},
        {"video": str(base / "00007.mp4"), "speaker": "300", "tag": "MV"},
    ]
    left_out = skipped(lists / "lrs_skipped.csv")
    assert left_out["999/00001.mp4"] == "named in train.txt, but not there"
    assert "cannot be opened" in left_out["200/00002.mp4"] and "no sound" in left_out["500/00001.mp4"]
    assert len(left_out) == 3 and "3 clips skipped" in said and "1 clips that no split file names" in said
    assert lrs("--lrs2_root", lrs2 / "mvlrs_v1", "--check", "none") == 0
    assert "main/200/00002.mp4" in names(lrs2 / "lists" / "lrs_train.json", 3)  # nothing is tried


def test_lrs2_lines_may_be_paths_of_mp4(lrs2: Path) -> None:
    assert lrs("--lrs2_root", lrs2, "--check", "none") == 0
    lists = {split: read(lrs2.parent / "lists" / f"lrs_{split}.json") for split in ("train", "valid", "test")}
    base = lrs2 / "mvlrs_v1"
    (base / "pretrain.txt").write_text("mvlrs_v1/pretrain/100/00009.mp4\n500/00001.mp4\n")
    (base / "test.txt").write_text("main/300/00001.mp4 NF\n300/00007.mp4 MV\n")
    assert lrs("--lrs2_root", lrs2, "--check", "none") == 0
    assert {split: read(lrs2.parent / "lists" / f"lrs_{split}.json") for split in lists} == lists


def test_lrs2_without_its_files_is_one_line(lrs2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrs("--lrs2_root", lrs2 / "nowhere") == 2
    assert "no folder main or pretrain" in only_line(capsys.readouterr().err)
    (lrs2 / "mvlrs_v1" / "val.txt").write_text("200/00001\n200/1/00001 NF\n")
    assert lrs("--lrs2_root", lrs2) == 2
    assert "val.txt, line 2" in only_line(capsys.readouterr().err)
    for name in ("pretrain", "train", "val", "test"):
        (lrs2 / "mvlrs_v1" / f"{name}.txt").unlink()
    assert lrs("--lrs2_root", lrs2) == 2
    assert "split files" in only_line(capsys.readouterr().err) and not (lrs2.parent / "lists").exists()


def test_lrs3_holds_speakers_out_of_both_its_training_parts(tmp_path: Path, clips: dict[str, Path]) -> None:
    for part, speakers in (("trainval", "abcdef"), ("pretrain", "abcdefgh"), ("test", "xy")):
        put(clips["good"], *(tmp_path / "lrs3" / part / speaker / f"{k:05d}.mp4" for speaker in speakers for k in (1, 2)))
    assert lrs("--lrs3_root", tmp_path / "lrs3", "--check", "none", "--valid_share", "0.2") == 0
    lists = {split: read(tmp_path / "lists" / f"lrs_{split}.json") for split in ("train", "valid", "test")}
    speakers = {split: {entry["speaker"] for entry in entries} for split, entries in lists.items()}
    assert len(speakers["valid"]) == 1 and len(lists["valid"]) == 2 and speakers["test"] == {"x", "y"}
    assert speakers["train"] == set("abcdefgh") - speakers["valid"] and len(lists["train"]) == 24
    assert all("trainval" in entry["video"] for entry in lists["valid"])


@pytest.fixture
def vox2(tmp_path: Path, clips: dict[str, Path]) -> Path:
    """Eight speakers in dev, two in test; one clip's sound is a file of its own, as VoxCeleb2's aac archive has it."""
    root = tmp_path / "vox2"
    for part, speakers in (("dev", range(12, 20)), ("test", range(17, 19))):
        folders = [root / part / "mp4" / f"id{n:05d}" / "21Uxsk56VDQ" for n in speakers]
        put(clips["good"], *(folder / f"{k:05d}.mp4" for folder in folders for k in (1, 2)))
    put(clips["mute"], *(root / "dev" / "mp4" / "id00012" / "21Uxsk56VDQ" / f"{k:05d}.mp4" for k in (3, 4)))
    for name in ("00003", "00008"):
        wav_file(root / "dev" / "aac" / "id00012" / "21Uxsk56VDQ" / f"{name}.flac").rename(
            root / "dev" / "aac" / "id00012" / "21Uxsk56VDQ" / f"{name}.m4a"
        )
    put(clips["good"], root / "dev" / "mp4" / "stray.mp4")
    return root


def vox(root: Path, *more: str) -> int:
    return make_vox_json.main(["--vox2_root", str(root), "--output_dir", str(root.parent / "lists"), *more])


def test_voxceleb2_holds_speakers_out_of_dev(vox2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vox(vox2, "--valid_share", "0.25") == 0
    lists = {split: read(vox2.parent / "lists" / f"vox_{split}.json") for split in ("train", "valid", "test")}
    speakers = {split: {entry["speaker"] for entry in entries} for split, entries in lists.items()}
    assert len(speakers["valid"]) == 2 and speakers["train"] | speakers["valid"] == {f"id{n:05d}" for n in range(12, 20)}
    assert not speakers["train"] & speakers["valid"]
    assert all("/dev/mp4/" in entry["video"] for entry in lists["train"] + lists["valid"])
    assert len(lists["test"]) == 4 and all("/test/mp4/" in entry["video"] for entry in lists["test"])
    heard = [entry for entry in lists["train"] + lists["valid"] if "audio" in entry]
    assert [Path(entry["audio"]).name for entry in heard] == ["00003.m4a"] and heard[0]["video"].endswith("00003.mp4")
    left_out = skipped(vox2.parent / "lists" / "vox_skipped.csv")
    assert set(left_out) == {"mp4/stray.mp4", "21Uxsk56VDQ/00008.m4a", "21Uxsk56VDQ/00004.mp4"}
    assert "without a video" in left_out["21Uxsk56VDQ/00008.m4a"] and "no sound" in left_out["21Uxsk56VDQ/00004.mp4"]
    first = names(vox2.parent / "lists" / "vox_valid.json", 3)
    assert vox(vox2, "--valid_share", "0.25") == 0 and names(vox2.parent / "lists" / "vox_valid.json", 3) == first
    drawn = set()
    for seed in range(5):
        vox(vox2, "--seed", str(seed), "--check", "none")
        drawn |= {entry["speaker"] for entry in read(vox2.parent / "lists" / "vox_valid.json")}
    assert len(drawn) > 1  # one at a time, by the seed


def test_voxceleb2_without_a_folder_mp4(vox2: Path) -> None:
    assert vox(vox2, "--check", "none") == 0
    lists = {split: names(vox2.parent / "lists" / f"vox_{split}.json", 3) for split in ("train", "valid", "test")}
    for part in ("dev", "test"):
        for speaker in (vox2 / part / "mp4").glob("id*"):
            speaker.rename(vox2 / part / speaker.name)
        shutil.rmtree(vox2 / part / "mp4")
    assert vox(vox2, "--check", "none") == 0
    assert {split: names(vox2.parent / "lists" / f"vox_{split}.json", 3) for split in lists} == lists
    heard = [entry for entry in read(vox2.parent / "lists" / "vox_train.json") if "audio" in entry]
    assert all("/dev/aac/" in entry["audio"] for entry in heard)


@pytest.mark.parametrize(("wrong", "said"), [
    (["--valid_share", "1.5"], "--valid_share 1.5"), (["--vox2_root", "nowhere"], "no clip under"),
    (["--check", "some"], "invalid choice: 'some'"),
])  # fmt: skip
def test_a_users_mistake_is_one_line(vox2: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], said: str) -> None:
    try:
        code = vox(vox2, *wrong)
    except SystemExit as stopped:  # argparse's
        code = stopped.code
    assert code == 2 and said in only_line(capsys.readouterr().err)


# Checking ------------------------------------------------------------------------------------------------------------


def test_what_was_checked_is_not_checked_again(
    tmp_path: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(clips["good"], *(tmp_path / f"{k}.mp4" for k in range(6)))
    put(clips["broken"], tmp_path / "bad.mp4")
    entries = [{"video": str(path), "speaker": "s"} for path in sorted(tmp_path.glob("*.mp4"))]
    tried: list[str] = []
    problem = listing.clip_problem

    def counted(entry: dict, full: bool = False) -> str | None:
        tried.append(Path(entry["video"]).name)
        if len(tried) == 5:
            raise KeyboardInterrupt  # the run is stopped on the way
        return problem(entry, full)

    monkeypatch.setattr(listing, "clip_problem", counted)
    monkeypatch.setattr(listing, "AT_ONCE", 2)
    cache = tmp_path / "checked.jsonl"
    with pytest.raises(KeyboardInterrupt):
        listing.ClipChecker("header", 1, cache).split(entries)
    with open(cache, "a") as file:
        file.write('["header|/half a li')
    good, bad = listing.ClipChecker("header", 1, cache).split(entries)
    assert len(good) == 6 and [Path(name).name for name, _ in bad] == ["bad.mp4"] and "cannot be opened" in bad[0][1]
    assert tried[:4] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"] and 7 <= len(set(tried[4:])) + 4 <= len(tried) <= 9
    before = len(tried)
    assert listing.ClipChecker("header", 1, cache).split(entries) == (good, bad) and len(tried) == before
    put(clips["mute"], tmp_path / "0.mp4")  # another file under the same name
    (tmp_path / "1.mp4").unlink()
    good, bad = listing.ClipChecker("header", 2, cache).split(entries)
    assert len(good) == 4 and len(tried) == before + 1
    assert {Path(name).name: reason for name, reason in bad}["1.mp4"] == "No such file or directory"
    assert listing.ClipChecker("full", 1, cache).split(entries[:1])[1] and len(tried) == before + 2


def test_many_skipped_clips_are_told_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left_out = [(f"{k}.mp4", "too dark" if k % 3 else "too loud") for k in range(60)]
    listing.report_skipped(left_out, tmp_path / "skipped.csv")
    said = capsys.readouterr().out
    assert "60 clips skipped" in said and "40 x too dark (first: 1.mp4)" in said and "20 x too loud (first: 0.mp4)" in said
    assert len(said.splitlines()) == 3 and len((tmp_path / "skipped.csv").read_text().splitlines()) == 61


def test_walking_finds_what_is_there(tmp_path: Path) -> None:
    for name in ("a/b/1.MP4", "a/2.mp4", "3.mp4", "a/.hidden.mp4", "a/4.txt", ".trash/5.mp4", "c/d/e/6.mp4"):
        put(Path(__file__), tmp_path / name)
    assert listing.walk_files(tmp_path, (".mp4",), 2) == ["3.mp4", "a/2.mp4", "a/b/1.MP4", "c/d/e/6.mp4"]


def test_speakers_held_out() -> None:
    speakers = [f"id{k}" for k in range(200)]
    held = listing.hold_out(speakers, 0.025, 1234)
    assert len(held) == 5 and held == listing.hold_out(reversed(speakers), 0.025, 1234) != listing.hold_out(speakers, 0.025, 1)
    assert len(listing.hold_out(["a", "b"], 0.9, 0)) == 1
    with pytest.raises(ValueError, match="two are needed"):
        listing.hold_out(["a"], 0.1, 0)
