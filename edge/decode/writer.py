"""The grammar's side of writing one answer: which tokens may come, which must, when it is over."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drivers.errors import UserError
from edge import contract
from edge.contract import Task
from edge.decode.budget import CHARACTER_REST, Cut, Deadline
from edge.decode.mask import Mask, n_words, pack


class Vocabulary(Protocol):
    """What writing an answer asks of a model: of its bundle, or of a checkpoint under evaluation."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def tokenizer_json(self) -> str: ...

    @property
    def vocab(self) -> int: ...

    @property
    def end_token(self) -> int: ...


class AnswerWriter:
    """One answer under the task's grammar and its budgets.

    Call `forced` first and after every `take`; the tokens it returns are already taken and only need to be shown to
    the model.

    Args:
        max_think_tokens: after so many tokens the reasoning is closed.
        max_tokens: the answer never has more; reasoning and points are cut so that it still closes.
        on_text: called with each piece of the answer's text as it comes.
        deadline: cuts reasoning and points too.

    Attributes:
        done: the answer is complete.
        tokens, text: so far. ``log_probabilities``: of each token, as `take` was told; 0 for those that had to come.
        n_forced: tokens that had to come.
        thinking_cut: what ended the reasoning in the model's place, if anything did.
        points_cut: what kept the trajectory to the points it has, though the grammar has room for more.

    Raises:
        UserError: `max_tokens` leaves no room for an answer.
    """

    def __init__(
        self,
        bundle: Vocabulary,
        task: Task,
        max_think_tokens: int,
        max_tokens: int,
        on_text: Callable[[str], None] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        # One token is at least one byte of the answer, so the longest output in bytes is room enough in tokens.
        reserve = contract.longest_output(task) + CHARACTER_REST
        least = len(contract.THINK_OPEN) + reserve
        if max_tokens < least:
            raise UserError(f"max_tokens: is {max_tokens}; an answer to {task} may need {least}")
        self._bundle, self._task, self._max_tokens, self._deadline = bundle, task, max_tokens, deadline
        self._think_limit = min(max_think_tokens, max_tokens - reserve)
        self._key = (bundle.tokenizer_json, bundle.vocab, bundle.end_token)
        self._tokenizer = _llguidance_tokenizer(*self._key)
        self._matcher = _matcher(*self._key, task, contract.MAX_POINTS)
        self._mask: Mask | None = None
        self._coming: Future[Mask] | None = None
        self._on_text = on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._thinking_end: int | None = None  # where in the text it is over
        self._cut: Cut | None = None  # that the deadline asks for
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self.done = False
        self.text = ""
        self.n_forced = 0
        self.thinking_cut: Cut | None = None
        self.points_cut: Cut | None = None

    @property
    def thinking(self) -> bool:
        """The reasoning is not closed yet."""
        return self._thinking_end is None

    @property
    def token_bytes(self) -> list[bytes]:
        """What each token writes."""
        return [self._tokenizer.decode_bytes([token]) for token in self.tokens]

    def mask(self) -> Mask:
        """The tokens that may come next; at least one unless the answer is done."""
        coming, self._coming = self._coming, None
        if self._mask is None:
            self._mask = self._compute_mask() if coming is None else coming.result()
        return self._mask

    def prepare(self) -> None:
        """Begin with `mask` in a thread of its own, while the model runs in the caller's."""
        if self._mask is None and self._coming is None:
            self._coming = _helper().submit(self._compute_mask)

    def allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the logits (vocab,) with every token that may not come at minus infinity."""
        return np.where(self.mask().flags, logits, -np.inf).astype(np.float32)

    def take(self, token: int, log_probability: float = 0.0) -> None:
        """Add one allowed token."""
        self._take([token], [log_probability])

    def forced(self) -> list[int]:
        """Take the tokens that must come now, by the grammar or a budget, and return them."""
        taken: list[int] = []
        while not self.done:
            self._judge_time()
            tokens = self._matcher.compute_ff_tokens()
            if not tokens and self._cutting:
                tokens = self._closing()
                if tokens:
                    self.thinking_cut = self._cut or "tokens"
            if not tokens and not self.thinking and (only := self.mask().only) is not None:
                tokens = [only]
            if not tokens:
                break
            self._take(tokens, [0.0] * len(tokens))
            taken += tokens
        self.n_forced += len(taken)
        return taken

    @property
    def _cutting(self) -> bool:
        return self.thinking and (self._cut is not None or len(self.tokens) >= self._think_limit)

    def _judge_time(self) -> None:
        """Whether reasoning, or a path, ends here. What is cut stays so: a faster pass later opens nothing again."""
        if self.thinking:
            if self._cut is None and self._deadline is not None and not self._deadline.allows_thinking():
                self._cut = "deadline"
        elif self._task == "trajectory" and self.points_cut is None:
            begun = 1 + self.text.count("],", self._thinking_end)
            if contract.MIN_POINTS <= begun < contract.MAX_POINTS:
                # More than the rest of this point and another one.
                room = self._max_tokens - len(self.tokens) >= contract.longest_output(self._task, 2)
                if not room or (self._deadline is not None and not self._deadline.allows_point()):
                    self.points_cut = "deadline" if room else "tokens"
                    self._matcher, self._mask = _matcher(*self._key, self._task, begun), None
                    self._consume(self.tokens)

    def _closing(self) -> list[int]:
        """Tokens that close the reasoning; none while a character is unfinished."""
        closing = contract.output_opening()
        begun = next(n for n in range(len(contract.THINK_CLOSE) - 1, -1, -1) if self.text.endswith(closing[:n]))
        tokens: list[int] = self._bundle.tokenizer.encode(closing[begun:], add_special_tokens=False).ids
        return tokens if self._matcher.validate_tokens(tokens) == len(tokens) else []

    def _take(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> None:
        self._consume(tokens)
        self._mask = None
        self.tokens += tokens
        self.log_probabilities += log_probabilities
        piece = self._decoder.decode(self._tokenizer.decode_bytes(list(tokens)))
        self.text += piece
        if piece and self._on_text is not None:
            self._on_text(piece)
        if self.thinking and (end := self.text.find(contract.THINK_CLOSE)) >= 0:
            self._thinking_end = end + len(contract.THINK_CLOSE)
        # Kept, since the matcher must not be touched while the helper's thread is at the mask.
        self.done = bool(self._matcher.is_stopped() or (not self.thinking and self._matcher.is_accepting()))

    def _consume(self, tokens: Sequence[int]) -> None:
        if not self._matcher.consume_tokens(list(tokens)):
            raise RuntimeError(f"the grammar refuses tokens {list(tokens)}: {self._matcher.get_error()}")

    def _compute_mask(self) -> Mask:
        # How far llguidance rounds the vocabulary up is its own affair.
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: n_words(self._bundle.vocab)]
        if self._cutting:
            # Only the rest of one character stands between here and </think>.
            words = words & _single_byte_tokens(*self._key)
        return Mask(words, self._bundle.vocab)


def compile_grammars(bundle: Vocabulary) -> None:
    """Make what every answer shares, so that the first one does not wait: with Qwen's tokenizer, most of a second."""
    key = (bundle.tokenizer_json, bundle.vocab, bundle.end_token)
    _single_byte_tokens(*key)
    for task in contract.TASKS:
        _compiled(*key, task, contract.MAX_POINTS)


@lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer_json: str, vocab: int, end_token: int) -> LLTokenizer:
    return LLTokenizer(tokenizer_json, n_vocab=vocab, eos_token=end_token)


@lru_cache(maxsize=4)
def _single_byte_tokens(tokenizer_json: str, vocab: int, end_token: int) -> NDArray[np.uint32]:
    tokenizer = _llguidance_tokenizer(tokenizer_json, vocab, end_token)
    return pack(np.array([len(tokenizer.decode_bytes([token])) == 1 for token in range(vocab)]))


def _matcher(tokenizer_json: str, vocab: int, end_token: int, task: Task, max_points: int) -> LLMatcher:
    """A matcher at the start of an answer; compiled once, since a copy costs a fiftieth of that."""
    return _compiled(tokenizer_json, vocab, end_token, task, max_points).deep_copy()


@lru_cache(maxsize=64)
def _compiled(tokenizer_json: str, vocab: int, end_token: int, task: Task, max_points: int) -> LLMatcher:
    tokenizer = _llguidance_tokenizer(tokenizer_json, vocab, end_token)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(contract.grammar(task, max_points)))
    if matcher.is_error():
        raise RuntimeError(f"the grammar does not compile: {matcher.get_error()}")
    return matcher


@lru_cache(maxsize=1)
def _helper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="grammar")
