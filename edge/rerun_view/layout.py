"""Where things are in the viewer: the paths of the entities, and the views that show them."""

from __future__ import annotations

from typing import Any

import numpy as np

from drivers.robot import Robot

TIMELINE = "time"
BASE, ARM, PLAN = "base", "base/arm", "base/plan"
REASONING, STATE, LOG = "reasoning", "arm_state", "log"
SETPOINT, POSITION = "joints/setpoint_rad", "joints/position_rad"
TEMPERATURE, LOAD, VOLTAGE = "servos/temperature_c", "servos/load", "servos/voltage_v"
LATENCY = "latency_ms"
_SHOWN_S = 30.0
_EYE = np.array([0.6, -0.7, 0.6])
"""Where the eye stands: before the arm, to its right, above the table."""


def camera_path(mount: str) -> str:
    """Of the camera: under the link that carries it."""
    return f"{ARM}/gripper/camera" if mount == "gripper" else f"{BASE}/camera"


def blueprint(robot: Robot, mount: str) -> Any:
    """A `rerun.blueprint.Blueprint`: image, 3D and words on top, curves below."""
    import rerun.blueprint as rrb

    latest = rrb.VisibleTimeRange(
        TIMELINE,
        start=rrb.TimeRangeBoundary.cursor_relative(seconds=-_SHOWN_S),
        end=rrb.TimeRangeBoundary.cursor_relative(),
    )

    def curves(name: str, *contents: str) -> Any:
        return rrb.TimeSeriesView(origin="/", contents=list(contents), name=name, time_ranges=latest)

    space = robot.safety.workspace
    middle_m, reach_m = np.mean([space.lower_m, space.upper_m], axis=0), np.ptp([space.lower_m, space.upper_m], axis=0)
    middle_m[2] = robot.safety.table_z_m
    eye = rrb.EyeControls3D(position=middle_m + 0.7 * reach_m.max() * _EYE, look_target=middle_m, eye_up=(0, 0, 1))
    image = f"{camera_path(mount)}/image"
    return rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(
                rrb.Spatial2DView(origin=image, contents=["+ $origin/**", f"+ /{PLAN}/**"], name="Camera"),
                rrb.Spatial3DView(origin=BASE, name="Arm", eye_controls=eye),
                rrb.Vertical(
                    rrb.TextDocumentView(origin=STATE, name="Arm state"),
                    rrb.TextDocumentView(origin=REASONING, name="Reasoning"),
                    rrb.TextLogView(origin=LOG, name="What happened"),
                    row_shares=[1, 4, 3],
                ),
                column_shares=[4, 4, 3],
            ),
            rrb.Horizontal(
                curves("Joints (rad)", f"+ /{SETPOINT}", f"+ /{POSITION}"),
                curves("Temperature (°C)", f"+ /{TEMPERATURE}"),
                rrb.Tabs(curves("Load", f"+ /{LOAD}"), curves("Voltage (V)", f"+ /{VOLTAGE}")),
                curves("Latency (ms)", f"+ /{LATENCY}/**", f"- /{LATENCY}/actuate"),
            ),
            row_shares=[3, 2],
        ),
        collapse_panels=True,
    )
