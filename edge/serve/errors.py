"""What a client is told when its request cannot be answered: one line, as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from drivers.errors import UserError
from edge.serve.line import Busy

_log = logging.getLogger("vlar1.serve")


class ClientGone(Exception):
    """Nobody is there to be answered."""


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """``detail`` is where the released server says it, ``error`` where OpenAI's clients look for it."""
    line = " ".join(message.split("\n"))
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"detail": line, "error": {"message": line, "type": kind, "param": None, "code": status}}
    return Response(json.dumps(body), status, headers, "application/json")


def told(error: Exception) -> Response:
    """The answer that `error` becomes."""
    if isinstance(error, Busy):
        return error_response(503, str(error), {"Retry-After": str(error.retry_after_s)})
    if isinstance(error, UserError):
        return error_response(400, str(error))
    if isinstance(error, HTTPException):
        return error_response(error.status_code, str(error.detail), error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(422, f"the body is not JSON: {first['ctx']['error']}")
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return error_response(422, f"{where}: {'send a file' if 'UploadFile' in first['msg'] else first['msg']}")
    if isinstance(error, ClientGone):
        return Response(status_code=499)  # as nginx counts them
    return error_response(500, "the server failed on this request; its own output says how")


def told_midway(error: Exception) -> str:
    """The same as JSON, for a stream that has begun; a failure of the server's own is logged."""
    answer = told(error)
    if answer.status_code == 500:
        _log.error("a stream failed", exc_info=error)
    return bytes(answer.body).decode()


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer every error so."""

    async def handle(request: Request, error: Exception) -> Response:
        return told(error)

    for kind in (Busy, UserError, HTTPException, RequestValidationError, ClientGone, Exception):
        app.add_exception_handler(kind, handle)
