"""Recipes: defaults are SEMamba's, mistakes are one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.paths import ROOT
from utils import console
from utils.config import apply_overrides, complete_config, load_config
from utils.training.launch import training_parser

# What a recipe of SEMamba holds, key for key; such files must load as they are.
SEMAMBA_RECIPE = """
env_setting:
  num_gpus: 2
  num_workers: 20
  seed: 1234
  stdout_interval: 10
  checkpoint_interval: 1000
  validation_interval: 1000
  summary_interval: 100
  dist_cfg: {dist_backend: nccl, dist_url: "tcp://localhost:19477", world_size: 1}
data_cfg:
  train_clean_json: data/train_clean.json
  train_noisy_json: data/train_noisy.json
  valid_clean_json: data/valid_clean.json
  valid_noisy_json: data/valid_noisy.json
  test_clean_json: data/test_clean.json
  test_noisy_json: data/test_noisy.json
training_cfg:
  training_epochs: 200
  batch_size: 4
  learning_rate: 0.0005
  adam_b1: 0.8
  adam_b2: 0.99
  lr_decay: 0.99
  segment_size: 32000
  loss: {metric: 0.05, magnitude: 0.9, phase: 0.3, complex: 0.1, time: 0.2, consistancy: 0.1}
  use_PCS400: False
  use_pretrainedD: True
stft_cfg: {sampling_rate: 16000, n_fft: 400, hop_size: 100, win_size: 400}
model_cfg:
  hid_feature: 64
  compress_factor: 0.3
  num_tfmamba: 4
  d_state: 16
  d_conv: 4
  expand: 4
  norm_epsilon: 0.00001
  beta: 2.0
  input_channel: 2
  output_channel: 1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_recipe_of_semamba_loads_as_it_is(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path, SEMAMBA_RECIPE))
    assert cfg["training_cfg"]["loss"]["metric"] == 0.05
    assert cfg["training_cfg"]["loss"]["si_sdr"] == 0  # new terms are off unless asked for
    assert cfg["model_cfg"]["causal"] is False
    assert cfg["model_cfg"]["norm"] == "instance"


def test_defaults_are_semambas_and_the_plans() -> None:
    cfg = complete_config({})
    model = {key: cfg["model_cfg"][key] for key in ("hid_feature", "num_tfmamba", "d_state", "d_conv", "expand", "beta")}
    assert model == {"hid_feature": 64, "num_tfmamba": 4, "d_state": 16, "d_conv": 4, "expand": 4, "beta": 2.0}
    training = {key: cfg["training_cfg"][key] for key in ("training_epochs", "batch_size", "learning_rate", "segment_size")}
    assert training == {"training_epochs": 100, "batch_size": 2, "learning_rate": 5e-4, "segment_size": 16000}
    assert cfg["training_cfg"]["snr_range"] == [-5, 20]


def test_completing_twice_changes_nothing() -> None:
    cfg = complete_config({"model_cfg": {"causal": True}})
    assert cfg["model_cfg"]["norm"] == "channel"
    assert complete_config(cfg) == cfg


def test_every_recipe_of_the_repository_loads() -> None:
    recipes = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert recipes
    for path in recipes:
        load_config(path)


