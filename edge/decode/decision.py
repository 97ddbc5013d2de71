"""One decision: a frame and an instruction to an answer that always parses, decoded under the task's grammar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge import contract
from edge.contract import Answer, Task
from edge.decode.budget import Cut, Deadline, Pace
from edge.decode.confidence import confidences
from edge.decode.draft import Draft
from edge.decode.events import Event, Events
from edge.decode.sampling import Choose, Sampler, Sampling, greedy
from edge.decode.scores import Logits, NumberTokens, Scores
from edge.decode.writer import AnswerWriter
from edge.engine.protocol import Engine
from edge.preprocess import preprocess
from edge.trace import OFF, Tracer

MAX_THINK_TOKENS, MAX_TOKENS = 256, 512


@dataclass(frozen=True)
class Decision:
    """One answer and how it came about.

    Attributes:
        answer: parsed; ``answer.output`` is of the kind the task asks for, or None.
        text: as decoded, from ``<think>`` to ``</output>``.
        n_prompt_tokens, n_tokens: tokens in the prompt (image placeholders included) and in the answer.
        n_forced_tokens: answer tokens that the grammar or a budget left no choice about.
        thinking_cut: what ended the reasoning in the model's place: the budget of tokens or the deadline.
        points_cut: what kept a trajectory to the points it has: tokens or time had no room for another, whether or not
            the model wanted one.
        tokens: of the text; the next decision's draft.
        log_probabilities: of each token, as `edge.decode.sampling.Choice` says; 0 for the forced ones.
        confidence, number_confidences: in [0, 1], of the answer and of each number of its output in the order they
            are written, as `edge.decode.confidence.confidences` says.
        unsure: why the answer is not to be acted on, "not sure: …", where it has an output and its confidence is
            below the bundle's threshold (`edge.abstention`).
        n_passes: of the language model after the prompt's.
        n_draft_accepted, n_draft_rejected: draft tokens the model was shown, and what became of them.
        first_action_s: from the call to the first complete waypoint, or to the complete box; None without an output.
        took_s: from the call to the answer.
    """

    answer: Answer
    text: str
    n_prompt_tokens: int
    n_tokens: int
    n_forced_tokens: int
    thinking_cut: Cut | None = None
    points_cut: Cut | None = None
    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    confidence: float = 1.0
    number_confidences: tuple[float, ...] = ()
    unsure: str | None = None
    n_passes: int = 0
    n_draft_accepted: int = 0
    n_draft_rejected: int = 0
    first_action_s: float | None = None
    took_s: float = 0.0


def decide(
    engine: Engine,
    rgb: NDArray[np.uint8],
    task: Task,
    instruction: str,
    *,
    max_think_tokens: int = MAX_THINK_TOKENS,
    max_tokens: int = MAX_TOKENS,
    deadline_s: float | None = None,
    draft: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    on_event: Callable[[Event], None] | None = None,
    tracer: Tracer | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Decision:
    """Look at one frame and answer one instruction.

    Args:
        engine: a loaded bundle.
        rgb: (h, w, 3) uint8, any size; it is resized to the bundle's.
        task: which kind of output to ask for.
        instruction: plain text.
        max_think_tokens: after so many answer tokens the reasoning is closed.
        max_tokens: the answer never has more tokens; thinking and points are cut so that it still closes.
        deadline_s: seconds from the call in which the answer must be there. By the pace of the passes so far, reasoning
            is closed and points are left out in time; an answer that cannot be had by then comes as soon as it can.
        draft: ``tokens`` of an earlier decision that this one may resemble. They are verified in blocks: fewer passes,
            and the answer is that without them wherever the engine computes a token's logits alike alone and in a
            block.
        sampling: None decodes greedily.
        on_event: told what `edge.decode.events` names, as it comes.
        tracer: takes the stages preprocess, vision, prefill, decode, parse, around them the span ``decision`` and
            within decode each ``pass`` of the language model.
        clock: seconds.

    Raises:
        UserError: the instruction is unusable or too long for the model, `max_tokens` leaves no room for an answer, or
            the deadline is not after the call.
    """
    tracer = tracer or OFF
    with tracer.span("decision"):
        asked = ask(engine, rgb, task, instruction, max_think_tokens, max_tokens, deadline_s, tracer, clock)
        return asked.answer(draft, sampling, on_event)


class Asked:
    """A frame and an instruction that the engine holds, ready for answers: of `ask`.

    Attributes:
        ends_s: the deadline, by the clock.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        ids: Sequence[int],
        limits: tuple[int, int],
        began_s: float,
        deadline_s: float | None,
        tracer: Tracer,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._task, self._ids, self._limits = engine, task, list(ids), limits
        self._began_s, self._tracer, self._clock = began_s, tracer, clock
        bundle = engine.bundle
        self._pace = Pace()
        self.ends_s = None if deadline_s is None else began_s + deadline_s
        self._deadline: Deadline | None = None
        if self.ends_s is not None:
            self._deadline = Deadline(self.ends_s, clock, self._pace, task, bundle.tokenizer)
        self._numbers = NumberTokens(bundle.number_tokens, bundle.vocab)
        self._shown: list[int] = []  # the tokens every answer begins with
        self._first: Logits | None = None  # what may follow them

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Show the prompt to the model."""
        self._shown = self._writer().forced()
        began_s = self._clock()
        self._engine.prefill([*self._ids, *self._shown], embeds)
        self._first = Logits(self._engine.logits()[0].copy())
        # What stands before the image may have been kept from an earlier prompt.
        image = self._ids.index(self._engine.bundle.image_token)
        self._pace.prefilled(len(self._ids) - image, self._clock() - began_s)

    def answer(
        self, draft: Sequence[int] | None, sampling: Sampling | None, on_event: Callable[[Event], None] | None
    ) -> Decision:
        """One answer; arguments as in `decide`. Times count from the call that asked."""
        events = Events(self._task, self._clock, on_event)
        writer = self._writer(events.write)
        choose: Choose = greedy if sampling is None else Sampler(sampling, self._ids)
        with self._tracer.stage("decode") as span:
            passes_ns: list[tuple[int, int, int]] = []
            passes, accepted, rejected = self._write(writer, choose, Draft(draft or ()), passes_ns)
            # All at once and not each in its turn, when the weights have just been through the processor's caches and
            # little of this program is left there: that is 20 µs a pass, this is 2.
            for began_ns, ended_ns, n_tokens in passes_ns:
                span.within("pass", began_ns, ended_ns, tokens=n_tokens)
            span.set(tokens=len(writer.tokens), forced=writer.n_forced, passes=passes)
        with self._tracer.stage("parse"):
            answer = contract.parse_answer(writer.text, self._task)
            abstention = self._engine.bundle.abstention
            confidence, numbers = confidences(writer.text, writer.token_bytes, writer.log_probabilities)
        return Decision(
            answer=answer,
            text=writer.text,
            n_prompt_tokens=len(self._ids),
            n_tokens=len(writer.tokens),
            n_forced_tokens=writer.n_forced,
            thinking_cut=writer.thinking_cut,
            points_cut=writer.points_cut,
            tokens=tuple(writer.tokens),
            log_probabilities=tuple(writer.log_probabilities),
            confidence=confidence,
            number_confidences=numbers,
            unsure=None if answer.output is None else abstention.unsure(self._task, confidence),
            n_passes=passes,
            n_draft_accepted=accepted,
            n_draft_rejected=rejected,
            first_action_s=None if events.first_action_s is None else events.first_action_s - self._began_s,
            took_s=self._clock() - self._began_s,
        )

    def _writer(self, on_text: Callable[[str], None] | None = None) -> AnswerWriter:
        return AnswerWriter(self._engine.bundle, self._task, *self._limits, on_text, self._deadline)

    def _write(
        self, writer: AnswerWriter, choose: Choose, draft: Draft, passes_ns: list[tuple[int, int, int]]
    ) -> tuple[int, int, int]:
        """Write one answer; passes made, draft tokens accepted and rejected.

        Each pass's begin and end, ``time.monotonic_ns()``, and the tokens shown in it go into ``passes_ns``.
        """
        engine = self._engine
        if engine.length > len(self._ids) + len(self._shown):
            engine.truncate(len(self._ids) + len(self._shown))
        pending = writer.forced()[len(self._shown) :]  # taken, and not yet shown to the model
        block: list[int] = []  # shown after them as a guess
        scores: Scores | None = None  # of the latest pass
        began_s = self._clock()
        n_passes = n_shown = n_accepted = n_rejected = 0
        while True:
            n_right = 0
            while not pending and not writer.done:
                mask = writer.mask()
                logits = scores.row(n_right, mask) if scores is not None else self._first
                assert logits is not None
                choice = choose(logits, mask, writer.tokens)
                writer.take(choice.token, choice.log_probability)
                pending = [choice.token, *writer.forced()]
                n_same = _common(pending, block[n_right:])
                n_right, pending = n_right + n_same, pending[n_same:]
            draft.judge(len(block), n_right)
            n_accepted, n_rejected = n_accepted + n_right, n_rejected + len(block) - n_right
            if n_passes:
                self._pace.passed(n_shown, self._clock() - began_s)
            if writer.done:
                return n_passes, n_accepted, n_rejected
            if n_right < len(block):
                engine.truncate(engine.length - (len(block) - n_right))
            most = self._limits[1] - len(writer.tokens)
            if self._deadline is not None:
                most = min(most, self._deadline.spare_tokens())
            block = draft.propose(writer.tokens, most)
            began_s, n_shown = self._clock(), len(pending) + len(block)
            writer.prepare()
            pass_ns = time.monotonic_ns()
            engine.extend([*pending, *block])
            passes_ns.append((pass_ns, time.monotonic_ns(), n_shown))
            scores, pending = Scores(engine, len(block) + 1, self._numbers), []
            n_passes += 1


def ask(
    engine: Engine,
    rgb: NDArray[np.uint8],
    task: Task,
    instruction: str,
    max_think_tokens: int,
    max_tokens: int,
    deadline_s: float | None,
    tracer: Tracer,
    clock: Callable[[], float],
) -> Asked:
    """Show a frame and an instruction to the engine; arguments and errors as in `decide`."""
    began_s = clock()
    if deadline_s is not None and not deadline_s > 0.0:
        raise UserError(f"deadline: is {deadline_s * 1e3:g} ms; expected more than 0")
    bundle = engine.bundle
    prompt = contract.render_chat(contract.prompt_text(task, instruction), bundle.n_image_tokens)
    ids = bundle.tokenizer.encode(prompt, add_special_tokens=False).ids
    if len(ids) + max_tokens > engine.room:
        raise UserError(
            f"instruction: its prompt has {len(ids)} tokens and {max_tokens} are kept for the answer, "
            f"the model takes {engine.room} in all; say it shorter"
        )
    asked = Asked(engine, task, ids, (max_think_tokens, max_tokens), began_s, deadline_s, tracer, clock)
    height_px, width_px = rgb.shape[:2]
    with tracer.stage("preprocess", width_px=width_px, height_px=height_px, bytes=rgb.nbytes):
        patches = preprocess(rgb, bundle.width_px, bundle.height_px)
    with tracer.stage("vision", tokens=bundle.n_image_tokens, width_px=bundle.width_px, height_px=bundle.height_px):
        embeds = engine.encode_image(patches)
    # What stands before the image may have been kept from an earlier prompt.
    with tracer.stage("prefill", tokens=len(ids), from_image=len(ids) - ids.index(bundle.image_token)):
        asked.prefill(embeds)
    return asked


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
