"""The run's end of the operator's page: starts its process, tells it what happens, brings what was asked there."""

from __future__ import annotations

import json
import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import Pipe
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame
from edge.contract import Affordance, Task, Trajectory
from edge.control import Controller
from edge.decode import Decision, Event, TextEvent, WaypointEvent
from edge.geometry import Grasp
from edge.loop import Order, Outcome
from edge.serve.listen import url_of
from edge.trace import STAGES, Tracer
from edge.watch import Watcher

FRAMES_HZ = 10.0
_JPEG_QUALITY = 80
_WAITING = 4096  # messages that a page's process that hangs may leave unread; then they are dropped
_TOLD_S, _END_S = 1.0, 3.0  # for what was told last, and for the process to end


class Console(Watcher):
    """A page that is served until `close`. Nothing that it or its process does can hold up the run.

    Args:
        listener: bound, not yet listening; the page's process takes it over.
        controller: started; its servo loop is what the page sees and stops.
        tracer: of the run; the page shows the stages of each order.
        about: what the page says of the robot and the model, by name.
        remote: other machines reach it, so it needs a token, drawn anew each time.
        carried: the camera moves with the gripper, so a box holds for one image alone.

    Attributes:
        url: of the page; where other machines reach it, with the token that it needs.
    """

    def __init__(
        self,
        listener: socket.socket,
        controller: Controller,
        tracer: Tracer,
        about: dict[str, str],
        *,
        remote: bool = False,
        carried: bool = False,
    ) -> None:
        self._controller, self._tracer = controller, tracer
        token = secrets.token_urlsafe(16) if remote else ""
        self.url = url_of(listener) + (f"/#{token}" if remote else "/")
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waiting: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue(_WAITING)
        self._frame: Frame | None = None
        self._first_span = 0
        self._closing = threading.Event()
        listener.listen()  # who comes before the process serves is kept waiting by the system
        self._pipe, theirs = Pipe()
        fds = (theirs.fileno(), controller.loop.memory_fd, listener.fileno())
        # A session of its own: Ctrl-C in the terminal parks the arm, which the page watches and can stop.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge.console.process", *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        robot = controller.robot
        joints = [
            {"name": name, "lower_rad": float(lower), "upper_rad": float(upper)}
            for name, lower, upper in zip(robot.joint_names, robot.lower_rad, robot.upper_rad, strict=True)
        ]
        self._send(
            "hello",
            token=token,
            about=about,
            joints=joints,
            max_temperature_c=robot.safety.max_temperature_c,
            carried=carried,
        )
        self._threads = [
            threading.Thread(target=work, name=f"console {work.__name__}", daemon=True)
            for work in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def request(self, timeout_s: float) -> dict[str, Any] | None:
        """What a person asked for on the page since, the oldest first; None where nothing comes in time.

        ``{"do": "order", "instruction": str, "place": bool}``, ``{"do": "restart"}`` or ``{"do": "park"}``.
        """
        try:
            return self._requests.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def phase(self, name: str, text: str = "") -> None:
        """What the run does now: ``waiting`` for an order, ``working``, or it has ``ended``."""
        self._send("phase", phase=name, text=text)

    def close(self) -> None:
        """End the page, once it has said what it was told last."""
        self._closing.set()
        self._threads[0].join(_TOLD_S)
        # Closing alone ends nothing while a thread reads.
        with suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as both_ways:
            both_ways.shutdown(socket.SHUT_RDWR)
        self._threads[1].join(_TOLD_S)
        self._pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # What the run tells

    def frame(self, frame: Frame) -> None:
        self._frame = frame

    def ordered(self, order: Order) -> None:
        self._first_span = self._tracer.written
        self._send("order", instruction=order.instruction, place=order.place)

    def said(self, text: str) -> None:
        self._send("said", text=text)

    def asked(self, task: Task, frame: Frame) -> None:
        self._send("asked", task=task)

    def event(self, event: Event) -> None:
        if isinstance(event, TextEvent):
            self._send("text", text=event.text, reasoning=event.reasoning)
        elif isinstance(event, WaypointEvent):
            self._send("point", index=event.index, point=event.point)
        elif isinstance(event.output, Affordance):
            self._send("box", box=asdict(event.output))
        elif isinstance(event.output, Trajectory):
            self._send("path", points=event.output.points)

    def decided(self, task: Task, decision: Decision) -> None:
        self._send(
            "decided",
            task=task,
            confidence=decision.confidence,
            unsure=decision.unsure,
            tokens=decision.n_tokens,
            took_s=decision.took_s,
        )
        self._latency()

    def planned(self, grasp: Grasp, waypoints_m: NDArray[np.float64] | None) -> None:
        self._send("planned", position_m=grasp.position_base_m.tolist(), notes=list(grasp.notes))
        self._latency()

    def ended(self, outcome: Outcome) -> None:
        self._send(
            "outcome",
            done=outcome.done,
            reason=outcome.reason,
            decision_s=outcome.decision_s,
            motion_s=outcome.motion_s,
        )

    def _latency(self) -> None:
        """How long each stage of this order has taken so far."""
        took_s = dict.fromkeys(STAGES, 0.0)
        for span in self._tracer.spans(self._first_span):
            if span.name in took_s and not span.elsewhere:
                took_s[span.name] += span.duration_s
        self._send("latency", stages={name: value for name, value in took_s.items() if value})

    # The two threads, and what they talk to

    def _send(self, kind: str, **fields: Any) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(({"kind": kind, **fields}, b""))

    def _write(self) -> None:
        shown_s = 0.0
        while True:
            with suppress(OSError):  # the page's process is gone: the run goes on without
                try:
                    self._put(*self._waiting.get(timeout=1.0 / FRAMES_HZ))
                except queue.Empty:
                    if self._closing.is_set():
                        return
                frame, now_s = self._frame, time.monotonic()
                if frame is not None and now_s - shown_s >= 1.0 / FRAMES_HZ:
                    self._frame, shown_s = None, now_s
                    ok, jpeg = cv2.imencode(".jpg", frame.rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
                    self._put({"kind": "frame", "t_s": frame.t_s}, jpeg.tobytes())

    def _put(self, head: dict[str, Any], body: bytes) -> None:
        self._pipe.send_bytes(json.dumps(head).encode() + b"\n" + body)

    def _read(self) -> None:
        try:
            while True:
                request = json.loads(self._pipe.recv_bytes())
                if request["do"] == "stop":  # it is in force already; this says why
                    self._controller.stop(request["why"])
                else:
                    self._requests.put(request)
        except (EOFError, OSError):
            return
