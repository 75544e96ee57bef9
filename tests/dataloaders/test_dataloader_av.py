"""AVDataset: one window of sound and picture, reproducible draws, and what happens to clips that cannot be read."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from dataloaders.augment_rir import RIRAugmentor
from dataloaders.augment_video import VisualDegradation
from dataloaders.clip_dataset import UnreadableClip
from dataloaders.dataloader_av import AVDataset, AVItem, ListError
from dataloaders.mixing import snr_db
from evaluation.validation import Validation
from helpers.paths import SHARED_DATA
from helpers.tiny import face_crops, tiny_config, tiny_model, voice, write_mpg
from models.inference.enhancer import Enhancer
from utils.media.clip_writer import write_clip
from utils.media.sound import load_audio

SIZE = 32
CLEAN = VisualDegradation({"none": 1.0})


def config(**training: object) -> dict:
    return tiny_config(
        training_cfg={"segment_size": 8000, "valid_snrs_db": [0.0, 5.0], "crop_jitter": False, **training},
        visual_cfg={"face_size": SIZE, "visual_dim": 32},
    )


def noises(folder: Path) -> Path:
    rng = np.random.default_rng(5)
    for k, seconds in enumerate((0.2, 1.7)):  # one shorter than a window, one longer
        soundfile.write(folder / f"noise{k}.wav", 0.05 * rng.standard_normal(round(16000 * seconds)), 16000)
    (folder / "noise.json").write_text(json.dumps(["noise0.wav", "noise1.wav"]))
    return folder / "noise.json"


def listed(folder: Path, entries: list) -> Path:
    (folder / "clips.json").write_text(json.dumps(entries))
    return folder / "clips.json"


def timed_clip(path: Path, n_frames: int = 50, fps: float = 25.0) -> Path:
    """Frame k is grey with level 20 + 4k; sound sample n is the ramp 0.1 + 0.8 n / L."""
    frames = np.stack([np.full((SIZE, SIZE, 3), 20 + 4 * k, np.uint8) for k in range(n_frames)])
    length = round(16000 * n_frames / fps)
    write_clip(path, frames, 0.1 + 0.8 * np.arange(length) / length, fps=fps)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three clips of different voices and pictures, 1 to 2 s, one of them with a separate sound file."""
    folder = tmp_path_factory.mktemp("corpus")
    for k, seconds in enumerate((1.0, 1.4, 2.0)):
        write_clip(folder / f"clip{k}.mp4", face_crops(round(25 * seconds), 48, k)[:, :SIZE, :SIZE], voice(seconds, seed=k))
    soundfile.write(folder / "other.wav", voice(1.4, 44100, seed=9), 44100)
    entries = [{"video": "clip0.mp4"}, {"video": "clip1.mp4", "audio": "other.wav"}, {"video": str(folder / "clip2.mp4")}]
    return listed(folder, entries), noises(folder)


def equal(a: AVItem, b: AVItem) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_shapes_names_and_types(corpus: tuple[Path, Path]) -> None:
    item = AVDataset(*corpus, config())[0]
    assert item._fields[:7] == (
        "clean_audio", "clean_mag", "clean_pha", "clean_com", "noisy_mag", "noisy_pha", "video"
    )  # fmt: skip
    assert item.clean_audio.shape == item.noisy_audio.shape == item.gain.shape == (8000,)
    assert item.clean_mag.shape == item.clean_pha.shape == item.noisy_mag.shape == item.noisy_pha.shape == (201, 81)
    assert item.clean_com.shape == (201, 81, 2)
    assert item.video.shape == (3, 13, SIZE, SIZE) and item.video_mask.shape == item.corruption.shape == (13,)
    assert item.video_mask.dtype == torch.bool and item.video.dtype == torch.uint8 and item.video.max() > 100
    others = [x for name, x in item._asdict().items() if not name.startswith("video")]
    assert all(x.dtype == torch.float32 and torch.isfinite(x).all() for x in others)
    assert torch.allclose(item.clean_com[..., 0], item.clean_mag * torch.cos(item.clean_pha), atol=1e-5)


