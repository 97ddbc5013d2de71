"""A question taken from a request, answered while its client is there: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import Request, UploadFile
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from drivers.errors import UserError
from edge.decode import Event
from edge.serve.errors import ClientGone
from edge.serve.image import check_image
from edge.serve.line import Line, Question, Reply, answer, stream

Format = Callable[[AsyncIterator[Event | Reply]], AsyncGenerator[str, None]]
_T = TypeVar("_T")


async def uploaded(image: UploadFile | None) -> bytes:
    """The content of an image sent as a file; raises UserError where there is none or it is none."""
    if image is None:
        raise UserError("image: is missing; send a PNG or JPEG file")
    content = await image.read()
    check_image(content)
    return content


async def reply_to(request: Request, line: Line, question: Question) -> Reply:
    """The reply; raises ClientGone, its place in the line freed, where the client goes."""
    return await _while_there(request, asyncio.ensure_future(answer(line, question)))


async def events_of(request: Request, line: Line, question: Question, format: Format) -> EventStream:
    """Server-sent events, begun when there is a first one: what is wrong before is told by status."""
    source = stream(line, question)
    first = await _while_there(request, asyncio.ensure_future(anext(source)))

    async def all_of_it() -> AsyncGenerator[Event | Reply, None]:
        yield first
        async for item in source:
            yield item

    items = all_of_it()
    return EventStream(format(items), items, source)


class EventStream(StreamingResponse):
    """``text/event-stream``; frees the place in the line however it ends."""

    def __init__(self, text: AsyncGenerator[str, None], *sources: AsyncGenerator[Any, None]) -> None:
        """`sources`: what the text is made of, outermost first; closed with it, since one not begun closes nothing."""
        super().__init__(text, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._generators = (text, *sources)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for generator in self._generators:
                await generator.aclose()


async def _while_there(request: Request, wanted: asyncio.Future[_T]) -> _T:
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {wanted, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientGone
        return wanted.result()
    finally:
        gone.cancel()
        wanted.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
