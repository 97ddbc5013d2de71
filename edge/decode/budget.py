"""How much time an answer may take: what passes of the model cost, and what must be kept to end the answer in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Literal

from tokenizers import Tokenizer

from edge import contract
from edge.contract import Task

Cut = Literal["tokens", "deadline"]

# A number is at most six choices ("0", ".", four digits): what ends it is one of them or forced. A point is two numbers
# and the choice between another point and the end. An output begins with at most two (`>` and what comes inside).
_NUMBER_PASSES = 6
_POINT_PASSES = 2 * _NUMBER_PASSES + 1
_OPENING_PASSES = 2
_LONGEST_NUMBER = "0.1234"
CHARACTER_REST = 3  # tokens a character begun may still need (UTF-8 has at most three bytes after the first)

MARGIN = 1.25  # over the median pass: how uneven passes may be
_KEPT = 16


def output_passes(task: Task, n_points: int = contract.MIN_POINTS) -> int:
    """Passes of the model that always suffice from ``<output`` to the end of the answer."""
    return _OPENING_PASSES + (4 * _NUMBER_PASSES if task == "affordance" else n_points * _POINT_PASSES)


class Pace:
    """What passes of the language model were seen to take, and what others will."""

    def __init__(self) -> None:
        self._token_s = 0.0
        self._fewest: int | None = None
        self._passes_s: deque[float] = deque(maxlen=_KEPT)

    def prefilled(self, n_tokens: int, took_s: float) -> None:
        """The prompt's pass: so many tokens at least were computed in it."""
        self._token_s = took_s / n_tokens

    def passed(self, n_tokens: int, took_s: float) -> None:
        """A pass of the answer. Those with the fewest tokens say what a pass costs."""
        if self._fewest is None or n_tokens < self._fewest:
            self._fewest = n_tokens
            self._passes_s.clear()
        if n_tokens == self._fewest:
            self._passes_s.append(took_s)

    def cost_s(self, n_passes: int, n_tokens: int) -> float:
        """What so many passes with so many tokens in all will take; 0 before any pass was seen.

        A token more in a pass is taken to cost what a token of the prompt does.
        """
        if not self._passes_s:
            return 0.0
        return MARGIN * (n_passes * median(self._passes_s) + max(0, n_tokens - n_passes) * self._token_s)

    def tokens_in(self, time_s: float) -> int:
        """So many tokens more can a pass have that may take that much longer."""
        if time_s <= 0.0:
            return 0
        return int(min(time_s / (MARGIN * self._token_s), 1e9)) if self._token_s > 0.0 else 10**9


class Deadline:
    """When an answer must be there. Judged before each choice of a token, by the pace of the passes so far.

    Args:
        at_s: by `clock`.
    """

    def __init__(self, at_s: float, clock: Callable[[], float], pace: Pace, task: Task, tokenizer: Tokenizer) -> None:
        self._at_s, self._clock, self._pace = at_s, clock, pace
        point = f"[{_LONGEST_NUMBER}, {_LONGEST_NUMBER}], "
        if task == "affordance":
            body = "{" + ", ".join(f'"{name}": {_LONGEST_NUMBER}' for name in ("x", "y", "width", "height")) + "}"
        else:
            body = f"[{point * contract.MIN_POINTS}]"
        closing = f"{contract.THINK_CLOSE}{contract.OUTPUT_OPEN}{body}{contract.OUTPUT_CLOSE}"
        self._point_tokens = len(tokenizer.encode(point, add_special_tokens=False).ids)
        self._closing_tokens = len(tokenizer.encode(closing, add_special_tokens=False).ids) + CHARACTER_REST
        self._closing_passes = 1 + CHARACTER_REST + output_passes(task)

    def allows_thinking(self) -> bool:
        """After one more pass there is still time to close the reasoning and write the shortest output."""
        return self._left_s(1 + self._closing_passes, 1 + self._closing_tokens) >= 0.0

    def allows_point(self) -> bool:
        """There is time for the rest of this point of a trajectory and another one."""
        return self._left_s(2 * _POINT_PASSES, 2 * self._point_tokens) >= 0.0

    def spare_tokens(self) -> int:
        """So many guessed tokens can be tried in the next pass with time left for the rest, were they all wrong."""
        return self._pace.tokens_in(self._left_s(1 + self._closing_passes, 1 + self._closing_tokens))

    def _left_s(self, n_passes: int, n_tokens: int) -> float:
        return self._at_s - self._clock() - self._pace.cost_s(n_passes, n_tokens)
