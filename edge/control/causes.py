"""Why the arm holds or is stopped, in words."""

from __future__ import annotations

from collections.abc import Sequence

from edge.control.servo_loop import Cause, ServoState


def why(state: ServoState, names: Sequence[str]) -> str:
    """The cause of a hold in words; ``names`` are the joints', in their order."""
    joint = state.cause_joint
    name = names[joint] if 0 <= joint < len(names) else "a joint"
    match state.cause:
        case Cause.WATCHDOG:
            return "this program was not heard from in time"
        case Cause.BUS_LOST:
            return f"port {state.port} was lost; check the USB cable and the adapter"
        case Cause.SERVO_SILENT:
            return f"{name} does not answer; check its cable"
        case Cause.SERVO_RESET:
            return f"{name} lost its torque; it was reset, or in overload"
        case Cause.CONTACT:
            return f"{name} pushes against something (load {abs(state.load[joint]):.2f})"
        case Cause.NOT_FOLLOWING:
            told, at = state.setpoint_rad[joint], state.position_rad[joint]
            return (
                f"{name} does not follow: told {told:.2f} rad, is at {at:.2f} rad; look for something in its way, or a "
                "servo in overload"
            )
        case Cause.TEMPERATURE:
            return f"{name} has {state.temperature_c[joint]:.0f} degrees Celsius; let it cool"
        case Cause.VOLTAGE:
            return f"{name} has {state.voltage_v[joint]:.1f} V; check the supply"
        case _:
            return "told to hold"
