"""Shards: written whole or not at all, read in runs, and trained on like lists, to the same items and the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset
import yaml
from torch.utils.data import DataLoader

import train_lite
from data import prepare_faces
from data.tools import face_shards
from dataloaders import clip_sources as clips_module
from dataloaders.clip_sources import ShardClips, open_clips
from dataloaders.dataloader_av import AVDataset, AVItem
from helpers.paths import LONGEST_SEC, ROOT
from helpers.tiny import all_files, face_crops, only_line, tiny_config, voice
from utils.checkpoint import latest_pair, load_checkpoint
from utils.media.clip_writer import write_clip
from utils.media.decode import MediaError
from utils.media.shards import decode_crops, encode_clip, find_shards, read_clips, read_index
from utils.training.epoch_order import GROUP_RUNS, epoch_order, run_order
from utils.util import write_json

SIZE = 48
N_CLIPS = 7
CFG = tiny_config(
    training_cfg={"segment_size": 8000, "snr_range": [-5, 5], "video_dropout": 0.2},
    visual_cfg={"face_size": SIZE, "visual_dim": 32},
)


def prepare(folder: Path, *more: str, crops: str = "center") -> int:
    return prepare_faces.main([
        "--list", str(folder / "clips.json"), "--output_dir", str(folder / "shards"), "--format", "shards", "--workers", "1",
        "--face_size", str(SIZE), "--clips_per_shard", "3", "--face_crop", crops, *more,
    ])  # fmt: skip


def make_list(folder: Path, count: int = N_CLIPS) -> Path:
    """Clips of one to two seconds, a list of them, and a list of two noises."""
    for k in range(count):
        path = folder / f"s{k % 2}" / f"take.{k}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = (1.0, 1.4, 2.0)[k % 3]
        write_clip(path, face_crops(round(25 * seconds), 96, k), voice(seconds, seed=k))
    entries = [{"video": f"s{k % 2}/take.{k}.mp4", "speaker": f"s{k % 2}"} for k in range(count)]
    write_json(folder / "clips.json", entries)
    for k in range(2):
        soundfile.write(folder / f"noise{k}.wav", 0.1 * np.random.default_rng(k).standard_normal(24000), 16000)
    write_json(folder / "noise.json", ["noise0.wav", "noise1.wav"])
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips in three shards, and a list of the same crops and sounds as files."""
    folder = make_list(tmp_path_factory.mktemp("corpus"))
    assert prepare(folder) == 0
    entries = []
    for shard in find_shards(folder / "shards", "key"):
        for key, members in read_clips(shard.path, 0, shard.path.stat().st_size).items():
            paths = {kind: folder / "unpacked" / f"{key}.{suffix}" for kind, suffix in (("video", "mp4"), ("audio", "flac"))}
            for kind, path in paths.items():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(members[{"video": "mp4", "audio": "flac"}[kind]])
            entries.append({**{kind: str(path) for kind, path in paths.items()}, "mask": json.loads(members["json"])["mask"]})
    write_json(folder / "crops.json", entries)
    return folder


def equal(a: AVItem, b: AVItem) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Writing -------------------------------------------------------------------------------------------------------------


def test_shards_are_what_webdataset_reads(corpus: Path) -> None:
    names = sorted(path.name for path in (corpus / "shards").iterdir())
    shards = [f"clips-00000{k}" for k in range(3)]
    assert names == sorted([f"{name}{suffix}" for name in shards for suffix in (".tar", ".json")] + ["clips_skipped.csv"])
    samples = list(webdataset.WebDataset(str(corpus / "shards" / "clips-{000000..000002}.tar"), shardshuffle=False))
    assert len(samples) == N_CLIPS and samples[3]["__key__"].startswith("00000003_") and "." not in samples[3]["__key__"]
    for k, sample in enumerate(samples):
        note = json.loads(sample["json"])
        seconds = (1.0, 1.4, 2.0)[k % 3]
        assert note["n_frames"] == 25 * seconds and note["n_samples"] == 16000 * seconds and note["speaker"] == f"s{k % 2}"
        assert note["face_share"] == 1.0 and note["mask"] == [] and 0 <= note["jitter_px"] < SIZE
        assert note["video"].endswith(f"take.{k}.mp4")
    index = json.loads((corpus / "shards" / "clips-000001.json").read_text())
    with tarfile.open(corpus / "shards" / "clips-000001.tar") as tar:
        firsts = [member.offset for member in tar if member.name.endswith(".flac")]
    assert [first for _, first, _ in index["clips"]] == firsts and index["detector"] == "center"


