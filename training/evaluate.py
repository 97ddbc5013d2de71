"""Answers against labels: what each answer is worth, and the figures of a split with their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from drivers.errors import UserError
from edge.agreement import discrete_frechet, iou
from edge.contract import TASKS, Affordance, ContractError, Output, Task, Trajectory, parse_answer
from training.answering import Answerer
from training.data.sharegpt import Item, load_image, read_items
from training.metrics import bootstrap_interval, end_point_error, giou, hausdorff, rmse

HIT_IOU = 0.5


@dataclass(frozen=True)
class Question:
    """One item of a split.

    Attributes:
        split: the stem of its JSON file.
        index: its place in that file, bad entries counted.
        folder: what its image path is relative to.
    """

    split: str
    index: int
    folder: Path
    item: Item


@dataclass(frozen=True)
class Skipped:
    """An entry of a split that was not asked, and why."""

    split: str
    index: int
    reason: str


@dataclass(frozen=True)
class Result:
    """One answer and what it is worth.

    Attributes:
        wanted, answer: texts, of the label and of the model.
        fault: why the answer does not parse under the contract; None where it does.
        absent: the label is null: what is named is not in the picture.
        null: the answer is null.
        iou, giou: of boxes; 0 and -1 where the answer has no box. None for trajectories and where `absent`.
        frechet, hausdorff, rmse, end_point_error: of trajectories, normalized to the image; None for boxes, where
            `absent`, and where the answer has no trajectory: a distance to nothing is not a number.
    """

    split: str
    index: int
    image: str
    task: Task
    instruction: str
    wanted: str
    answer: str
    fault: str | None
    absent: bool
    null: bool
    iou: float | None = None
    giou: float | None = None
    frechet: float | None = None
    hausdorff: float | None = None
    rmse: float | None = None
    end_point_error: float | None = None

    @property
    def output(self) -> Output | None:
        """The output of the answer; None for null and for an answer that does not parse."""
        return None if self.fault is not None else parse_answer(self.answer, self.task).output


@dataclass(frozen=True)
class Figure:
    """The mean of one figure over the `n` items it applies to, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


def read_questions(paths: Sequence[Path], count: int | None = None) -> tuple[list[Question], list[Skipped]]:
    """The items of ShareGPT JSON files, the first `count` of each, and the entries that are none.

    Raises:
        UserError: a file cannot be read, two have the same name, or no file holds an item.
    """
    questions: list[Question] = []
    skipped: list[Skipped] = []
    for path in paths:
        if any(path.stem == other.stem for other in paths if other is not path):
            raise UserError(f"--data {path}: two files are named {path.stem}; splits go by file name, rename one")
        items, bad = read_items(path)
        at_fault = {entry.index: entry.reason for entry in bad}
        places = [k for k in range(len(items) + len(bad)) if k not in at_fault]
        asked = list(zip(places, items, strict=True))[:count]
        questions += [Question(path.stem, k, path.parent, item) for k, item in asked]
        last = asked[-1][0] if asked and count is not None and len(asked) == count else len(places) + len(bad)
        skipped += [Skipped(path.stem, k, reason) for k, reason in at_fault.items() if k <= last]
    if not questions:
        why = f"; the first fault: item {skipped[0].index}: {skipped[0].reason}" if skipped else ""
        raise UserError(f"--data {paths[0]}: no usable item{why}")
    return questions, skipped


def evaluate(
    answerer: Answerer, questions: Sequence[Question], progress: Progress | None = None
) -> tuple[list[Result], list[Skipped]]:
    """Ask every question and judge its answer; a question that cannot be asked (its image, say) is listed instead.

    Raises:
        UserError: none could be asked.
    """
    results: list[Result] = []
    skipped: list[Skipped] = []
    line = progress.add_task("deciding", total=len(questions)) if progress else None
    for at in range(0, len(questions), answerer.batch):
        batch = questions[at : at + answerer.batch]
        for outcome in _ask(answerer, batch):
            if isinstance(outcome, Result):
                results.append(outcome)
            else:
                skipped.append(outcome)
        if progress and line is not None:
            progress.advance(line, len(batch))
    if not results:
        first = skipped[0]
        raise UserError(f"--data: no usable item; the first fault: {first.split} item {first.index}: {first.reason}")
    return results, skipped


