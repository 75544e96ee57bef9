"""Fixtures shared by the tests of evaluation/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from evaluation.reporting import figures


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Figures have 60 dots an inch, which are drawn in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 60)
        yield
