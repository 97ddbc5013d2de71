"""The page's HTTP: its three files, a WebSocket, and a way to stop that needs no WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from drivers.errors import UserError
from edge.console.stage import Page, Stage, encode
from edge.serve.connection import Connection
from edge.serve.local import require_local

MAX_PAGES = 8
_HELLO_S = 5.0  # for a page to show its token
_MAX_REQUEST_BYTES = 16_384
_FOLDER = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/stop.js": "stop.js"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


def build_app(stage: Stage, token: str) -> Starlette:
    """The application.

    Args:
        token: what a WebSocket's first message, or a stop's ``Authorization: Bearer``, must hold; empty for none, where
            only this machine reaches the page: then requests that name another host or come from another site's page
            are refused.
    """

    async def file(request: Request) -> Response:
        _admit(request.headers, token)
        return FileResponse(_FOLDER / _FILES[request.url.path], headers=_HEADERS)

    async def stop(request: Request) -> Response:
        _admit(request.headers, token)
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if token and not (kind.lower() == "bearer" and _right(given, token)):
            raise HTTPException(401, "send the header Authorization: Bearer TOKEN")
        stage.stop(f"the operator's page at {_client(request)}")
        return JSONResponse({"stopped": await stage.stopped()})

    async def socket(websocket: WebSocket) -> None:
        try:
            _admit(websocket.headers, token)
        except HTTPException:
            await websocket.close(1008)
            return
        await websocket.accept()
        try:
            first = await asyncio.wait_for(websocket.receive_text(), _HELLO_S)
            if not _right(first, token):
                await websocket.close(4401, "wrong token")
            elif stage.n_pages >= MAX_PAGES:
                await websocket.close(4503, "too many pages are open")
            else:
                async with _page(stage, websocket):
                    while True:
                        await _answer(stage, websocket, await websocket.receive_text())
        except (WebSocketDisconnect, asyncio.TimeoutError, KeyError, RuntimeError):
            pass  # it is gone, or sent bytes instead of text

    routes = [Route(path, file) for path in _FILES]
    return Starlette(routes=[*routes, Route("/stop", stop, methods=["POST"]), WebSocketRoute("/ws", socket)])


def make_server(app: Starlette) -> uvicorn.Server:
    """A server for the application; run it with a bound socket."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="websockets-sansio",
        ws_max_size=_MAX_REQUEST_BYTES,
        ws_ping_interval=2.0,
        ws_ping_timeout=3.0,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


@contextlib.asynccontextmanager
async def _page(stage: Stage, websocket: WebSocket) -> AsyncIterator[Page]:
    """A page that is sent what there is to see while the body reads what it asks for."""
    page = stage.enter()

    async def send() -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            async for item in page.items():
                if isinstance(item, bytes):
                    await websocket.send_bytes(item)
                else:
                    await websocket.send_text(encode(item))
            await websocket.close(1001)

    sending = asyncio.create_task(send())
    try:
        yield page
    finally:
        stage.leave(page)
        sending.cancel()


async def _answer(stage: Stage, websocket: WebSocket, text: str) -> None:
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        return
    if message.get("do") == "stop":
        stage.stop(f"the operator's page at {_client(websocket)}")
        await websocket.send_text(encode({"kind": "stop", "stopped": await stage.stopped()}))
    elif message.get("do") == "ping":
        await websocket.send_text(encode({"kind": "pong", "n": message.get("n")}))
    else:
        try:
            stage.request(message)
        except UserError as error:
            await websocket.send_text(encode({"kind": "refused", "text": str(error)}))


def _admit(headers: Headers, token: str) -> None:
    if not token:
        require_local(headers)


def _right(given: str, token: str) -> bool:
    return hmac.compare_digest(given.strip().encode(), token.encode())


def _client(request: Request | WebSocket) -> str:
    return request.client.host if request.client else "an unknown address"
