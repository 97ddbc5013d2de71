"""The robot file (YAML, schema 1): which arm, on which bus, how its counts become angles, where it may rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import yaml
from numpy.typing import NDArray

from drivers.arm.tables import COUNTS_PER_TURN, MAX_ID, RAD_PER_COUNT
from drivers.errors import UserError

SCHEMA = 1
SO101_PATH = Path(__file__).parent / "arm" / "so101.yaml"
"""The robot file that ships with the project."""


@dataclass(frozen=True)
class Joint:
    """One servo: angle_rad = direction * (count - zero_count) * 2 pi / 4096."""

    name: str
    id: int
    zero_count: int
    direction: int


@dataclass(frozen=True)
class ArmSpec:
    """How to reach the arm. ``joints`` are in the order of every joint vector, the gripper last."""

    type: str
    port: str
    baudrate: int
    joints: tuple[Joint, ...]


@dataclass(frozen=True, eq=False)
class Robot:
    """What a robot file says, and the joint limits of the model it names.

    Attributes:
        path: the robot file.
        model: the MJCF file of the arm.
        rest_rad: (n,) folded and supported; torque may be cut there.
        ready_rad: (n,) arm out of the camera's view of the table.
        lower_rad, upper_rad: (n,) joint limits, from the model.
    """

    path: Path
    name: str
    model: Path
    arm: ArmSpec
    rest_rad: NDArray[np.float64]
    ready_rad: NDArray[np.float64]
    lower_rad: NDArray[np.float64]
    upper_rad: NDArray[np.float64]

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.arm.joints)


def load_robot(path: str | Path = SO101_PATH) -> Robot:
    """Read a robot file. Raises UserError naming the file and the field it cannot use."""
    path = Path(path)
    top = _Fields(path, "", _read_yaml(path), ("schema", "name", "model", "arm", "rest_rad", "ready_rad"))
    arm_fields = top.mapping("arm", ("type", "port", "baudrate", "joints"))
    arm = ArmSpec(
        type=arm_fields.one_of("type", ("feetech",)),
        port=arm_fields.text("port"),
        baudrate=arm_fields.integer("baudrate", 1, 10_000_000),
        joints=_read_joints(arm_fields),
    )
    model = path.parent / top.text("model")
    lower_rad, upper_rad = _joint_limits(top, model, arm.joints)
    return Robot(
        path=path,
        name=top.text("name"),
        model=model,
        arm=arm,
        rest_rad=_read_pose(top, "rest_rad", lower_rad, upper_rad),
        ready_rad=_read_pose(top, "ready_rad", lower_rad, upper_rad),
        lower_rad=lower_rad,
        upper_rad=upper_rad,
    )


@dataclass(frozen=True)
class _Fields:
    """A mapping of the file, with errors that say where in the file it is."""

    path: Path
    where: str
    values: dict[str, Any]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.values:
            if name not in self.names:
                raise self.error(name, f"is unknown; expected only {', '.join(self.names)}")
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

    def mapping(self, name: str, names: tuple[str, ...] | None = None) -> _Fields:
        value = self.values[name]
        if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
            raise self.error(name, f"must be a mapping, got {value!r}")
        return _Fields(self.path, f"{self.where}{name}.", value, tuple(value) if names is None else names)


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
