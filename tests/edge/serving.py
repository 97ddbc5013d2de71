"""A real server on loopback with an engine without a model, which answers with what it sees and can be held."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import uvicorn

from edge import contract
from edge.preprocess import IMAGE_MEAN, IMAGE_STD
from edge.serve.app import build_app, make_server
from edge.serve.line import Line
from edge.serve.notify import Manager, NotifyingServer
from tests.edge.toy_engine import ToyBundle, ToyEngine, digit_tokenizer, toy_bundle, writes

PATIENCE_S = 20.0
"""How long a test waits for what must come; it decides nothing."""


@dataclass(frozen=True, eq=False)
class NamedBundle(ToyBundle):
    path: Path = Path("toy")


@lru_cache(maxsize=1)
def bundle() -> NamedBundle:
    return NamedBundle(**vars(toy_bundle(digit_tokenizer())))


def answer_of(grey: int) -> contract.Answer:
    """What `SeeingEngine` says of an image of one grey."""
    return contract.Answer(f"I see the red cube, {grey}.", contract.Affordance(grey / 1000, 0.5, 0.1, 0.2))


def text_of(grey: int) -> str:
    box = f'{{"x": {grey / 1000:.4f}, "y": 0.50, "width": 0.10, "height": 0.20}}'
    return f"<think>{answer_of(grey).reasoning}</think><output>{box}</output>"


def png(grey: int, side: int = 56) -> bytes:
    return cv2.imencode(".png", np.full((side, side, 3), grey, np.uint8))[1].tobytes()


@dataclass
class SeeingEngine(ToyEngine):
    """Answers with the grey of the image; waits at every pass while it is held.

    Attributes:
        free: cleared, it waits.
        at_model: set as it comes to a pass.
        fails: what encoding an image raises.
        breaks: what passes raise once some of the answer is written.
    """

    free: threading.Event = field(default_factory=threading.Event)
    at_model: threading.Event = field(default_factory=threading.Event)
    fails: Exception | None = None
    breaks: Exception | None = None
    greys: list[int] = field(default_factory=list)

    def encode_image(self, patches: np.ndarray) -> np.ndarray:
        if self.fails is not None:
            raise self.fails
        grey = round((float(patches[0, 0]) * IMAGE_STD[0] + IMAGE_MEAN[0]) * 255)
        self.greys.append(grey)
        self.wants = writes(self.bundle, text_of(grey))
        return super().encode_image(patches)

    def extend(self, tokens: Sequence[int]) -> None:
        self.at_model.set()
        assert self.free.wait(PATIENCE_S)
        super().extend(tokens)
        if self.breaks is not None and self.length > self._n_prompt + 3:
            raise self.breaks


def seeing_engine() -> SeeingEngine:
    engine = SeeingEngine(bundle(), writes(bundle(), text_of(0)))
    engine.free.set()
    return engine


@dataclass
class Running:
    url: str
    port: int
    line: Line
    server: uvicorn.Server
    thread: threading.Thread
    http: httpx.Client

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


@contextmanager
def serving(
    engine: Any,
    token: str | None = None,
    images: Path | None = None,
    manager: Manager | None = None,
    **line_settings: Any,
) -> Iterator[Running]:
    line = Line(engine, **line_settings)
    server = make_server(build_app(line, token, images))
    if manager is not None:
        server = NotifyingServer(server.config, manager, line)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{port}"
    http = httpx.Client(base_url=url, timeout=PATIENCE_S, verify=False)
    running = Running(url, port, line, server, thread, http)
    try:
        yield running
    finally:
        if hasattr(engine, "free"):
            engine.free.set()
        http.close()
        running.stop()
        line.close()
