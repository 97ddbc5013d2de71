"""OpenAI's chat completions with one image: for clients that know that API and no other."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from drivers.errors import UserError
from edge import contract
from edge.contract import Task
from edge.decode import Decision, Event, Sampling, TextEvent
from edge.decode.decision import MAX_TOKENS
from edge.serve.asked import events_of, reply_to
from edge.serve.errors import told_midway
from edge.serve.image import check_image
from edge.serve.line import Line, Question, Reply
from edge.serve.prompt import read_prompt


class ImageUrl(BaseModel):
    """An image; a ``data:`` URL, since nothing is fetched."""

    url: str


class Part(BaseModel):
    """Of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """Of the conversation, which has one."""

    role: str
    content: str | list[Part]


class StreamOptions(BaseModel):
    """What a stream holds besides."""

    include_usage: bool = False


class Chat(BaseModel):
    """A request. Greedy unless a temperature above 0 is asked for; fields of the API that are not here are ignored."""

    model: str
    messages: list[Message]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


def models(line: Line) -> dict[str, Task]:
    """The bundle's name, once a task: a client of this API can say the task in no other field."""
    name = line.bundle.path.resolve().name
    return {f"{name}-{task}": task for task in contract.TASKS}


def router(line: Line) -> APIRouter:
    """The two paths. The model's name says the task, unless the text ends as the released client's prompts do."""
    api = APIRouter()
    tasks, since_s = models(line), int(time.time())

    @api.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": since_s, "owned_by": "vlar1"} for name in tasks]
        return {"object": "list", "data": data}

    @api.post("/v1/chat/completions")
    async def complete(request: Request, body: Chat) -> Response:
        if body.model not in tasks:
            raise HTTPException(404, f"model: no such model; expected {' or '.join(tasks)}")
        text, url = _text_and_image(body.messages)
        task, instruction = read_prompt(text, tasks[body.model])
        image = _from_data_url(url)
        check_image(image)
        max_tokens = min(body.max_completion_tokens or body.max_tokens or MAX_TOKENS, MAX_TOKENS)
        question = Question(image, task, instruction, _sampling(body), max_tokens)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage

            async def chunks(items: AsyncIterator[Event | Reply]) -> AsyncGenerator[str, None]:
                try:
                    async for item in items:
                        for chunk in _chunks(item, usage):
                            yield _data({**head, "object": "chat.completion.chunk", **chunk})
                except Exception as error:
                    yield f"data: {told_midway(error)}\n\n"
                yield "data: [DONE]\n\n"

            return await events_of(request, line, question, chunks)
        decision = (await reply_to(request, line, question)).decision
        message = {"role": "assistant", "content": decision.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _why(decision)}
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(decision)}
        return Response(json.dumps(whole), media_type="application/json")

    return api


def _text_and_image(messages: list[Message]) -> tuple[str, str]:
    """The text and the image's URL; raises UserError where they are not one of each, of one user."""
    parts = messages[0].content if len(messages) == 1 and messages[0].role == "user" else []
    if isinstance(parts, str):
        parts = []
    texts = [part.text for part in parts if part.type == "text" and part.text is not None]
    urls = [part.image_url.url for part in parts if part.type == "image_url" and part.image_url is not None]
    if not texts or len(urls) != 1:
        raise UserError("messages: expected one, of the user, with text and one image; the model holds no conversation")
    return " ".join(texts), urls[0]


def _from_data_url(url: str) -> bytes:
    """The content of a base64 ``data:`` URL (RFC 2397)."""
    head, comma, content = url.partition(",")
    if not head[:5].lower() == "data:" or not comma or not head.lower().endswith(";base64"):
        raise UserError("image_url: nothing is fetched; send the image itself, as data:image/png;base64,…")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image_url: is not base64; send the image as data:image/png;base64,…") from None


def _sampling(body: Chat) -> Sampling | None:
    if not body.temperature:
        return None
    top_p = 1.0 if body.top_p is None else body.top_p
    return Sampling(max(body.temperature, 1e-3), top_p, 1.0, body.seed or 0)


def _chunks(item: Event | Reply, usage: bool) -> list[dict[str, Any]]:
    if isinstance(item, TextEvent):
        return [_chunk({"role": "assistant", "content": item.text}, None)]
    if not isinstance(item, Reply):
        return []
    last = [_chunk({}, _why(item.decision))]
    return [*last, {"choices": [], "usage": _usage(item.decision)}] if usage else last


def _chunk(delta: dict[str, str], why: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}]}


def _why(decision: Decision) -> str:
    return "length" if decision.thinking_cut or decision.points_cut else "stop"


def _usage(decision: Decision) -> dict[str, int]:
    prompt, answer = decision.n_prompt_tokens, decision.n_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
