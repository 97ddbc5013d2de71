"""``vlar1 ask``: one decision on one image file."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
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
from edge.decode import (
    Consistent,
    Decision,
    Event,
    Sampling,
    TextEvent,
    WaypointEvent,
    compile_grammars,
    decide,
    decide_consistent,
)
from edge.decode.decision import MAX_THINK_TOKENS
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.engine.protocol import Engine
from edge.overlay import draw_decision
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import Tracer

_WHY = {"tokens": "it had used its tokens", "deadline": "the deadline was near"}


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("ask", help="one decision on one image file")
    parser.add_argument("instruction", help='what to do, for example: "pick up the red cube"')
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="camera image")
    parser.add_argument("--task", choices=contract.TASKS, required=True, help="what to answer with")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON and nothing else")
    parser.add_argument("--overlay", type=Path, metavar="PNG", help="write a picture of the decision")
    parser.add_argument(
        "--max-think-tokens",
        type=int,
        default=MAX_THINK_TOKENS,
        metavar="N",
        help=f"close the reasoning after N tokens (default: {MAX_THINK_TOKENS})",
    )
    parser.add_argument(
        "--deadline", type=float, metavar="MS", help="answer within MS milliseconds, reasoning cut short"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--sample", action="store_true", help="sample as the released server does, instead of greedily")
    how.add_argument(
        "--draws", type=int, default=1, metavar="K", help="draw K answers, take the one most others agree with"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --sample and --draws (default: 0)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Decide and print; 0 when done."""
    _check(args)
    rgb = read_image(args.image)
    engine = OnnxEngine(load_bundle(args.bundle))
    compile_grammars(engine.bundle)
    tracer = Tracer()
    console = Console(soft_wrap=True, highlight=False)
    result = _decide(args, engine, rgb, tracer, None if args.json else _shower(console))
    decision = result.decision
    if args.overlay:
        _write_overlay(args.overlay, rgb, decision, args.instruction)
    stages = {name: row["max_ms"] for name, row in tracer.summary().items()}
    if args.json:
        print(json.dumps(_as_json(result, args.task, stages)))
        return 0
    output = decision.answer.output
    said = contract.not_found(args.task, args.instruction) if output is None else contract.format_output(output)
    console.print(f"[bold]{args.task}[/bold] {escape(said)}", markup=True)
    sure = f"confidence {decision.confidence:.2g}"
    if args.draws > 1:
        sure += f"; the one of {len(result.draws)} draws nearest to all, spread {result.spread:.3f}"
    console.print(sure)
    if decision.unsure:
        console.print(f"{decision.unsure}; a robot does not move", style="yellow")
    for line in _cuts(decision):
        console.print(line)
    times = ", ".join(f"{name} {stage_ms:.1f}" for name, stage_ms in stages.items())
    console.print(f"{times} ms; {decision.n_tokens} tokens, {decision.n_forced_tokens} of them forced by the grammar")
    if args.overlay:
        console.print(f"picture: {args.overlay}", markup=False)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: expected 0 or more")
    if args.max_think_tokens < 0:
        raise UserError(f"--max-think-tokens {args.max_think_tokens}: expected 0 or more")
    if args.deadline is not None and not 0.0 < args.deadline < math.inf:
        raise UserError(f"--deadline {args.deadline:g}: expected milliseconds, more than 0")
    if args.draws < 1:
        raise UserError(f"--draws {args.draws}: expected 1 or more")
    overlay: Path | None = args.overlay
    if overlay and not (overlay.parent.is_dir() and cv2.haveImageWriter(str(overlay))):
        raise _unwritable(overlay)


def _decide(
    args: argparse.Namespace,
    engine: Engine,
    rgb: NDArray[np.uint8],
    tracer: Tracer,
    on_event: Callable[[Event], None] | None,
) -> Consistent:
    common: dict[str, Any] = {
        "max_think_tokens": args.max_think_tokens,
        "deadline_s": None if args.deadline is None else args.deadline / 1e3,
        "tracer": tracer,
        "on_event": on_event,
    }
    sampling = Sampling(seed=args.seed)
    if args.draws > 1:
        return decide_consistent(
            engine, rgb, args.task, args.instruction, draws=args.draws, sampling=sampling, **common
        )
    decision = decide(engine, rgb, args.task, args.instruction, sampling=sampling if args.sample else None, **common)
    return Consistent(decision, 0.0, (decision,))


def _shower(console: Console) -> Callable[[Event], None]:
    """Prints the reasoning as it comes, and each waypoint when it is complete."""
    began_s = time.perf_counter()
    thinking = True

    def show(event: Event) -> None:
        nonlocal thinking
        if isinstance(event, TextEvent):
            if event.reasoning:
                # What a model writes must not steer the terminal.
                shown = "".join(
                    char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in event.text
                )
                console.print(shown, end="", markup=False, style="dim")
            elif thinking:
                console.print()
                thinking = False
        elif isinstance(event, WaypointEvent):
            x, y = event.point
            took_ms = (time.perf_counter() - began_s) * 1e3
            console.print(f"waypoint {event.index + 1}: {x:g}, {y:g} after {took_ms:.0f} ms")

    return show


def _cuts(decision: Decision) -> list[str]:
    """What of the answer was cut short, a line each."""
    lines = []
    if decision.thinking_cut:
        lines.append(f"reasoning cut short: {_WHY[decision.thinking_cut]}; the answer may be a guess")
    if decision.points_cut:
        lines.append(f"no more waypoints: {_WHY[decision.points_cut]}; the path may end too early")
    return lines


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
        raise _unwritable(path)


def _unwritable(overlay: Path) -> UserError:
    return UserError(f"--overlay {overlay}: cannot be written; name a .png file in a folder that exists")


def _as_json(result: Consistent, task: str, stages_ms: dict[str, float]) -> dict[str, Any]:
    decision = result.decision
    output = decision.answer.output
    value: Any = output
    if isinstance(output, Affordance):
        value = vars(output)
    elif isinstance(output, Trajectory):
        value = [list(point) for point in output.points]
    first_s = decision.first_action_s
    return {
        "task": task,
        "output": value,
        "reasoning": decision.answer.reasoning,
        "text": decision.text,
        "tokens": {"prompt": decision.n_prompt_tokens, "answer": decision.n_tokens, "forced": decision.n_forced_tokens},
        "passes": decision.n_passes,
        "thinking_cut": decision.thinking_cut,
        "points_cut": decision.points_cut,
        "confidence": decision.confidence,
        "number_confidences": list(decision.number_confidences),
        "unsure": decision.unsure,
        "draws": len(result.draws),
        "spread": result.spread,
        "first_action_ms": None if first_s is None else round(first_s * 1e3, 3),
        "took_ms": round(decision.took_s * 1e3, 3),
        "stages_ms": {name: round(stage_ms, 3) for name, stage_ms in stages_ms.items()},
    }
