"""Where the repository, its golden numbers and the real data beside it are, and how long a test waits for a process."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"
SHARED_DATA = SHARED / "data"
LONGEST_SEC = 600  # no test fails because a machine is busy: only what would never end takes so long
