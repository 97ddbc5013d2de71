"""What is told of an answer while it is written: its text, and each part of its output the moment it is complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from edge import contract
from edge.contract import Output, Task

_POINT = re.compile(r"\[([0-9.]+), ([0-9.]+)\]")


@dataclass(frozen=True)
class TextEvent:
    """A piece of the answer's text; all pieces one after the other are the text.

    Attributes:
        text: never empty.
        reasoning: it is of ``<think>…</think>``; no piece holds characters of both sides.
    """

    text: str
    reasoning: bool


@dataclass(frozen=True)
class WaypointEvent:
    """A point of a trajectory is complete: its place in the order of travel from 0; x, y as fractions of the image."""

    index: int
    point: tuple[float, float]


@dataclass(frozen=True)
class OutputEvent:
    """The whole output is complete: the box, the trajectory (after its last waypoint), or None for ``null``."""

    output: Output | None


Event = TextEvent | WaypointEvent | OutputEvent


class Events:
    """Reads an answer's text piece by piece and tells what it holds.

    Attributes:
        first_action_s: by `clock`, when the first waypoint or the box was complete; None before, and for ``null``.
    """

    def __init__(self, task: Task, clock: Callable[[], float], on_event: Callable[[Event], None] | None) -> None:
        self._task, self._clock, self._tell = task, clock, on_event or (lambda event: None)
        self._text = ""
        self._output_at: int | None = None  # where in the text the output's JSON begins
        self._thinking, self._told = True, False
        self._n_points = self._read_to = 0
        self.first_action_s: float | None = None

    def write(self, piece: str) -> None:
        """The next piece of the answer's text."""
        before = len(self._text)
        self._text += piece
        if self._thinking:
            end = self._text.find(contract.THINK_CLOSE, max(0, before - len(contract.THINK_CLOSE)))
            self._thinking = end < 0
            cut = len(piece) if end < 0 else end + len(contract.THINK_CLOSE) - before
            self._say(piece[:cut], True)
            self._say(piece[cut:], False)
            self._read_to = before + cut
        else:
            self._say(piece, False)
        if not self._thinking and not self._told:
            self._read_output()

    def _say(self, text: str, reasoning: bool) -> None:
        if text:
            self._tell(TextEvent(text, reasoning))

    def _read_output(self) -> None:
        if self._output_at is None:
            opened = self._text.find(contract.OUTPUT_OPEN, self._read_to)
            if opened < 0:
                return
            self._output_at = self._read_to = opened + len(contract.OUTPUT_OPEN)
        if self._task == "trajectory":
            for match in _POINT.finditer(self._text, self._read_to):
                self._read_to = match.end()
                self._act()
                self._tell(WaypointEvent(self._n_points, (float(match[1]), float(match[2]))))
                self._n_points += 1
        written = self._text[self._output_at :].partition("<")[0]
        if written.endswith(("}", "]]", "null")):
            output = contract.parse_answer(f"{contract.OUTPUT_OPEN}{written}{contract.OUTPUT_CLOSE}", self._task).output
            if output is not None:
                self._act()
            self._told = True
            self._tell(OutputEvent(output))

    def _act(self) -> None:
        if self.first_action_s is None:
            self.first_action_s = self._clock()
