"""Orders from the operator's page, carried out one after the other until the page says to park."""

from __future__ import annotations

from typing import Any

from drivers.errors import DeviceError, UserError
from edge.console.console import Console
from edge.loop import Order, Runtime

_LOOK_S = 0.2


def take_orders(console: Console, runtime: Runtime) -> None:
    """Until a person has the arm parked. An order that fails is told on the page, and the next is waited for.

    Raises DeviceError when the servo loop has ended, which nothing on the page can mend.
    """
    text = ""
    while True:
        console.phase("waiting", text)
        request = _next(console, runtime)
        try:
            if request["do"] == "park":
                if not runtime.controller.stopped:
                    runtime.put_back()
                    return
                text = "the arm was stopped; let it go on first"
            elif request["do"] == "restart":
                runtime.controller.restart()
                text = "the stop is lifted; the next order begins at the ready pose"
            else:
                console.phase("working")
                text = _carry_out(runtime, Order(request["instruction"], request["place"]))
        except UserError as error:
            if not runtime.controller.loop.alive:
                raise
            text = str(error)


def _next(console: Console, runtime: Runtime) -> dict[str, Any]:
    while (request := console.request(_LOOK_S)) is None:
        if not runtime.controller.loop.alive:
            raise DeviceError("servo loop: its process has ended; the servos hold their last setpoint")
    return request


def _carry_out(runtime: Runtime, order: Order) -> str:
    """From the ready pose to where the order ends; what is to be said then."""
    runtime.put_back()
    runtime.go_ready()
    outcome = runtime.carry_out(order)
    if runtime.controller.stopped:
        return "stopped; see that the arm's way is clear, then let it go on"
    if outcome.done and not order.place:
        return "it is held; the next order, and parking, put it back where it was"
    runtime.go_ready()
    return ""