@pytest.mark.parametrize(
    ("mapping", "parts"),
    [
        ({"model_cfg": {"hid_features": 32}}, ["model_cfg.hid_features", "did you mean hid_feature?"]),
        ({"training_cfg": {"loss": {"consistency": 0.1}}}, ["training_cfg.loss.consistency", "consistancy"]),
        ({"modle_cfg": {}}, ["modle_cfg", "model_cfg"]),
        ({"model_cfg": {"zzz": 1}}, ["model_cfg.zzz", "known keys", "hid_feature"]),
        ({"training_cfg": {"batch_size": 0}}, ["training_cfg.batch_size", "0"]),
        ({"training_cfg": {"batch_size": "two"}}, ["training_cfg.batch_size", "two"]),
        ({"training_cfg": {"learning_rate": float("nan")}}, ["training_cfg.learning_rate"]),
        ({"training_cfg": {"learning_rate": float("inf")}}, ["training_cfg.learning_rate"]),
        ({"training_cfg": {"snr_range": [10, -5]}}, ["snr_range", "lowest"]),
        ({"training_cfg": {"segment_size": 300}}, ["segment_size", "300"]),
        ({"stft_cfg": {"win_size": 512}}, ["win_size", "512", "400"]),
        ({"stft_cfg": {"hop_size": 401}}, ["stft_cfg.hop_size", "401", "win_size 400"]),
        ({"stft_cfg": {"n_fft": 402}}, ["stft_cfg.n_fft", "402", "multiple of 4"]),
        ({"training_cfg": {"valid_snrs_db": []}}, ["training_cfg.valid_snrs_db", "at least 1 item"]),
        ({"training_cfg": {"loss": {"magnitude": 0, "phase": 0, "complex": 0, "consistancy": 0}}},
         ["training_cfg.loss", "every weight is 0"]),
        ({"env_setting": {"seed": 2**64}}, ["env_setting.seed", str(2**63)]),
        ({"lite_cfg": {"n_freq_enc": 99}}, ["n_freq_enc", "99", "100"]),
        ({"lite_cfg": {"visual_encoder_type": "resnet"}}, ["visual_encoder_type", "mobilenet"]),
        ({"model_cfg": {"causal": True, "norm": "instance"}}, ["causal", "norm: channel"]),
        ({"model_cfg": {"hid_feature": None}}, ["model_cfg.hid_feature", "None"]),
        ({"model_cfg": [1, 2]}, ["model_cfg"]),
    ],
)
def test_mistakes_name_the_key_and_the_remedy(mapping: dict, parts: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        complete_config(mapping, source="my.yaml")
    text = one_line(error)
    assert text.startswith("my.yaml")
    for part in parts:
        assert part in text


def test_two_mistakes_are_two_lines() -> None:
    with pytest.raises(ValueError) as error:
        complete_config({"model_cfg": {"hid_features": 3, "d_stat": 1}})
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["5e-4", "0.0005", "5.0e-4"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    cfg = load_config(write(tmp_path, f"training_cfg:\n  learning_rate: {text}\n"))  # YAML reads 5e-4 as a string
    assert cfg["training_cfg"]["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [("batch_size: 0123", "line 2: 0123 would be read as 83; write 123"), ("batch_size: 1:30", "would be read as 90; write 90"),
     ("learning_rate: 1:30.5", "would be read as 90.5"), ("batch_size: true", "batch_size is true; write a number"),
     ("learning_rate: yes", "learning_rate is true; write a number"), ("segment_size: 1e400", "segment_size")],
)  # fmt: skip
def test_numbers_that_yaml_reads_in_another_way_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(write(tmp_path, f"training_cfg:\n  {text}\n"))
    assert said in one_line(error)


@pytest.mark.parametrize("text", ["1e5", "1E5", "1.0e+5", "100_000", "0x186a0", "100000.0"])
def test_a_whole_number_may_be_written_in_any_usual_way(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, f"training_cfg:\n  segment_size: {text}\n"))["training_cfg"]["segment_size"] == 100_000


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [laughs(9), "a: " + "[" * 5000 + "]" * 5000, "a: " + "[" * 60 + "]" * 60, "a: &a [*a]", "model_cfg: &m {x: *m}",
             "training_cfg: {snr_range: [" + ", ".join(["1"] * 20000) + "]}"],
)  # fmt: skip
def test_a_recipe_that_never_ends_is_refused_at_once(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(write(tmp_path, text))
    assert len(str(error.value)) < 400


def test_messages_about_long_values_stay_short(tmp_path: Path) -> None:
    many = "\n".join(f"  k{k}: {'v' * 500}" for k in range(500))
    long_value = "x" * 90000
    for text in (f"training_cfg:\n{many}\n", f"training_cfg:\n  batch_size: {long_value}\n"):
        with pytest.raises(ValueError) as error:
            load_config(write(tmp_path, text))
        assert len(str(error.value)) < 12000 and len(console.one_line(error.value)) < 2010


@pytest.mark.parametrize("key", ["model_cfg.hid_feature=20000", "model_cfg.num_tfmamba=1000000", "visual_cfg.face_size=100000"])
def test_sizes_that_no_machine_holds_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        load_config(write(tmp_path, ""), [key])


def test_an_empty_file_or_section_means_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == complete_config({})
    assert load_config(write(tmp_path, "model_cfg:\n  # nothing yet\n")) == complete_config({})


def test_overrides_win_and_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "training_cfg: {batch_size: 8, loss: {phase: 0.5}}\n")
    cfg = load_config(path, ["training_cfg.batch_size=3", "training_cfg.loss.si_sdr=0.3", "data_cfg.train_rir_json=a b.json"])
    assert cfg["training_cfg"]["batch_size"] == 3
    assert cfg["training_cfg"]["loss"]["si_sdr"] == 0.3
    assert cfg["training_cfg"]["loss"]["phase"] == 0.5
    assert cfg["data_cfg"]["train_rir_json"] == "a b.json"
    with pytest.raises(ValueError, match="did you mean batch_size"):
        load_config(path, ["training_cfg.batch_sise=3"])


