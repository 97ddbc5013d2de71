"""``vlar1 export``: a trained checkpoint to a verified bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from drivers.errors import UserError
from edge.engine.bundle import load_bundle


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("export", help="turn a checkpoint into a verified bundle")
    parser.add_argument("checkpoint", type=Path, help="folder as save_pretrained leaves it")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--quant", choices=("fp32", "int8"), default="fp32", help="weights (default: fp32)")
    parser.add_argument(
        "--image-size", default="224x168", metavar="WxH", help="pixels the model sees (default: 224x168)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to verify on (default: simulated tables)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the bundle is verified and in place."""
    # Not at the top: the help of `vlar1 export` need not wait for torch.
    from transformers.utils import logging

    from export import build

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    if not args.checkpoint.is_dir():
        raise UserError(f"checkpoint {args.checkpoint}: no such folder")
    size_px = build.size_of(args.image_size)
    result = build.export_bundle(args.checkpoint, args.out, args.quant, size_px, args.images)
    size_mb = build.bundle_size_bytes(load_bundle(args.out)) / 1e6
    console = Console(soft_wrap=True)
    console.print(
        f"{args.out}: {size_mb:.1f} MB, {args.quant}. Against Transformers, {result.cases} answers, {result.tokens} "
        f"tokens: logits within {result.logits_max_abs_diff:.2g} (largest {result.logits_max_abs:.3g}), mean cosine "
        f"{result.logits_cosine_mean:.5f}, {result.greedy_agreement:.1%} of greedy tokens the same."
    )
    return 0
