"""One variant of the small model, trained and scored: the table of variants, and what is written about one."""

from __future__ import annotations

import json

import pytest

import train_lite
from evaluation import ablation, make_testset
from evaluation.ablation import RESULTS, ROOT, by_speaker, read_variants
from helpers.corpus import make_corpus
from helpers.tiny import only_line
from helpers.training import log_lines, write_recipe
from utils.config import load_config
from utils.util import read_csv


def config(name: str, *more: str) -> dict:
    variant = read_variants()[name]
    return load_config(ROOT / variant.base, [*variant.overrides(), *more])


def changed(one: dict, other: dict) -> set[str]:
    return {f"{section}.{key}" for section in one for key in one[section] if one[section][key] != other[section][key]}


def test_each_variant_is_a_recipe_and_differs_from_its_group_by_what_it_says() -> None:
    variants = read_variants()
    assert {"full", "no_vce", "no_fsvg", "sound_only", "plain_vce", "mobilenet", "causal", "offline", "mamba2"} <= set(variants)
    for name, variant in variants.items():
        first = "causal" if variant.base.endswith("_audio.yaml") else "full"
        expected = set(variant.changes) - set(variants[first].changes)
        found = changed(config(name), config(first)) - {"training_cfg.loss", "model_cfg.norm"}  # norm goes with causal
        assert found == {key for key in expected if ".loss." not in key}, name
    assert not config("no_vce")["lite_cfg"]["use_vce"] and not config("sound_only")["visual_cfg"]["use_visual"]


def test_the_scores_of_a_speaker_are_means_over_the_speakers_mixtures() -> None:
    rows = [
        {"row": row, "kind": "noise", "snr_db": "0", "speaker": speaker, "pesq": str(pesq), "stoi": "0.5", "estoi": "0.5",
         "si_sdr": "", "mean_alpha": "0.25"}
        for row, speaker, pesq in (("clean", "ann", 1.0), ("clean", "ann", 2.0), ("clean", "bob", 4.0), ("noisy", "ann", 1.5))
    ]  # fmt: skip
    found = {(row["row"], row["speaker"]): row for row in by_speaker(rows)}
    assert {key: (row["n"], row["pesq"]) for key, row in found.items()} == {
        ("clean", "ann"): (2, "1.5"), ("clean", "bob"): (1, "4"), ("noisy", "ann"): (1, "1.5")
    }  # fmt: skip
    assert found["clean", "ann"]["si_sdr"] == ""  # a score that one mixture lacks is not made up


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """train_lite.py runs here, which saves the start of a process; the list has the command lines."""
    ran: list[list[str]] = []

    def run_script(words: list[str]) -> int:
        assert words[1] == "train_lite.py"
        ran.append(words)
        return train_lite.main(words[2:])

    monkeypatch.setattr(ablation, "run_script", run_script)
    return ran


def test_a_variant_is_trained_and_scored_and_its_results_written(tmp_path, monkeypatch, capsys, in_this_process) -> None:
    recipe = write_recipe(tmp_path)
    plain = {"says": "alpha that only sees", "changes": {"lite_cfg.vce_type": "plain"}}
    changes = {"training_cfg.max_steps": 2, "training_cfg.validate_at_end": True}
    table = {"face": {"base": str(recipe), "changes": changes, "variants": {"plain": plain}}}
    (tmp_path / "table.json").write_text(json.dumps(table), encoding="utf-8")
    monkeypatch.setattr(ablation, "TABLE", tmp_path / "table.json")
    clips, noises = make_corpus(tmp_path / "corpus", duration_sec=1.2)
    manifest = tmp_path / "manifest.json"
    testset = ["--test_json", str(clips), "--noise_json", str(noises), "--kinds", "noise", "--snr_db", "0", "--clips", "2"]
    assert make_testset.main([*testset, "--output", str(manifest)]) == 0
    words = ["plain", "--exp_folder", str(tmp_path / "exp"), "--results_dir", str(tmp_path / "results"), "--device", "cpu"]
    assert ablation.main([*words, "--manifest", str(manifest), "--override", "env_setting.seed=3"]) == 0
    found = tmp_path / "results" / "plain"
    about = json.loads((found / "about.json").read_text(encoding="utf-8"))
    assert about["says"] == "alpha that only sees" and about["updates"] == 2 and about["cpu_sec"] >= 0
    assert 0 < about["trained_m"] <= about["parameters_m"] and 0 < about["macs_sound_g"] < about["macs_face_g"]
    assert set(about["alpha_auc"]) == {"other_face", "shift_+400ms"}
    rows = read_csv(found / "scores.csv")
    assert {row["row"] for row in rows} == {"audio_only", *ablation.CONDITIONS}
    assert all(float(row["stoi"]) <= 1 and row["n"] == "1" for row in rows)
    logged = log_lines(tmp_path / "exp" / "plain")
    assert [float(row["total"]) for row in read_csv(found / "losses.csv")] == pytest.approx([line["total"] for line in logged])
    assert ablation.main([*words, "--manifest", str(manifest)]) == 0 and len(in_this_process) == 1  # trained once
    capsys.readouterr()
    assert ablation.main(["nobody"]) == 2
    assert "there is no variant nobody; table.json has plain" in only_line(capsys.readouterr().err)


def test_the_results_that_are_here_are_of_the_table() -> None:
    """Each of docs/results/ablations has all its files, and its recipe is still the one it was trained from."""
    variants = read_variants()
    for folder in (path for path in RESULTS.iterdir() if path.is_dir()):
        about, variant = json.loads((folder / "about.json").read_text(encoding="utf-8")), variants[folder.name]
        assert (about["base"], about["changes"], about["says"]) == (variant.base, dict(variant.changes), variant.says)
        frozen = about["parameters_m"] - about["trained_m"]
        assert (frozen > 0.4) == (variant.base.endswith("_small.yaml") and folder.name not in ("sound_only", "custom3d"))
        assert read_csv(folder / "losses.csv")[-1]["step"] == str(about["updates"])
        assert len({row["speaker"] for row in read_csv(folder / "scores.csv")}) == 8
