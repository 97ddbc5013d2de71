"""``vlar1 build``: the TensorRT engines of a bundle, for this machine's GPU or ahead of time for another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "build",
        help="build a bundle's TensorRT engines for this GPU",
        description="Build the TensorRT engines of a bundle that was exported with --engine tensorrt or both. Their "
        "precision is the bundle's (vlar1 export --quant). Engines that are there already are kept.",
    )
    parser.add_argument("bundle", type=Path, help="folder that vlar1 export wrote")
    parser.add_argument(
        "--for",
        dest="targets",
        nargs="+",
        metavar="SM",
        help="compute capabilities to build for ahead of time, for example SM86 SM89; needs tensorrt-rtx but no GPU "
        "(default: this machine's GPU)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Build; 0 when every engine is in place."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from edge.engine.bundle import load_bundle
    from edge.engine.tensorrt.build import build_engines
    from edge.engine.tensorrt.module import ahead_of_time, installed
    from edge.engine.tensorrt.plan import Plan, settings

    bundle = load_bundle(args.bundle)
    settings(bundle)  # that it has graphs, before what lacks on this machine
    if args.targets:
        target = ahead_of_time(args.targets)
    else:
        from edge.engine.tensorrt.cuda import this_gpu

        target = this_gpu(installed()[0])
    console = Console(soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    built: list[Plan] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        paths = build_engines(bundle, target, progress, built.append)
    for plan in built:
        console.print(f"{plan.graph}: {plan.bytes / 1e6:.1f} MB in {plan.build_s:.1f} s")
    console.print(f"{paths[0].parent}: {len(paths)} engines, {bundle.quantization}, for {target}")
    return 0
