"""Scenes in which only the face tells: pairs, silence, sums, labels, and draws that follow from (seed, epoch, index)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataloaders.augment_video import VisualDegradation
from dataloaders.clip_dataset import AVItem
from dataloaders.dataloader_av import AVDataset
from dataloaders.scene import quiet_frames, to_and_fro
from helpers.corpus import make_corpus
from helpers.tiny import tiny_config
from models.loss import silence_loss
from utils.training.epoch_order import epoch_order

CLEAN = VisualDegradation({"none": 1.0})
PLAIN = {
    "speed_share": 0.0, "equalizer_share": 0.0, "clip_share": 0.0, "narrow_band_share": 0.0, "level_range_db": [0.0, 0.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("scenes"), clips_per_speaker=2, duration_sec=1.4)


def scenes(lists: tuple[Path, Path], augmentation: VisualDegradation | None = CLEAN, **scene: object) -> AVDataset:
    cfg = tiny_config(
        training_cfg={
            "segment_size": 12800, "crop_jitter": False, "rir_prob": 0.0, "scene": {**PLAIN, **scene},
        },
        visual_cfg={"face_size": 32, "visual_dim": 32, "face_crop": "none"},
    )  # fmt: skip
    return AVDataset(*lists, cfg, "train", visual_augmentation=augmentation)


def waves(item: AVItem) -> tuple[np.ndarray, np.ndarray]:
    """Target and mixture without the gain."""
    return (item.clean_audio / item.gain).numpy(), (item.noisy_audio / item.gain).numpy()


def test_a_pair_is_one_mixture_with_each_of_two_faces_and_the_targets_are_its_voices(lists: tuple[Path, Path]) -> None:
    data = scenes(lists, pair_share=1.0, talker_shares=[1], noise_share=0.0)
    for clip in range(len(data) // 2):
        first, second = data[2 * clip], data[2 * clip + 1]
        (a, mixture), (b, same) = waves(first), waves(second)
        assert np.array_equal(mixture, same) and np.allclose(a + b, mixture, atol=1e-5)
        assert np.abs(a).max() > 0 and np.abs(b).max() > 0 and not np.allclose(a, b)
        assert not torch.equal(first.video, second.video) and not first.corruption[first.video_mask].any()


def test_voices_of_one_speaker_are_paired_where_that_is_asked_for(lists: tuple[Path, Path]) -> None:
    for share, same in ((1.0, True), (0.0, False)):
        data = scenes(lists, pair_share=1.0, same_speaker_share=share, talker_shares=[1])
        for index in range(0, len(data), 2):
            rng = np.random.default_rng(index)
            voices = data._scenes._voices(data._entries[index], rng, pair=True)
            folders = {Path(voice.clip.name).parent.name for voice in voices}
            assert (len(folders) == 1) == same and voices[0].clip.name != voices[1].clip.name


def test_everything_follows_from_seed_epoch_and_index_whatever_the_workers(lists: tuple[Path, Path]) -> None:
    options = {"pair_share": 0.5, "silent_share": 0.3, "speed_share": 0.5, "equalizer_share": 0.5, "clip_share": 0.5}
    shares = VisualDegradation({"shift": 1, "other": 1, "freeze": 1, "none": 1})

    def items(epoch: int, workers: int) -> list[AVItem]:
        data = scenes(lists, shares, **options)
        data.set_epoch(epoch)
        return list(DataLoader(data, batch_size=None, num_workers=workers))

    one, two, other = items(1, 0), items(1, 2), items(2, 0)
    assert all(torch.equal(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True))
    assert any(not torch.equal(a.noisy_audio, b.noisy_audio) for a, b in zip(one, other, strict=True))


def test_silence_is_wanted_of_a_closed_mouth_while_the_others_talk(
    lists: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataloaders.scene.FEWEST_QUIET_FRAMES", 2)  # the corpus pauses for a tenth of a second
    data = scenes(lists, silent_share=1.0, talker_shares=[0, 1], noise_share=0.0)
    assert len(quiet_frames(data._entries[0], 25, 16000)) >= 2
    target, mixture = waves(data[0])
    assert not target.any() and np.abs(mixture).max() > 0.01
    assert bool(data[0].video_mask.all()) and not data[0].corruption.any()


@pytest.mark.parametrize("kind", ["shift", "other"])
def test_a_face_that_is_late_or_somebody_elses_is_labelled_and_everybody_is_wanted(
    lists: tuple[Path, Path], kind: str
) -> None:
    wrong = scenes(lists, VisualDegradation({kind: 1.0}), pair_share=1.0, talker_shares=[1], noise_share=0.0)
    right = scenes(lists, pair_share=1.0, talker_shares=[1], noise_share=0.0)
    for index in (0, 3, 5):
        assert bool((wrong[index].corruption == 1).all())
        assert not torch.equal(wrong[index].video, right[index].video)
        target, mixture = waves(wrong[index])
        assert np.allclose(target, mixture, atol=1e-5)
        assert torch.equal(wrong[index].noisy_audio, right[index].noisy_audio)


def test_speed_changes_sound_and_video_together(lists: tuple[Path, Path]) -> None:
    data = scenes(lists, speed_share=1.0, speed_range=[1.1, 1.1], talker_shares=[1], noise_share=0.0)
    maker = data._scenes
    drawn = maker.scene(data._entries[0], np.random.default_rng(3))
    assert drawn.shown.speed == 1.1
    assert list(drawn.frames - drawn.shown.first_frame) == [int(k * 1.1 + 1e-6) for k in range(len(drawn.frames))]
    source = data._entries[0].sound()[round(drawn.shown.first_frame * 640) :][: round(12800 * 1.1)]

    def peak_hz(wave: np.ndarray) -> float:
        return float(np.argmax(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16)))) * 16000 / (1 << 16)

    assert peak_hz(drawn.shown.heard) == pytest.approx(1.1 * peak_hz(source), rel=0.02)


def test_without_a_face_everybody_is_wanted_or_the_one(lists: tuple[Path, Path]) -> None:
    for wanted, everybody in (("everybody", True), ("one", False)):
        data = scenes(lists, talker_shares=[0, 1], noise_share=0.0, faceless_target=wanted)
        data._training["video_dropout"] = 1.0
        target, mixture = waves(data[0])
        assert np.allclose(target, mixture, atol=1e-5) == everybody


def test_the_level_of_talkers_is_as_asked_for(lists: tuple[Path, Path]) -> None:
    from dataloaders.mixing import snr_db

    data = scenes(lists, pair_share=1.0, talker_shares=[1], noise_share=0.0, talker_snr_range=[3.0, 3.0])
    (a, mixture), _ = waves(data[0]), waves(data[1])
    assert snr_db(a, mixture - a) == pytest.approx(3.0, abs=0.1)


def test_pairs_stay_side_by_side_in_every_epoch() -> None:
    order = epoch_order(20, 14, 1, 3, group=2)
    assert len(order) == 14 and all(b == a + 1 and a % 2 == 0 for a, b in zip(order[::2], order[1::2], strict=True))
    assert epoch_order(20, 14, 1, 3) == epoch_order(20, 14, 1, 3, group=1)


def test_to_and_fro_never_jumps() -> None:
    shown = to_and_fro(np.arange(4, 9), 30)
    assert len(shown) == 30 and set(np.abs(np.diff(shown))) == {1} and shown.min() == 4 and shown.max() == 8


def test_silence_loss_asks_for_less_output_and_only_where_silence_is_wanted() -> None:
    noisy = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    reference = torch.stack((torch.zeros(4000), noisy[1]))
    loud, quiet = (silence_loss(reference, noisy * gain, noisy) for gain in (1.0, 0.1))
    assert float(loud) == pytest.approx(0.0, abs=1e-3) and float(quiet) == pytest.approx(-2.0, abs=0.05)
    estimate = noisy.clone().requires_grad_()
    silence_loss(reference, estimate, noisy).backward()
    assert estimate.grad[0].any() and not estimate.grad[1].any()
    assert float(silence_loss(noisy, noisy, noisy)) == 0.0
