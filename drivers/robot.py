"""The robot file (YAML, schema 1): which arm, on which bus, how its counts become angles, what it must never do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import yaml
from numpy.typing import NDArray

from drivers.arm.tables import COUNTS_PER_TURN, MAX_ID, RAD_PER_COUNT
from drivers.errors import UserError

SCHEMA = 1
ARM_TYPES = ("feetech", "dynamixel")
_TOP = ("schema", "name", "model", "arm", "limits", "safety", "rest_rad", "ready_rad")
SO101_PATH = Path(__file__).parent / "arm" / "so101.yaml"
"""The robot file that ships with the project."""


@dataclass(frozen=True)
class Joint:
    """One servo: angle_rad = direction * (count - zero_count) * 2 pi / 4096."""

    name: str
    id: int
    zero_count: float
    direction: int


@dataclass(frozen=True)
class ArmSpec:
    """How to reach the arm. ``joints`` are in the order of every joint vector, the gripper last.

    Attributes:
        type: of its bus, one of `ARM_TYPES`.
        port: serial device.
        usb_serial: of the adapter, by which it is found again when it comes back under another name; "" for none known.
    """

    type: str
    port: str
    baudrate: int
    usb_serial: str
    joints: tuple[Joint, ...]


@dataclass(frozen=True, eq=False)
class MotionLimits:
    """What no setpoint ever exceeds, (n,) each: rad/s, rad/s^2, rad/s^3."""

    velocity_rad_s: NDArray[np.float64]
    acceleration_rad_s2: NDArray[np.float64]
    jerk_rad_s3: NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of the base frame, corners in metres."""

    lower_m: tuple[float, float, float]
    upper_m: tuple[float, float, float]


@dataclass(frozen=True)
class Safety:
    """When a motion is refused, and when a running one ends in a hold.

    Attributes:
        command_timeout_s: a motion goes on only while its commander is heard from this often.
        contact_load: share of the greatest load an arm joint may show for ``contact_time_s``; the gripper may squeeze.
        max_temperature_c, min_voltage_v: of any servo.
        table_z_m: height of the table in the base frame; nothing of the arm but its base goes lower.
        workspace: the tool's tip stays inside.
        keep_out: nothing of the arm comes into these, by name.
        stop_inputs: what else stops the arm: ``keyboard``, ``serial:PORT`` or ``gpio:CHIP:LINE``.
    """

    command_timeout_s: float
    contact_load: float
    contact_time_s: float
    max_temperature_c: float
    min_voltage_v: float
    table_z_m: float
    workspace: Box
    keep_out: dict[str, Box]
    stop_inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Robot:
    """What a robot file says, and the joint limits of the model it names.

    Attributes:
        path: the robot file.
        model: the MJCF file of the arm.
        limits: of motion.
        safety: what is refused, and what ends a motion.
        rest_rad: (n,) folded and supported; torque may be cut there.
        ready_rad: (n,) arm out of the camera's view of the table.
        lower_rad, upper_rad: (n,) joint limits, from the model.
        joint_zeros_rad: corrections that its zero counts hold already, as `robot_with_zeros` put them in; () for none.
    """

    path: Path
    name: str
    model: Path
    arm: ArmSpec
    limits: MotionLimits
    safety: Safety
    rest_rad: NDArray[np.float64]
    ready_rad: NDArray[np.float64]
    lower_rad: NDArray[np.float64]
    upper_rad: NDArray[np.float64]
    joint_zeros_rad: tuple[float, ...] = ()

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.arm.joints)


def load_robot(path: str | Path = SO101_PATH) -> Robot:
    """Read a robot file. Raises UserError naming the file and the field it cannot use."""
    path = Path(path)
    top = _Fields(path, "", _read_yaml(path), _TOP)
    arm_fields = top.mapping("arm", ("type", "port", "baudrate", "joints"), optional=("usb_serial",))
    arm = ArmSpec(
        type=arm_fields.one_of("type", ARM_TYPES),
        port=arm_fields.text("port"),
        baudrate=arm_fields.integer("baudrate", 1, 10_000_000),
        usb_serial=arm_fields.text("usb_serial") if "usb_serial" in arm_fields.values else "",
        joints=_read_joints(arm_fields),
    )
    model = path.parent / top.text("model")
    lower_rad, upper_rad = _joint_limits(top, model, arm.joints)
    return Robot(
        path=path,
        name=top.text("name"),
        model=model,
        arm=arm,
        limits=_read_limits(top, arm.joints),
        safety=_read_safety(top),
        rest_rad=_read_pose(top, "rest_rad", lower_rad, upper_rad),
        ready_rad=_read_pose(top, "ready_rad", lower_rad, upper_rad),
        lower_rad=lower_rad,
        upper_rad=upper_rad,
    )


