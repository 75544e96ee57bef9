"""Builds the installed package `liteavse` from the repository's top-level folders and scripts.

Why it is done like this: `models`, `utils` or `data` at the top of somebody's site-packages would collide with theirs, and the
top-level folders and scripts of the repository are to stay as they are, and to run in a bare clone. So there is one tree, and
whatever is put into a wheel is moved below `liteavse/` with its imports rewritten: `from models.layers import X` becomes
`from liteavse.models.layers import X`. Mapping the folders by `package_dir` alone would leave imports that find nothing,
relative imports would break `python train_lite.py`, and an import hook would change the program that imports us. Editable
installs (`make`) use the tree itself, under its own names.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).resolve().parent
PACKAGE = "liteavse"
SHIPPED = ("recipes", "ckpts", "samples")  # data that comes along, beside the modules as in the repository


def rewritten(source: str, ours: set[str], name: str) -> str:
    """The source with absolute imports of `ours` below PACKAGE; ValueError for an import that cannot be told by its line."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in ours:
            lines[node.lineno - 1] = re.sub(r"\bfrom (?=\w)", f"from {PACKAGE}.", lines[node.lineno - 1], count=1)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] not in ours:
                    continue
                if len(node.names) > 1 or (alias.asname is None and "." in alias.name):
                    raise ValueError(f"{name}, line {node.lineno}: write `from ... import ...`; this cannot be packaged")
                package, _, last = f"{PACKAGE}.{alias.name}".rpartition(".")
                indent = lines[node.lineno - 1][: node.col_offset]
                lines[node.lineno - 1] = f"{indent}from {package} import {last} as {alias.asname or last}\n"
    return "".join(lines)


class BuildBelowPackage(build_py):
    """Builds as setuptools does, then moves all of it below PACKAGE; not in editable installs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        built, target = Path(self.build_lib), Path(self.build_lib) / PACKAGE
        names = {name.split(".")[0] for name in self.distribution.packages} - {PACKAGE}
        scripts = set(self.distribution.py_modules)
        for name in sorted(names):
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.move(built / name, target / name)
        for name in sorted(scripts):
            (built / f"{name}.py").replace(target / f"{name}.py")
        for path in (ROOT / PACKAGE).glob("*.py"):  # anew: a second build must not rewrite what was rewritten
            shutil.copyfile(path, target / path.name)
        for path in target.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(rewritten(text, names | scripts, str(path)), encoding="utf-8")
        for name in SHIPPED:
            shutil.rmtree(target / name, ignore_errors=True)
            shutil.copytree(ROOT / name, target / name)


class OneTopLevelName(egg_info):
    """Writes into the metadata the one top-level name that is installed."""

    def run(self) -> None:
        super().run()
        (Path(self.egg_info) / "top_level.txt").write_text(f"{PACKAGE}\n", encoding="utf-8")


def requirements(name: str) -> list[str]:
    """What a requirements file asks for itself, without the files that it includes."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


setup(
    cmdclass={"build_py": BuildBelowPackage, "egg_info": OneTopLevelName},
    install_requires=requirements("requirements-enhance.txt"),
    extras_require={
        "train": requirements("requirements.txt"), "app": requirements("requirements-app.txt"),
        "live": requirements("requirements-live.txt"),
        # What our GPU kernels need; a CUDA build of torch brings it. mamba-ssm, which they replace, is no extra: pip builds it
        # away from torch, where it fails (requirements-cuda.txt has the line that works).
        "gpu": ["triton>=3.0,<4; sys_platform == 'linux'"],
        "gpu-dev": ["triton>=3.0,<4"],  # tests the GPU kernels without a GPU
    },
)
