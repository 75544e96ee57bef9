"""Reads recipes as YAML. It refuses values that YAML reads differently from how they look, and documents without end."""

from __future__ import annotations

import re
from typing import Any, TextIO

import yaml

MOST_VALUES, MOST_DEPTH = 10_000, 20  # of a recipe, counted with what its aliases repeat
OCTAL = re.compile(r"[+-]?0[0-7_]+")


class _Unclear(ValueError):
    """A value that YAML reads differently from what its writer most likely means."""


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML's own readers silently take the last, and odd numbers."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Read a number; _Unclear for 0123, which YAML takes for 83, and for 1:30, which it takes for 90."""
        text, line = node.value, node.start_mark.line + 1
        read = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        value = read(node)
        if ":" in text or OCTAL.fullmatch(text):
            meant = text.replace("_", "").lstrip("+-").lstrip("0") if ":" not in text else f"{value:g}"
            raise _Unclear(f"line {line}: {text} would be read as {value:g}; write {meant or 0}, or put it in quotes for text")
        return value

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _Unclear(f"line {line}: key {key.value} was given in line {lines[key.value]} before; keep one")
            lines[key.value] = line
        return node


for _tag in ("int", "float"):
    _RecipeLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _RecipeLoader.construct_number)


def _check_extent(root: yaml.Node | None) -> None:
    """Raise _Unclear for a document of too many values or levels. Its aliases count as often as they stand there."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > MOST_DEPTH:
            raise _Unclear(f"lists and sections are nested more than {MOST_DEPTH} deep, or hold themselves")
        if id(node) not in counts:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            counts[id(node)] = 1 + sum(count(part, depth + 1) for part in flat)
        if counts[id(node)] > MOST_VALUES:
            raise _Unclear(f"more than {MOST_VALUES} values, counted with what aliases repeat")
        return counts[id(node)]

    if root is not None:
        count(root, 0)


def read_yaml(stream: str | TextIO, source: str) -> Any:
    """Read YAML's plain values; ValueError in one line that names the source for what is none, repeats a key or never ends."""
    try:
        loader = _RecipeLoader(stream)
        try:
            root = loader.get_single_node()
            _check_extent(root)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except _Unclear as error:
        raise ValueError(f"{source}: {error}") from None
    except RecursionError:
        raise ValueError(f"{source}: lists and sections are nested more than {MOST_DEPTH} deep") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that is none
        problem = str(error).replace("\n", " ")
        raise ValueError(f"{source} is not YAML: {problem}") from None
