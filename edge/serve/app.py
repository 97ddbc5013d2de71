"""The whole HTTP application in front of one line, and the server that runs it."""

from __future__ import annotations

import math
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from edge.serve import chat, released, typed
from edge.serve.connection import IDLE_LIMIT_S, Connection
from edge.serve.errors import add_handlers
from edge.serve.guard import BODY_LIMIT_S, Guard
from edge.serve.line import DECISION_LIMIT_S, WAIT_LIMIT_S, Line
from edge.serve.metrics import Metrics


def build_app(line: Line, token: str | None = None, images: Path | None = None) -> Guard:
    """The application.

    Args:
        line: the model's.
        token: what requests must bear; None where the server listens on loopback alone.
        images: the folder that ``/generate`` may read images of; None for none.
    """
    app = FastAPI(title="VLA-R1", docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
    metrics = Metrics()
    for router in (released.router(line, images), typed.router(line), chat.router(line)):
        app.include_router(router)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def counted() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(line), media_type="text/plain; version=0.0.4")

    add_handlers(app)
    return Guard(app, token, metrics)


def make_server(app: Guard) -> uvicorn.Server:
    """A server that, told to exit, takes no new requests and answers those it has; run it with a bound socket."""
    # Longest for a request that has begun to arrive: its body, its wait, its decision.
    longest_s = math.ceil(BODY_LIMIT_S + WAIT_LIMIT_S + DECISION_LIMIT_S)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(IDLE_LIMIT_S),
        timeout_graceful_shutdown=longest_s,
    )
    return uvicorn.Server(config)
