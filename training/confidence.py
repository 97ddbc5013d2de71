"""How sure an answer must be to be acted on: the least confidence that keeps a promise about wrong answers.

The promise. Of the answers that a robot acts on (they have an output, were not cut short, and their confidence reaches
the threshold), at most the share `error_rate` is wrong: P(wrong | acted on) <= error_rate on questions like those of
the calibration. It holds with probability 1 - `FAILURE_RATE` over which questions the calibration happened to draw, of
each task by itself, for greedy answers. This is the selective risk of Geifman and El-Yaniv (Selective classification
for deep neural networks, 2017, arXiv:1705.08500). A plain conformal quantile would bound another thing, the share of
*all* questions that are answered wrongly, and only on the average over calibrations: a robot that abstains nine times
of ten could then be wrong every time it moves. So the threshold is found in the way of Angelopoulos et al. (Learn then
test, 2021, arXiv:2110.01052): each threshold is a hypothesis "its risk is above `error_rate`", and valid tests of many
hypotheses in a fixed order give the promise for a finite sample, whatever the model, its confidence and the data are.

The test of a threshold with k wrong among n answers: P(Binomial(n, error_rate) <= k) <= `FAILURE_RATE` (Clopper and
Pearson, 1934). The order: from the sure end down, until the first test fails. It begins with m answers, m fixed by the
number of answers alone. That where the m-th surest stands is not fixed in advance does no harm. Given where answer
m + 1 stands, the m before it are independent draws from above it, so the first test is exact. If it is safe to begin
there, only the first risky threshold t below can break the promise. Where no threshold above t is risky at all, t is
one fixed threshold, and its test exact given n. Otherwise let s be the threshold above the begin from which on all are
safe down to t. Answers between s and t are riskier than those above s, and to have begun between s and t means that few
are above s: k is larger than binomial, the test more careful. These cases exclude each other, so that a risky threshold
passes with probability `FAILURE_RATE` at most. Equal confidences are put in an order by chance; no threshold parts
them.

What it needs: calibration questions drawn as the robot's will be, each independent of the others, and none that the
model was trained on. Scenes of another kind void it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from drivers.errors import UserError
from edge.abstention import FIELD, SCORE
from edge.contract import TASKS, Task
from edge.decode import Decision
from edge.engine.bundle import MANIFEST
from edge.engine.hashes import file_sha256
from training.evaluate import HIT_IOU, Result

FAILURE_RATE = 0.05  # of calibrations whose promise does not hold
FARTHEST_FRECHET = (
    0.1  # of a right path, in fractions of the image: a tenth of it is about the width of a graspable thing
)
FIRST_SHARE = 0.25  # of the answers are in the first test: with too few, one unlucky answer ends the walk
_SEED = 0  # of the order of equal confidences


@dataclass(frozen=True)
class Judged:
    """One answer that would be acted on: how sure it was, and whether it was wrong."""

    confidence: float
    wrong: bool


@dataclass(frozen=True)
class Threshold:
    """The least confidence that keeps the promise, and what was seen.

    Attributes:
        threshold: answers with this confidence or more are acted on.
        answers, wrong: of the calibration, before any abstention.
        kept, kept_wrong: those of them that are acted on.
        risk_bound: Clopper-Pearson upper bound of the share of wrong ones among them, at `FAILURE_RATE`.
    """

    threshold: float
    answers: int
    wrong: int
    kept: int
    kept_wrong: int
    risk_bound: float


def is_wrong(result: Result) -> bool:
    """Whether acting on an answer that has an output is a mistake.

    It is where what is asked for is not there, where a box overlaps the labelled one by less than `HIT_IOU`, and where
    a path strays farther than `FARTHEST_FRECHET` from the labelled one (discrete Fréchet distance).
    """
    if result.absent:
        return True
    if result.task == "affordance":
        return (result.iou or 0.0) < HIT_IOU
    return result.frechet is None or result.frechet > FARTHEST_FRECHET


def acted_on(results: Sequence[Result], decisions: Sequence[Decision]) -> dict[Task, list[Judged]]:
    """By task, the answers that a robot would act on without any threshold; a task nobody asked about is left out.

    Args:
        results, decisions: of the same answers.
    """
    judged: dict[Task, list[Judged]] = {}
    for result, decision in zip(results, decisions, strict=True):
        of_task = judged.setdefault(result.task, [])
        if decision.answer.output is not None and not decision.thinking_cut and not decision.points_cut:
            of_task.append(Judged(decision.confidence, is_wrong(result)))
    return {task: judged[task] for task in TASKS if task in judged}


def least_answers(error_rate: float) -> int:
    """So many answers, all of them right, are the fewest that can prove an error rate; a threshold needs one more."""
    return math.ceil(math.log(FAILURE_RATE) / math.log1p(-error_rate))


def fit_threshold(judged: Sequence[Judged], error_rate: float) -> Threshold | None:
    """The least confidence that keeps the promise of this module; None where none was shown to.

    Args:
        judged: more than `least_answers` of them, or the answer is None.
        error_rate: in (0, 1).
    """
    n = len(judged)
    first = max(least_answers(error_rate), int(FIRST_SHARE * n))
    if n <= first:
        return None
    confidence, wrong = by_confidence(judged)
    n_wrong = np.cumsum(wrong)
    sizes = np.arange(first, n + 1)
    passed = binom.cdf(n_wrong[sizes - 1], sizes, error_rate) <= FAILURE_RATE
    n_tests = len(passed) if passed.all() else int(passed.argmin())
    # The first test is about where answer first + 1 stands, so that a threshold keeps at least as many.
    parted = np.append(confidence[:-1] > confidence[1:], True)
    proven = [size for size in sizes[1:n_tests] if parted[size - 1]]
    if not proven:
        return None
    kept = int(proven[-1])
    k = int(n_wrong[kept - 1])
    bound = float(beta.ppf(1.0 - FAILURE_RATE, k + 1, kept - k)) if k < kept else 1.0
    return Threshold(float(confidence[kept - 1]), n, int(n_wrong[-1]), kept, k, bound)


def by_confidence(judged: Sequence[Judged]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(n,) confidences, falling, and (n,) whether those answers are wrong; equal ones in an order of chance."""
    confidence = np.array([answer.confidence for answer in judged])
    wrong = np.array([answer.wrong for answer in judged])
    chance = np.random.default_rng(_SEED).permutation(len(judged))
    order = chance[np.argsort(-confidence[chance], kind="stable")]
    return confidence[order], wrong[order]


