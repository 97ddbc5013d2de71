"""The previous answer as a guess at the next one: which of its tokens probably follow what is written so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_BLOCK, SHORTEST_BLOCK, LONGEST_BLOCK = 8, 2, 32
_CONTEXT = 8  # tokens before a place that are compared
_TOKENS_A_STEP = 4  # a place so much farther away needs one more token in common
_FARTHEST = 4  # but never more than so many
_PATIENCE = 2  # proposals that may be wrong before another place is looked for: a number has a few digits


class Draft:
    """An earlier answer, aligned with the one being written.

    Where the answers part, the new one is taken to have replaced one token by another (a number by another number).
    Where that fails, the place is looked up at which the old answer reads as the new one does at its end, near places
    first. Blocks double while they are accepted whole, and shrink to what was accepted of the last.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._old = np.array(tokens, np.int64)
        self._size = FIRST_BLOCK
        self._ahead = 0  # the old answer's place less the new one's
        self._missed = 0  # proposals in a row of which nothing was right

    def propose(self, written: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that probably follow `written`; none where the answers have nothing in common."""
        if most < 1 or not len(self._old):
            return []
        place = self._place(written)
        if place is None:
            return []
        self._ahead = place - len(written)
        proposed: list[int] = self._old[place : place + min(self._size, most)].tolist()
        return proposed

    def judge(self, n_proposed: int, n_right: int) -> None:
        """Of the last proposal, that many tokens were right, from its start."""
        if not n_proposed:
            return
        self._missed = 0 if n_right else self._missed + 1
        if n_right == n_proposed:
            self._size = min(2 * max(self._size, SHORTEST_BLOCK), LONGEST_BLOCK)
        else:
            self._size = min(max(n_right, SHORTEST_BLOCK), LONGEST_BLOCK)

    def _place(self, written: Sequence[int]) -> int | None:
        """The place in the old answer that corresponds to the end of `written`."""
        expected = len(written) + self._ahead
        alike = self._alike(written)
        there = 0 <= expected < len(self._old)
        if there and (alike[expected] or self._missed < _PATIENCE):
            return expected
        away = np.abs(np.arange(len(alike)) - expected) / _TOKENS_A_STEP
        score = alike - np.minimum(away, _FARTHEST)
        best = int(score.argmax())
        return best if score[best] > 0 and best < len(self._old) else None

    def _alike(self, written: Sequence[int]) -> np.ndarray:
        """(len(old) + 1,) how many tokens before each place are those that `written` ends with."""
        count = np.zeros(len(self._old) + 1, np.int64)
        same = np.ones(len(count), np.bool_)
        for back in range(1, min(_CONTEXT, len(written), len(self._old)) + 1):
            same[:back] = False
            same[back:] &= self._old[: len(count) - back] == written[-back]
            count += same
        return count
