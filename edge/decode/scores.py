"""What the model says after each token of its latest pass, computed where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.decode.mask import Mask, pack
from edge.engine.protocol import Engine


@dataclass(frozen=True)
class Logits:
    """What may follow: `values` (n,) of `tokens` (n,), ascending; of the whole vocabulary where that is None."""

    values: NDArray[np.float32]
    tokens: NDArray[np.int64] | None = None


class NumberTokens:
    """The tokens that the engine has a head of their own for.

    Args:
        tokens: ascending.
        vocab: tokens in the model's vocabulary.
    """

    def __init__(self, tokens: NDArray[np.int64], vocab: int) -> None:
        self.tokens = tokens
        flags = np.zeros(vocab, np.bool_)
        flags[tokens] = True
        self._packed = pack(flags)

    def hold(self, mask: Mask) -> bool:
        """Every token of the mask is one of them."""
        return len(self.tokens) > 0 and mask.within(self._packed)


class Scores:
    """The logits after each of the last `n` tokens of an engine's latest pass, to be read row by row in their order.

    While only number tokens may come, only their rows of the language head are computed.
    """

    def __init__(self, engine: Engine, n: int, numbers: NumberTokens) -> None:
        self._engine, self._n, self._number_tokens = engine, n, numbers
        self._numbers: NDArray[np.float32] | None = None
        self._all: NDArray[np.float32] | None = None
        self._first = 0  # the row that `_all` begins with

    def row(self, i: int, mask: Mask) -> Logits:
        """After the i-th of the tokens, where the tokens of `mask` may come."""
        if self._all is None and self._number_tokens.hold(mask):
            if self._numbers is None:
                self._numbers = self._engine.number_logits(self._n)
            return Logits(self._numbers[i], self._number_tokens.tokens)
        if self._all is None:
            self._all, self._first = self._engine.logits(self._n - i), i
        return Logits(self._all[i - self._first])
