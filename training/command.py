"""``vlar1 train``: make a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

# Without these, glibc gives every large tensor back to the system and page-faults it in again: on two busy
# cores 6.7 s a language-model step of 32 without, 0.8 s with. They are read at process start, hence the restart below.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "passive",
}


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("train", help="make a checkpoint")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sft = commands.add_parser("sft", help="the small model from scratch, supervised; resumes")
    sft.add_argument("--data", type=Path, required=True, metavar="DIR", help="scenes of vlar1 data sim")
    sft.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the stages and checkpoint/")
    sft.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Train, or go on training; 0 when the checkpoint is written."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
    from training.recipe import Recipe, train_small

    console = Console(highlight=False)
    began = time.monotonic()

    def log(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        console.print(f"{(time.monotonic() - began) / 60:6.1f} min  {stage} {step}/{steps}  {shown}")

    folder = train_small(args.data, args.out, Recipe(), log)
    console.print(f"checkpoint: {folder}")
    return 0
