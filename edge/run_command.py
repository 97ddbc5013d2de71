"""``vlar1 run``: orders carried out on an arm, from the command line or from the operator's page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from drivers.camera.source import KINDS
from drivers.robot import SO101_PATH
from edge.shipped import SHIPPED_BUNDLE


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="carry out orders on an arm, from the command line or the operator's page",
        description="Bring the arm up where it is, go to its ready pose and carry out one order; or, with --console, "
        "those that are given on a page. Ctrl-C parks the arm. Nothing moves before you agree, or press Start.",
    )
    parser.add_argument("instruction", nargs="?", metavar="INSTRUCTION", help='in words: "pick up the red cube"')
    parser.add_argument(
        "--place", action="store_true", help="put it where the words say, instead of only picking it up"
    )
    parser.add_argument("--camera", required=True, metavar="SOURCE", help=f"which camera: {KINDS}".replace("%", "%%"))
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="FILE", help="of `vlar1 calibrate hand-eye`, this camera's"
    )
    parser.add_argument("--robot", type=Path, default=SO101_PATH, metavar="FILE", help="default: the shipped so101")
    parser.add_argument("--port", metavar="P", help="serial port (default: the robot file's)")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    add_watchers(parser)
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the run in a new .mcap, for `vlar1 replay`")
    parser.add_argument("--yes", action="store_true", help="the arm's way is clear: do not ask")
    parser.set_defaults(func=_run)


def add_watchers(parser: argparse.ArgumentParser) -> None:
    """The options of a run that is watched."""
    parser.add_argument(
        "--console",
        nargs="?",
        const="8080",
        metavar="[HOST:]PORT",
        help="serve the operator's page, on this machine alone unless HOST says otherwise (default: 8080)",
    )
    parser.add_argument(
        "--rerun",
        nargs="?",
        const="",
        metavar="WHERE",
        help="stream to the Rerun viewer: one that is started here, FILE.rrd, or rerun+http://HOST:9876/proxy",
    )


def _run(args: argparse.Namespace) -> int:
    from edge.run import run

    return run(args)
