"""What the model is asked and what it may answer: prompts, the two output types, their grammar, parsing.

The strings are those of the released VLA-R1 code; they must stay byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from drivers.errors import UserError

Task = Literal["affordance", "trajectory"]
TASKS: tuple[Task, ...] = ("affordance", "trajectory")

SUFFIX: dict[Task, str] = {
    "affordance": (
        " Please output the 2D affordance region define by bounding box of the object in the format "
        '<output>{"x": value, "y": value, "width": value, "height": value}</output>.\n'
    ),
    "trajectory": (
        " Please output the optimal trajectory of the end-effector to the target object in the format "
        "<output>[[x1, y1], [x2, y2], ...]</output>.\n"
    ),
}

SYSTEM_PROMPT = "You are a helpful assistant."
IMAGE_LITERAL = "<image>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
OUTPUT_OPEN, OUTPUT_CLOSE = "<output>", "</output>"
MIN_POINTS, MAX_POINTS = 2, 16

_CONTROL = re.compile(r"<\|[a-z_]+\|>")
_BOX_FIELDS = ("x", "y", "width", "height")


class ContractError(ValueError):
    """A text that is not an answer under the contract; the message says why."""


@dataclass(frozen=True)
class Affordance:
    """Where to grasp: a box in the image. ``x``, ``y`` are its centre; all four are fractions of image width/height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom), normalized, clipped to the image."""
        return (
            max(0.0, self.x - self.width / 2),
            max(0.0, self.y - self.height / 2),
            min(1.0, self.x + self.width / 2),
            min(1.0, self.y + self.height / 2),
        )


@dataclass(frozen=True)
class Trajectory:
    """How the end effector should travel: (x, y) points, fractions of image width/height, in order of travel."""

    points: tuple[tuple[float, float], ...]


Output = Affordance | Trajectory


@dataclass(frozen=True)
class Answer:
    """One parsed answer: the free text of the think block and the output; None where what was named is not there."""

    reasoning: str
    output: Output | None


def prompt_text(task: Task, instruction: str) -> str:
    """The user text for an instruction: the instruction and the task's suffix, the image placed after it.

    A literal ``<image>`` (the released client adds one), the leading space of the released server and a suffix that is
    there already are all accepted.

    Raises:
        UserError: the instruction is empty, is not text, or holds a control token of the chat template.
    """
    text = instruction.replace(IMAGE_LITERAL, "").strip()
    text = text.removesuffix(SUFFIX[task].strip()).strip()
    if not text:
        raise UserError("instruction: is empty; say what to do, for example: put the red cube in the blue bowl")
    if any("\ud800" <= char <= "\udfff" for char in text):  # what Python makes of an argument that is not UTF-8
        raise UserError("instruction: is not UTF-8 text; write it again, or set the terminal to UTF-8")
    if control := _CONTROL.search(text):
        raise UserError(f"instruction: holds the control token {control.group()}; write plain text")
    return text + SUFFIX[task]


def render_prefix(text: str) -> str:
    """The chat up to and including the start of the image: the same from frame to frame for one instruction."""
    return f"{IM_START}system\n{SYSTEM_PROMPT}{IM_END}\n{IM_START}user\n{text}{VISION_START}"


def render_chat(text: str, n_image_tokens: int = 1) -> str:
    """Qwen's chat for one user turn, the text first and the image after it, ready for the assistant's answer.

    Args:
        text: of `prompt_text`.
        n_image_tokens: how often the image placeholder is repeated (the number of merged image patches).
    """
    return f"{render_prefix(text)}{IMAGE_PAD * n_image_tokens}{VISION_END}{IM_END}\n{IM_START}assistant\n"


def format_output(output: Output | None) -> str:
    """The JSON of an output in the spelling the model is trained on (two decimals); ``null`` for None."""
    if output is None:
        return "null"
    if isinstance(output, Affordance):
        return "{" + ", ".join(f'"{name}": {getattr(output, name):.2f}' for name in _BOX_FIELDS) + "}"
    return "[" + ", ".join(f"[{x:.2f}, {y:.2f}]" for x, y in output.points) + "]"


def format_answer(answer: Answer) -> str:
    """The whole answer text: ``<think>…</think><output>…</output>``."""
    return f"{THINK_OPEN}{answer.reasoning}{THINK_CLOSE}{OUTPUT_OPEN}{format_output(answer.output)}{OUTPUT_CLOSE}"


def parse_answer(text: str, task: Task | None = None) -> Answer:
    """Read an answer. Any JSON spelling is accepted; the values are checked.

    Args:
        text: what the model wrote; a missing think block reads as empty reasoning.
        task: if given, the kind of output that must come.

    Raises:
        ContractError: no output block, not JSON, numbers not finite or outside [0, 1], an empty box or list, or an
            output of the other kind.
    """
    head, closed, tail = text.partition(THINK_CLOSE)
    reasoning = head.partition(THINK_OPEN)[2] if THINK_OPEN in head else head
    body = tail if closed else text
    _, opened, body = body.partition(OUTPUT_OPEN)
    if not opened:
        raise ContractError(f"no {OUTPUT_OPEN} block")
    payload, ended, _ = body.partition(OUTPUT_CLOSE)
    if not ended:
        raise ContractError(f"{OUTPUT_OPEN} is not closed by {OUTPUT_CLOSE}")
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"output is not JSON: {error}") from None
    output = parse_output(value)
    if task is not None and output is not None and isinstance(output, Affordance) != (task == "affordance"):
        raise ContractError(f"output is a {type(output).__name__.lower()}, expected: {task}")
    return Answer(reasoning.strip() if closed else "", output)


def parse_output(value: object) -> Output | None:
    """The output a JSON value stands for, None for null; raises ContractError with the reason for any other value."""
    if value is None:
        return None
    if isinstance(value, dict):
        missing = [name for name in _BOX_FIELDS if name not in value]
        if missing:
            raise ContractError(f"box lacks {', '.join(missing)}")
        box = Affordance(*(_unit_number(value[name], name) for name in _BOX_FIELDS))
        if box.width <= 0.0 or box.height <= 0.0:
            raise ContractError(f"box is empty: width {box.width:g}, height {box.height:g}")
        return box
    if isinstance(value, list):
        if not value:
            raise ContractError("trajectory has no points")
        return Trajectory(tuple(_point(point, index) for index, point in enumerate(value)))
    raise ContractError(f"output is a {type(value).__name__}, expected a box object, a list of points or null")


def _point(value: object, index: int) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ContractError(f"point {index} is not a pair [x, y]")
    return _unit_number(value[0], f"x of point {index}"), _unit_number(value[1], f"y of point {index}")


def _unit_number(value: object, name: str) -> float:
    # The comparison is False for NaN, and safe for integers too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ContractError(f"{name} is not a number in [0, 1]")
    return float(value)


def grammar(task: Task, max_points: int = MAX_POINTS) -> str:
    """The Lark grammar (llguidance dialect) of one answer to `task`; every text it accepts, `parse_answer` accepts.

    Reasoning is any text without ``</think>``; then exactly one box, or 2 to `max_points` points, in the spelling of
    training, numbers in [0, 1] with at most four decimals, width and height above zero; or ``null``.
    """
    if task == "affordance":
        output = r'"{\"x\": " NUMBER ", \"y\": " NUMBER ", \"width\": " SIZE ", \"height\": " SIZE "}"'
    else:
        more = f"{MIN_POINTS - 1},{max(max_points, MIN_POINTS) - 1}"
        output = f'"[" point (", " point){{{more}}} "]"'
    rules = [
        f'start: "{THINK_OPEN}" reasoning "{OUTPUT_OPEN}" output "{OUTPUT_CLOSE}"',
        f'reasoning[suffix="{THINK_CLOSE}"]: /(?s:.*)/',
        f'output: {output} | "null"',
    ]
    if task == "trajectory":
        rules.append('point: "[" NUMBER ", " NUMBER "]"')
    rules.append(r"NUMBER: /0(\.[0-9]{1,4})?|1(\.0{1,4})?/")
    if task == "affordance":
        rules.append(r"SIZE: /0\.[0-9]{1,4}|1(\.0{1,4})?/ & ~/0\.0*/")
    return "\n".join(rules) + "\n"


def longest_output(task: Task, n_points: int = MIN_POINTS) -> int:
    """Bytes of the longest text the grammar accepts from ``</think>`` to the end: so many tokens always suffice."""
    number = len("0.0000")
    if task == "affordance":
        body = len('{"x": , "y": , "width": , "height": }') + 4 * number
    else:
        body = len("[]") + n_points * (len("[, ]") + 2 * number) + (n_points - 1) * len(", ")
    return len(THINK_CLOSE) + len(OUTPUT_OPEN) + body + len(OUTPUT_CLOSE)


def output_opening() -> str:
    """What every answer holds once the thinking is over, short of the ``>`` that tokenizers merge with what follows."""
    return THINK_CLOSE + OUTPUT_OPEN.removesuffix(">")


def not_found(task: Task, instruction: str) -> str:
    """What a user is told where the output of an answer to `task` is None: one line."""
    what = "such thing" if task == "affordance" else "target to go to"
    shown = " ".join("".join(char if char.isprintable() else " " for char in instruction).split())
    return f'not found: the model sees no {what} for "{shown}"'


def box_from_corners(corners: Sequence[float]) -> Affordance:
    """The box with the given (left, top, right, bottom), normalized."""
    left, top, right, bottom = corners
    return Affordance((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
