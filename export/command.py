"""``vlar1 export``: a trained checkpoint to a verified bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from edge.engine.bundle import QUANTIZATIONS, load_bundle


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("export", help="turn a checkpoint into a verified bundle")
    parser.add_argument("checkpoint", help="folder as save_pretrained leaves it, or a name on the Hugging Face hub")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--quant", choices=QUANTIZATIONS, default="fp32", help="weights (default: fp32)")
    parser.add_argument(
        "--engine", choices=("onnx", "tensorrt", "both"), default="onnx", help="graphs to write (default: onnx)"
    )
    parser.add_argument(
        "--image-size",
        nargs="+",
        default=["224x168"],
        metavar="WxH",
        help="pixels the model sees; the first of several is the default (default: 224x168)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to verify on (default: simulated tables)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the bundle is verified and in place."""
    # Not at the top: the help of `vlar1 export` need not wait for torch.
    from transformers.utils import logging

    from export import build, report
    from export.shards import find_checkpoint

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    sizes_px = [build.size_of(size) for size in args.image_size]
    checkpoint = find_checkpoint(args.checkpoint)
    result = build.export_bundle(checkpoint, args.out, args.quant, sizes_px, args.images, args.engine)
    console = Console(soft_wrap=True, highlight=False)
    report.show(console, result, args.quant)
    console.print(f"{args.out}: {load_bundle(args.out).size_bytes / 1e6:.1f} MB, {args.quant}", markup=False)
    return 0
