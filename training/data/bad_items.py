"""Entries that could not be used: said on the console and kept beside the output, never dropped silently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.data.sharegpt import Bad


def bad_path(out: Path) -> Path:
    """Where the entries that `out` lacks are listed: ``DIR/train.json`` -> ``DIR/train.bad.json``."""
    return out.with_suffix(".bad.json")


def report_bad(out: Path, bad: Sequence[Bad]) -> None:
    """Print each entry's index in the input and its reason, and write them as a list of ``{"index", "reason"}``.

    A list left by an earlier run is replaced; with nothing bad there is no file.
    """
    path = bad_path(out)
    if not bad:
        path.unlink(missing_ok=True)
        return
    for entry in bad:
        print(f"item {entry.index}: {entry.reason}")
    partial = path.with_name(path.name + ".partial")
    lines = [json.dumps({"index": entry.index, "reason": entry.reason}, ensure_ascii=False) for entry in bad]
    partial.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    partial.replace(path)
    print(f"{path}: {len(bad)} items that could not be used, with their reasons")