@pytest.mark.parametrize("fps", [25.0, 50.0])
def test_every_window_shows_the_picture_of_its_sound(tmp_path: Path, fps: float) -> None:
    count = 50
    timed_clip(tmp_path / "a.mp4", count, fps)
    length = round(16000 * count / fps)
    data = AVDataset(
        listed(tmp_path, [{"video": "a.mp4"}]), noises(tmp_path), config(segment_size=6000), visual_augmentation=CLEAN
    )
    starts = set()
    for epoch in range(25):
        data.set_epoch(epoch)
        item = data[0]
        ramp = (item.clean_audio / item.gain).numpy()
        first_sample = (float(ramp.mean()) - 0.1) / 0.8 * length - 2999.5
        first_frame = (float(item.video[:, 0].float().mean()) - 20) / 4 / (fps / 25)
        assert first_sample == pytest.approx(640 * round(first_frame), abs=2)
        shown = (item.video.float().mean(dim=(0, 2, 3)) - 20) / 4 / (fps / 25)
        assert torch.allclose(shown, round(first_frame) + torch.arange(10.0), atol=0.4) and item.video_mask.all()
        starts.add(round(first_frame))
    assert len(starts) > 5


def test_windows_of_long_clips_are_read_without_the_rest_and_line_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataloaders.clip_sources.WHOLE_SEC", 1.0)
    test_every_window_shows_the_picture_of_its_sound(tmp_path, 25.0)


def test_everything_follows_from_seed_epoch_and_index_whatever_the_workers(corpus: tuple[Path, Path]) -> None:
    def epoch_items(data: AVDataset, epoch: int, workers: int) -> list[AVItem]:
        data.set_epoch(epoch)
        return list(DataLoader(data, batch_size=None, num_workers=workers))

    data = AVDataset(*corpus, config())
    first, again, other = epoch_items(data, 0, 0), epoch_items(AVDataset(*corpus, config()), 0, 2), epoch_items(data, 1, 0)
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(equal(a, b) for a, b in zip(first, other, strict=True))
    seeded = {**config(), "env_setting": {**config()["env_setting"], "seed": 7}}
    assert not equal(AVDataset(*corpus, seeded)[0], first[0])


def test_workers_that_stay_hear_of_the_next_epoch(corpus: tuple[Path, Path]) -> None:
    data = AVDataset(*corpus, config())
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        data.set_epoch(epoch)
        assert all(equal(item, data[k]) for k, item in enumerate(loader))


def test_batches_keep_the_names(corpus: tuple[Path, Path]) -> None:
    batch = next(iter(DataLoader(AVDataset(*corpus, config()), batch_size=3)))
    assert isinstance(batch, AVItem) and batch.video.shape == (3, 3, 13, SIZE, SIZE) and batch.noisy_mag.shape == (3, 201, 81)


def test_validation_is_whole_fixed_and_cycles_through_the_ratios(corpus: tuple[Path, Path]) -> None:
    data = AVDataset(*corpus, config(valid_max_sec=1.6), "valid")
    items = [data[k] for k in range(3)]
    data.set_epoch(4)
    assert all(equal(a, data[k]) for k, a in enumerate(items))
    assert [len(item.clean_audio) for item in items] == [16000, 22400, 25600]
    assert [item.video.shape[1] for item in items] == [25, 35, 40]
    for item, wanted in zip(items, (0.0, 5.0, 0.0), strict=True):
        clean, noisy = (item.clean_audio / item.gain).numpy(), (item.noisy_audio / item.gain).numpy()
        assert snr_db(clean, noisy - clean) == pytest.approx(wanted, abs=0.01)
        assert not item.corruption.any()
    assert len(AVDataset(*corpus, config(valid_clips=2), "valid")) == 2


def test_training_ratios_stay_in_their_range(corpus: tuple[Path, Path]) -> None:
    data = AVDataset(*corpus, config(snr_range=[-3.0, 4.0]))
    ratios = []
    for epoch in range(12):
        data.set_epoch(epoch)
        item = data[0]
        clean, noisy = (item.clean_audio / item.gain).numpy(), (item.noisy_audio / item.gain).numpy()
        ratios.append(snr_db(clean, noisy - clean))
    assert -3.01 < min(ratios) < 0 and 1 < max(ratios) < 4.01


