"""A robot file of one arm: another's, with this arm's calibration, its port and the model beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mujoco
import yaml

from drivers.arm.lerobot import robot_with_lerobot
from drivers.errors import UserError
from drivers.robot import Robot, load_robot
from edge import arm_scan

_Keys = tuple[str, ...]  # down to a field of the file: ("arm", "port")


def check_robot_out(out: Path, robot: Robot, force: bool) -> None:
    """Raises UserError when `write_robot_file` could not write there, or may not replace what is there."""
    if not out.parent.is_dir():
        raise UserError(f"--robot-out {out}: there is no folder {out.parent}; create it first")
    if out.is_dir() or out.exists() and not force:
        raise UserError(f"--robot-out {out}: exists already; name a new file, or add --force to replace it")
    for source, there in _model_files(out, robot).items():
        if there.exists() and there.read_bytes() != source.read_bytes():
            raise UserError(
                f"--robot-out {out}: {there} is another model than {source}, which robot file {robot.path} names; name "
                f"another folder"
            )


def write_robot_file(out: Path, robot: Robot, calibration: Path, port: str) -> None:
    """Write ``robot``'s file with a LeRobot calibration and a port, whole or not at all; its model goes beside it.

    Comments stay. The USB serial number of the port's adapter is added where it has one. A rest or ready pose just
    beyond a recorded range is moved to its end, as `robot_with_lerobot` does. Raises UserError when robot and
    calibration do not fit.
    """
    fields = _fields(robot_with_lerobot(robot, calibration), port)
    model_files = _model_files(out, robot)
    if model_files:
        fields["model",] = robot.model.name
    for source, there in model_files.items():
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, _unfinished(there)).replace(there)
    whole = _unfinished(out)
    whole.write_text(_with_fields(robot.path.read_text(encoding="utf-8"), fields), encoding="utf-8")
    try:
        load_robot(whole)
    except UserError as error:
        whole.unlink()
        raise UserError(f"{str(error).replace(str(whole), str(out))}; calibrate again") from None
    whole.replace(out)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _model_files(out: Path, robot: Robot) -> dict[Path, Path]:
    """Each file of the model, and where ``out`` finds it; empty where that finds it as ``robot``'s file does."""
    if out.parent.resolve() == robot.path.parent.resolve():
        return {}
    folder = Path(os.path.abspath(robot.model.parent))
    needed = [Path(os.path.abspath(name)) for name in mujoco.mju_getXMLDependencies(str(robot.model))]
    outside = [file for file in needed if not file.is_relative_to(folder)]
    if outside:
        raise UserError(
            f"--robot-out {out}: the model of robot file {robot.path} needs {outside[0]}, which is not in the model's "
            f"folder; name a file in {robot.path.parent}"
        )
    return {file: out.parent / file.relative_to(folder) for file in needed}


def _fields(calibrated: Robot, port: str) -> dict[_Keys, Any]:
    """What one arm has of its own; None for what is not known of it."""
    fields: dict[_Keys, Any] = {("arm", "port"): port}
    usb_serial = dict(arm_scan.adapters()).get(os.path.realpath(port), "")
    if usb_serial or port != calibrated.arm.port:
        fields["arm", "usb_serial"] = usb_serial or None
    for joint in calibrated.arm.joints:
        for name in ("id", "zero_count", "direction"):
            fields["arm", "joints", joint.name, name] = getattr(joint, name)
    fields["rest_rad",], fields["ready_rad",] = calibrated.rest_rad.tolist(), calibrated.ready_rad.tolist()
    return fields


def _with_fields(text: str, fields: Mapping[_Keys, Any]) -> str:
    """YAML with fields changed, added or, for None, taken out; its comments stay where it can be edited in place."""
    wanted, changed = yaml.safe_load(text), {}
    for keys, value in fields.items():
        mapping = wanted
        for key in keys[:-1]:
            mapping = mapping[key]
        if mapping.get(keys[-1]) != value:
            changed[keys] = value
            mapping[keys[-1]] = value
            if value is None:
                del mapping[keys[-1]]
    try:
        edited = _edited(text, changed)
        if yaml.safe_load(edited) == wanted:
            return edited
    except (yaml.YAMLError, LookupError):
        pass  # anchors, or a field that is taken out
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _edited(text: str, fields: Mapping[_Keys, Any]) -> str:
    """The text with fields written over where they stand, or before the last of their mapping."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    edits: list[tuple[int, int, str]] = []
    for keys, value in fields.items():
        mapping, written = root, json.dumps(value, ensure_ascii=False)  # JSON is YAML, in a block and in braces
        for key in keys[:-1]:
            mapping = _children(mapping)[key]
        children = _children(mapping)
        if keys[-1] in children:
            node = children[keys[-1]]
            edits.append((node.start_mark.index, node.end_mark.index, written))
        else:
            last = mapping.value[-1][0].start_mark
            between = ", " if mapping.flow_style else f"\n{' ' * last.column}"
            edits.append((last.index, last.index, f"{keys[-1]}: {written}{between}"))
    for start, end, written in sorted(edits, reverse=True):
        text = text[:start] + written + text[end:]
    return text


def _children(mapping: Any) -> dict[str, Any]:
    return {name.value: child for name, child in mapping.value}
