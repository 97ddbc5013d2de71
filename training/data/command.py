"""``vlar1 data``: what to train and to test on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drivers.errors import UserError
from training.data import convert, cot
from training.data.labels import HEIGHT_PX, WIDTH_PX
from training.data.scenes import make_scenes, write_png
from training.data.sharegpt import load_image, read_items
from training.data.splits import SPLITS

SAMPLES = (3, 4)  # rows and columns of the picture of the first scenes


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("data", help="make, convert and reason about training data")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sim = commands.add_parser("sim", help="render labelled scenes of the simulated table")
    sim.add_argument("--out", type=Path, required=True, metavar="DIR")
    sim.add_argument("--split", choices=SPLITS, required=True, help="only train is for training; the others test")
    sim.add_argument("--count", type=int, required=True, help="scenes; those already in DIR are kept")
    sim.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    sim.set_defaults(func=run_sim)
    convert.add_parser(commands)
    cot.add_parser(commands)


def run_sim(args: argparse.Namespace) -> int:
    """Render what is missing; 0 when done."""
    if args.count < 1 or args.workers < 1:
        raise UserError("--count and --workers: expected at least 1")
    columns = (TextColumn(f"rendering {args.split}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        line = progress.add_task("", total=args.count)
        for done in make_scenes(args.out, SPLITS[args.split], args.count, args.workers):
            progress.update(line, completed=done)
    file = args.out / f"{args.split}.json"
    items, _ = read_items(file)
    rows, cols = SAMPLES
    sheet = np.zeros((rows, cols, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    for k, item in enumerate(items[: rows * cols]):
        sheet[divmod(k, cols)] = load_image(args.out, item)[:, :, ::-1]
    write_png(file.with_suffix(".png"), sheet.swapaxes(1, 2).reshape(rows * HEIGHT_PX, cols * WIDTH_PX, 3))
    print(f"{file}: {len(items)} items; the first of them in {file.with_suffix('.png')}")
    return 0
