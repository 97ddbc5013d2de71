"""LeRobot's calibration files: take an arm as it was calibrated there, and hand ours back.

LeRobot writes one JSON object a motor (``MotorCalibration``). To calibrate, it sets Homing_Offset so that the pose
that the arm is held in reads half a turn, then records the least and greatest count that each joint is moved through.
Its zero degrees are the middle of that range, at 360 / 4095 degrees a count. So the middle of the range is taken for
the middle of the joint's range in our model; that is as good as the joint was moved from stop to stop.

The ranges hold for servos whose Homing_Offset is the file's. LeRobot stores it in the servo, where it outlives the
power.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.arm.servo_arm import OUTSIDE_RAD, TABLES
from drivers.arm.tables import COUNTS_PER_TURN, RAD_PER_COUNT
from drivers.errors import UserError
from drivers.robot import Joint, Robot


@dataclass(frozen=True)
class LeRobotMotor:
    """One motor of the file, under the names that LeRobot gives its fields.

    Attributes:
        id: on the bus.
        drive_mode: 1 if the joint turns against the design.
        homing_offset: value of the register Homing_Offset, in counts; Feetech servos subtract it from what the encoder
            reads, Dynamixels add it.
        range_min, range_max: least and greatest Present_Position, in counts.
    """

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


_FIELDS = {
    "id": (0, 253),
    "drive_mode": (0, 255),
    "homing_offset": (-1_044_479, 1_044_479),
    "range_min": (0, COUNTS_PER_TURN - 1),
    "range_max": (0, COUNTS_PER_TURN - 1),
}
"""Name -> least and greatest value."""


def load_lerobot(path: str | Path) -> dict[str, LeRobotMotor]:
    """Read a calibration file, by motor. Raises UserError naming the file and the field it cannot use."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"LeRobot calibration {path}: {error.strerror}; name an existing file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"LeRobot calibration {path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"LeRobot calibration {path}: expected an object of motors, as `lerobot-calibrate` writes it")
    motors = {name: _motor(path, name, values) for name, values in content.items()}
    ids = [motor.id for motor in motors.values()]
    for name, motor in motors.items():
        if ids.count(motor.id) > 1:
            raise _error(path, f"{name}.id", f"is {motor.id}, which another motor has too")
    return motors


def robot_with_lerobot(robot: Robot, path: str | Path) -> Robot:
    """``robot`` with the ids, zeros, directions and joint limits of a LeRobot calibration.

    The middle of each recorded range is the middle of the model's joint range. Joint limits are what model and recorded
    range both allow. A Feetech joint with a ``drive_mode`` turns against its counts; a Dynamixel with one turns its
    counts round itself, so there the direction stays. Raises UserError naming the file and the field that does not fit.
    """
    path = Path(path)
    motors = load_lerobot(path)
    names = robot.joint_names
    for name in (*names, *motors):
        if name not in motors:
            raise _error(path, name, f"is missing; robot file {robot.path} has the joints {', '.join(names)}")
        if name not in names:
            raise _error(path, name, f"is no joint of robot file {robot.path}, which has {', '.join(names)}")
    middle_rad = (robot.lower_rad + robot.upper_rad) / 2
    joints = tuple(
        _joint(robot, path, joint, motors[joint.name], float(middle))
        for joint, middle in zip(robot.arm.joints, middle_rad, strict=True)
    )
    ends_rad = np.sort([_range_rad(joint, motors[joint.name]) for joint in joints], axis=1)
    lower_rad = np.maximum(robot.lower_rad, ends_rad[:, 0])
    upper_rad = np.minimum(robot.upper_rad, ends_rad[:, 1])
    return replace(
        robot,
        arm=replace(robot.arm, joints=joints),
        lower_rad=lower_rad,
        upper_rad=upper_rad,
        rest_rad=_within(robot, path, "rest_rad", robot.rest_rad, lower_rad, upper_rad),
        ready_rad=_within(robot, path, "ready_rad", robot.ready_rad, lower_rad, upper_rad),
    )


