"""The servo loop's cycles while nothing else computes, and while decisions are made: does the one disturb the other?

The loop runs disarmed: it reads the servos and sends no setpoints, and leaves their torque as it is. The arm does not
move.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from drivers.robot import Robot
from edge.control.servo_loop import Cycles, ServoLoop
from edge.trace import Tracer

_ALONE_S = 2.0


class ServoWatch:
    """A disarmed servo loop that is watched; a context manager that ends it.

    Args:
        robot: whose arm.
        tracer: gets a span ``servo cycle`` for each.
        port: instead of the robot file's.

    Raises:
        DeviceError: the port cannot be opened.
    """

    def __init__(self, robot: Robot, tracer: Tracer, port: str | None = None) -> None:
        self._loop, self._tracer = ServoLoop(robot, port), tracer
        self.messages = self._loop.messages
        self._seen = 0
        self._begins_s: list[float] = []
        self._busy_s: list[float] = []
        self._errors = dict(self._loop.state().errors)

    def alone(self) -> dict[str, Any]:
        """Watch for two seconds, during which nothing else should compute; figures as of `figures`."""
        time.sleep(_ALONE_S)
        self.collect()
        return self.figures()

    def begin(self) -> None:
        """Watch anew from here on."""
        self.collect()
        self.figures()

    def collect(self) -> None:
        """Take what the loop did since the last time: at least every 40 s, or some of it is lost."""
        self._seen, cycles = self._loop.cycles(self._seen)
        self._take(cycles)

    def _take(self, cycles: Cycles) -> None:
        for t_s, busy_s in zip(cycles.t_s.tolist(), cycles.busy_s.tolist(), strict=True):
            self._tracer.record("servo cycle", t_s, t_s + busy_s, "servo loop")
            self._begins_s.append(t_s)
            self._busy_s.append(busy_s)

    def figures(self) -> dict[str, Any]:
        """Of the cycles since the last call: how many, milliseconds from one to the next, milliseconds on the bus, and
        errors by kind."""
        periods_ms, busy_ms = np.diff(self._begins_s) * 1e3, np.array(self._busy_s) * 1e3
        errors = dict(self._loop.state().errors)
        found = {
            "cycles": len(busy_ms),
            "period_ms": _percentiles(periods_ms),
            "bus_ms": _percentiles(busy_ms),
            "errors": {name: n - self._errors[name] for name, n in errors.items() if n != self._errors[name]},
        }
        self._begins_s, self._busy_s, self._errors = self._begins_s[-1:], [], errors
        return found

    def __enter__(self) -> ServoWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()


def _percentiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p99, most = np.percentile(values, (50, 99, 100))
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}
