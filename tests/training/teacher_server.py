"""An OpenAI-compatible server in a thread that misbehaves as a test tells it to, and labelled items to ask about."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.contract import Affordance, Answer, Trajectory, format_answer
from training.data.sharegpt import Item, write_items
from training.data.teacher import Endpoint


@dataclass(frozen=True)
class Asked:
    """One request: which item it is about, for which time (from 1), and what it said."""

    instruction: str
    time: int
    body: dict[str, Any]
    key: str
    at_s: float  # on the monotonic clock

    @property
    def text(self) -> str:
        return str(self.body["messages"][0]["content"][-1]["text"])

    @property
    def label_shown(self) -> bool:
        return "The right answer is" in self.text


@dataclass(frozen=True)
class Reply:
    """What comes back, and how badly."""

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False  # close the connection instead
    cut: bool = False  # promise more bytes than come


def says(text: str) -> Reply:
    """A well-formed completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return Reply(json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "model": "m", "created": 0}))


class TeacherServer:
    """``with TeacherServer(plan) as server``: `plan` maps each request to its reply.

    Attributes:
        asked: every request, in the order they came.
        most_at_once: the largest number of requests that were being answered at one time.
    """

    def __init__(self, plan: Callable[[Asked], Reply]) -> None:
        self.plan = plan
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._now = 0
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> TeacherServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
            text = body["messages"][0]["content"][-1]["text"]
            found = re.search(r"is told:\n(.*?) Please output", text, re.DOTALL)
            assert found and handler.path == "/v1/chat/completions"
            with self._lock:
                self._times[found.group(1)] += 1
                key = handler.headers["Authorization"]
                asked = Asked(found.group(1), self._times[found.group(1)], body, key, time.monotonic())
                self.asked.append(asked)
            reply = self.plan(asked)
            time.sleep(reply.delay_s)
        finally:
            with self._lock:  # before the reply: the client may start its next request the moment it has it
                self._now -= 1
        self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.close_connection = reply.drop or reply.cut
        if reply.drop:
            return
        raw = reply.body.encode()
        try:
            handler.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(raw) + (100 if reply.cut else 0)))
            handler.end_headers()
            handler.wfile.write(raw)
        except OSError:
            pass  # the client has given up waiting


REASONING = "The red cube stands left of the middle, the blue bowl is behind it, and its top is free to be gripped."
BOX = Affordance(0.3, 0.4, 0.2, 0.2)
PATH = Trajectory(((0.1, 0.1), (0.5, 0.4), (0.8, 0.8)))


def labels(n: int) -> list[Item]:
    """`n` items that name themselves: item 7 is told to ``pick up thing 7``. Boxes, paths and absent ones in turn."""
    items = []
    for k in range(n):
        output = (BOX, PATH, None)[k % 3]
        task = "trajectory" if k % 3 == 1 else "affordance"
        items.append(Item("images/a.png", task, f"pick up thing {k}", format_answer(Answer("", output)), {"id": k}))
    return items


def dataset(folder: Path, items: list[Item]) -> Path:
    (folder / "images").mkdir()
    assert cv2.imwrite(str(folder / "images/a.png"), np.full((56, 84, 3), 90, np.uint8))
    write_items(folder / "in.json", items)
    return folder / "in.json"


def number(asked: Asked) -> int:
    return int(asked.instruction.split()[-1])


def right(asked: Asked) -> Reply:
    """A little off the label, as a good teacher is."""
    box, path = Affordance(0.31, 0.41, 0.2, 0.22), Trajectory(((0.1, 0.1), (0.52, 0.42), (0.8, 0.8)))
    return says(format_answer(Answer(REASONING, (box, path, None)[number(asked) % 3])))


def wrong(asked: Asked) -> Reply:
    far = (Affordance(0.8, 0.8, 0.1, 0.1), Trajectory(((0.9, 0.1), (0.1, 0.9))), BOX)
    return says(format_answer(Answer(REASONING, far[number(asked) % 3])))


def patient(server: TeacherServer, **more: object) -> Endpoint:
    return Endpoint(server.url, "teacher", **{"timeout_s": 20.0, "backoff_s": 0.01, **more})  # type: ignore[arg-type]


def journal(out: Path) -> list[str]:
    return [json.loads(line)["key"] for line in out.with_suffix(".journal.jsonl").read_text().splitlines()]


def bad(out: Path) -> dict[int, str]:
    path = out.with_suffix(".bad.json")
    return {entry["index"]: entry["reason"] for entry in json.loads(path.read_text())} if path.exists() else {}
