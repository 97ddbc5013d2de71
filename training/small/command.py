"""``vlar1 train base``: the small model before VLA-R1's two stages, from nothing."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    base = commands.add_parser("base", help="the small model from scratch: it learns to see and to name; resumes")
    base.add_argument("--data", type=Path, required=True, metavar="FILE", help="train.json of vlar1 data sim")
    base.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the stages and checkpoint/")
    base.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train, or go on training; 0 when the checkpoint is written."""
    from training.small.base import Recipe, train_base

    console = Console(highlight=False)
    began = time.monotonic()

    def log(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        console.print(f"{(time.monotonic() - began) / 60:6.1f} min  {stage} {step}/{steps}  {shown}", soft_wrap=True)

    folder = train_base(args.data, args.out, Recipe(), log)
    console.print(f"checkpoint: {folder}")
    return 0