def _ask(answerer: Answerer, batch: Sequence[Question]) -> Iterator[Result | Skipped]:
    ready: list[tuple[NDArray[np.uint8], Question]] = []
    for question in batch:
        try:
            ready.append((load_image(question.folder, question.item), question))
        except UserError as error:
            yield Skipped(question.split, question.index, str(error))
    try:
        texts = answerer([rgb for rgb, _ in ready], [q.item for _, q in ready]) if ready else []
    except UserError as error:
        if len(ready) > 1:  # which of them it was shows when they are asked one by one
            for _, question in ready:
                yield from _ask(answerer, [question])
        else:
            yield Skipped(ready[0][1].split, ready[0][1].index, str(error))
        return
    for (_, question), text in zip(ready, texts, strict=True):
        yield judge(question, text)


def judge(question: Question, text: str) -> Result:
    """What one answer is worth against its label."""
    item, fault, got = question.item, None, None
    try:
        got = parse_answer(text, item.task).output
    except ContractError as error:
        fault = str(error)
    want = item.wanted.output
    worth: dict[str, float] = {}
    if isinstance(want, Affordance):
        worth = {"iou": 0.0, "giou": -1.0}
        if isinstance(got, Affordance):
            worth = {"iou": iou(got, want), "giou": giou(got, want)}
    elif isinstance(want, Trajectory) and isinstance(got, Trajectory):
        a, b = got.points, want.points
        worth = {
            "frechet": discrete_frechet(a, b),
            "hausdorff": hausdorff(a, b),
            "rmse": rmse(a, b),
            "end_point_error": end_point_error(a, b),
        }
    return Result(
        question.split,
        question.index,
        item.image,
        item.task,
        item.instruction,
        item.answer,
        text,
        fault,
        absent=want is None,
        null=fault is None and got is None,
        **worth,
    )


def figures(results: Sequence[Result]) -> dict[str, Figure]:
    """The figures of one task's results; one that applies to none of them is left out.

    ``mean_iou``, ``mean_giou``, ``share_iou_50``: over labels with a box; no box counts 0, -1, and below.
    ``mean_frechet``, ``mean_hausdorff``, ``mean_rmse``, ``mean_end_point_error``: over answers that have a trajectory;
    ``missed`` is the share of labels with a trajectory whose answers have none.
    ``wrongly_null``: share answered null though it is there; ``absent_found``: share answered null where it is not.
    ``format_rate``: share of all answers that parse under the contract.
    """
    present, absent = [r for r in results if not r.absent], [r for r in results if r.absent]
    of_box = [r for r in present if r.task == "affordance"]
    of_path = [r for r in present if r.task == "trajectory"]
    answered = [r for r in of_path if r.frechet is not None]
    values: dict[str, list[Any]] = {
        "mean_iou": [r.iou for r in of_box],
        "mean_giou": [r.giou for r in of_box],
        "share_iou_50": [(r.iou or 0.0) >= HIT_IOU for r in of_box],
        "mean_frechet": [r.frechet for r in answered],
        "mean_hausdorff": [r.hausdorff for r in answered],
        "mean_rmse": [r.rmse for r in answered],
        "mean_end_point_error": [r.end_point_error for r in answered],
        "missed": [r.frechet is None for r in of_path],
        "wrongly_null": [r.null for r in present],
        "absent_found": [r.null for r in absent],
        "format_rate": [r.fault is None for r in results],
    }
    return {name: _figure(of) for name, of in values.items() if of}


def _figure(values: Sequence[float]) -> Figure:
    return Figure(float(np.mean(values)), *bootstrap_interval(values), len(values))


def split_figures(results: Sequence[Result]) -> dict[str, dict[str, dict[str, Figure]]]:
    """`figures` by split and task, in the order of the results."""
    table: dict[str, dict[str, dict[str, Figure]]] = {}
    for split in dict.fromkeys(r.split for r in results):
        for task in TASKS:
            if of_task := [r for r in results if r.split == split and r.task == task]:
                table.setdefault(split, {})[task] = figures(of_task)
    return table


def report(results: Sequence[Result], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """Everything as JSON values: ``splits`` (figures by split and task), ``skipped`` and ``items`` (every result)."""
    return {
        "splits": {
            split: {task: {name: asdict(f) for name, f in of.items()} for task, of in tasks.items()}
            for split, tasks in split_figures(results).items()
        },
        "skipped": [asdict(entry) for entry in skipped],
        "items": [asdict(result) for result in results],
    }
