"""One decision: a frame and an instruction to an answer that always parses, decoded under the task's grammar."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drivers.errors import UserError
from edge import contract
from edge.contract import Answer, Task
from edge.engine.onnx import Engine
from edge.preprocess import preprocess
from edge.trace import Tracer

# Tokens a character begun at the end of the thinking may still need (UTF-8 has at most three bytes after the first).
_CHARACTER_REST = 3


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
class Decision:
    """One answer and how it came about.

    Attributes:
        answer: parsed; ``answer.output`` is of the kind the task asks for, or None.
        text: as decoded, from ``<think>`` to ``</output>``.
        n_prompt_tokens, n_tokens: tokens in the prompt (image placeholders included) and in the answer.
        n_forced_tokens: answer tokens that the grammar left no choice about.
        thinking_cut: the thinking budget ended the reasoning.
    """

    answer: Answer
    text: str
    n_prompt_tokens: int
    n_tokens: int
    n_forced_tokens: int
    thinking_cut: bool


def decide(
    engine: Engine,
    rgb: NDArray[np.uint8],
    task: Task,
    instruction: str,
    *,
    max_think_tokens: int = 256,
    max_tokens: int = 512,
    tracer: Tracer | None = None,
    on_text: Callable[[str], None] | None = None,
    sampling: Sampling | None = None,
) -> Decision:
    """Look at one frame and answer one instruction.

    Args:
        engine: a loaded bundle.
        rgb: (h, w, 3) uint8, any size; it is resized to the bundle's.
        task: which kind of output to ask for.
        instruction: plain text.
        max_think_tokens: after so many answer tokens the reasoning is closed.
        max_tokens: the answer never has more tokens; thinking and points are cut so that it still closes.
        tracer: takes the stages preprocess, vision, prefill, decode, parse.
        on_text: called with each piece of the answer's text as it comes.
        sampling: None decodes greedily.

    Raises:
        UserError: the instruction is unusable or too long for the model, or `max_tokens` leaves no room for an answer.
    """
    tracer = tracer or Tracer()
    bundle = engine.bundle
    prompt = contract.render_chat(contract.prompt_text(task, instruction), bundle.n_image_tokens)
    ids = bundle.tokenizer.encode(prompt, add_special_tokens=False).ids
    if len(ids) + max_tokens > bundle.max_positions:
        raise UserError(
            f"instruction: its prompt has {len(ids)} tokens and {max_tokens} are kept for the answer, "
            f"the model takes {bundle.max_positions} in all; say it shorter"
        )
    with tracer.stage("preprocess"):
        patches = preprocess(rgb, bundle.width_px, bundle.height_px)
    with tracer.stage("vision"):
        embeds = engine.encode_image(patches)
    writer = AnswerWriter(bundle, task, max_think_tokens, max_tokens, on_text)
    with tracer.stage("prefill"):
        logits = engine.prefill([*ids, *writer.forced()], embeds)
    with tracer.stage("decode"):
        choose = _greedy if sampling is None else _Sampler(sampling, ids)
        while not writer.done:
            writer.take(choose(writer.allowed(logits), writer.tokens))
            tokens = [writer.tokens[-1], *writer.forced()]
            if not writer.done:
                logits = engine.extend(tokens)
    with tracer.stage("parse"):
        answer = contract.parse_answer(writer.text, task)
    return Decision(answer, writer.text, len(ids), len(writer.tokens), writer.n_forced, writer.thinking_cut)


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
    """The grammar's side of decoding one answer: which tokens may come, which must, when it is over.

    Call `forced` first and after every `take`; the tokens it returns are already taken and only need to be shown to
    the model.
    """

    def __init__(
        self,
        bundle: Vocabulary,
        task: Task,
        max_think_tokens: int,
        max_tokens: int,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self._tokenizer = _llguidance_tokenizer(bundle.tokenizer_json, bundle.vocab, bundle.end_token)
        self._bundle, self._task, self._max_tokens = bundle, task, max_tokens
        # One token is at least one byte of the answer, so the longest output in bytes is room enough in tokens.
        reserve = contract.longest_output(task) + _CHARACTER_REST
        least = len(contract.THINK_OPEN) + reserve
        if max_tokens < least:
            raise UserError(f"max_tokens: is {max_tokens}; an answer to {task} may need {least}")
        self._think_limit = min(max_think_tokens, max_tokens - reserve)
        self._matcher = self._new_matcher(contract.MAX_POINTS)
        self._on_text = on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._thinking = True
        self.tokens: list[int] = []
        self.text = ""
        self.n_forced = 0
        self.thinking_cut = False

    @property
    def done(self) -> bool:
        """The answer is complete."""
        return bool(self._matcher.is_stopped()) or (not self._thinking and bool(self._matcher.is_accepting()))

    def allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the logits (vocab,) with every token that may not come at minus infinity."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        mask = bits[: len(logits)].astype(bool)
        if self._cutting:
            # Only the rest of one character stands between here and </think>.
            mask &= _single_byte_tokens(self._bundle.tokenizer_json, self._bundle.vocab, self._bundle.end_token)
        return np.where(mask, logits, -np.inf).astype(np.float32)

    def take(self, token: int) -> None:
        """Add one allowed token."""
        self._take([token])

    def forced(self) -> list[int]:
        """Take the tokens that must come now, by the grammar or the thinking budget, and return them."""
        taken: list[int] = []
        while not self.done:
            tokens = self._matcher.compute_ff_tokens()
            if not tokens and self._cutting:
                tokens = self._closing()
                self.thinking_cut = self.thinking_cut or bool(tokens)
            if not tokens:
                break
            self._take(tokens)
            taken += tokens
        self.n_forced += len(taken)
        return taken

    @property
    def _cutting(self) -> bool:
        return self._thinking and len(self.tokens) >= self._think_limit

    def _closing(self) -> list[int]:
        """Tokens that close the reasoning; none while a character is unfinished."""
        closing = contract.output_opening()
        begun = next(n for n in range(len(contract.THINK_CLOSE) - 1, -1, -1) if self.text.endswith(closing[:n]))
        tokens: list[int] = self._bundle.tokenizer.encode(closing[begun:], add_special_tokens=False).ids
        return tokens if self._matcher.validate_tokens(tokens) == len(tokens) else []

    def _take(self, tokens: Sequence[int]) -> None:
        if not self._matcher.consume_tokens(list(tokens)):
            raise RuntimeError(f"the grammar refuses tokens {list(tokens)}: {self._matcher.get_error()}")
        self.tokens += tokens
        piece = self._decoder.decode(self._tokenizer.decode_bytes(list(tokens)))
        self.text += piece
        if piece and self._on_text is not None:
            self._on_text(piece)
        if self._thinking and contract.THINK_CLOSE in self.text:
            self._thinking = False
            self._fit_points()

    def _fit_points(self) -> None:
        """Swap in a grammar with no more points than the tokens left have room for."""
        if self._task == "affordance":
            return
        left = self._max_tokens - len(self.tokens)
        counts = range(contract.MIN_POINTS, contract.MAX_POINTS + 1)
        most = max((n for n in counts if contract.longest_output(self._task, n) <= left), default=contract.MIN_POINTS)
        if most < contract.MAX_POINTS:
            self._matcher = self._new_matcher(most)
            self._matcher.consume_tokens(self.tokens)

    def _new_matcher(self, max_points: int) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(contract.grammar(self._task, max_points)))
        if matcher.is_error():
            raise RuntimeError(f"the grammar does not compile: {matcher.get_error()}")
        return matcher


def _greedy(logits: NDArray[np.float32], _: Sequence[int]) -> int:
    return int(logits.argmax())


class _Sampler:
    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling, self._prompt = sampling, prompt
        self._generator = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> int:
        s = self._sampling
        seen = np.unique(np.array([*self._prompt, *tokens], np.int64))
        scores = logits.astype(np.float64)
        penalty = np.where(scores[seen] > 0, 1 / s.repetition_penalty, s.repetition_penalty)
        scores[seen] *= penalty
        scores = (scores - scores.max()) / s.temperature
        probability = np.exp(scores) / np.exp(scores).sum()
        order = np.argsort(-probability, kind="stable")
        before = np.cumsum(probability[order]) - probability[order]
        kept = order[before < s.top_p]
        return int(self._generator.choice(kept, p=probability[kept] / probability[kept].sum()))


# Wrapping Qwen's own tokenizer takes most of a second, so it is kept from one decision to the next.
@lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer_json: str, vocab: int, end_token: int) -> LLTokenizer:
    return LLTokenizer(tokenizer_json, n_vocab=vocab, eos_token=end_token)


@lru_cache(maxsize=4)
def _single_byte_tokens(tokenizer_json: str, vocab: int, end_token: int) -> NDArray[np.bool_]:
    tokenizer = _llguidance_tokenizer(tokenizer_json, vocab, end_token)
    return np.array([len(tokenizer.decode_bytes([token])) == 1 for token in range(vocab)])
