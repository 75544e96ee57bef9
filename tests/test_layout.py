"""The shape of the repository: what may import what, what runs without which package, what every recipe builds."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.paths import LONGEST_SEC, ROOT
from helpers.tiny import save_tiny_checkpoint
from models.pretrained import ARCHITECTURES
from utils.config import load_config

# Each may import itself and what stands here: imports only point left.
LEFT_OF = {
    "utils": set(),
    "models": {"utils"},
    "dataloaders": {"utils", "models"},
    "evaluation": {"utils", "models", "dataloaders"},
    "data": {"utils"},
    "liteavse": {"utils", "models", "evaluation", "inference_av", "train_lite", "app"},  # the command line of the package
}
# Between the sub-packages of a package, too: each may import itself and what stands here.
INNER_LEFT_OF = {
    "utils": set(), "utils.media": {"utils"}, "utils.faces": {"utils", "utils.media"}, "utils.scores": {"utils"},
    "utils.training": {"utils"},
    "models.ops.kernels": set(), "models.ops": {"models.ops.kernels"}, "models": {"models.ops"},
    "models.inference": {"models", "models.ops"}, "models.inference.files": {"models", "models.ops", "models.inference"},
    "dataloaders": set(),
    "evaluation.testset": set(), "evaluation.reporting": {"evaluation.testset"}, "evaluation.benchmarks": set(),
    "evaluation.web": {"evaluation.reporting"},
    "evaluation.teaching": set(),
    "evaluation": {"evaluation.testset", "evaluation.reporting", "evaluation.benchmarks", "evaluation.teaching"},
    "data.tools": set(), "data.synthesis": set(), "data": {"data.tools", "data.synthesis"}, "liteavse": set(),
}  # fmt: skip
SCRIPTS_MAY_IMPORT = {"utils", "models", "dataloaders", "evaluation"}
SCORING_ONLY = {"pesq", "pystoi"}
NOT_FOR_ENHANCING = ["pesq", "pystoi", "matplotlib", "tensorboard", "webdataset", "torchvision", "torchaudio", "pytest"]
LONGEST_FILE = 400  # lines
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|root|work|Users|mnt|opt|scratch|workspace|tmp)/[\w.]")


def product_files() -> list[Path]:
    scripts = sorted(set(ROOT.glob("*.py")) - {ROOT / "setup.py"})  # it builds the package and is not in it
    return scripts + [path for package in LEFT_OF for path in sorted((ROOT / package).rglob("*.py"))]


PRODUCT = product_files()
ALL = PRODUCT + sorted((ROOT / "tests").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name(path))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


def imported(node: ast.AST) -> Iterator[str]:
    """Top-level names of what an import statement brings in; a relative import is its dots."""
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "." * node.level if node.level else str(node.module).split(".")[0]


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node` that is run when the module is imported: function bodies are not."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from at_import_time(child)


def test_packages_are_the_ones_we_know() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(LEFT_OF)
    assert not (ROOT / "data" / "utils.py").exists()  # it would shadow utils when a script in data/ is run


# Each rule is one test over all files, which names every file and line that breaks it.


def test_imports_only_point_left() -> None:
    ours = set(LEFT_OF) | {script.stem for script in ROOT.glob("*.py")} | {"tests", "conftest"}
    wrong = []
    for path in PRODUCT:
        package = path.relative_to(ROOT).parts[0]
        allowed = LEFT_OF[package] | {package} if package in LEFT_OF else SCRIPTS_MAY_IMPORT
        wrong += [
            (name(path), node.lineno, what) for node in nodes(path) for what in imported(node)
            if what.startswith(".") or (what in ours and what not in allowed)
        ]  # fmt: skip
    assert not wrong, "see LEFT_OF for what each package may import"


def package_of(module: str) -> str:
    """The innermost package that a dotted name lies in: "models.ops.scan.selective_scan" -> "models.ops"."""
    parts = module.split(".")
    while parts and ".".join(parts) not in INNER_LEFT_OF:
        parts.pop()
    return ".".join(parts)


def test_imports_between_rooms_of_a_package_only_point_left() -> None:
    wrong = []
    for path in [path for path in PRODUCT if path.parent != ROOT]:
        own = ".".join(path.relative_to(ROOT).parent.parts)
        assert own in INNER_LEFT_OF, f"{own} is a package that no rule is written for"
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == own.split(".")[0]:
                others = {package_of(f"{node.module}.{alias.name}") for alias in node.names}
                wrong += [(name(path), node.lineno, other) for other in others - INNER_LEFT_OF[own] - {own}]
    assert not wrong, "see INNER_LEFT_OF for what each package may import"


def test_scorers_are_imported_only_where_something_is_scored() -> None:
    wrong = [
        (name(path), what) for path in PRODUCT for node in at_import_time(tree(path))
        for what in imported(node) if what in SCORING_ONLY
    ]  # fmt: skip
    assert not wrong


def test_no_path_tricks() -> None:
    touched = [
        (name(path), node.lineno) for path in ALL for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr == "path" and ast.unparse(node) == "sys.path"
    ]  # fmt: skip
    taken = [
        (name(path), node.lineno) for path in ALL for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module == "sys" and any(alias.name == "path" for alias in node.names)
    ]  # fmt: skip
    assert not touched + taken


def test_checkpoints_are_loaded_without_running_code() -> None:
    wrong, found = [], 0
    for path in ALL:
        for node in nodes(path):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"):
                continue
            found += 1
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            wrong += [] if given.get("weights_only") == "True" else [(name(path), node.lineno)]
    assert found and not wrong


def test_files_stay_readable() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL}
    assert not {path: n for path, n in lengths.items() if n > LONGEST_FILE}, f"more than {LONGEST_FILE} lines: split them"


def test_no_paths_of_one_machine() -> None:
    top = [ROOT / part for part in ("Makefile", "pyproject.toml", ".ci/run")]
    texts = PRODUCT + RECIPES + top + sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("*.txt")) + sorted(ROOT.glob("samples/*.md"))
    found = {name(path): MACHINE_PATH.search(path.read_text(encoding="utf-8")) for path in texts}
    assert not {path: match for path, match in found.items() if match}


def test_metadata_names_every_package_and_script() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = [path.parent for package in LEFT_OF for path in (ROOT / package).rglob("__init__.py")]
    assert sorted(listed["packages"]) == sorted(".".join(path.relative_to(ROOT).parts) for path in found)
    assert sorted(listed["py-modules"]) == sorted({path.stem for path in ROOT.glob("*.py")} - {"setup"})


def test_scripts_have_a_main_that_takes_arguments() -> None:
    for path in PRODUCT:
        module = tree(path)
        if not any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in module.body):
            assert path.parent != ROOT, f"{name(path)} lies at the top and is no script"
            continue
        mains = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        assert len(mains) == 1 and mains[0].args.args[0].arg == "argv", name(path)


WITHOUT_THE_REST = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import inference, inference_av
import numpy as np
from models.inference.enhancer import Enhancer

wav = np.sin(np.arange(2000) / 9)
video = np.zeros((4, 96, 96, 3), np.uint8)
print(len(Enhancer.from_checkpoint(sys.argv[1], "cpu").enhance(wav, 16000, video).wav))
print(*(name for name in ("torch._dynamo", "scipy.signal") if name in sys.modules))
"""


