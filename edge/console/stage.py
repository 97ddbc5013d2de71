"""What the operator's pages show: the scene so far for whoever comes, then each thing as it happens; and the stop."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from drivers.errors import UserError
from edge.contract import prompt_text
from edge.control import Cause, ServoState, ServoWatch, State
from edge.control.causes import why

SERVO_HZ = 20.0
ALONE_S = 3.0
"""How long an arm that moves by a page's order may go on without any page that could stop it."""

_SILENT_S = 0.5  # a cycle as old as this is the last of a loop that has ended
_CONFIRM_S = 0.5
_UNREAD = 2000  # messages; a page that has so many before it is shown the scene anew

Message = dict[str, Any]


class Page:
    """One browser: what it has not been sent yet. Of images and servo readings only the newest is kept."""

    def __init__(self, scene: list[Message]) -> None:
        self._messages: deque[Message] = deque(scene)
        self._frame: bytes | None = None
        self._servo: Message | None = None
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, message: Message) -> None:
        """Next in the line of messages."""
        self._messages.append(message)
        self._wake.set()

    def put_frame(self, jpeg: bytes) -> None:
        """In place of an image that it has not been sent."""
        self._frame = jpeg
        self._wake.set()

    def put_servo(self, message: Message) -> None:
        """In place of a reading that it has not been sent."""
        self._servo = message
        self._wake.set()

    def close(self) -> None:
        """Send what there is, then nothing more."""
        self._closed = True
        self._wake.set()

    def drop(self) -> None:
        """Send nothing more; the browser comes again."""
        self._messages.clear()
        self.close()

    @property
    def behind(self) -> bool:
        """Whether it has fallen behind for good."""
        return len(self._messages) > _UNREAD

    async def items(self) -> AsyncIterator[Message | bytes]:
        """All that is to be sent, as it comes; an image as its JPEG bytes."""
        while True:
            self._wake.clear()
            while self._messages:
                yield self._messages.popleft()
            servo, self._servo = self._servo, None
            if servo is not None:
                yield servo
            frame, self._frame = self._frame, None
            if frame is not None:
                yield frame
            if self._closed and not self._messages:
                return
            await self._wake.wait()


class Stage:
    """The scene, the pages before it, and the arm.

    Args:
        servo: the arm's loop.
        hello: the first message that a page gets.
        ask: takes a request to the run.
    """

    def __init__(self, servo: ServoWatch, hello: Message, ask: Callable[[Message], None]) -> None:
        self._servo, self._hello, self._ask = servo, hello, ask
        self._names = [joint["name"] for joint in hello["joints"]]
        self._phase: Message = {"kind": "phase", "phase": "starting", "text": ""}
        self._order: list[Message] = []  # the latest order and what came of it
        self._frame = b""
        self._pages: set[Page] = set()
        self._ordered_here = False
        self._watched_s = time.monotonic()

    # Pages

    def enter(self) -> Page:
        """A new page."""
        page = Page([self._hello, *self._order, self._phase])
        if self._frame:
            page.put_frame(self._frame)
        self._pages.add(page)
        return page

    def leave(self, page: Page) -> None:
        """A page is gone."""
        self._pages.discard(page)

    @property
    def n_pages(self) -> int:
        """How many are there."""
        return len(self._pages)

    def close(self) -> None:
        """The run has ended; pages that it did not tell so are told."""
        for page in self._pages:
            if self._phase["phase"] != "ended":
                page.put({"kind": "phase", "phase": "ended", "text": "its program is gone"})
            page.close()

    # What the run tells

    def told(self, message: Message, body: bytes) -> None:
        """A message of the run's, an image with its JPEG bytes."""
        if message["kind"] == "frame":
            self._frame = body
            for page in self._pages:
                page.put_frame(body)
            return
        if message["kind"] == "phase":
            self._phase = message
            self._ordered_here &= message["phase"] == "working"
        elif message["kind"] == "order":
            self._order = [message]
        else:
            self._order.append(message)
        for page in self._pages.copy():
            page.put(message)
            if page.behind:
                self.leave(page)
                page.drop()

    # What a page asks for

    def stop(self, who: str) -> None:
        """Stop the arm, now; then say why."""
        self._servo.stop()
        self._ask({"do": "stop", "why": who})

    async def stopped(self) -> bool:
        """Whether the arm's loop has taken the stop: it decelerates, or has nothing to move."""
        ends_s = time.monotonic() + _CONFIRM_S
        while time.monotonic() < ends_s:
            state = self._servo.state()
            if not _silent(state) and state.state in (State.STOPPED, State.DISARMED):
                return True
            await asyncio.sleep(0.002)
        return False

    def request(self, message: Message) -> None:
        """Anything but a stop. Raises UserError for what is not to be understood, and what cannot be done now."""
        do = message.get("do")
        state = self._servo.state().state
        if do == "order":
            instruction, place = message.get("instruction"), message.get("place")
            if not isinstance(instruction, str) or not isinstance(place, bool):
                raise UserError("an order is an instruction, in words, and whether something is to be placed")
            if self._phase["phase"] != "waiting":
                raise UserError("the robot is busy; wait until it has done what it was told, or stop it")
            if state == State.STOPPED:
                raise UserError("the arm was stopped; see that its way is clear and let it go on first")
            prompt_text("affordance", instruction)  # it says what is wrong with the words
            self._phase = {"kind": "phase", "phase": "working", "text": ""}  # so that a second order is refused
            self._ordered_here = True
            self._ask({"do": "order", "instruction": instruction, "place": place})
        elif do == "restart":
            if state != State.STOPPED:
                raise UserError("the arm is not stopped")
            self._ask({"do": "restart"})
        elif do == "park":
            if self._phase["phase"] != "waiting":
                raise UserError("the robot is busy; wait until it has done what it was told, or stop it")
            self._ask({"do": "park"})
        else:
            raise UserError("a request is an order, restart, park or stop")

    # The arm

    async def watch(self) -> None:
        """Show the arm, `SERVO_HZ` times a second; stop it when nobody is left who gave it its order."""
        while True:
            state = self._servo.state()
            message = _servo_message(state, self._names)
            for page in self._pages:
                page.put_servo(message)
            now_s = time.monotonic()
            if self._pages or not self._ordered_here or state.state != State.MOVING:
                self._watched_s = now_s
            elif now_s - self._watched_s > ALONE_S:
                self.stop(f"no operator's page was connected for {ALONE_S:g} s")
            await asyncio.sleep(1.0 / SERVO_HZ)


def _silent(state: ServoState) -> bool:
    return time.monotonic() - state.t_s > _SILENT_S


def _servo_message(state: ServoState, names: list[str]) -> Message:
    held = state.state in (State.HOLDING, State.STOPPED)
    named = state.cause not in (Cause.NONE, Cause.REQUESTED, Cause.STOP_CALLED)
    return {
        "kind": "servo",
        "state": "silent" if _silent(state) else state.state.name.lower(),
        "why": why(state, names) if held and named else "",
        "t_s": state.t_s,
        "setpoint_rad": _rounded(state.setpoint_rad),
        "position_rad": _rounded(state.position_rad),
        "temperature_c": _rounded(state.temperature_c),
        "voltage_v": _rounded(state.voltage_v),
        "load": _rounded(state.load),
        "torque": [int(value) for value in state.torque],
        "late": state.errors["missed"],
        "lost": state.errors["timeouts"] + state.errors["damaged"] + state.errors["lost"],
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def encode(message: Message) -> str:
    """As a page gets it."""
    return json.dumps(message, separators=(",", ":"))
