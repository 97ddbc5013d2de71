"""Imports between the rooms point one way, and what runs on the robot knows neither torch nor transformers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "drivers": set(),
    "calib": {"drivers"},
    "edge": {"drivers", "calib"},
    "export": {"edge", "drivers"},
    "training": {"edge", "drivers"},
}
ON_THE_ROBOT = ("edge", "drivers", "calib")
WORKSTATION_ONLY = {"torch", "torchvision", "transformers"}


def imported(source: str, package: str = "") -> Iterator[tuple[int, str]]:
    """Line and top-level package of everything ``source`` imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays in its package unless it climbs out of the room, which Python refuses.
            yield node.lineno, package if node.level else (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value.partition(".")[0]


def test_the_scan_sees_every_way_of_importing() -> None:
    source = """
import torch.nn as nn
from transformers import AutoModel
from . import sibling
def late():
    import edge.loop
    return importlib.import_module("export.command"), __import__("calib")
"""
    assert {name for _, name in imported(source, "drivers")} == {
        "torch", "transformers", "drivers", "edge", "export", "calib",
    }  # fmt: skip


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ has no modules: is the check looking in the right place?"
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[room] - {room}
    if room in ON_THE_ROBOT:
        forbidden |= WORKSTATION_ONLY
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imported(path.read_text(encoding="utf-8"), room)
        if name in forbidden
    ]
    assert not wrong, "\n".join(wrong)
