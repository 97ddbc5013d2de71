"""``/v1/decide``: a decision as typed JSON, or as server-sent events while it is made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import BaseModel
from starlette.responses import Response

from edge import contract
from edge.contract import Affordance, Task, Trajectory
from edge.decode import Event, TextEvent, WaypointEvent
from edge.serve.asked import events_of, reply_to, uploaded
from edge.serve.errors import told_midway
from edge.serve.line import Line, Question, Reply
from edge.serve.prompt import read_prompt

EVENT_STREAM = "text/event-stream"


class Box(BaseModel):
    """A box in the image: centre and size, fractions of image width and height."""

    x: float
    y: float
    width: float
    height: float


class Decided(BaseModel):
    """One decision.

    Attributes:
        found: False where the model says that what was named is not there; then there is neither output.
        affordance: where to grasp.
        trajectory: (x, y) points in order of travel, fractions of image width and height.
        confidence, number_confidences, unsure, thinking_cut, points_cut: as `edge.decode.Decision` has them. Nothing
            is to be acted on that is unsure.
        text: as decoded.
        latency_ms: in the line (``wait``), by stage, and in all (``total``).
    """

    task: Task
    instruction: str
    found: bool
    affordance: Box | None
    trajectory: list[tuple[float, float]] | None
    reasoning: str
    confidence: float
    number_confidences: list[float]
    unsure: str | None
    thinking_cut: str | None
    points_cut: str | None
    text: str
    n_prompt_tokens: int
    n_tokens: int
    latency_ms: dict[str, float]


def router(line: Line) -> APIRouter:
    """The path; events where ``stream`` is true or the request accepts ``text/event-stream``."""
    api = APIRouter()

    @api.post("/v1/decide", response_model=Decided, responses={200: {"content": {EVENT_STREAM: {}}}})
    async def decide(
        request: Request,
        task: Annotated[Task, Form()],
        instruction: Annotated[str, Form()],
        image: Annotated[UploadFile | None, File()] = None,
        stream: Annotated[bool, Form()] = False,
    ) -> Decided | Response:
        task, instruction = read_prompt(instruction, task)
        question = Question(await uploaded(image), task, instruction)
        if not stream and EVENT_STREAM not in request.headers.get("accept", ""):
            return _decided(question, await reply_to(request, line, question))

        async def events(items: AsyncIterator[Event | Reply]) -> AsyncGenerator[str, None]:
            reasoning = _Reasoning()
            try:
                async for item in items:
                    if isinstance(item, TextEvent):
                        item = reasoning.of(item)
                    if text := _event(question, item):
                        yield text
            except Exception as error:
                yield f"event: error\ndata: {told_midway(error)}\n\n"

        return await events_of(request, line, question, events)

    return api


def _decided(question: Question, reply: Reply) -> Decided:
    decision = reply.decision
    output = decision.answer.output
    return Decided(
        task=question.task,
        instruction=question.instruction,
        found=output is not None,
        affordance=Box(**asdict(output)) if isinstance(output, Affordance) else None,
        trajectory=list(output.points) if isinstance(output, Trajectory) else None,
        reasoning=decision.answer.reasoning,
        confidence=decision.confidence,
        number_confidences=list(decision.number_confidences),
        unsure=decision.unsure,
        thinking_cut=decision.thinking_cut,
        points_cut=decision.points_cut,
        text=decision.text,
        n_prompt_tokens=decision.n_prompt_tokens,
        n_tokens=decision.n_tokens,
        latency_ms=reply.latency_ms,
    )


class Piece(BaseModel):
    """Of the reasoning."""

    text: str


class Point(BaseModel):
    """Of the trajectory: its place in the order of travel from 0."""

    index: int
    x: float
    y: float


class _Reasoning:
    """The answer's text without ``<think>`` and ``</think>``, in whatever pieces these come."""

    def __init__(self) -> None:
        self._to_drop, self._held = len(contract.THINK_OPEN), ""

    def of(self, event: TextEvent) -> TextEvent:
        """What can be told now: not what may turn out to be the beginning of the end."""
        n = min(self._to_drop, len(event.text))
        self._to_drop -= n
        text = self._held + event.text[n:]
        close = contract.THINK_CLOSE
        n_held = next(n for n in range(len(close), -1, -1) if text.endswith(close[:n]))
        self._held = text[len(text) - n_held :]
        return TextEvent(text[: len(text) - n_held], event.reasoning)


def _event(question: Question, item: Event | Reply) -> str | None:
    """As a server-sent event: ``reasoning``, ``point``, ``affordance``, and ``result`` at the end."""
    named: tuple[str, BaseModel] | None = None
    if isinstance(item, Reply):
        named = "result", _decided(question, item)
    elif isinstance(item, TextEvent) and item.reasoning and item.text:
        named = "reasoning", Piece(text=item.text)
    elif isinstance(item, WaypointEvent):
        named = "point", Point(index=item.index, x=item.point[0], y=item.point[1])
    elif not isinstance(item, TextEvent) and isinstance(item.output, Affordance):
        named = "affordance", Box(**asdict(item.output))
    return None if named is None else f"event: {named[0]}\ndata: {named[1].model_dump_json()}\n\n"