def test_finished_shards_are_kept_and_changed_ones_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_list(tmp_path, 5)
    entries = json.loads((tmp_path / "clips.json").read_text())
    write_json(tmp_path / "clips.json", [*entries, {"video": "gone.mp4"}])
    assert prepare(tmp_path) == 1
    assert "5 clips" in (said := capsys.readouterr().out) and "gone.mp4: gone.mp4 does not exist" in said
    shards = tmp_path / "shards"
    times = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    (shards / ".unfinished-abc.tar").write_bytes(b"what a killed run was writing")
    (shards / "clips-000000.json").unlink()  # killed between the shard and its index
    assert prepare(tmp_path) == 1 and "gone.mp4" in capsys.readouterr().out
    again = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert again["clips-000001.tar"] == times["clips-000001.tar"] and again["clips-000000.tar"] > times["clips-000000.tar"]
    assert not list(shards.glob(".*"))
    write_json(tmp_path / "clips.json", [*entries, *entries[:1]])
    assert prepare(tmp_path) == 0
    assert [len(shard.clips) for shard in find_shards(shards, "key")] == [3, 3]
    assert prepare(tmp_path, "--clips_per_shard", "6") == 2
    assert "clips-000001.tar" in only_line(capsys.readouterr().err)


def test_a_killed_run_leaves_no_half_shard_and_goes_on(tmp_path: Path) -> None:
    make_list(tmp_path, 6)
    command = [
        sys.executable, "-m", "data.prepare_faces", "--list", str(tmp_path / "clips.json"), "--format", "shards",
        "--output_dir", str(tmp_path / "shards"), "--workers", "1", "--face_size", str(SIZE), "--clips_per_shard", "1",
        "--face_crop", "center",
    ]  # fmt: skip
    root = ROOT
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + LONGEST_SEC
    while time.monotonic() < end and not list((tmp_path / "shards").glob("clips*.tar")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = list((tmp_path / "shards").glob("clips*.json"))
    for path in done:
        shard = read_index(path.with_suffix(".tar"), "key")
        assert len(read_clips(shard.path, *shard.clips[0][1:])) == 1
    (tmp_path / "shards" / ".unfinished-abc.csv").touch()  # as one leaves it that is killed in its last moment
    assert prepare(tmp_path, "--clips_per_shard", "1") == 0
    assert len(find_shards(tmp_path / "shards", "key")) == 6 and not list((tmp_path / "shards").glob(".*"))


def test_a_full_disk_is_no_clips_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    make_list(tmp_path, 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(face_shards, "write_shard", full)
    assert prepare(tmp_path) == 2
    assert "No space left" in only_line(capsys.readouterr().err)
    assert not all_files(tmp_path / "shards")


def test_jitter_is_how_far_the_crop_jumps() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    big = np.kron(picture, np.ones((4, 4, 1))).astype(np.uint8)
    still = np.stack([big[20:116, 20:116]] * 6)
    shaken = np.stack([big[20:116, 20 + 3 * (k % 2) : 116 + 3 * (k % 2)] for k in range(6)])
    mask = np.ones(6, bool)
    assert face_shards.jitter_px(still, mask) < 0.05 and face_shards.jitter_px(shaken, mask) == pytest.approx(3, abs=0.3)
    assert face_shards.jitter_px(shaken, np.arange(6) % 2 == 0) == 0


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_bytes", [1, 60_000, 1 << 30])
def test_items_are_those_of_the_same_crops_in_a_list(corpus: Path, monkeypatch: pytest.MonkeyPatch, run_bytes: int) -> None:
    monkeypatch.setattr(clips_module, "RUN_BYTES", run_bytes)
    listed = AVDataset(corpus / "crops.json", corpus / "noise.json", CFG)
    sharded = AVDataset(corpus / "shards", corpus / "noise.json", CFG)
    assert len(listed) == len(sharded) == N_CLIPS and listed.runs is None
    assert [i for run in sharded.runs for i in run] == list(range(N_CLIPS))
    for epoch in range(3):
        listed.set_epoch(epoch)
        sharded.set_epoch(epoch)
        assert all(equal(listed[k], sharded[k]) for k in (3, 0, 6, 1, 5, 2, 4))
    valid = [AVDataset(corpus / name, corpus / "noise.json", CFG, "valid") for name in ("crops.json", "shards/*.tar")]
    assert all(equal(valid[0][k], valid[1][k]) for k in range(N_CLIPS)) and not listed.failures | sharded.failures


def test_both_formats_of_prepare_faces_give_the_same_items(corpus: Path) -> None:
    more = ["--output_list", str(corpus / "out.json"), "--output_dir", str(corpus / "crops")]
    assert prepare(corpus, "--format", "clips", *more) == 0
    listed, sharded = (AVDataset(corpus / name, corpus / "noise.json", CFG) for name in ("out.json", "shards"))
    assert all(equal(listed[k], sharded[k]) for k in range(N_CLIPS))


def test_items_are_nearly_those_of_the_raw_clips(corpus: Path) -> None:
    """Other pictures only by what H.264 loses, the very same sound, noise, windows and masks."""
    cfg = {**CFG, "visual_cfg": {**CFG["visual_cfg"], "face_crop": "center"},
           "training_cfg": {**CFG["training_cfg"], "visual_degradation": False}}  # fmt: skip
    raw, sharded = (AVDataset(corpus / name, corpus / "noise.json", cfg) for name in ("clips.json", "shards"))
    for k in range(N_CLIPS):
        a, b = raw[k], sharded[k]
        assert torch.allclose(a.noisy_audio, b.noisy_audio, atol=1e-3) and torch.equal(a.video_mask, b.video_mask)
        assert float((a.video.float() - b.video.float()).abs().mean()) < 7.5


def test_windows_past_the_last_picture_are_as_in_a_list(corpus: Path) -> None:
    listed, sharded = (open_clips(corpus / name, "key", CFG)[0] for name in ("crops.json", "shards"))
    for first, count in ((0, 25), (7, 30), (24, 3), (20, 10)):
        for a, b in zip(listed.frames(first, count), sharded.frames(first, count), strict=True):
            assert np.array_equal(a, b)
    assert not sharded.frames(40, 5)[1].any()


def test_masked_frames_travel_with_the_clip() -> None:
    crops = face_crops(10, SIZE)
    members = encode_clip(crops, voice(0.4), 16000, 25.0, {"mask": [[2, 5]]})
    frames, mask = clips_module.ShardClip("clip", lambda: members, CFG).frames(1, 6)
    assert mask.tolist() == [True, False, False, False, True, True]
    assert np.abs(frames[0].astype(int) - crops[1]).mean() < 8
    with pytest.raises(MediaError, match="do not decode"):
        decode_crops(members["mp4"][:300], 0, 5, 10, 25.0, SIZE)


def test_clips_are_encoded_without_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody would remove those of killed runs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert decode_crops(encode_clip(face_crops(3, SIZE), voice(0.12), 16000, 25.0, {})["mp4"], 0, 3, 3, 25.0, SIZE)[1].all()


def test_damage_costs_the_clips_it_hits(corpus: Path, tmp_path: Path) -> None:
    for path in (corpus / "shards").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = read_index(tmp_path / "clips-000001.tar", "key")
    content = bytearray(shard.path.read_bytes())
    content[shard.clips[0][1] : shard.clips[0][1] + 512] = bytes(np.random.default_rng(0).bytes(512))
    shard.path.write_bytes(content)
    data = AVDataset(tmp_path, corpus / "noise.json", CFG)
    for k in range(N_CLIPS):
        assert torch.isfinite(data[k].noisy_mag).all()
    assert len(data.failures) == 3 and all("clips-000001.tar" in name for name in data.failures)


def test_the_recipe_is_told_what_is_wrong_with_its_shards(corpus: Path, tmp_path: Path) -> None:
    noise = corpus / "noise.json"
    for source, said in (
        (tmp_path, "train_data_json: folder .* holds no shards"), (tmp_path / "no-{0..2}.tar", r"no-0\.tar does not exist"),
        (tmp_path / "*.tar", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=said):
            AVDataset(source, noise, CFG)
    (tmp_path / "a.tar").write_bytes((corpus / "shards" / "clips-000000.tar").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"no index a\.json"):
        AVDataset(tmp_path, noise, CFG)
    (tmp_path / "a.json").write_text((corpus / "shards" / "clips-000000.json").read_text())
    (tmp_path / "a.tar").write_bytes((corpus / "shards" / "clips-000000.tar").read_bytes()[:40_000])
    with pytest.raises(ValueError, match="shorter than its index says"):
        AVDataset(tmp_path, noise, CFG)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json is no index"):
        AVDataset(tmp_path, noise, CFG)
    other = {**CFG, "visual_cfg": {**CFG["visual_cfg"], "face_size": 96}}
    with pytest.raises(ValueError, match="made with face_size 48, the recipe's is 96"):
        AVDataset(corpus / "shards", noise, other)


def test_each_run_is_read_once_an_epoch(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, int]] = []
    read = clips_module.read_clips

    def counted(path: Path, first: int, size: int) -> dict:
        reads.append((path.name, first))
        return read(path, first, size)

    monkeypatch.setattr(clips_module, "RUN_BYTES", 1)
    monkeypatch.setattr(clips_module, "read_clips", counted)
    clips = ShardClips(corpus / "shards", "key", CFG)
    assert len(clips.runs) == N_CLIPS > GROUP_RUNS
    for index in run_order(clips.runs, None, 1, 0, 1, 1, 1):
        clips[index].sound()
        assert len(clips._loaded) <= GROUP_RUNS
    assert len(reads) == len(set(reads)) == N_CLIPS


# Order and training --------------------------------------------------------------------------------------------------

RUNS = [range(10 * k, 10 * k + 10) for k in range(24)]


@pytest.mark.parametrize("dealt", [(4, 1, 0), (4, 1, 3), (6, 2, 2), (8, 4, 1), (240, 1, 2), (7, 1, 2)])
def test_an_epoch_has_every_item_once_and_each_reader_few_runs_at_a_time(dealt: tuple[int, int, int]) -> None:
    batch, processes, workers = dealt
    order = run_order(RUNS, None, 5, 3, *dealt)
    assert order == run_order(RUNS, None, 5, 3, *dealt) != run_order(RUNS, None, 5, 4, *dealt)
    assert len(order) == 240 // batch * batch == len(set(order))
    table = np.array(order).reshape(-1, processes, batch // processes)
    read = 0
    for process in range(processes):
        for worker in range(max(1, workers)):
            runs = table[worker :: max(1, workers), process].ravel() // 10
            last_seen = {int(run): k for k, run in enumerate(runs)}
            first_seen = {int(run): k for k, run in reversed(list(enumerate(runs)))}
            at_once = [sum(first_seen[run] <= k <= last_seen[run] for run in last_seen) for k in range(len(runs))]
            assert max(at_once, default=0) <= GROUP_RUNS
            read += len(last_seen)
    assert read <= len(RUNS) + processes * max(1, workers)
    shuffled = np.diff(order[: 10 * GROUP_RUNS])
    assert (shuffled == 1).mean() < 0.5


def test_shorter_and_longer_epochs() -> None:
    assert len(set(run_order(RUNS, 33, 0, 0, 4, 1, 2))) == 32
    counts = np.bincount(run_order(RUNS, 600, 0, 0, 4, 1, 2), minlength=240)
    assert counts.sum() == 600 and counts.min() >= 2 and counts.max() <= 3
    assert run_order(RUNS, 3, 0, 0, 4, 1, 1) == []
    assert sorted(epoch_order(5, None, 0, 0)) == list(range(5))


def test_workers_give_the_same_items(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips_module, "RUN_BYTES", 60_000)
    data = AVDataset(corpus / "shards", corpus / "noise.json", CFG)
    order = run_order(data.runs, None, 1, 0, 1, 1, 2)
    items = list(DataLoader(data, batch_size=None, sampler=order, num_workers=2))
    again = AVDataset(corpus / "shards", corpus / "noise.json", CFG)
    assert all(equal(item, again[index]) for index, item in zip(order, items, strict=True))


def test_training_on_shards_resumes_bit_for_bit(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, stopped between checkpoints and in the middle of epochs of three batches; as with lists (test_training)."""
    monkeypatch.setattr(clips_module, "RUN_BYTES", 60_000)
    recipe = {
        "env_setting": {"num_workers": 2, "seed": 7, "stdout_interval": 1, "checkpoint_interval": 2,
                        "validation_interval": 1000},
        "data_cfg": {"train_data_json": str(corpus / "shards" / "clips-{000000..000002}.tar"),
                     "valid_data_json": str(corpus / "shards"),
                     "train_noise_json": str(corpus / "noise.json"), "valid_noise_json": str(corpus / "noise.json")},
        "training_cfg": {"batch_size": 2, "segment_size": 4000, "max_steps": 5, "valid_clips": 1, "loss": {"si_sdr": 0.03}},
        "model_cfg": {"hid_feature": 8, "num_tfmamba": 1, "d_state": 4, "expand": 2, "causal": True},
        "visual_cfg": {"visual_dim": 32, "face_size": SIZE}, "lite_cfg": {"visual_encoder_type": "custom3d"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def train(name: str, steps: int) -> None:
        assert train_lite.main([
            "--config", str(tmp_path / "recipe.yaml"), "--exp_folder", str(tmp_path), "--exp_name", name, "--device", "cpu",
            "--override", f"training_cfg.max_steps={steps}",
        ]) == 0  # fmt: skip

    def log(name: str) -> list[dict]:
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "step_sec"} for line in lines if line["kind"] == "train"]

    train("whole", 5)
    for steps in (1, 4, 5):
        train("parts", steps)
    assert log("whole") == log("parts") and len(log("whole")) == 5
    whole, parts = (load_checkpoint(latest_pair(tmp_path / name)[0])["generator"] for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
