"""``vlar1 eval``: a deployed bundle against labelled scenes it has not seen."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from drivers.errors import UserError
from edge.contract import Affordance, Trajectory
from edge.decode import decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import Engine, OnnxEngine
from training.answers import Item, affordance_answer, trajectory_answer
from training.metrics import discrete_frechet, iou
from training.scenes import Seen, load_shard


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("eval", help="a bundle against labelled scenes")
    parser.add_argument("--bundle", type=Path, required=True, help="of vlar1 export")
    parser.add_argument("--data", type=Path, required=True, help="scenes of vlar1 data sim, of another seed")
    parser.add_argument("--count", type=int, default=500, help="scenes, each asked for a box and a path (default: 500)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures; 0 when done."""
    if args.count < 1:
        raise UserError(f"--count {args.count}: expected at least 1")
    if args.json and not args.json.absolute().parent.is_dir():  # said before minutes of work, not after
        raise UserError(f"--json {args.json}: its folder does not exist; make it, or name another file")
    engine = OnnxEngine(load_bundle(args.bundle))
    paths = sorted(args.data.glob("scenes-*.npz"))
    if not paths:
        raise UserError(f"--data {args.data}: no scenes-*.npz here; make them with: vlar1 data sim --out {args.data}")
    scenes = [(rgb, seen) for path in paths for rgb, seen in zip(*load_shard(path)[::2], strict=True)][: args.count]
    figures = evaluate(engine, scenes) | {"quantization": engine.bundle.quantization}
    table = Table(title=f"{args.bundle} on {len(scenes)} scenes")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, value if isinstance(value, str) else f"{value:.4g}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def evaluate(engine: Engine, scenes: list[tuple[np.ndarray, tuple[Seen, ...]]]) -> dict[str, Any]:
    """Ask every scene for the grasp of one object and for one path; targets are drawn, the same every time."""
    rng = np.random.default_rng(0)
    ious: list[float] = []
    distances: list[float] = []
    tokens: list[int] = []
    for rgb, seen in track(scenes, description="deciding"):
        for item in _items(rng, seen):
            decision = decide(engine, rgb, item.task, item.instruction)
            got, want = decision.answer.output, item.answer.output
            tokens.append(decision.n_tokens)
            if isinstance(got, Affordance) and isinstance(want, Affordance):
                ious.append(iou(got, want))
            elif isinstance(got, Trajectory) and isinstance(want, Trajectory):
                distances.append(discrete_frechet(got.points, want.points))
    return {
        "scenes": len(scenes),
        "mean_iou": float(np.mean(ious)),
        "share_iou_50": float(np.mean(np.array(ious) >= 0.5)),
        "mean_frechet": float(np.mean(distances)),
        "median_frechet": float(np.median(distances)),
        "mean_answer_tokens": float(np.mean(tokens)),
    }


def _items(rng: np.random.Generator, seen: tuple[Seen, ...]) -> list[Item]:
    objects, containers = [s for s in seen if not s.is_container], [s for s in seen if s.is_container]
    target, container = objects[int(rng.integers(len(objects)))], containers[int(rng.integers(len(containers)))]
    pick, place = f"pick up the {target.name}", f"put the {target.name} in the {container.name}"
    return [
        Item("affordance", pick, affordance_answer(seen, target)),
        Item("trajectory", place, trajectory_answer(seen, target, container)),
    ]
