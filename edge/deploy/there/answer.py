"""Answers one request: a line of JSON on stdin, file contents may follow; the reply is the last line of stdout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from edge.deploy.there import Refused
from edge.deploy.there.folder import compare, receive, settle
from edge.deploy.there.look import look, stamp
from edge.deploy.there.program import run


def read(path: str) -> str:
    """A text file."""
    return Path(path).read_text(encoding="utf-8")


CALLS = {call.__name__: call for call in (look, stamp, compare, receive, settle, run, read)}


def main(request: dict[str, Any]) -> None:
    """Answer one request: ``call`` and its ``arguments``."""
    try:
        reply = {"answer": CALLS[request["call"]](**request["arguments"])}
    except Refused as error:
        reply = {"refused": str(error)}
    except OSError as error:
        reply = {"refused": ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)}
    sys.stdout.write("\n" + json.dumps(reply) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the thread that watches stdin holds its lock
