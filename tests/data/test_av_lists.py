"""data/make_av_lists.py: what is held out gets into no training list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.make_av_lists import HELD_OUT, main, make_lists, read_held_out
from helpers.paths import ROOT

FILES = (
    "grid/raw/s1/a.mpg", "grid/raw/s5/b.mpg", "elospheres/T1/c.mp4", "speech/vctk/p225/d.ogg", "speech/vctk/p228/e.ogg",
    "speech/keele/f1/f.flac", "noise/ambience/places-cafe.ogg", "noise/ambience/places-library.ogg",
    "noise/events/Rain-5-1.flac",
    "noise/talkers/one_male_english.flac", "noise/talkers/one_male_chinese.flac", "rir/kitchen.flac", "rir/medium-room1.flac",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def names(entries: list) -> list[str]:
    return [Path(e if isinstance(e, str) else e.get("video") or e["audio"]).name for e in entries]


def test_held_out_names_are_for_validation_only(root: Path) -> None:
    held = read_held_out(ROOT / HELD_OUT)
    held["noises"].add("Rain-5-1")
    lists = make_lists(root, held)
    assert names(lists["av"]["train"]) == ["a.mpg"] and names(lists["av"]["valid"]) == ["b.mpg", "c.mp4"]
    assert names(lists["speech"]["train"]) == ["d.ogg"] and names(lists["speech"]["valid"]) == ["e.ogg"]
    assert names(lists["sound"]["train"]) == ["a.mpg", "d.ogg"]
    assert names(lists["noise"]["train"]) == ["places-library.ogg"]
    assert names(lists["noise"]["valid"]) == ["places-cafe.ogg", "Rain-5-1.flac"]
    assert names(lists["talkers"]["train"]) == ["one_male_english.flac"]
    assert names(lists["rooms"]["train"]) == ["kitchen.flac"] and names(lists["rooms"]["valid"]) == ["medium-room1.flac"]


def test_crops_take_the_place_of_the_clips(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    crops = [{"video": "crops/s1/a_1.mp4", "mask": [[0, 2]]}, {"video": "crops/s5/b_1.mp4"}]
    (tmp_path / "crops.json").write_text(json.dumps(crops))
    out = tmp_path / "out"
    assert main([
        "--data_root", str(root), "--output_dir", str(out), "--held_out", str(ROOT / HELD_OUT),
        "--crops_list", str(tmp_path / "crops.json"),
    ]) == 0  # fmt: skip
    assert json.loads((out / "av_train.json").read_text()) == [{**crops[0], "speaker": "s1"}]
    assert json.loads((out / "av_valid.json").read_text()) == [{**crops[1], "speaker": "s5"}]


def test_drawn_people_are_speakers_of_a_list_of_their_own(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "drawn.json").write_text(json.dumps([{"video": "drawn/train/s1_0.mp4", "speaker": "s1"}]))
    out = tmp_path / "out"
    command = ["--data_root", str(root), "--output_dir", str(out), "--held_out", str(ROOT / HELD_OUT), "--drawn_list"]
    assert main([*command, str(tmp_path / "drawn.json")]) == 0
    sound, drawn = (json.loads((out / f"{name}_train.json").read_text()) for name in ("sound", "sound_drawn"))
    assert drawn == [*sound, {"video": "drawn/train/s1_0.mp4", "speaker": "drawn/s1"}]
    assert not (out / "sound_drawn_valid.json").exists()
    capsys.readouterr()
    (tmp_path / "drawn.json").write_text(json.dumps([{"video": "drawn/train/s1_0.mp4"}]))
    assert main([*command, str(tmp_path / "drawn.json")]) == 2
    assert "drawn.json" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.json").write_text('{"speakers": []}')
    assert main(["--data_root", str(root), "--output_dir", str(tmp_path), "--held_out", str(tmp_path / "bad.json")]) == 2
    assert "voices" in capsys.readouterr().err
    assert main(["--data_root", str(root / "no"), "--held_out", str(ROOT / HELD_OUT)]) == 2
