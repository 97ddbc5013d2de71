"""What the teacher is asked about one labelled image, and whether its answer may be used.

The teacher is not shown the label: a reasoning that arrives at the right answer by itself is evidence that it is about
this image, while one written towards a given answer agrees with it whatever the image shows (and whatever mistake the
label holds). Only the last of several attempts shows it, so that hard images are not all lost (rationalization, as in
Zelikman et al., STaR, 2022); such items say so (``more["cot"]["label_shown"]``) and can be left out of training.
"""

from __future__ import annotations

import re
from typing import Any

from edge.agreement import discrete_frechet, iou
from edge.contract import (
    OUTPUT_CLOSE,
    OUTPUT_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    Affordance,
    ContractError,
    Trajectory,
    parse_answer,
    prompt_text,
)
from training.data.sharegpt import Item

MIN_IOU = 0.5
MAX_FRECHET = 0.15  # of the normalized image
MIN_REASONING = 40  # characters: a sentence
_TAGS = re.compile(r"</?think>|</?output>|<\|[a-z_]+\|>|<image>")
# What a teacher that was shown the label lets slip; the trained model would learn to speak of a label it never sees.
_LEAK = re.compile(
    r"ground.truth|\b(?:reference|known|expected|correct|right|provided|given) (?:answer|output|label|coordinates)\b",
    re.IGNORECASE,
)
_WHY = {"affordance": "why this part of it is where to grasp", "trajectory": "why the path runs as it does"}
_COORDINATES = {
    "affordance": "All numbers are fractions between 0 and 1: x and width divided by the image's width, y and height "
    "by its height; x and y are the centre of the box.",
    "trajectory": "All numbers are fractions between 0 and 1: x divided by the image's width, y by its height; the "
    "points are in order of travel.",
}


class Rejected(Exception):
    """An answer of the teacher that cannot be used. The message is a short kind, for counting, then details."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(f"{kind} ({details})" if details else kind)
        self.kind = kind


def question(item: Item, image_url: str, size_px: tuple[int, int], show_label: bool) -> list[dict[str, Any]]:
    """The messages of one chat completion.

    Args:
        item: what is asked about.
        image_url: the image as a data URL.
        size_px: its (width, height).
        show_label: whether to disclose the right output.
    """
    task = prompt_text(item.task, item.instruction).strip()
    lines = [
        f"A robot looks at this image of {size_px[0]} x {size_px[1]} pixels and is told:",
        task,
        "",
        "Reason step by step, in three to six plain sentences: which object is meant and how you know it; where it is "
        f"in the image; what is near it and could be in the way; {_WHY[item.task]}. Then answer.",
        _COORDINATES[item.task],
        "If what is named is not in the image, say in the reasoning what is there instead, and answer "
        "<output>null</output>.",
        "Write exactly: <think>your reasoning</think><output>your answer</output>",
    ]
    if show_label:
        lines.append(
            f"The right answer is <output>{label_text(item)}</output>. Look at the image again and write the reasoning "
            "that leads there from what can be seen, ending with that answer. Do not mention that the answer was known."
        )
    content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": "\n".join(lines)}]
    return [{"role": "user", "content": content}]


def label_text(item: Item) -> str:
    """The output of the item's label, spelled as it is there."""
    return item.answer.partition(OUTPUT_OPEN)[2].partition(OUTPUT_CLOSE)[0]


def accepted(text: str, item: Item, label_shown: bool) -> str:
    """The reasoning of a teacher's answer whose own output agrees with the label.

    Agreement: IoU of at least `MIN_IOU`; discrete Fréchet distance of at most `MAX_FRECHET`; null where the label is.

    Raises:
        Rejected: the answer breaks the contract, disagrees, or its reasoning is none that can be trained on.
    """
    try:
        answer = parse_answer(text, item.task)
    except ContractError as error:
        raise Rejected("format", str(error)) from None
    label = item.wanted.output
    if label is None and answer.output is not None:
        raise Rejected("wrong answer", "found what the label says is absent")
    if label is not None and answer.output is None:
        raise Rejected("wrong answer", "null, but the label says it is there")
    if isinstance(label, Affordance) and isinstance(answer.output, Affordance):
        if (overlap := iou(answer.output, label)) < MIN_IOU:
            raise Rejected("wrong answer", f"IoU {overlap:.2f} below {MIN_IOU:g}")
    if isinstance(label, Trajectory) and isinstance(answer.output, Trajectory):
        if (distance := discrete_frechet(answer.output.points, label.points)) > MAX_FRECHET:
            raise Rejected("wrong answer", f"Fréchet distance {distance:.2f} above {MAX_FRECHET:g}")
    if len(answer.reasoning) < MIN_REASONING:
        raise Rejected("reasoning", f"{len(answer.reasoning)} characters, expected at least {MIN_REASONING}")
    if tag := _TAGS.search(answer.reasoning):
        raise Rejected("reasoning", f"holds {tag.group()}")
    if any("\ud800" <= char <= "\udfff" for char in answer.reasoning):  # what JSON makes of half an escaped pair
        raise Rejected("reasoning", "is not UTF-8 text")
    if label_shown and (leak := _LEAK.search(answer.reasoning)):
        raise Rejected("reasoning", f"speaks of the label: {leak.group()!r}")
    return answer.reasoning


def with_reasoning(item: Item, reasoning: str) -> str:
    """The answer to train on: the teacher's reasoning and the label's output, not the teacher's."""
    return f"{THINK_OPEN}{reasoning}{THINK_CLOSE}{OUTPUT_OPEN}{label_text(item)}{OUTPUT_CLOSE}"
