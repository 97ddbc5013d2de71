"""One model, the one thread that runs it, and the line of those who wait for it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from edge.contract import Task
from edge.decode import Decision, Event, Sampling, decide
from edge.decode.decision import MAX_TOKENS
from edge.engine.protocol import Engine
from edge.serve.image import decode_image
from edge.trace import STAGES, Tracer

MAX_WAITING = 64
WAIT_LIMIT_S = 60.0  # in the line
DECISION_LIMIT_S = 60.0  # at the model: reasoning is cut short so that the answer comes by then
STUCK_AFTER_S = 2 * DECISION_LIMIT_S  # at the model: no deadline cuts short what comes before the first token
_STAGES = {"wait", "image", *STAGES}
_PACE = 0.2  # share of the latest decision in the running mean of what one takes


class Busy(Exception):
    """No place in the line, or none that came to its turn in time; `retry_after_s` is when to ask again."""

    def __init__(self, why: str, retry_after_s: int) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class _Left(Exception):
    """Who asked is gone."""


@dataclass(frozen=True)
class Question:
    """What one client asks: an image file's content, and how it is to be answered; see `edge.decode.decide`."""

    image: bytes
    task: Task
    instruction: str
    sampling: Sampling | None = None
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True)
class Reply:
    """A decision, and where its time went: milliseconds by stage of `Line.tracer`, and in all (``total``)."""

    decision: Decision
    latency_ms: dict[str, float]


class Turn:
    """One question's place in the line.

    Attributes:
        reply: comes from the model's thread; Busy where it never will.
    """

    def __init__(self, question: Question, on_event: Callable[[Event], None] | None) -> None:
        self.question, self.on_event = question, on_event
        self.reply: Future[Reply] = Future()
        self.reply.set_running_or_notify_cancel()  # the line alone ends it, not a task that awaited it
        self.joined_s = time.perf_counter()
        self.left = False


class Line:
    """First come, first served. Safe from any thread.

    Attributes:
        tracer: has the stages of every decision, before them ``wait`` (in the line) and ``image`` (its decoding).
        n_left: questions whose clients left before the answer.
    """

    def __init__(
        self,
        engine: Engine,
        max_waiting: int = MAX_WAITING,
        wait_limit_s: float = WAIT_LIMIT_S,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self.bundle, self.wait_limit_s, self._stuck_after_s = engine.bundle, wait_limit_s, stuck_after_s
        self._engine, self._max_waiting = engine, max_waiting
        self._waiting: deque[Turn] = deque()
        self._running: Turn | None = None
        self._began_s: float | None = None  # what runs
        self._changed = threading.Condition()
        self._closed = False
        self._decision_s = 0.0
        self.n_left = 0
        self.tracer = Tracer()  # of the model's thread
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Questions that wait for their turn."""
        return len(self._waiting)

    @property
    def stuck(self) -> bool:
        """Whether the model's thread has ended, or is at one decision for longer than any takes."""
        began_s = self._began_s
        too_long = began_s is not None and time.perf_counter() - began_s > self._stuck_after_s
        return too_long or not self._thread.is_alive()

    def join(self, question: Question, on_event: Callable[[Event], None] | None = None) -> Turn:
        """Take a place; `on_event` is told in the model's thread.

        Raises:
            Busy: the line is full or closed, or, by the pace so far, the turn would come too late.
        """
        turn = Turn(question, on_event)
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping", self._retry_after_s())
            n = len(self._waiting)
            if n >= self._max_waiting or n * self._decision_s > self.wait_limit_s:
                raise Busy(f"{n} questions wait for the model already", self._retry_after_s())
            self._waiting.append(turn)
            self._changed.notify()
        return turn

    def leave(self, turn: Turn) -> None:
        """Free the place: a question that waits is dropped, one at the model ends at its next piece of text."""
        with self._changed:
            if turn.reply.done():
                return
            turn.left = True
            self.n_left += 1
            if turn in self._waiting:
                self._waiting.remove(turn)
                turn.reply.set_exception(Busy("who asked has left", 1))

    def expire(self, turn: Turn) -> None:
        """Refuse a question whose turn has not come yet."""
        with self._changed:
            if turn in self._waiting:
                self._waiting.remove(turn)
                why = f"the model was not free within {self.wait_limit_s:g} s"
                turn.reply.set_exception(Busy(why, self._retry_after_s()))

    def close(self) -> None:
        """Drop who waits, end what runs at its next piece of text, and end the thread."""
        with self._changed:
            self._closed = True
            for turn in self._waiting:
                turn.reply.set_exception(Busy("the server is stopping", 1))
            self._waiting.clear()
            if self._running is not None:
                self._running.left = True
            self._changed.notify()
        self._thread.join()

    def _retry_after_s(self) -> int:
        return max(1, math.ceil(len(self._waiting) * self._decision_s))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                turn = self._running = self._waiting.popleft()
            began_s = self._began_s = time.perf_counter()
            try:
                reply = self._decide(turn)
            except _Left:
                turn.reply.set_exception(Busy("who asked has left, or the server is stopping", 1))
            except Exception as error:
                turn.reply.set_exception(error)
            else:
                took_s = time.perf_counter() - began_s
                self._decision_s += (_PACE if self._decision_s else 1.0) * (took_s - self._decision_s)
                turn.reply.set_result(reply)
            self._running = self._began_s = None
            del turn  # with its image

    def _decide(self, turn: Turn) -> Reply:
        def tell(event: Event) -> None:
            if turn.left:
                raise _Left
            if turn.on_event is not None:
                turn.on_event(event)

        question, tracer, first = turn.question, self.tracer, self.tracer.written
        tracer.add("wait", time.perf_counter() - turn.joined_s)
        with tracer.stage("image"):
            rgb = decode_image(question.image)
        decision = decide(
            self._engine,
            rgb,
            question.task,
            question.instruction,
            sampling=question.sampling,
            max_tokens=question.max_tokens,
            deadline_s=DECISION_LIMIT_S,
            tracer=tracer,
            on_event=tell,
        )
        took = {span.name: span.duration_s for span in tracer.spans(first) if span.name in _STAGES}
        took["total"] = time.perf_counter() - turn.joined_s
        return Reply(decision, {name: round(value_s * 1e3, 3) for name, value_s in took.items()})


@contextmanager
def place(line: Line, question: Question, on_event: Callable[[Event], None] | None = None) -> Iterator[Turn]:
    """A place in the line for as long as the body runs, given up at `Line.wait_limit_s`; for a coroutine."""
    turn = line.join(question, on_event)
    timer = asyncio.get_running_loop().call_later(line.wait_limit_s, line.expire, turn)
    try:
        yield turn
    finally:
        timer.cancel()
        line.leave(turn)


async def answer(line: Line, question: Question) -> Reply:
    """Wait for one reply. Cancelled, it frees its place. Raises Busy, and what `decide` and `decode_image` raise."""
    with place(line, question) as turn:
        return await asyncio.wrap_future(turn.reply)


async def stream(line: Line, question: Question) -> AsyncGenerator[Event | Reply, None]:
    """What is told of one answer while it is written, and at last the reply. Closed, it frees its place."""
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Event | Future[Reply]] = asyncio.Queue()

    def tell(item: Event | Future[Reply]) -> None:
        try:
            loop.call_soon_threadsafe(told.put_nowait, item)
        except RuntimeError as error:  # the loop was closed: the server was made to exit
            raise _Left from error

    with place(line, question, tell) as turn:
        turn.reply.add_done_callback(tell)
        while not isinstance(item := await told.get(), Future):
            yield item
        yield item.result()
