"""Choosing one token among those that may come: the likeliest, or one drawn by temperature and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge.decode.mask import Mask
from edge.decode.scores import Logits

_NEGLIGIBLE = 20.0  # below the largest logit: 150 000 tokens all there have 3e-4 of the probability


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens where greedy is not wanted. The defaults are those of the released VLA-R1 server.

    Attributes:
        temperature: divides the logits.
        top_p: the smallest set of tokens with at least this probability is drawn from.
        repetition_penalty: positive logits of tokens seen before are divided by it, negative ones multiplied
            (arXiv:1909.05858, section 4.1).
        seed: of the generator; the same seed draws the same answer.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """A token and its natural log-probability in the model's distribution over the tokens that might have come.

    That distribution is the softmax of the plain logits (no temperature, penalty or top-p), however the token was
    chosen.
    """

    token: int
    log_probability: float


class Choose(Protocol):
    def __call__(self, logits: Logits, mask: Mask, written: Sequence[int]) -> Choice:
        """One token of `mask`, whose tokens (one at least) are all among `logits`; `written`: the answer so far."""
        ...


def greedy(logits: Logits, mask: Mask, written: Sequence[int]) -> Choice:
    """The likeliest token, the first of several; its log-probability to 3e-4 at worst, and far better as a rule."""
    values, tokens = logits.values, logits.tokens
    if tokens is not None:
        legal = np.where(mask.among(tokens), values, -np.inf)
        place = int(legal.argmax())
        best, top = int(tokens[place]), legal[place]
    else:
        best = int(values.argmax())  # nearly always legal, so that no masked copy of a large vocabulary is made
        if not mask.allows(best):
            best = int(np.where(mask.flags, values, -np.inf).argmax())
        top = values[best]
        near = np.flatnonzero(values > top - _NEGLIGIBLE)  # few, unless the model is at a loss
        legal = values[near[mask.among(near)]]
    return Choice(best, -float(np.log(np.exp(legal - top).sum())))


class Sampler:
    """Draws tokens as `sampling` says.

    Args:
        prompt: the prompt's tokens, which the repetition penalty counts as seen.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling, self._prompt = sampling, frozenset(prompt)
        self._generator = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Logits, mask: Mask, written: Sequence[int]) -> Choice:
        """One token, drawn."""
        s, tokens = self._sampling, logits.tokens
        at = np.flatnonzero(mask.flags if tokens is None else mask.among(tokens))
        legal = at if tokens is None else tokens[at]
        plain = logits.values[at].astype(np.float64)
        seen = np.isin(legal, np.fromiter(self._prompt.union(written), np.int64))
        scores = np.where(seen, np.where(plain > 0, plain / s.repetition_penalty, plain * s.repetition_penalty), plain)
        weights = np.exp((scores - scores.max()) / s.temperature)
        probability = weights / weights.sum()
        # All tokens below this together have less than 1 - top_p: none is drawn from, and they need not be sorted.
        likely = np.flatnonzero(probability >= (1.0 - s.top_p) / len(probability))
        order = likely[np.argsort(-probability[likely], kind="stable")]
        before = np.cumsum(probability[order]) - probability[order]
        kept = order[before < s.top_p]
        drawn = int(self._generator.choice(kept, p=probability[kept] / probability[kept].sum()))
        top = plain.max()
        return Choice(int(legal[drawn]), float(plain[drawn] - top - np.log(np.exp(plain - top).sum())))
