"""``vlar1 eval``: a deployed bundle or a checkpoint against labelled images it has not seen."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from drivers.errors import UserError
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from training.answering import Answerer, BundleAnswerer, CheckpointAnswerer
from training.contact_sheet import draw_sheet, worst
from training.data.sharegpt import load_image
from training.evaluate import Question, Result, Skipped, evaluate, read_questions, report, split_figures

SHOWN_FAULTS = 10


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("eval", help="a bundle or a checkpoint on held-out images")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--bundle", type=Path, metavar="DIR", help="of vlar1 export, run as on the robot")
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="a Transformers folder, of vlar1 train")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FILE.json", help="ShareGPT JSON, one file a split"
    )
    parser.add_argument("--count", type=int, help="items of each split, the first ones (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and every answer there")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write a picture of the worst answers there")
    parser.add_argument("--no-grammar", action="store_true", help="let the model write freely")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures, write what was asked for; 0 when done."""
    if args.count is not None and args.count < 1:
        raise UserError(f"--count {args.count}: expected at least 1")
    for name, path in (("--json", args.json), ("--sheet", args.sheet)):
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):  # said before minutes of work, not after
            raise UserError(f"{name} {path}: its folder does not exist, or it is one; make it, or name another file")
    questions, faulty = read_questions(args.data, args.count)
    answerer: Answerer
    if args.bundle:
        bundle = load_bundle(args.bundle)
        answerer = BundleAnswerer(OnnxEngine(bundle), not args.no_grammar)
        model = {"bundle": str(args.bundle), "quantization": bundle.quantization}
    else:
        answerer = CheckpointAnswerer(args.checkpoint, not args.no_grammar)
        model = {"checkpoint": str(args.checkpoint)}
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began = time.monotonic()
    with Progress(*columns, console=console) as progress:
        results, not_asked = evaluate(answerer, questions, progress)
    how = model | {"grammar": not args.no_grammar, "seconds": round(time.monotonic() - began, 1)}
    skipped = [*faulty, *not_asked]
    for table in tables(results):  # before anything is written, which may fail
        console.print(table)
    print_skipped(console, skipped, f"all in {args.json}" if args.json else "all with --json FILE")
    if args.json:
        _write(args.json, (json.dumps(how | report(results, skipped), indent=1, ensure_ascii=False) + "\n").encode())
    if args.sheet:
        _write(args.sheet, _sheet(results, questions, str(args.bundle or args.checkpoint)))
    return 0


def tables(results: Sequence[Result]) -> list[Table]:
    """One table a split: each figure of each task, its 95 % interval and the number of items it is over."""
    shown = []
    for split, tasks in split_figures(results).items():
        table = Table(title=escape(split), title_justify="left")
        table.add_column("task")
        table.add_column("figure")
        for name in ("value", "95 % interval", "items"):
            table.add_column(name, justify="right")
        for task, of in tasks.items():
            for k, (name, figure) in enumerate(of.items()):
                interval = f"{figure.low:.3f} to {figure.high:.3f}"
                table.add_row("" if k else task, name, f"{figure.value:.3f}", interval, str(figure.n))
            table.add_section()
        shown.append(table)
    return shown


def print_skipped(console: Console, skipped: Sequence[Skipped], where: str = "") -> None:
    """Say what was not asked and why, the first few; ``where`` all of them are."""
    if skipped:
        console.print(f"not asked: {len(skipped)} items")
    for entry in skipped[:SHOWN_FAULTS]:
        console.print(f"  {entry.split} item {entry.index}: {entry.reason}", markup=False, soft_wrap=True)
    if len(skipped) > SHOWN_FAULTS:
        more = f"  and {len(skipped) - SHOWN_FAULTS} more" + (f", {where}" if where else "")
        console.print(more, markup=False, soft_wrap=True)


def _sheet(results: Sequence[Result], questions: Sequence[Question], title: str) -> bytes:
    asked = {(q.split, q.index): q for q in questions}
    cases = []
    for split in dict.fromkeys(r.split for r in results):
        for result in worst([r for r in results if r.split == split]):
            question = asked[split, result.index]
            cases.append((result, load_image(question.folder, question.item)))
    ok, png = cv2.imencode(".png", draw_sheet(cases, title)[:, :, ::-1])
    if not ok:
        raise RuntimeError("OpenCV cannot write PNG")
    return png.tobytes()


def _write(path: Path, content: bytes) -> None:
    """Complete or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
