"""``vlar1 calibrate confidence``: fit, on labelled questions, how sure an answer must be to be acted on."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from drivers.errors import UserError
from edge.contract import Task

PICTURE = "confidence.png"
LEAST_ERROR_RATE = 1e-4  # takes 30 000 answers to show


def register(commands: Any) -> None:
    """Add ``confidence`` to the commands of ``vlar1 calibrate``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "confidence", help="how sure an answer must be, for a promised share of wrong ones"
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="to calibrate; written into it")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE.json",
        help="ShareGPT JSON with labels: questions like the robot's, that the model was not trained on",
    )
    parser.add_argument(
        "--error-rate", type=float, default=0.05, help="share of the answers acted on that may be wrong (default: 0.05)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="questions of each file, the first ones (default: all)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Ask, fit, write; 0 when the bundle holds thresholds that keep the promise."""
    from edge.decode import Decision
    from edge.engine.bundle import MANIFEST, load_bundle
    from edge.engine.onnx import OnnxEngine
    from training import confidence
    from training.answering import BundleAnswerer
    from training.evaluate import evaluate, read_questions
    from training.evaluate_command import print_skipped
    from training.risk_curve import draw

    if args.count is not None and args.count < 1:
        raise UserError(f"--count {args.count}: expected at least 1")
    if not LEAST_ERROR_RATE <= args.error_rate < 1.0:
        raise UserError(
            f"--error-rate {args.error_rate:g}: expected {LEAST_ERROR_RATE:g} or more and less than 1, for example 0.05"
        )
    bundle = load_bundle(args.bundle)
    if not os.access(args.bundle, os.W_OK) or not os.access(args.bundle / MANIFEST, os.W_OK):  # before minutes of work
        raise UserError(f"--bundle {args.bundle}: cannot be written; calibrate a copy of it that can")
    questions, faulty = read_questions(args.data, args.count)
    confidence.check_enough(Counter(question.item.task for question in questions), args.error_rate, "questions about")
    decisions: list[Decision] = []
    answerer = BundleAnswerer(OnnxEngine(bundle), on_decision=decisions.append)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        results, not_asked = evaluate(answerer, questions, progress)
    print_skipped(console, [*faulty, *not_asked])
    judged = confidence.acted_on(results, decisions)
    thresholds = confidence.fit(judged, args.error_rate)
    n_asked = {task: sum(result.task == task for result in results) for task in judged}
    console.print(_table(thresholds, n_asked, args.error_rate))
    picture = args.bundle / PICTURE
    draw(picture, judged, thresholds, args.error_rate)
    confidence.write_thresholds(args.bundle, thresholds, args.error_rate, args.data, args.count)
    console.print(f"written: {args.bundle / MANIFEST}; picture: {picture}", soft_wrap=True, markup=False)
    return 0


def _table(thresholds: Mapping[Task, Any], n_asked: Mapping[Task, int], error_rate: float) -> Table:
    from training.confidence import FAILURE_RATE

    title = f"at most {error_rate:.1%} wrong of the answers acted on, with {1 - FAILURE_RATE:.0%} confidence"
    table = Table(title=title, title_justify="left")
    table.add_column()
    for task in thresholds:
        table.add_column(task, justify="right")
    fits = thresholds.values()
    rows = {
        "asked": [str(n_asked[task]) for task in thresholds],
        "answered, and not cut short": [str(fit.answers) for fit in fits],
        "wrong of them": [f"{fit.wrong} ({fit.wrong / fit.answers:.1%})" for fit in fits],
        "least confidence to act on": [f"{fit.threshold:.3g}" for fit in fits],
        "acted on": [f"{fit.kept} ({fit.kept / fit.answers:.1%})" for fit in fits],
        "wrong of those": [f"{fit.kept_wrong} ({fit.kept_wrong / fit.kept:.1%})" for fit in fits],
        "at most, by the bound": [f"{fit.risk_bound:.1%}" for fit in fits],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table