def test_clean_and_noisy_get_the_same_gain(corpus: tuple[Path, Path]) -> None:
    item = AVDataset(*corpus, config(), "valid")[0]
    assert float(item.noisy_audio.square().mean().sqrt()) == pytest.approx(1.0, abs=1e-4)
    assert float(item.gain.min()) == float(item.gain.max())
    sound = load_audio(corpus[0].parent / "clip0.mp4")
    assert np.abs((item.clean_audio / item.gain).numpy() - sound).max() < 1e-5
    causal = tiny_config(model_cfg={"causal": True, "norm": "channel"}, visual_cfg={"face_size": SIZE})
    assert float(AVDataset(*corpus, causal, "valid")[0].gain.std()) > 0


def test_a_short_clip_is_padded_and_the_padding_has_no_picture(tmp_path: Path) -> None:
    timed_clip(tmp_path / "a.mp4", 8)
    data = AVDataset(listed(tmp_path, [{"video": "a.mp4"}]), noises(tmp_path), config(), visual_augmentation=CLEAN)
    item = data[0]
    assert item.clean_audio.shape == (8000,) and not item.clean_audio[5120:].any() and item.noisy_audio[5120:].any()
    assert item.video_mask.tolist() == [True] * 8 + [False] * 5
    assert item.corruption.tolist() == [0.0] * 8 + [1.0] * 5 and not item.video[:, 8:].any()


def test_picture_shorter_and_longer_than_the_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "long.mp4", face_crops(40, 48)[:, :SIZE, :SIZE], voice(1.0))
    write_clip(tmp_path / "short.mp4", face_crops(10, 48)[:, :SIZE, :SIZE], voice(1.0))
    data = AVDataset(listed(tmp_path, [{"video": "long.mp4"}, {"video": "short.mp4"}]), noises(tmp_path), config(), "valid")
    assert data[0].video_mask.all() and data[0].video.shape[1] == 25 and len(data[0].clean_audio) == 16000
    assert data[1].video_mask.tolist() == [True] * 15 + [False] * 10  # held for 0.2 s


def test_masks_of_prepared_lists_are_honoured(tmp_path: Path) -> None:
    timed_clip(tmp_path / "a.mp4")
    entries = [{"video": "a.mp4", "mask": [[0, 3], [20, 25]]}]
    item = AVDataset(listed(tmp_path, entries), noises(tmp_path), config(), "valid")[0]
    assert np.flatnonzero(~item.video_mask.numpy()).tolist() == [0, 1, 2, 20, 21, 22, 23, 24]
    assert not item.video[:, ~item.video_mask].any() and torch.equal(item.corruption, (~item.video_mask).float())
    data = AVDataset(tmp_path / "clips.json", tmp_path / "noise.json", config(), visual_augmentation=CLEAN)
    for epoch in range(6):
        data.set_epoch(epoch)
        item = data[0]
        shown = torch.round((item.video.float().mean(dim=(0, 2, 3)) - 20) / 4)
        assert not ((shown >= 20) & (shown < 25) & item.video_mask).any()


def test_degradation_reaches_video_and_label_but_not_the_mask(corpus: tuple[Path, Path]) -> None:
    black = AVDataset(*corpus, config(), visual_augmentation=VisualDegradation({"black": 1.0}))
    plain = AVDataset(*corpus, config(), visual_augmentation=CLEAN)
    off = AVDataset(*corpus, config(visual_degradation=False))
    a, b = black[2], plain[2]
    assert a.video_mask.all() and a.corruption.any() and not a.video[:, a.corruption == 1].any()
    clear = a.corruption == 0
    assert torch.equal(a.clean_audio, b.clean_audio) and torch.equal(a.video[:, clear], b.video[:, clear])
    assert equal(b, off[2])
    default = AVDataset(*corpus, config())
    hit = 0
    for epoch in range(20):
        default.set_epoch(epoch)
        hit += sum(bool(default[k].corruption.any()) for k in range(2))
    assert 6 <= hit <= 28


def test_crops_are_jittered_in_training_alone(corpus: tuple[Path, Path]) -> None:
    plain, jittered = (AVDataset(*corpus, config(crop_jitter=on), visual_augmentation=CLEAN) for on in (False, True))
    a, b = plain[2], jittered[2]
    assert torch.equal(a.noisy_audio, b.noisy_audio) and torch.equal(a.video_mask, b.video_mask) and not b.corruption.any()
    assert float((a.video.float() - b.video.float()).abs().mean()) > 2.5
    assert equal(AVDataset(*corpus, config(crop_jitter=True), "valid")[0], AVDataset(*corpus, config(), "valid")[0])


