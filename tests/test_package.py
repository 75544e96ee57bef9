"""What setup.py makes of the tree: one package, with its imports rewritten, that works away from the repository."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

from helpers.paths import LONGEST_SEC, ROOT
from liteavse.__main__ import COMMANDS, evaluations, main, shipped

OURS = {"models", "utils", "inference_av"}
PROGRAM = """
import sys
before = list(sys.path)
from liteavse import Enhancer, StreamingEnhancer
assert sys.path == before, "sys.path was changed"
tops = {"models", "utils", "data", "dataloaders", "evaluation", "inference_av", "train_lite", "app"}
print(Enhancer.__module__, sorted(tops & {name.split(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    spec = importlib.util.spec_from_file_location("the_setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rewritten


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from models.layers import X\n", "from liteavse.models.layers import X\n"),
        ("def f():\n    from utils import console\n", "def f():\n    from liteavse.utils import console\n"),
        ("import inference_av\n", "from liteavse import inference_av as inference_av\n"),
        ("import models.ops.scan as s\n", "from liteavse.models.ops import scan as s\n"),
        ("import numpy as np\nfrom models_of_others import X\n", "import numpy as np\nfrom models_of_others import X\n"),
        ('x = "from models import X"\n', 'x = "from models import X"\n'),
    ],
)
def test_imports_of_ours_and_no_others_are_rewritten(rewritten, before: str, after: str) -> None:
    assert rewritten(before, OURS, "file.py") == after


@pytest.mark.parametrize("line", ["import models.layers\n", "import os, models\n"])
def test_an_import_that_cannot_be_packaged_stops_the_build(rewritten, line: str) -> None:
    with pytest.raises(ValueError, match="file.py, line 1"):
        rewritten(line, OURS, "file.py")


def test_the_command_line_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dance"]) == 2
    assert ", ".join(COMMANDS) in capsys.readouterr().err
    assert main(["evaluate", "dance"]) == 2 and "score_folder" in capsys.readouterr().err
    assert "report" in evaluations()


def test_the_version_names_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("liteavsemamba ") and "torch" in said and "Python 3" in said


def test_the_page_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["app"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("liteavse app: ") and said.endswith('pip install "liteavsemamba[app]"\n')


def test_what_is_shipped_is_found_unless_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = "recipes/LiteAVSE/LiteAVSE_smoke.yaml"
    assert Path(shipped(recipe)) == ROOT / recipe and "of the package" in capsys.readouterr().out
    (tmp_path / recipe).parent.mkdir(parents=True)
    (tmp_path / recipe).touch()
    assert shipped(recipe) == recipe and shipped("recipes/none.yaml") == "recipes/none.yaml"


@pytest.mark.slow
def test_a_wheel_holds_one_package_that_works_elsewhere(tmp_path: Path) -> None:
    source, wheels, place = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    unneeded = shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "__pycache__", "results", "exp")

    def left_out(folder: str, names: list[str]) -> set[str]:
        # Somebody's corpora in data/ are not copied: only the commands that lie there beside them.
        corpora = {name for name in names if Path(name).suffix != ".py"} - {"tools", "synthesis"}
        return unneeded(folder, names) | (corpora if Path(folder) == ROOT / "data" else set())

    shutil.copytree(ROOT, source, ignore=left_out)  # so that the build leaves nothing in the repository
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True, timeout=LONGEST_SEC)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"liteavse"}
    assert {"liteavse/ckpts/LiteAVSE_small.pth", "liteavse/recipes/LiteAVSE/LiteAVSE.yaml"} <= set(names)
    subprocess.run([*pip, "install", "--no-deps", "--target", place, wheel], check=True, timeout=LONGEST_SEC)
    environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "LITEAVSE_OFFLINE": "1"}
    away = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    said = subprocess.run([sys.executable, "-c", PROGRAM], check=True, **away).stdout
    assert said.split(" ", 1) == ["liteavse.models.inference.enhancer", "[]\n"]
    for command in ("enhance", "stream"):
        options = ["--input_audio", "samples/talker_awb.mp4", "--output", f"{command}.wav"]
        done = subprocess.run([sys.executable, "-m", "liteavse", command, *options], **away)
        assert done.returncode == 0, done.stderr
        assert str(place) in done.stdout and (tmp_path / f"{command}.wav").stat().st_size > 100_000
