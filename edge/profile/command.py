"""``vlar1 profile``: where a bundle's decisions spend time, energy and memory, and how far from the floor that is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

RUNS = 20
INSTRUCTION = "pick up the red cube"
BROKEN = 1


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "profile",
        help="where a bundle's decisions spend their time",
        description="Times decisions stage by stage, in a process of their own: a cold start, then the runs. Exit code "
        "1: slower than --against, or over --budget.",
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle (default: the shipped one)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="what is looked at (default: a simulated table)")
    parser.add_argument(
        "--instruction", default=INSTRUCTION, metavar="TEXT", help=f'of --image (default: "{INSTRUCTION}")'
    )
    parser.add_argument(
        "--runs", type=int, default=RUNS, metavar="N", help=f"decisions after the first (default: {RUNS})"
    )
    parser.add_argument(
        "--robot",
        type=Path,
        metavar="FILE",
        help="also watch this robot's servo loop, alone and while decisions are made; it reads, the arm does not move",
    )
    parser.add_argument(
        "--budget", metavar="TIME", help="for 99 of 100 decisions, such as 500ms; what would help if not"
    )
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier report; 1 where a stage became slower")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for ui.perfetto.dev here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="write the bars here")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0, or 1 where a stage became slower or the budget is broken."""
    from edge.profile import show

    return show.run(args)