def test_overrides_may_be_given_one_by_one() -> None:
    parser = training_parser("train_lite.py", "", "recipe.yaml")
    assert parser.parse_args(["--override", "a.b=1", "--override", "a.c=2", "a.d=3"]).override == ["a.b=1", "a.c=2", "a.d=3"]
    assert parser.parse_args([]).override == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("training_cfg:\n  batch_size: 2\n  learning_rate: 0.1\n  batch_size: 4\n", "line 4: key batch_size was given in line 2"),
     ("model_cfg: {d_state: 4}\n\ndata_cfg: {}\nmodel_cfg: {expand: 2}\n", "line 4: key model_cfg was given in line 1")],
)  # fmt: skip
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match="recipe.yaml") as error:
        load_config(write(tmp_path, text))
    assert said in one_line(error)


def test_a_key_given_twice_in_an_override_is_refused_and_merged_ones_are_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key phase") as error:
        load_config(write(tmp_path, ""), ["training_cfg.loss={phase: 1, phase: 2}"])
    assert "override 'training_cfg.loss=" in one_line(error)
    base = "{phase: 0.5, time: 0.2}"
    cfg = apply_overrides({}, [f"training_cfg.loss={{<<: {base}, phase: 0.7}}"])
    assert cfg["training_cfg"]["loss"] == {"phase": 0.7, "time": 0.2}


@pytest.mark.parametrize("text", ["batch_size=3", "training_cfg.batch_size", "=3", "training_cfg..x=1", "a.b=[1"])
def test_malformed_overrides_are_refused(text: str) -> None:
    with pytest.raises(ValueError) as error:
        apply_overrides({}, [text])
    assert repr(text) in one_line(error)


def test_overrides_leave_the_given_sections_alone() -> None:
    section = {"batch_size": 8}
    apply_overrides({"training_cfg": section}, ["training_cfg.batch_size=3"])
    assert section == {"batch_size": 8}


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml does not exist"):
        load_config(tmp_path / "missing.yaml")
    for text, word in [("model_cfg: [1, 2\n", "not YAML"), ("- a\n- b\n", "sections"), ("just words", "sections")]:
        with pytest.raises(ValueError) as error:
            load_config(write(tmp_path, text))
        assert word in one_line(error)
    with pytest.raises(ValueError, match="folder"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(ValueError, match="not YAML"):
        load_config(tmp_path / "binary.yaml")
