"""``vlar1 train``: make a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from training import grpo, supervised
from training.small import command as base

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
    for room in (base, supervised, grpo):
        room.add_parser(commands)
    for command in commands.choices.values():
        command.set_defaults(func=partial(_with_allocator, command.get_default("func")))


def _with_allocator(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
    return run(args)
