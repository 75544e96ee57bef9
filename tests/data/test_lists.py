"""List-making scripts: what is found, how it is split, what is left out and said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data import make_grid_json, prepare_faces, prepare_noise
from data.tools import face_shards
from helpers.paths import SHARED_DATA
from helpers.tiny import face_crops, only_line, voice, wav_file, write_mpg
from utils.faces.detectors import settle_method
from utils.faces.video_crops import load_video_frames
from utils.media.clip_writer import write_clip
from utils.media.sound import load_audio

CLIP_JOB = prepare_faces._clip_job


def clip(path: Path, seconds: float = 0.4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_mpg(path, face_crops(round(25 * seconds), 48), voice(seconds, 44100))


def read(path: Path) -> list:
    return json.loads(path.read_text())


def stems(path: Path) -> list[str]:
    return [Path(entry["video"]).stem for entry in read(path)]


def grid(folder: Path, *more: str) -> int:
    return make_grid_json.main(["--grid_root", str(folder / "grid"), "--output_dir", str(folder / "lists"), *more])


def test_grid_as_downloaded_in_its_various_nestings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "grid"
    clip(root / "s1" / "bbaf2n.mpg")
    clip(root / "s2_processed" / "lwbz1s.mpg")
    clip(root / "s30" / "video" / "mpg_6000" / "pgwy7s.mpg")
    clip(root / "video" / "s34" / "sran9s.mpg")
    for name in ("s1.wav", "audio_25k/s34/sran9s.wav", "s21/audio/bbaf1a.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, voice(0.4, 25000), 25000)
    (root / "s1" / "._bbaf2n.mpg").write_bytes(b"resource fork")
    (root / "s1" / "broken.mpg").write_bytes(b"not a video" * 100)
    (root / "s1" / "zero.mpg").write_bytes(b"")
    write_mpg(root / "s1" / "mute.mpg", face_crops(5, 48), None)
    write_clip(root / "s2_processed" / "extra.mp4", face_crops(10), voice(0.4))
    assert grid(tmp_path) == 0
    said = capsys.readouterr().out
    assert stems(tmp_path / "lists" / "grid_train.json") == ["bbaf2n", "extra", "lwbz1s"]
    assert stems(tmp_path / "lists" / "grid_valid.json") == ["pgwy7s"]
    test = read(tmp_path / "lists" / "grid_test.json")
    assert test == [
        {"video": str(root / "video/s34/sran9s.mpg"), "audio": str(root / "audio_25k/s34/sran9s.wav"), "speaker": "s34"}
    ]  # the separate sound is preferred
    assert "s21: sound but no video" in said and "3 clips skipped" in said
    for name in ("broken.mpg", "zero.mpg", "mute.mpg: no sound"):
        assert name in said
    assert "3 clips of 2 speakers" in said


def test_chosen_speakers_replace_the_usual_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for speaker in ("s1", "s2", "s3"):
        clip(tmp_path / "grid" / speaker / f"{speaker}a.mpg")
        clip(tmp_path / "grid" / speaker / f"{speaker}b.mpg")
    assert grid(tmp_path, "--train_speakers", "s1", "2", "--valid_speakers", "s3", "--exclude", "s1/*a.mpg") == 0
    assert stems(tmp_path / "lists" / "grid_train.json") == ["s1b", "s2a", "s2b"]
    assert stems(tmp_path / "lists" / "grid_valid.json") == ["s3a", "s3b"]
    assert read(tmp_path / "lists" / "grid_test.json") == [] and "(empty: no speakers named)" in capsys.readouterr().out
    assert grid(tmp_path, "--train_speakers", "s1", "--test_speakers", "s1") == 2
    assert "s1 is in both" in capsys.readouterr().err
    assert grid(tmp_path, "--train_speakers", "bob") == 2
    assert "bob" in capsys.readouterr().err


def test_val_ratio_holds_out_speakers_and_extracted_sound_is_listed(tmp_path: Path, capsys) -> None:
    for number in range(1, 5):
        clip(tmp_path / "grid" / f"s{number}" / f"c{number}.mpg")
    assert grid(tmp_path, "--val_ratio", "0.25", "--extract_audio") == 0
    train, valid = (read(tmp_path / "lists" / f"grid_{split}.json") for split in ("train", "valid"))
    assert len(train) == 3 and len(valid) == 1
    for entry in train + valid:
        sound, rate = soundfile.read(entry["audio"])
        assert rate == 16000 and len(sound) == pytest.approx(6400, abs=1600)
        own = load_audio(entry["video"], 16000)
        assert np.abs(sound - own[: len(sound)]).max() < 1e-4
    assert grid(tmp_path, "--val_ratio", "0.25", "--valid_speakers", "s1") == 2
    assert grid(tmp_path, "--val_ratio", "2") == 2 and "--val_ratio 2" in capsys.readouterr().err


def test_lists_go_to_data_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path / "grid" / "s1" / "a.mpg")
    for number in range(4):
        wav_file(tmp_path / "noise" / f"{number}.wav")
    monkeypatch.chdir(tmp_path)
    assert make_grid_json.main(["--grid_root", "grid"]) == 0
    assert prepare_noise.main(["--noise_dirs", "noise", "--val_ratio", "0.25"]) == 0
    assert len(read(tmp_path / "data" / "grid_train.json")) == 1 and len(read(tmp_path / "data" / "noise_valid.json")) == 1


def test_full_probe_leaves_damaged_clips_out(tmp_path: Path) -> None:
    good = clip(tmp_path / "grid" / "s1" / "good.mpg", 1.0)
    bad = tmp_path / "grid" / "s1" / "bad.mp4"
    write_clip(bad, face_crops(40), voice(1.6))
    data = bytearray(bad.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin + 6000 : begin + 9000] = bytes(3000)
    bad.write_bytes(data)
    assert grid(tmp_path) == 0
    assert stems(tmp_path / "lists" / "grid_train.json") == ["bad", "good"]
    assert grid(tmp_path, "--check", "full") == 0
    assert stems(tmp_path / "lists" / "grid_train.json") == [good.stem]


def test_a_root_without_clips_is_an_error_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grid(tmp_path) == 2
    (tmp_path / "grid").mkdir()
    assert grid(tmp_path) == 2
    assert capsys.readouterr().err.count("make_grid_json: --grid_root") == 2
    assert not (tmp_path / "lists").exists()


def test_an_output_folder_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "grid" / "s1" / "a.mpg")
    (tmp_path / "lists").touch()
    assert grid(tmp_path) == 2
    assert "lists" in only_line(capsys.readouterr().err)


def test_noise_is_split_by_file_and_by_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, count in (("cafe", 20), ("rain", 10), ("rare", 2)):
        (tmp_path / "noise" / kind).mkdir(parents=True)
        for k in range(count):
            soundfile.write(tmp_path / "noise" / kind / f"{k}.wav", voice(0.01), 16000)
    (tmp_path / "noise" / "rain" / "notes.txt").write_text("no sound")
    (tmp_path / "noise" / "link.wav").symlink_to(tmp_path / "noise" / "cafe" / "0.wav")
    again = ["--noise_dirs", str(tmp_path / "noise" / "cafe"), str(tmp_path / "noise")]
    out = ["--output_dir", str(tmp_path / "lists")]
    assert prepare_noise.main([*again, *out, "--valid_fraction", "0.2"]) == 0
    lists = {name: read(tmp_path / "lists" / f"noise_{name}.json") for name in ("train", "valid", "test")}
    assert {name: len(paths) for name, paths in lists.items()} == {"train": 23, "valid": 6, "test": 3}
    everything = sum(lists.values(), [])
    assert len(set(everything)) == 32 and all(Path(path).is_file() for path in everything)
    assert sum("/cafe/" in path for path in lists["valid"]) == 4 and sum("/rain/" in path for path in lists["valid"]) == 2
    before = lists["valid"]
    prepare_noise.main([*again, *out, "--valid_fraction", "0.2"])
    assert read(tmp_path / "lists" / "noise_valid.json") == before
    prepare_noise.main([*again, *out, "--valid_fraction", "0.2", "--seed", "5"])
    assert read(tmp_path / "lists" / "noise_valid.json") != before
    prepare_noise.main([*again, *out, "--exclude", "cafe/*", "0.wav"])
    left = sum((read(tmp_path / "lists" / f"noise_{name}.json") for name in lists), [])
    assert len(left) == 10 and not any("/cafe/" in path or path.endswith("/0.wav") for path in left)
    capsys.readouterr()
    for wrong, said in ((["--valid_fraction", "0.7", "--test_fraction", "0.5"], "0.7"), (["--exclude", "*"], "no noise")):
        assert prepare_noise.main([*again, *out, *wrong]) == 2
        assert said in only_line(capsys.readouterr().err)
    assert prepare_noise.main(["--noise_dirs", str(tmp_path / "gone"), *out]) == 2
    assert "gone" in only_line(capsys.readouterr().err)
    (tmp_path / "file").touch()
    assert prepare_noise.main([*again, "--output_dir", str(tmp_path / "file")]) == 2
    assert "file" in only_line(capsys.readouterr().err)


def make_noises(folder: Path, names: list[str]) -> list[str]:
    """Sound files of these names below `folder`; the command that lists them."""
    for name in names:
        (folder / "noise" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "noise" / name, voice(0.01), 16000)
    return ["--noise_dirs", str(folder / "noise"), "--output_dir", str(folder / "lists")]


def test_channels_of_one_recording_stay_together(tmp_path: Path) -> None:
    """DEMAND: a folder for each place, with one recording by 16 microphones; CHiME: several recordings in a folder."""
    places = [f"DEMAND/D{place}/ch{channel:02}.wav" for place in "ABCDEF" for channel in range(1, 17)]
    assert prepare_noise.main(make_noises(tmp_path, places)) == 0
    lists = {name: read(tmp_path / "lists" / f"noise_{name}.json") for name in ("train", "valid", "test")}
    assert {name: len(paths) for name, paths in lists.items()} == {"train": 64, "valid": 16, "test": 16}
    assert sum(len({Path(path).parent for path in paths}) for paths in lists.values()) == 6
    chime = [Path(f"{place}.CH{channel}.wav") for place in ("BUS", "CAF", "PED") for channel in range(1, 7)]
    assert [len(unit) for unit in prepare_noise.recordings([*chime, Path("watch.wav"), Path("BUS.wav")])] == [6, 1, 6, 6, 1]


def test_folders_of_one_recording_are_shared_out_together(tmp_path: Path, capsys) -> None:
    command = make_noises(tmp_path, [f"{kind}/noise.wav" for kind in ("cafe", "rain", "road")])
    assert prepare_noise.main(command) == 0
    assert all(len(read(tmp_path / "lists" / f"noise_{name}.json")) == 1 for name in ("train", "valid", "test"))
    (tmp_path / "noise" / "rain" / "noise.wav").unlink()
    (tmp_path / "lists" / "noise_test.json").unlink()
    capsys.readouterr()
    assert prepare_noise.main(command) == 2
    assert "none of 2 recordings for valid" in only_line(capsys.readouterr().err)
    assert not (tmp_path / "lists" / "noise_test.json").exists()
    assert prepare_noise.main([*command, "--valid_fraction", "0", "--test_fraction", "0"]) == 0


def test_masked_runs() -> None:
    assert face_shards.masked_runs(np.array([True, False, False, True, False])) == [[1, 3], [4, 5]]
    assert face_shards.masked_runs(np.ones(4, bool)) == [] and prepare_faces.masked_runs(np.zeros(3, bool)) == [[0, 3]]


def prepare(folder: Path, *more: str) -> int:
    return prepare_faces.main([
        "--list", str(folder / "in.json"), "--output_dir", str(folder / "crops"),
        "--output_list", str(folder / "out.json"), "--workers", "1", "--face_size", "48", *more,
    ])  # fmt: skip


def test_crops_are_written_once_with_their_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = voice(1.0)
    (tmp_path / "s1").mkdir()
    write_clip(tmp_path / "s1" / "a.mp4", face_crops(25, 96), sound)
    other = clip(tmp_path / "s2" / "a.mpg", 0.6)
    soundfile.write(tmp_path / "b.wav", voice(0.6, 16000, seed=5), 16000)
    entries = [
        {"video": str(tmp_path / "s1" / "a.mp4")},
        {"video": str(other), "audio": str(tmp_path / "b.wav")},
        {"video": str(tmp_path / "gone.mpg")},
    ]
    (tmp_path / "in.json").write_text(json.dumps(entries))
    assert prepare(tmp_path, "--face_crop", "center") == 1  # a clip is missing: said, and the others are done
    assert "gone.mpg" in capsys.readouterr().out and "gone.mpg" in (tmp_path / "crops" / "in_skipped.csv").read_text()
    written = [Path(entry["video"]) for entry in read(tmp_path / "out.json")]
    assert len(set(written)) == 2
    crops, mask = load_video_frames(written[0], face_size=48)
    direct, _ = load_video_frames(entries[0]["video"], face_size=48, face_crop="center")
    assert mask.all() and crops.shape == direct.shape == (25, 48, 48, 3)
    assert np.abs(crops.astype(int) - direct).mean() < 12  # chroma is halved; a shift by one frame would be far more
    assert np.abs(load_audio(written[0]) - sound).max() < 1e-4
    assert np.abs(load_audio(written[1]) - load_audio(tmp_path / "b.wav")).max() < 1e-4
    times = [path.stat().st_mtime_ns for path in written]
    written[1].unlink()
    prepare(tmp_path, "--face_crop", "center")
    assert written[0].stat().st_mtime_ns == times[0] and written[1].is_file()
    assert not list((tmp_path / "crops").rglob(".*"))  # no temporary files


def test_frames_without_a_face_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip(tmp_path / "s1" / "a.mpg", 0.6)
    (tmp_path / "in.json").write_text(json.dumps([{"video": str(tmp_path / "s1" / "a.mpg")}]))
    assert prepare(tmp_path, "--face_crop", "haar") == 0
    (entry,) = read(tmp_path / "out.json")
    assert entry["mask"][0][0] == 0 and entry["mask"][-1][1] in (15, 16)
    assert load_video_frames(entry["video"], face_size=48)[0].max() < 8
    assert "1 clips without any" in capsys.readouterr().out
    prepare(tmp_path, "--face_crop", "haar")
    assert read(tmp_path / "out.json") == [entry]  # also when nothing had to be done again


def test_the_detector_names_the_crops_and_not_the_option_that_chose_it(tmp_path: Path, monkeypatch) -> None:
    clip(tmp_path / "s1" / "a.mpg", 0.6)
    (tmp_path / "in.json").write_text(json.dumps([{"video": str(tmp_path / "s1" / "a.mpg")}]))
    assert prepare(tmp_path, "--face_crop", "haar") == 0
    by_name = stems(tmp_path / "out.json")
    monkeypatch.setattr(prepare_faces, "settle_method", lambda _: settle_method("haar"))  # as where YuNet is not to be had
    assert prepare(tmp_path, "--face_crop", "auto") == 0 and stems(tmp_path / "out.json") == by_name
    monkeypatch.undo()
    assert prepare(tmp_path, "--face_crop", "center") == 0 and stems(tmp_path / "out.json") != by_name


def dies_of_b(task: tuple) -> tuple:
    if Path(task[0]["video"]).stem == "b":
        os._exit(9)
    return CLIP_JOB(task)


def test_a_process_that_is_killed_costs_its_clip_only(tmp_path: Path, monkeypatch, capsys) -> None:
    entries = [{"video": str(clip(tmp_path / "s1" / f"{name}.mpg"))} for name in "abc"]
    (tmp_path / "in.json").write_text(json.dumps(entries))
    with monkeypatch.context() as patch:
        patch.setattr(prepare_faces, "_clip_job", dies_of_b)
        assert prepare(tmp_path, "--face_crop", "center", "--workers", "2") == 1
    assert [stem[0] for stem in stems(tmp_path / "out.json")] == ["a", "c"]
    assert "b.mpg: its process crashed or was killed" in capsys.readouterr().out
    assert prepare(tmp_path, "--face_crop", "center", "--workers", "2") == 0  # the next run makes up for it
    assert [stem[0] for stem in stems(tmp_path / "out.json")] == ["a", "b", "c"]


def test_crops_have_the_same_names_wherever_the_same_layout_lies(tmp_path: Path) -> None:
    names = []
    for folder in (tmp_path / "one", tmp_path / "two" / "deeper"):
        entries = [{"video": str(clip(folder / part / "s1" / "a.mpg"))} for part in ("x", "y")]
        (folder / "in.json").write_text(json.dumps(entries))
        assert prepare(folder, "--face_crop", "center") == 0
        names.append(stems(folder / "out.json"))
    assert names[0] == names[1] and len(set(names[0])) == 2
    (tmp_path / "linked").mkdir()
    (tmp_path / "one" / "crops").rename(tmp_path / "linked" / "elsewhere")
    (tmp_path / "one" / "crops").symlink_to(tmp_path / "linked" / "elsewhere")  # as to a larger disk
    assert prepare(tmp_path / "one", "--face_crop", "center") == 0 and stems(tmp_path / "one" / "out.json") == names[0]


def test_wrong_lists_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in (("[]", "no entries"), ("[1]", "entry 0"), ("{", "not a JSON list")):
        (tmp_path / "in.json").write_text(content)
        assert prepare(tmp_path) == 2
        assert said in capsys.readouterr().err


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data is not here")
def test_shared_grid_and_noise(tmp_path: Path) -> None:
    out = ["--output_dir", str(tmp_path)]
    speakers = ["--train_speakers", "s1", "s2", "s3", "s4", "--valid_speakers", "s5"]
    assert make_grid_json.main(["--grid_root", str(SHARED_DATA / "grid" / "raw"), *out, *speakers]) == 0
    assert len(read(tmp_path / "grid_train.json")) == 80 and len(read(tmp_path / "grid_valid.json")) == 20
    assert prepare_noise.main(["--noise_dirs", str(SHARED_DATA / "noise"), *out]) == 0
    assert len(read(tmp_path / "noise_train.json")) > 130
