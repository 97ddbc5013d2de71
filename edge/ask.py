"""``vlar1 ask``: one decision on one image file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from drivers.errors import UserError
from edge import contract
from edge.contract import Affordance, Trajectory
from edge.decode import Decision, Sampling, decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.overlay import draw_decision
from edge.trace import Tracer

SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "tabletop"


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("ask", help="one decision on one image file")
    parser.add_argument("instruction", help='what to do, for example: "pick up the red cube"')
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="camera image")
    parser.add_argument("--task", choices=contract.TASKS, required=True, help="what to answer with")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON and nothing else")
    parser.add_argument("--overlay", type=Path, metavar="PNG", help="write a picture of the decision")
    parser.add_argument("--sample", action="store_true", help="sample as the released server does, instead of greedily")
    parser.add_argument("--seed", type=int, default=0, help="of --sample (default: 0)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Decide and print; 0 when done."""
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: expected 0 or more")
    rgb = read_image(args.image)
    engine = OnnxEngine(load_bundle(args.bundle))
    tracer = Tracer()
    console = Console(soft_wrap=True, highlight=False)

    def show(text: str) -> None:
        # What a model writes must not steer the terminal.
        shown = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
        console.print(shown, end="", markup=False, style="dim")

    decision = decide(
        engine,
        rgb,
        args.task,
        args.instruction,
        tracer=tracer,
        on_text=None if args.json else show,
        sampling=Sampling(seed=args.seed) if args.sample else None,
    )
    if args.overlay:
        _write_overlay(args.overlay, rgb, decision, args.instruction)
    stages = {name: row["max_ms"] for name, row in tracer.summary().items()}
    if args.json:
        print(json.dumps(_as_json(decision, args.task, stages)))
        return 0
    console.print()
    output = decision.answer.output
    said = contract.not_found(args.task, args.instruction) if output is None else contract.format_output(output)
    console.print(f"[bold]{args.task}[/bold] {escape(said)}", markup=True)
    times = ", ".join(f"{name} {stage_ms:.1f}" for name, stage_ms in stages.items())
    console.print(f"{times} ms; {decision.n_tokens} tokens, {decision.n_forced_tokens} of them forced by the grammar")
    if args.overlay:
        console.print(f"picture: {args.overlay}", markup=False)
    return 0


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as (h, w, 3) RGB; raises UserError where it cannot be read."""
    if not path.is_file():
        raise UserError(f"--image {path}: no such file")
    try:
        bgr = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.stat().st_size else None
    except cv2.error:  # more pixels than OpenCV takes
        bgr = None
    if bgr is None:
        raise UserError(f"--image {path}: is not an image that OpenCV reads; give a PNG or JPEG file")
    return np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)


def _write_overlay(path: Path, rgb: NDArray[np.uint8], decision: Decision, instruction: str) -> None:
    output = decision.answer.output
    picture = draw_decision(
        rgb,
        output if isinstance(output, Affordance) else None,
        output if isinstance(output, Trajectory) else None,
        instruction,
        decision.answer.reasoning,
        not_found=output is None,
    )
    try:
        written = cv2.imwrite(str(path), picture[:, :, ::-1])
    except cv2.error:
        written = False
    if not written:
        raise UserError(f"--overlay {path}: cannot be written; name a .png file in a folder that exists")


def _as_json(decision: Decision, task: str, stages_ms: dict[str, float]) -> dict[str, Any]:
    output = decision.answer.output
    value: Any = output
    if isinstance(output, Affordance):
        value = vars(output)
    elif isinstance(output, Trajectory):
        value = [list(point) for point in output.points]
    return {
        "task": task,
        "output": value,
        "reasoning": decision.answer.reasoning,
        "text": decision.text,
        "tokens": {"prompt": decision.n_prompt_tokens, "answer": decision.n_tokens, "forced": decision.n_forced_tokens},
        "thinking_cut": decision.thinking_cut,
        "stages_ms": {name: round(stage_ms, 3) for name, stage_ms in stages_ms.items()},
    }
