"""How good are a bundle's answers? Boxes and paths on simulated tables, beside where things are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.agreement import distance
from edge.decode import decide
from edge.decode.decision import MAX_TOKENS
from edge.engine.bundle import Bundle
from edge.engine.onnx import OnnxEngine
from export.questions import Question

# How much worse the means may become, and from where on: what is no better than chance says nothing.
MOST_WORSE = 0.05
IOU_FROM, DISTANCE_FROM = 0.3, 0.3
_TEXT_TOKENS = 512  # more than any prompt's, in any tokenizer
_BOUND = (
    f"mean IoU of boxes at most {MOST_WORSE:g} lower than before where that is above {IOU_FROM:g}, mean distance of "
    f"paths at most {MOST_WORSE:g} larger where that is below {DISTANCE_FROM:g}"
)


@dataclass(frozen=True)
class Score:
    """Means over the questions of a kind; None where there is none.

    Attributes:
        boxes, iou: how many boxes were asked for, and their mean intersection over union with the true ones.
        paths, distance: how many paths were asked for, and their mean discrete Fréchet distance to the straight one,
            over the image's diagonal, both in fractions of its sides. "Not found" has IoU 0 and distance 1.
    """

    boxes: int
    iou: float | None
    paths: int
    distance: float | None


@dataclass(frozen=True)
class Tasks:
    """What quantizing cost in answers.

    Attributes:
        before: the scores of the fp32 bundle of the checkpoint; None where there is none to compare with.
        after: of the bundle itself.
        note: where `before` comes from, or why there is none.
    """

    before: Score | None
    after: Score
    note: str

    @property
    def bound(self) -> str:
        """What is asked of these figures; nothing without `before`."""
        return _BOUND if self.before is not None else ""

    @property
    def good(self) -> bool:
        """Whether `bound` holds."""
        before, after = self.before, self.after
        if before is None:
            return True
        # A figure is None before and after alike.
        worse_boxes = (before.iou or 0.0) - (after.iou or 0.0) > MOST_WORSE and (before.iou or 0.0) > IOU_FROM
        worse_paths = (after.distance or 0.0) - (before.distance or 0.0) > MOST_WORSE
        return not worse_boxes and not (worse_paths and (before.distance or 0.0) < DISTANCE_FROM)


def score(bundle: Bundle, questions: Sequence[Question], progress: Callable[[], None]) -> Score:
    """Answer as the robot will, at the default image size, each question that has a label.

    Args:
        bundle: with graphs for ONNX Runtime.
        questions: those without a label are left out.
        progress: called after each question.
    """
    engine = OnnxEngine(bundle, room=bundle.n_image_tokens + _TEXT_TOKENS + MAX_TOKENS)
    ious, distances = [], []
    for question in questions:
        if question.label is not None:
            decision = decide(engine, question.image, question.task, question.instruction)
            apart = distance(decision.answer.output, question.label)
            if question.task == "affordance":
                ious.append(1.0 - apart)
            else:
                distances.append(apart)
        progress()
    return Score(len(ious), _mean(ious), len(distances), _mean(distances))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