def lerobot_of(robot: Robot, homing_offsets: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What LeRobot's file says of ``robot``, ready for JSON; ``homing_offsets`` are the servos', by joint.

    The range is that of the joint limits, rounded inwards to whole counts.
    """
    motors = {}
    for joint, lower, upper in zip(robot.arm.joints, robot.lower_rad, robot.upper_rad, strict=True):
        low, high = sorted(joint.zero_count + joint.direction * angle / RAD_PER_COUNT for angle in (lower, upper))
        motors[joint.name] = {
            "id": joint.id,
            "drive_mode": int(robot.arm.type == "feetech" and joint.direction < 0),
            "homing_offset": homing_offsets[joint.name],
            "range_min": max(ceil(low), 0),
            "range_max": min(floor(high), COUNTS_PER_TURN - 1),
        }
    return motors


def _motor(path: Path, name: str, values: Any) -> LeRobotMotor:
    if not isinstance(values, dict):
        raise _error(path, name, f"must be an object of {', '.join(_FIELDS)}; got {values!r}")
    for key in values:
        if key not in _FIELDS:
            raise _error(path, f"{name}.{key}", f"is unknown; expected only {', '.join(_FIELDS)}")
    for field in fields(LeRobotMotor):
        key = f"{name}.{field.name}"
        if field.name not in values:
            raise _error(path, key, "is missing")
        value, (low, high) = values[field.name], _FIELDS[field.name]
        if type(value) is not int or not low <= value <= high:
            raise _error(path, key, f"must be a whole number in {low}..{high}, got {value!r}")
    motor = LeRobotMotor(**values)
    if motor.range_min >= motor.range_max:
        raise _error(path, f"{name}.range_min", f"is {motor.range_min}, not below range_max {motor.range_max}")
    return motor


def _joint(robot: Robot, path: Path, joint: Joint, motor: LeRobotMotor, middle_rad: float) -> Joint:
    direction = -1 if motor.drive_mode and robot.arm.type == "feetech" else joint.direction
    middle_count = (motor.range_min + motor.range_max) / 2
    zero_count = round(middle_count - direction * middle_rad / RAD_PER_COUNT)
    max_id = TABLES[robot.arm.type].max_id
    if motor.id > max_id:
        raise _error(path, f"{joint.name}.id", f"must be at most {max_id} on a {robot.arm.type} bus, got {motor.id}")
    if not 0 <= zero_count < COUNTS_PER_TURN:
        raise _error(
            path,
            f"{joint.name}.range_min",
            f"and range_max, {motor.range_min}..{motor.range_max}, put the joint's zero at count {zero_count}, outside "
            f"the servo's turn; calibrate with the arm in the middle of its ranges",
        )
    return Joint(joint.name, motor.id, zero_count, direction)


def _range_rad(joint: Joint, motor: LeRobotMotor) -> tuple[float, float]:
    """Angles at ``range_min`` and ``range_max``."""
    low, high = (
        joint.direction * (count - joint.zero_count) * RAD_PER_COUNT for count in (motor.range_min, motor.range_max)
    )
    return low, high


def _within(
    robot: Robot,
    path: Path,
    what: str,
    pose_rad: NDArray[np.float64],
    lower_rad: NDArray[np.float64],
    upper_rad: NDArray[np.float64],
) -> NDArray[np.float64]:
    """``pose_rad``, clipped to the limits. Raises UserError if it is far outside them."""
    clipped_rad = np.clip(pose_rad, lower_rad, upper_rad)
    for name, angle, nearest in zip(robot.joint_names, pose_rad, clipped_rad, strict=True):
        if abs(angle - nearest) > OUTSIDE_RAD:
            raise _error(
                path,
                name,
                f"has a range that ends at {nearest:.2f} rad and does not reach {what}'s {angle:.2f}; calibrate again, "
                f"moving it from stop to stop",
            )
    return clipped_rad


def _error(path: Path, field: str, what: str) -> UserError:
    return UserError(f"LeRobot calibration {path}: field {field} {what}")