def test_video_dropout_masks_whole_clips(corpus: tuple[Path, Path]) -> None:
    data = AVDataset(*corpus, config(video_dropout=0.5))
    masks = []
    for epoch in range(15):
        data.set_epoch(epoch)
        masks += [data[k].video_mask for k in range(2)]
    assert all(mask.all() or not mask.any() for mask in masks) and 6 <= sum(bool(mask.any()) for mask in masks) <= 24
    gone = AVDataset(*corpus, config(video_dropout=1.0))[0]
    assert not gone.video.any() and (gone.corruption == 1).all()
    assert AVDataset(*corpus, config(video_dropout=1.0), "valid")[0].video_mask.all()


def test_sound_alone(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    cfg = tiny_config(visual_cfg={"use_visual": False, "face_size": SIZE}, training_cfg={"segment_size": 8000})
    item = AVDataset(*corpus, cfg)[0]
    assert item.video.shape == (3, 0, SIZE, SIZE) and item.video_mask.shape == item.corruption.shape == (0,)
    soundfile.write(tmp_path / "a.wav", voice(1.0), 16000)
    item = AVDataset(listed(tmp_path, [{"audio": "a.wav"}]), noises(tmp_path), config())[0]
    assert not item.video_mask.any() and item.video.shape == (3, 13, SIZE, SIZE) and (item.corruption == 1).all()


def test_rooms_change_input_and_target_of_training_only(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rir = 0.2 * rng.standard_normal(8000) * 10 ** (-3 * np.arange(8000) / 8000)
    rir[0] = 1.0
    soundfile.write(tmp_path / "room.wav", 0.5 * rir, 16000)
    (tmp_path / "rir.json").write_text('["room.wav"]')
    rooms = RIRAugmentor(tmp_path / "rir.json", prob=1.0)
    early, late, dry = (
        AVDataset(*corpus, config(rir_target=target), rir_augmentor=room)[2]
        for target, room in (("early", rooms), ("reverberant", rooms), ("early", None))
    )
    early_clean, late_clean, dry_clean = (item.clean_audio / item.gain for item in (early, late, dry))
    assert torch.allclose(early.noisy_audio, late.noisy_audio, atol=1e-5)
    assert float((late_clean - early_clean).norm() / early_clean.norm()) > 0.05
    assert float((early_clean - dry_clean).norm()) > 0.05
    named = config(rir_prob=1.0)
    named["data_cfg"]["train_rir_json"] = str(tmp_path / "rir.json")
    assert equal(AVDataset(*corpus, named)[2], early)
    assert equal(AVDataset(*corpus, named, "valid")[2], AVDataset(*corpus, config(), "valid")[2])


def test_clips_that_cannot_be_read_are_named_once_and_replaced_in_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(3):
        timed_clip(tmp_path / f"{k}.mp4", 20 + 4 * k)
    write_mpg(tmp_path / "mute.mpg", face_crops(10, 48), None)
    entries = [{"video": name} for name in ("0.mp4", "gone.mp4", "1.mp4", "mute.mpg", "2.mp4")]
    data = AVDataset(listed(tmp_path, entries), noises(tmp_path), config(), visual_augmentation=CLEAN)
    with caplog.at_level(logging.WARNING):
        assert len([data[k] for _ in range(2) for k in range(5)]) == 10
    assert len(data.failures) == 2 and "does not exist" in data.failures["gone.mp4"]
    assert caplog.text.count("gone.mp4 left out") == 1 and caplog.text.count("mute.mpg left out") == 1
    fixed = AVDataset(tmp_path / "clips.json", tmp_path / "noise.json", config(), "valid")
    for _ in range(2):
        assert [len(fixed[k].clean_audio) for k in (0, 2, 4)] == [12800, 15360, 17920]
        for k, words in ((1, "gone.mp4 does not exist"), (3, "mute.mpg")):
            with pytest.raises(UnreadableClip, match=words):
                fixed[k]
    entries = [{"video": f"gone{k}.mp4"} for k in range(20)] + [{"video": "0.mp4"}]
    data = AVDataset(listed(tmp_path, entries), tmp_path / "noise.json", config())
    with pytest.raises(ListError, match=r"clips\.json: 9 of 9 .*gone8\.mp4"):
        data[0]


def test_noises_that_cannot_be_read_do_not_count_as_clips(tmp_path: Path) -> None:
    for k in range(2):
        timed_clip(tmp_path / f"{k}.mp4", 20)
    noises(tmp_path)
    broken = [f"gone{k}.wav" for k in range(12)]
    (tmp_path / "some.json").write_text(json.dumps([*broken, *["noise1.wav"] * 12]))
    data = AVDataset(listed(tmp_path, [{"video": "0.mp4"}, {"video": "gone.mp4"}]), tmp_path / "some.json", config())
    for epoch in range(12):
        data.set_epoch(epoch)
        data[0]
    assert len(data.noise_failures) > 2 and not data.failures
    data[1]  # replaced by the first, with more noises gone than there are clips
    assert list(data.failures) == ["gone.mp4"]


def test_scores_that_are_not_defined_at_a_rate_are_refused(corpus: tuple[Path, Path]) -> None:
    model, cfg = tiny_model(stft_cfg={"sampling_rate": 8000}, visual_cfg={"face_size": SIZE})
    with pytest.raises(ValueError, match="PESQ-WB is defined at 16000 Hz, not 8000 Hz"):
        Validation(AVDataset(*corpus, cfg, "valid"))(Enhancer(model, cfg, "cpu"))


def test_silent_clips_and_silent_noise_do_not_make_nan(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", face_crops(25, 48)[:, :SIZE, :SIZE], np.zeros(16000))
    write_clip(tmp_path / "voice.mp4", face_crops(25, 48)[:, :SIZE, :SIZE], voice(1.0))
    list_path = listed(tmp_path, [{"video": "silent.mp4"}, {"video": "voice.mp4"}])
    noises(tmp_path)
    soundfile.write(tmp_path / "zero.wav", np.zeros(32000), 16000)
    (tmp_path / "broken.wav").write_text("no sound")
    (tmp_path / "some.json").write_text(json.dumps(["zero.wav", "noise1.wav", "broken.wav"]))
    data = AVDataset(list_path, tmp_path / "some.json", config())
    for epoch in range(4):
        data.set_epoch(epoch)
        for item in (data[0], data[1]):
            assert all(torch.isfinite(x).all() for x in item)
            assert float((item.noisy_audio - item.clean_audio).abs().max()) > 0  # silent noise was drawn again
    (tmp_path / "zeros.json").write_text('["zero.wav"]')
    item = AVDataset(list_path, tmp_path / "zeros.json", config(), "valid")[0]
    assert all(torch.isfinite(x).all() for x in item)
    (tmp_path / "broken.json").write_text('["broken.wav"]')
    with pytest.raises(ListError, match=r"broken\.json: no noise"):
        AVDataset(list_path, tmp_path / "broken.json", config())[1]


def test_unusable_lists_are_refused_with_their_key(tmp_path: Path) -> None:
    noise = noises(tmp_path)
    for entries, said in (([], "no entries"), ([{"sound": "a"}], "entry 0"), ([3], "entry 0"), ([{"video": 4}], "entry 0")):
        with pytest.raises(ValueError, match=said):
            AVDataset(listed(tmp_path, entries), noise, config())
    good = listed(tmp_path, [{"video": "a.mp4"}])
    with pytest.raises(FileNotFoundError, match=r"train_data_json.*gone\.json"):
        AVDataset(tmp_path / "gone.json", noise, config())
    with pytest.raises(ValueError, match="valid_noise_json"):
        AVDataset(good, None, config(), "valid")
    with pytest.raises(ValueError, match="validation"):
        AVDataset(good, noise, config(), "validation")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="shared data is not here")
def test_real_clips_and_noise(tmp_path: Path) -> None:
    clips = [{"video": str(path)} for path in sorted((SHARED_DATA / "grid" / "raw" / "s1").glob("*.mpg"))[:2]]
    sounds = [str(path) for path in sorted((SHARED_DATA / "noise" / "ambience").glob("*.flac"))[:3]]
    (tmp_path / "noise.json").write_text(json.dumps(sounds))
    cfg = tiny_config(training_cfg={"segment_size": 16000})
    data = AVDataset(listed(tmp_path, clips), tmp_path / "noise.json", cfg)
    for item in (data[0], data[1]):
        assert item.video.shape == (3, 25, 96, 96) and item.video_mask.float().mean() > 0.9
        assert all(torch.isfinite(x).all() for x in item) and not data.failures