def check_enough(counts: Mapping[Task, int], error_rate: float, what: str) -> None:
    """Raise UserError where a task has too few, of whatever `what` says, to show an error rate."""
    least = least_answers(error_rate) + 1
    for task, count in counts.items():
        if count < least:
            raise UserError(
                f"--data: {count} {what} {task}; an error rate of {error_rate:g} is not shown by fewer than {least} "
                "answers acted on, all of them right; add questions or raise --error-rate"
            )


def fit(judged: dict[Task, list[Judged]], error_rate: float) -> dict[Task, Threshold]:
    """A threshold for each task.

    Raises:
        UserError: a task has too few answers, or no threshold keeps the promise.
    """
    counts: dict[Task, int] = {task: len(answers) for task, answers in judged.items()}
    check_enough(counts, error_rate, "answers that could be acted on, to")
    thresholds = {}
    for task, answers in judged.items():
        threshold = fit_threshold(answers, error_rate)
        if threshold is None:
            n_wrong = sum(answer.wrong for answer in answers)
            raise UserError(
                f"--data: {n_wrong} of {len(answers)} answers to {task} are wrong, and no confidence was shown to keep "
                f"that at {error_rate:g}; nothing is written: add questions, raise --error-rate or train the model on"
            )
        thresholds[task] = threshold
    return thresholds


def write_thresholds(
    bundle: Path, thresholds: dict[Task, Threshold], error_rate: float, data: Sequence[Path], count: int | None
) -> None:
    """Put thresholds and all that they mean into a bundle's manifest, whole or not at all; older ones are replaced."""
    path = bundle / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    manifest[FIELD] = {
        "promise": "of the answers acted on, at most error_rate is wrong, in all calibrations but failure_rate",
        "score": SCORE,
        "error_rate": error_rate,
        "failure_rate": FAILURE_RATE,
        "wrong": {"iou_below": HIT_IOU, "frechet_above": FARTHEST_FRECHET, "absent": "anything but null"},
        "method": "fixed-sequence binomial tests (Learn then test, arXiv:2110.01052)",
        "tasks": {task: asdict(threshold) for task, threshold in thresholds.items()},
        "data": [{"name": file.name, "sha256": file_sha256(file), "first": count} for file in data],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_whole(path, (json.dumps(manifest, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file, whole or not at all. Raises UserError where the disk does not take it."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # writing and fsync do not say which file it was
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); what was there is unchanged") from None
