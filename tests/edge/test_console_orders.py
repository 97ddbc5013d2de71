"""Orders from the page: one after the other, whatever comes of them, until it says to park."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from drivers.errors import DeviceError, UserError
from edge.console.orders import take_orders
from edge.loop import Order

PICK = {"do": "order", "instruction": "pick up the red cube", "place": False}
PLACE = {"do": "order", "instruction": "put it in the bowl", "place": True}
PARK, RESTART = {"do": "park"}, {"do": "restart"}


class Script:
    """A page on which these things are asked, one after the other."""

    def __init__(self, *requests: dict[str, Any]) -> None:
        self._requests = list(requests)
        self.texts: list[str] = []

    def request(self, timeout_s: float) -> dict[str, Any] | None:
        return self._requests.pop(0) if self._requests else None

    def phase(self, name: str, text: str = "") -> None:
        if name == "waiting":
            self.texts.append(text)


class Robot:
    """A runtime that notes what it is told; ``fails``: what carrying an order out raises."""

    def __init__(self, done: bool = True, fails: Exception | None = None) -> None:
        self.did: list[str] = []
        self._done, self._fails = done, fails
        self.controller = SimpleNamespace(stopped=False, loop=SimpleNamespace(alive=True), restart=self._restart)

    def _restart(self) -> None:
        self.did.append("restart")
        self.controller.stopped = False

    def put_back(self) -> None:
        self.did.append("put back")

    def go_ready(self) -> None:
        self.did.append("ready")

    def carry_out(self, order: Order) -> SimpleNamespace:
        self.did.append(order.instruction)
        if self._fails:
            raise self._fails
        return SimpleNamespace(done=self._done)


def carried_out(robot: Robot, *requests: dict[str, Any]) -> list[str]:
    """What the page was told before each request."""
    page = Script(*requests)
    take_orders(page, robot)  # type: ignore[arg-type]
    return page.texts


def test_what_is_picked_up_is_held_until_the_next_order_or_parking() -> None:
    robot = Robot()
    texts = carried_out(robot, PICK, PLACE, PARK)
    assert robot.did == ["put back", "ready", PICK["instruction"]] + ["put back", "ready", PLACE["instruction"]] + [
        *("ready", "put back")
    ]
    assert "it is held" in texts[1] and texts[2] == ""


def test_an_order_that_fails_is_told_and_the_next_is_waited_for() -> None:
    robot = Robot(fails=UserError("the bowl is out of reach"))
    assert carried_out(robot, PLACE, PARK)[1] == "the bowl is out of reach"


def test_a_stopped_arm_is_not_parked_before_a_person_lets_it_go_on() -> None:
    robot = Robot()
    robot.controller.stopped = True
    texts = carried_out(robot, PARK, RESTART, PARK)
    assert robot.did == ["restart", "put back"]
    assert "was stopped" in texts[1] and "lifted" in texts[2]


@pytest.mark.parametrize("requests", [(), (PICK,)])
def test_a_servo_loop_that_has_ended_ends_the_run(requests: tuple[dict[str, Any], ...]) -> None:
    robot = Robot(fails=DeviceError("servo loop: its process has ended"))
    robot.controller.loop.alive = False
    with pytest.raises(DeviceError, match="its process has ended"):
        carried_out(robot, *requests)
