"""Joint setpoints to the arm at a fixed rate, and what keeps it safe when something goes wrong."""

from edge.control.controller import Controller, MotionError, Stopped
from edge.control.servo_loop import RATE_HZ, Cause, Cycles, RefusedError, ServoLoop, ServoState, ServoWatch, State

__all__ = [
    "RATE_HZ",
    "Cause",
    "Controller",
    "Cycles",
    "MotionError",
    "RefusedError",
    "ServoLoop",
    "ServoState",
    "ServoWatch",
    "State",
    "Stopped",
]
