"""Damaged files of every kind: no crash, no hang, no growth, and no exception but those that the user is told about."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import fuzz
from helpers.paths import ROOT


@pytest.mark.slow
def test_two_minutes_of_damaged_inputs_break_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "fuzz.py"), "--seconds", "120"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert not done.stdout.startswith("0 inputs")


def test_an_input_is_the_same_each_time_and_seldom_a_good_one() -> None:
    content, others = np.random.default_rng(0).bytes(5000), [b"x" * 300]
    made = [fuzz.mutate(content, others, np.random.default_rng([7, number])) for number in range(50)]
    again = [fuzz.mutate(content, others, np.random.default_rng([7, number])) for number in range(50)]
    assert made == again and len(set(made)) == 50 and sum(data == content for data in made) == 0


BROKEN = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from helpers import fuzz
fuzz.LONGEST_SEC = 2.0
def read(path):
    number = int(path.parent.name.removeprefix("work")) if "work" in path.parent.name else 0
    if number == 1: raise KeyError("not told")
    if number == 2: import os; os.abort()
    if number == 3: import time; time.sleep(60)
def seeds(folder):
    (folder / "a.wav").write_bytes(b"x" * 100)
    return [folder / "a.wav"]
fuzz.readers, fuzz.seed_files = lambda suffix: [read], seeds
fuzz.__file__ = __file__
if "--child" in sys.argv:
    sys.exit(fuzz.main())
_, found = fuzz.watch(0, 0, 6, 120.0)
print([one["found"] for one in found])
"""


def test_it_finds_what_is_broken_and_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(root=str(ROOT)), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().splitlines()[-1] == "[1, 2, 3]", done.stdout + done.stderr