def robot_with_zeros(robot: Robot, joint_zeros_rad: Sequence[float]) -> Robot:
    """The robot with the joint zeros that a hand-eye calibration found: true angle = measured + zero, (n,) rad.

    Limits are narrowed where they would leave the servo's turn. Raises UserError when there is not one zero a joint.
    """
    zeros = np.asarray(joint_zeros_rad, dtype=np.float64)
    if zeros.shape != robot.lower_rad.shape:
        raise UserError(
            f"robot file {robot.path}: has {len(robot.arm.joints)} joints, the calibration's joint_zeros_rad "
            f"{zeros.size}; calibrate this arm again"
        )
    joints, lower, upper = [], robot.lower_rad.copy(), robot.upper_rad.copy()
    for i, (joint, zero) in enumerate(zip(robot.arm.joints, zeros, strict=True)):
        count = joint.zero_count - joint.direction * zero / RAD_PER_COUNT
        ends = sorted(joint.direction * (end - count) * RAD_PER_COUNT for end in (0, COUNTS_PER_TURN - 1))
        lower[i], upper[i] = max(lower[i], ends[0]), min(upper[i], ends[1])
        joints.append(replace(joint, zero_count=float(count)))
    return replace(
        robot,
        arm=replace(robot.arm, joints=tuple(joints)),
        lower_rad=lower,
        upper_rad=upper,
        joint_zeros_rad=tuple(float(zero) for zero in zeros),
    )


@dataclass(frozen=True)
class _Fields:
    """A mapping of the file, with errors that say where in the file it is."""

    path: Path
    where: str
    values: dict[str, Any]
    names: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = self.names + self.optional
        for name in self.values:
            if name not in known:
                raise self.error(name, f"is unknown; expected only {', '.join(known)}")
        for name in self.names:
            if name not in self.values:
                raise self.error(name, "is missing")

    def error(self, name: str, what: str) -> UserError:
        return UserError(f"robot file {self.path}: field {self.where}{name} {what}")

    def text(self, name: str) -> str:
        value = self.values[name]
        if not isinstance(value, str) or not value:
            raise self.error(name, f"must be a text, got {value!r}")
        return value

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        if self.values[name] not in choices:
            raise self.error(name, f"must be one of: {', '.join(choices)}; got {self.values[name]!r}")
        return str(self.values[name])

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.values[name]
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"must be a whole number in {low}..{high}, got {value!r}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        value = self.values[name]
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.error(name, f"must be a number in {low:g}..{high:g}, got {value!r}")
        return float(value)

    def point(self, name: str) -> tuple[float, float, float]:
        value = self.values[name]
        if not isinstance(value, list) or len(value) != 3 or not all(_is_finite(item) for item in value):
            raise self.error(name, f"must be three numbers in metres, got {value!r}")
        return float(value[0]), float(value[1]), float(value[2])

    def box(self, name: str) -> Box:
        corners = self.mapping(name, ("lower_m", "upper_m"))
        box = Box(corners.point("lower_m"), corners.point("upper_m"))
        if not all(low < high for low, high in zip(box.lower_m, box.upper_m, strict=True)):
            raise corners.error("lower_m", f"must be below upper_m in all three, got {box.lower_m} and {box.upper_m}")
        return box

    def mapping(
        self,
        name: str,
        names: tuple[str, ...] | None = None,
        optional: tuple[str, ...] = (),
        may_be_empty: bool = False,
    ) -> _Fields:
        value = self.values[name]
        if not isinstance(value, dict) or not (value or may_be_empty) or not all(isinstance(key, str) for key in value):
            raise self.error(name, f"must be a mapping, got {value!r}")
        return _Fields(self.path, f"{self.where}{name}.", value, tuple(value) if names is None else names, optional)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"robot file {path}: {error.strerror}; name an existing robot file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"robot file {path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"robot file {path}: expected a mapping of fields")
    if "schema" in content and (content["schema"] != SCHEMA or isinstance(content["schema"], bool)):
        raise UserError(f"robot file {path}: schema {content['schema']!r} is not supported; expected {SCHEMA}")
    return content