def test_enhancing_needs_none_of_what_training_and_scoring_need(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "tiny.pth")
    command = [sys.executable, "-c", WITHOUT_THE_REST, str(checkpoint), ",".join(NOT_FOR_ENHANCING)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_SEC)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2000"]  # and neither of the two packages whose import takes a second


def test_a_script_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "evaluation" / "demo.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_SEC)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint_file" in done.stdout


# Recipes -------------------------------------------------------------------------------------------------------------


def architecture(recipe: Path) -> str:
    return "LiteAVSEMamba" if recipe.is_relative_to(ROOT / "recipes" / "LiteAVSE") else "SEMamba"


def differences(one: dict, other: dict, prefix: str = "") -> dict[str, tuple]:
    """{"section.key": (value in one, value in other)} where two configurations differ."""
    found = {}
    for key, value in one.items():
        if isinstance(value, dict):
            found |= differences(value, other[key], f"{prefix}{key}.")
        elif value != other[key]:
            found[prefix + key] = (value, other[key])
    return found


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_builds_its_model(path: Path) -> None:
    cfg = load_config(path, ["visual_cfg.backbone_weights=none"])
    model = ARCHITECTURES[architecture(path)](cfg)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained > 20_000
    if architecture(path) == "SEMamba":
        assert trained == 2_258_769
    assert model.causal == cfg["model_cfg"]["causal"]
    for part, on in (("vce", cfg["lite_cfg"]["use_vce"]), ("fsvg", cfg["lite_cfg"]["use_fsvg"])):
        wanted = on and architecture(path) == "LiteAVSEMamba" and cfg["visual_cfg"]["use_visual"]
        assert (getattr(model, part, None) is not None) == wanted


