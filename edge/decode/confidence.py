"""How sure the model was of what it answered, from the probabilities of the tokens it is spelled with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from edge import contract

_NUMBER = re.compile(r"[0-9.]+")
_DIGIT = re.compile(rb"[0-9]")


def confidences(
    text: str, tokens: Sequence[bytes], log_probabilities: Sequence[float]
) -> tuple[float, tuple[float, ...]]:
    """The confidence of an answer and of each number in its output, in [0, 1].

    A token's probability is that in the softmax over the tokens the grammar left; 1 for tokens that had to come.
    A number's confidence is the product over the tokens that hold a character of it. The answer's is the product over
    its tokens, reasoning included, that hold no digit: how sure the model was of what is there, which of it is meant
    and whether it is there at all. The digits are left out because 0.41 and 0.42 share the probability of a good
    answer, and because an output that repeats a number of the reasoning is sure of it, right or wrong (measured:
    docs/performance.md). It ranks answers of one model to one task; as a probability of being right it means nothing
    before `edge.abstention` gives it a threshold. Whoever changes this definition renames `edge.abstention.SCORE`.

    Args:
        text: of a whole answer.
        tokens: what each of its tokens writes.
        log_probabilities: natural, of each of its tokens.

    Returns:
        Of the answer; of its output's numbers, in the order in which they are written (none for ``null``).
    """
    # What follows the reasoning is ASCII, so that places count from the end, whatever bytes the reasoning holds.
    spans, place = [], len(text)
    for token in reversed(tokens):
        spans.append((place - len(token), place))
        place -= len(token)
    spans.reverse()
    begin = text.rindex(contract.OUTPUT_OPEN) + len(contract.OUTPUT_OPEN)
    end = text.rindex(contract.OUTPUT_CLOSE)

    def product(first: int, last: int) -> float:
        within = zip(spans, log_probabilities, strict=True)
        return math.exp(sum(log_p for (start, stop), log_p in within if stop > first and start < last))

    words = (log_p for token, log_p in zip(tokens, log_probabilities, strict=True) if not _DIGIT.search(token))
    return math.exp(sum(words)), tuple(product(*match.span()) for match in _NUMBER.finditer(text, begin, end))