def _read_joints(arm: _Fields) -> tuple[Joint, ...]:
    by_name = arm.mapping("joints")
    joints: list[Joint] = []
    for name in by_name.values:
        fields = by_name.mapping(name, ("id", "zero_count", "direction"))
        joint = Joint(
            name=name,
            id=fields.integer("id", 0, MAX_ID),
            zero_count=fields.integer("zero_count", 0, COUNTS_PER_TURN - 1),
            direction=fields.integer("direction", -1, 1),
        )
        if joint.direction == 0:
            raise fields.error("direction", "must be 1 or -1, got 0")
        if joint.id in (other.id for other in joints):
            raise fields.error("id", f"is {joint.id}, which another joint has already")
        joints.append(joint)
    return tuple(joints)


def _read_limits(top: _Fields, joints: tuple[Joint, ...]) -> MotionLimits:
    """One number for all joints, or a mapping with one for each."""
    names = ("velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3")
    fields = top.mapping("limits", names)

    def each(name: str, high: float) -> NDArray[np.float64]:
        if not isinstance(fields.values[name], dict):
            return np.full(len(joints), fields.number(name, 1e-3, high))
        by_joint = fields.mapping(name, tuple(joint.name for joint in joints))
        return np.array([by_joint.number(joint.name, 1e-3, high) for joint in joints])

    return MotionLimits(each(names[0], 50.0), each(names[1], 1e3), each(names[2], 1e5))


def _read_safety(top: _Fields) -> Safety:
    names = tuple(name for name in Safety.__dataclass_fields__ if name != "stop_inputs")
    fields = top.mapping("safety", names, optional=("stop_inputs",))
    stops = fields.values.get("stop_inputs", [])
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise fields.error("stop_inputs", f"must be a list such as [keyboard, 'serial:/dev/ttyUSB1'], got {stops!r}")
    keep_out = fields.mapping("keep_out", may_be_empty=True)
    return Safety(
        command_timeout_s=fields.number("command_timeout_s", 0.02, 10.0),
        contact_load=fields.number("contact_load", 0.01, 1.0),
        contact_time_s=fields.number("contact_time_s", 0.0, 10.0),
        max_temperature_c=fields.number("max_temperature_c", 20.0, 120.0),
        min_voltage_v=fields.number("min_voltage_v", 0.0, 60.0),
        table_z_m=fields.number("table_z_m", -5.0, 5.0),
        workspace=fields.box("workspace"),
        keep_out={name: keep_out.box(name) for name in keep_out.values},
        stop_inputs=tuple(stops),
    )


def _joint_limits(
    fields: _Fields, path: Path, joints: tuple[Joint, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) lower and upper limits in radians, from the MJCF at ``path``; each must lie on the servo's one turn."""
    if not path.is_file():
        raise fields.error("model", f"names {path}, which does not exist")
    try:
        model = mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise fields.error("model", f"names {path}, which MuJoCo cannot read ({reason})") from None
    limits = np.zeros((len(joints), 2))
    for row, joint in enumerate(joints):
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, joint.name)
        if index < 0 or not model.jnt_limited[index]:
            raise fields.error(f"arm.joints.{joint.name}", f"is no joint with limits in {path}")
        limits[row] = model.jnt_range[index]
        counts = joint.zero_count + joint.direction * limits[row] / RAD_PER_COUNT
        if counts.min() < 0 or counts.max() > COUNTS_PER_TURN - 1:
            raise fields.error(
                f"arm.joints.{joint.name}.zero_count",
                f"puts the joint's limits at counts {counts.min():.0f}..{counts.max():.0f}, outside the servo's turn; "
                f"expected within 0..{COUNTS_PER_TURN - 1}",
            )
    return limits[:, 0], limits[:, 1]


def _read_pose(
    fields: _Fields, name: str, lower_rad: NDArray[np.float64], upper_rad: NDArray[np.float64]
) -> NDArray[np.float64]:
    value = fields.values[name]
    numbers = isinstance(value, list) and all(type(item) in (int, float) for item in value)
    if not numbers or len(value) != len(lower_rad):
        raise fields.error(name, f"must be {len(lower_rad)} angles in radians, got {value!r}")
    pose_rad = np.array(value, dtype=np.float64)
    if not ((lower_rad <= pose_rad) & (pose_rad <= upper_rad)).all():
        raise fields.error(name, f"is outside the joint limits of the model: {value!r}")
    return pose_rad
