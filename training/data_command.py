"""``vlar1 data``: labelled scenes to train and to test on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drivers.errors import UserError
from training.scenes import load_shard, make_scenes

SAMPLES = 8


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("data", help="labelled scenes for training")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sim = commands.add_parser("sim", help="render labelled scenes of the simulated table")
    sim.add_argument("--out", type=Path, required=True, metavar="DIR")
    sim.add_argument("--count", type=int, required=True, help="scenes; those already in DIR are kept")
    sim.add_argument("--seed", type=int, default=1, help="training's is 1, the held-out scenes' 2 (default: 1)")
    sim.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    sim.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Render what is missing; 0 when done."""
    if args.count < 1 or args.workers < 1:
        raise UserError("--count and --workers: expected at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: expected 0 or more")
    columns = (TextColumn("rendering scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        line = progress.add_task("", total=args.count)
        for done in make_scenes(args.out, args.count, args.seed, args.workers):
            progress.update(line, completed=done)
    samples = args.out / "samples"
    samples.mkdir(exist_ok=True)
    rgb, _, _ = load_shard(sorted(args.out.glob("scenes-*.npz"))[0])
    for k, image in enumerate(rgb[:SAMPLES]):
        cv2.imwrite(str(samples / f"{k:02d}.png"), image[:, :, ::-1])
    print(f"{args.out}: {args.count} scenes; the first of them as pictures in {samples}")
    return 0