def test_the_recipes_that_the_design_names_are_there() -> None:
    assert {name(path).removeprefix("recipes/") for path in RECIPES} >= {
        "LiteAVSE/LiteAVSE.yaml", "LiteAVSE/LiteAVSE_offline.yaml", "LiteAVSE/LiteAVSE_small.yaml",
        "LiteAVSE/LiteAVSE_smoke.yaml", "SEMamba_advanced/SEMamba_advanced.yaml",
        "SEMamba_advanced_PCS/SEMamba_advanced_PCS.yaml", "SEMamba_advanced/SEMamba_advanced_pretrainedD.yaml",
    }  # fmt: skip


NO_ALPHA = {"training_cfg.loss.confidence": (0.05, 0.0)}


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        ("LiteAVSE_offline", {"model_cfg.causal": (True, False), "model_cfg.norm": ("channel", "instance"),
                              "lite_cfg.use_lite_dense": (True, False)}),
        ("ablations/LiteAVSE_no_vce", {"lite_cfg.use_vce": (True, False), **NO_ALPHA}),
        ("ablations/LiteAVSE_no_fsvg", {"lite_cfg.use_fsvg": (True, False)}),
        ("ablations/LiteAVSE_audio_only", {"visual_cfg.use_visual": (True, False), **NO_ALPHA,
                                           "training_cfg.video_dropout": (0.15, 0.0)}),
        ("ablations/LiteAVSE_distilled", {"lite_cfg.visual_encoder_type": ("mobilenet", "distilled"),
                                          "visual_cfg.visual_dim": (512, 128),
                                          "visual_cfg.encoder_weights": (None, "ckpts/visual_encoder.pth")}),
        ("ablations/LiteAVSE_custom3d", {"lite_cfg.visual_encoder_type": ("mobilenet", "custom3d")}),
    ],
)  # fmt: skip
def test_variants_differ_from_the_full_recipe_in_what_they_are_named_after(variant: str, wanted: dict) -> None:
    folder = ROOT / "recipes" / "LiteAVSE"
    full, other = load_config(folder / "LiteAVSE.yaml"), load_config(folder / f"{variant}.yaml")
    assert differences(full, other) == wanted


def test_the_full_recipe_keeps_the_numbers_of_the_design() -> None:
    cfg = load_config(ROOT / "recipes" / "LiteAVSE" / "LiteAVSE.yaml")
    training, model, lite = cfg["training_cfg"], cfg["model_cfg"], cfg["lite_cfg"]
    assert (training["training_epochs"], training["batch_size"], training["learning_rate"]) == (100, 2, 5e-4)
    assert (training["adam_b1"], training["adam_b2"], training["lr_decay"], training["grad_clip"]) == (0.8, 0.99, 0.99, 1.0)
    assert (training["segment_size"], training["snr_range"], training["use_discriminator"]) == (16000, [-5, 20], False)
    assert training["loss"] == {
        "metric": 0, "magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0, "consistancy": 0.1, "si_sdr": 0.03,
        "confidence": 0.05, "silence": 0,
    }  # fmt: skip
    assert (model["hid_feature"], model["num_tfmamba"], model["d_state"], model["d_conv"], model["expand"]) == (64, 4, 16, 4, 4)
    assert model["causal"] and model["phase_residual"] and lite["visual_encoder_type"] == "mobilenet" and lite["use_lite_dense"]


def test_semamba_recipes_keep_the_published_numbers() -> None:
    recipes = ROOT / "recipes"
    plain, pcs = (load_config(recipes / stem / f"{stem}.yaml") for stem in ("SEMamba_advanced", "SEMamba_advanced_PCS"))
    assert set(differences(plain, pcs)) == {"training_cfg.use_PCS400", "env_setting.dist_cfg.dist_url"}
    assert pcs["training_cfg"]["use_PCS400"] and plain["training_cfg"]["grad_clip"] is None
    pretrained = load_config(recipes / "SEMamba_advanced" / "SEMamba_advanced_pretrainedD.yaml")
    assert differences(plain, pretrained) == {"training_cfg.use_pretrainedD": (False, True)}
    env, training = plain["env_setting"], plain["training_cfg"]
    assert (env["num_gpus"], env["num_workers"], env["seed"], env["summary_interval"]) == (2, 20, 1234, 100)
    assert env["dist_cfg"] == {"dist_backend": "nccl", "dist_url": "tcp://localhost:19477", "world_size": 1}
    assert (training["training_epochs"], training["batch_size"], training["segment_size"]) == (200, 4, 32000)
    assert (training["loss"]["metric"], training["loss"]["time"], training["loss"]["si_sdr"]) == (0.05, 0.2, 0)
    assert plain["data_cfg"]["test_noisy_json"] == "data/test_noisy.json"
