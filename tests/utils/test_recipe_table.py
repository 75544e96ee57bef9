"""docs/recipes.md names every key of a recipe, as utils/config.py has them."""

from __future__ import annotations

from helpers.paths import ROOT
from utils.config import complete_config
from utils.recipe_table import key_table, with_table


def test_the_page_holds_the_table_of_this_code() -> None:
    page, source = (ROOT / name for name in ("docs/recipes.md", "utils/config.py"))
    text = page.read_text(encoding="utf-8")
    assert with_table(text, key_table(source.read_text(encoding="utf-8"))) == text, "run python -m utils.recipe_table"


def test_no_key_is_left_out() -> None:
    def keys(mapping: dict, prefix: str = "") -> list[str]:
        found = []
        for key, value in mapping.items():
            nested = isinstance(value, dict)
            found += keys(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
        return found

    table = key_table((ROOT / "utils" / "config.py").read_text(encoding="utf-8"))
    missing = [key for key in keys(complete_config({})) if f"| `{key}` |" not in table]
    assert missing == ["training_cfg.scene"]  # its own keys stand in its place
    assert "| `training_cfg.scene.pair_share` | `0.0` |" in table
