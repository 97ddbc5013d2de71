"""``vlar1 data convert``: ShareGPT JSON <-> the released trainer's Parquet, and ShareRobot annotations to either."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drivers.errors import UserError
from edge.contract import SUFFIX
from training.data.annotations import Size, from_annotation
from training.data.bad_items import bad_path, report_bad
from training.data.parquet import read_parquet, write_parquet
from training.data.sharegpt import Bad, Item, from_json, load_image, read_entries, to_json, write_items

WRITTEN = (".json", ".parquet")


def add_parser(commands: Any) -> None:
    """Add ``convert`` to the sub-commands of ``vlar1 data``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "convert",
        help="ShareGPT JSON <-> Parquet of the released trainer; ShareRobot annotations to either",
        description="What INPUT holds is told from itself: ShareGPT JSON, the released trainer's Parquet, or "
        "ShareRobot / RoboBrain annotations. What is written is told from OUTPUT's name: .json or .parquet. Items that "
        "cannot be used are listed with their reason, here and in OUTPUT's .bad.json.",
    )
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("--out", type=Path, required=True, metavar="OUTPUT")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder the image paths start from; each image is then opened and checked (default: INPUT's, unchecked)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Convert; 0 when at least one item could be used."""
    return convert(args.input, args.out, args.images)


def convert(source: Path, out: Path, images: Path | None = None) -> int:
    """Convert `source` to `out`. Image paths are rewritten where the two lie in different folders.

    Raises:
        UserError: `source` cannot be read, `out` has another name or cannot be written, or no item can be used.
    """
    for path in (source, out):
        if path.suffix not in WRITTEN:
            raise UserError(f"{path}: expected a name that ends in {' or '.join(WRITTEN)}")
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is INPUT itself; give another name")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: is no folder")
    folder = images if images is not None else source.parent
    entries, bad = _entries(source)
    items: list[Item] = []
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for index, entry in progress.track(entries):
            try:
                item = moved(_read(entry, folder, check=images is not None), folder, out.parent)
                json.dumps(to_json(item), ensure_ascii=False).encode()  # half an escaped pair cannot be written
                items.append(item)
            except (ValueError, UserError) as error:
                bad.append(Bad(index, str(error)))
    bad.sort(key=lambda entry: entry.index)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        report_bad(out, bad)
        if not items and not bad:
            raise UserError(f"{source}: holds no items")
        if not items:
            raise UserError(f"{source}: none of its {len(bad)} items can be used; the reasons are in {bad_path(out)}")
        (write_parquet if out.suffix == ".parquet" else write_items)(out, items)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{out}: cannot be written ({why}); free space or choose another --out") from None
    print(f"{out}: {len(items)} items" + (f", {len(bad)} left out" if bad else ""))
    return 0


def _entries(source: Path) -> tuple[list[tuple[int, Any]], list[Bad]]:
    """The file's entries with their index: JSON objects as they are, Parquet rows as items."""
    if source.suffix == ".parquet":
        items, bad = read_parquet(source)
        return list(items), bad
    return list(enumerate(read_entries(source))), []


def _read(entry: Any, folder: Path, check: bool) -> Item:
    """The item an entry stands for; its image opened where that is asked for. Raises ValueError or UserError."""
    if isinstance(entry, Item):
        item = entry
    elif not isinstance(entry, dict):
        raise ValueError(f"is a {type(entry).__name__}, expected an object")
    elif "conversations" in entry and _asks_as_we_do(entry["conversations"]):
        item = from_json(entry)
    else:
        return from_annotation(entry, lambda image: _size(folder, image) if check else None)
    if check:
        _size(folder, item.image)
    return item


def _asks_as_we_do(turns: Any) -> bool:
    """Whether a turn holds a suffix of this contract; otherwise the turns are read as ShareRobot-Bench's."""
    said = [str(t.get("value")) for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []
    return any(suffix.strip() in text for text in said for suffix in SUFFIX.values())


def _size(folder: Path, image: str) -> Size:
    """(width, height) in pixels. Raises UserError for a file that is missing or no image."""
    height, width = load_image(folder, Item(image, "affordance", "", "")).shape[:2]
    return float(width), float(height)


def moved(item: Item, folder: Path, to: Path) -> Item:
    """The item with its image's path, and its mask's (of ``vlar1 data sim``), relative to the folder `to` instead of
    `folder`; absolute paths stay."""
    if folder.resolve() == to.resolve():
        return item

    def new(path: str) -> str:
        return path if Path(path).is_absolute() else os.path.relpath((folder / path).resolve(), to.resolve())

    mask = item.more.get("mask")
    more = {**item.more, "mask": new(mask)} if isinstance(mask, str) else item.more
    return replace(item, image=new(item.image), more=more)
