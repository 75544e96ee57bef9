"""Test sets: the manifest says everything, mixtures are as it says, and the same seed gives the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dataloaders.mixing import active_samples, snr_db
from evaluation import make_testset
from evaluation.testset.manifest import NOISE, TALKERS, load_speech, mix, read_manifest, sum_maskers
from helpers.corpus import make_corpus
from helpers.tiny import bytes_file, only_line, wav_file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


def make(corpus: Path, output: Path, *more: str) -> int:
    lists = ["--test_json", str(corpus / "clips.json"), "--noise_json", str(corpus / "noise.json")]
    return make_testset.main([*lists, "--output", str(output), *more])


def test_mixtures_hit_their_snr(corpus: Path, tmp_path: Path) -> None:
    assert make(corpus, tmp_path / "set.json", "--snr_db", "-15", "0", "20") == 0
    testset = read_manifest(tmp_path / "set.json")
    assert len(testset.samples) == 4 * 3 * 3
    assert {sample.kind for sample in testset.samples} == {NOISE, *TALKERS}
    for sample in testset.samples:
        made = mix(sample, testset.max_sec)
        found = snr_db(made.clean, made.noisy.astype(np.float64) - made.clean)
        assert found == pytest.approx(sample.snr_db, abs=0.01), sample.sample_id


def test_a_seed_fixes_every_bit(corpus: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        make(corpus, tmp_path / f"{name}.json", "--snr_db", "0", "5", "--seed", seed)
    content = {name: (tmp_path / f"{name}.json").read_bytes() for name in "abc"}
    assert content["a"] == content["b"]
    prints = {}
    for name in "abc":
        testset = read_manifest(tmp_path / f"{name}.json")
        prints[name] = [mix(sample, testset.max_sec).fingerprint for sample in testset.samples]
    assert prints["a"] == prints["b"]
    assert not set(prints["a"]) & set(prints["c"])
    assert len(set(prints["a"])) == len(prints["a"])


def test_draws_do_not_depend_on_what_else_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    make(corpus, tmp_path / "all.json", "--snr_db", "-5", "0", "5")
    make(corpus, tmp_path / "some.json", "--snr_db", "0", "--kinds", "one_speaker")
    everything = {sample.sample_id: sample for sample in read_manifest(tmp_path / "all.json").samples}
    for sample in read_manifest(tmp_path / "some.json").samples:
        assert everything[sample.sample_id] == sample
    # One recording from one place on at every SNR: the curve compares like with like.
    drawn = {(sample.clip, sample.kind): set() for sample in everything.values()}
    for sample in everything.values():
        drawn[sample.clip, sample.kind].add((sample.maskers, sample.seed))
    assert {len(each) for each in drawn.values()} == {1}


def test_voices_that_disturb_are_other_peoples_and_equally_loud(corpus: Path, tmp_path: Path) -> None:
    make(corpus, tmp_path / "set.json", "--snr_db", "0", "--kinds", "one_speaker", "three_speakers")
    for sample in read_manifest(tmp_path / "set.json").samples:
        assert len(sample.maskers) == {"one_speaker": 1, "three_speakers": 3}[sample.kind]
        assert len({masker.path for masker in sample.maskers}) == len(sample.maskers)
        assert all(Path(masker.path).parent.name != sample.speaker for masker in sample.maskers)
        assert Path(sample.other_video).parent.name != sample.speaker
        if sample.kind == "three_speakers":
            length = len(load_speech(sample.audio, 10))
            total = sum_maskers(sample.maskers, length)
            for masker in sample.maskers:
                rest = tuple(each for each in sample.maskers if each != masker)
                alone = total - sum_maskers(rest, length)
                assert np.mean(np.square(alone[active_samples(alone)])) == pytest.approx(1, abs=0.02)


def test_three_speakers_are_three_people(tmp_path: Path, capsys) -> None:
    clips, _ = make_corpus(tmp_path, clips_per_speaker=4)
    items = json.loads(clips.read_text())
    wordy = [item for item in items if "ann" in item["video"]] + [item for item in items if "take0" in item["video"]]
    clips.write_text(json.dumps(wordy))  # one person's clips are more than all others'
    command = ["--snr_db", "0", "--kinds", "three_speakers"]
    assert make(tmp_path, tmp_path / "set.json", *command) == 0
    testset = read_manifest(tmp_path / "set.json")
    for sample in testset.samples:
        assert len({Path(masker.path).parent.name for masker in sample.maskers}) == 3
    assert "one person" not in testset.note
    clips.write_text(json.dumps([item for item in items if "ann" in item["video"] or "bob" in item["video"]]))
    assert make(tmp_path, tmp_path / "few.json", *command) == 0
    few = read_manifest(tmp_path / "few.json")
    assert all(len({masker.path for masker in sample.maskers}) == 3 for sample in few.samples)
    assert "several voices of one person for 8 clips" in few.note and few.note in capsys.readouterr().out


def room_list(folder: Path) -> str:
    """A list of one impulse response: direct sound, then noise that decays by 60 dB in 0.8 s."""
    rng = np.random.default_rng(0)
    room = rng.standard_normal(8000) * 10 ** (-3 * np.arange(8000) / 6400)
    room[0] = 30
    soundfile.write(folder / "room.wav", 0.03 * room, 16000, subtype="FLOAT")
    (folder / "rooms.json").write_text(json.dumps(["room.wav"]))
    return str(folder / "rooms.json")


def test_noise_in_a_room_is_the_noise_without_one_but_for_the_room(corpus: Path, tmp_path: Path) -> None:
    command = ["--snr_db", "0", "--room_share", "0", "--kinds", "noise", "noise_in_room"]
    make(corpus, tmp_path / "set.json", *command, "--rir_json", room_list(tmp_path))
    samples = read_manifest(tmp_path / "set.json").samples
    wet, dry = ([s for s in samples if (s.room is not None) == in_room] for in_room in (True, False))
    assert {s.kind for s in wet} == {"noise_in_room"} and {s.kind for s in dry} == {"noise"}
    assert [(s.clip, s.maskers) for s in wet] == [(s.clip, s.maskers) for s in dry] and len(wet) == 4


def test_in_a_room_the_target_keeps_its_early_part(corpus: Path, tmp_path: Path) -> None:
    make(corpus, tmp_path / "wet.json", "--snr_db", "60", "--rir_json", room_list(tmp_path), "--room_share", "1",
         "--kinds", "noise")  # fmt: skip
    for sample in read_manifest(tmp_path / "wet.json").samples:
        made, dry = mix(sample, 10), load_speech(sample.audio, 10)
        assert Path(sample.room).name == "room.wav"
        assert np.corrcoef(made.clean, dry)[0, 1] > 0.8
        assert 5 < snr_db(made.clean, made.noisy.astype(np.float64) - made.clean) < 40  # the late part is no target


def test_a_manifest_may_move_with_its_data(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "one")
    make(tmp_path / "one", tmp_path / "one" / "set.json", "--snr_db", "0")
    before = [mix(sample, 10).fingerprint for sample in read_manifest(tmp_path / "one" / "set.json").samples]
    (tmp_path / "one").rename(tmp_path / "two")
    assert [mix(sample, 10).fingerprint for sample in read_manifest(tmp_path / "two" / "set.json").samples] == before


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(corpus: Path, tmp_path: Path, capsys) -> None:
    clips = [str(corpus / item["video"]) for item in json.loads((corpus / "clips.json").read_text())]
    broken, silent = bytes_file(tmp_path / "broken.wav", b"no sound"), wav_file(tmp_path / "silent.wav", np.zeros(16000))
    (tmp_path / "clips.json").write_text(json.dumps([{"audio": str(broken)}, *clips, str(silent)]))
    (tmp_path / "noise.json").write_text(json.dumps([str(corpus / "noise0.wav"), "absent.wav", "absent.wav", "absent.wav"]))
    assert make(tmp_path, tmp_path / "set.json", "--snr_db", "0", "--kinds", "noise") == 1
    said = capsys.readouterr()
    assert "broken.wav" in said.err and "silent.wav is silent" in said.err and "absent.wav" in said.err
    testset = read_manifest(tmp_path / "set.json")
    assert len(testset.samples) == len(clips)
    assert {Path(name).name for name in testset.left_out} == {"broken.wav", "silent.wav", "absent.wav"}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--noise_json", "nowhere.json"], "nowhere.json"),
        (["--snr_db", "0", "0"], "--snr_db"),
        (["--snr_db", "nan"], "--snr_db"),
        (["--clips", "0"], "--clips"),
        (["--visual", "sepia"], "sepia"),
        (["--kinds", "noise_in_room"], "--rir_json"),
        (["--max_sec", "100"], "--max_sec"),
        (["--test_json", ""], "--test_json"),
    ],
)
def test_mistakes_are_one_line(corpus: Path, tmp_path: Path, more: list[str], word: str, capsys) -> None:
    assert make(corpus, tmp_path / "set.json", *more) == 2
    assert word in only_line(capsys.readouterr().err)
    assert not (tmp_path / "set.json").exists()


@pytest.mark.parametrize("mask", [5, [[1, 2, 3]], ["ab"], [[None, 4]], [{"first": 1}]])
def test_a_mask_that_is_none_is_one_line(corpus: Path, tmp_path: Path, mask: object, capsys) -> None:
    video = str(corpus / json.loads((corpus / "clips.json").read_text())[0]["video"])
    (tmp_path / "clips.json").write_text(json.dumps([{"video": video, "mask": [[0, 2]]}, {"video": video, "mask": mask}]))
    assert make(corpus, tmp_path / "set.json", "--test_json", str(tmp_path / "clips.json")) == 2
    assert '"mask" of entry 1' in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', '{"version": 99, "samples": []}'])
def test_other_files_are_no_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(ValueError, match="set.json is no manifest"):
        read_manifest(tmp_path / "set.json")
    with pytest.raises(FileNotFoundError, match=r"evaluation\.make_testset"):
        read_manifest(tmp_path / "absent.json")
