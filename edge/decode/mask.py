"""Which tokens may come next: a bit a token, in words of 32 as llguidance packs them, and read where somebody asks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Mask:
    """The set of tokens that may come next.

    Args:
        words: (n_words(vocab),) uint32, token 0 in the lowest bit of the first; zero beyond the vocabulary.
        vocab: tokens in the model's vocabulary.
    """

    def __init__(self, words: NDArray[np.uint32], vocab: int) -> None:
        self._words, self._vocab = words, vocab

    def allows(self, token: int) -> bool:
        """The token may come."""
        return bool(int(self._words[token >> 5]) >> (token & 31) & 1)

    def among(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) tokens -> (n,) True for those that may come."""
        bits: NDArray[np.bool_] = (self._words[tokens >> 5] >> (tokens & 31).astype(np.uint32) & 1).astype(np.bool_)
        return bits

    def within(self, others: NDArray[np.uint32]) -> bool:
        """Every token of this mask is one of `others`, packed by `pack`."""
        return not (self._words & ~others).any()

    @property
    def only(self) -> int | None:
        """The token that must come, where there is just one."""
        places = np.flatnonzero(self._words)
        if len(places) != 1 or (word := int(self._words[places[0]])).bit_count() != 1:
            return None
        return int(places[0]) * 32 + word.bit_length() - 1

    @property
    def flags(self) -> NDArray[np.bool_]:
        """(vocab,) True where a token may come."""
        return np.unpackbits(self._words.view(np.uint8), bitorder="little")[: self._vocab].view(np.bool_)


def n_words(vocab: int) -> int:
    """Words that hold a bit for each token."""
    return -(-vocab // 32)


def pack(flags: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """(vocab,) bool -> (n_words(vocab),) uint32, packed as masks are."""
    packed = np.zeros(4 * n_words(len(flags)), np.uint8)
    own = np.packbits(flags, bitorder="little")
    packed[: len(own)] = own
    return packed.view(np.uint32)
