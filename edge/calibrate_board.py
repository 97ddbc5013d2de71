"""``vlar1 calibrate board``: a board to print, for the camera or for the gripper, as a PDF at true scale."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from calib.board import BOARDS
from calib.board_pdf import PAPERS_MM, RULER_MM, board_pdf


def register(commands: Any) -> None:
    """Add ``board`` to the commands of ``vlar1 calibrate``."""
    parser: argparse.ArgumentParser = commands.add_parser("board", help="a board to print, as a PDF at true scale")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pdf", help="to write")
    parser.add_argument(
        "--for", dest="use", choices=list(BOARDS), default="camera", help="what it is for (default: camera)"
    )
    parser.add_argument("--paper", choices=list(PAPERS_MM), default="a4", help="to print on (default: a4)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the page; 0."""
    args.out.write_bytes(board_pdf(BOARDS[args.use], args.paper))
    print(f'{args.out}: print at 100 % (not "fit to page"); both rulers must be {RULER_MM} mm; glue it on a flat plate')
    return 0
