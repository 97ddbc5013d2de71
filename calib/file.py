"""The calibration file: where the camera stands, how well that is known, and everything it was computed from."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from calib.board import Board
from drivers.errors import UserError
from drivers.protocols import Intrinsics

SCHEMA = 1

UNITS = {"length": "m", "angle": "rad", "image": "px", "leave_one_out": "mm"}
FRAMES = {
    "base": "the arm's base, z up; MJCF body base",
    "gripper": "MJCF body gripper, the link of the fixed jaw",
    "camera": "OpenCV optical frame: x right, y down, z forward",
    "board": "outer corner of the top left square, x right, y down, z into the board",
    "T_a_b": "maps b coordinates to a coordinates, row by row",
}

_INTRINSICS_PX = 1.0  # intrinsics further apart are not the same camera setting
_DISTORTION = 1e-3


@dataclass(frozen=True, eq=False)
class View:
    """What one arm pose gave.

    Attributes:
        joints_rad: (n,) measured, in the arm's order, gripper last.
        ids, corners_px: (m,) corners seen and (m, 2) where; pixel centres at integers.
        reprojection_px: rms distance of the seen corners from the predicted ones.
        leave_one_out_mm: rms error at the board when solved without this view.
    """

    joints_rad: NDArray[np.float64]
    ids: NDArray[np.int64]
    corners_px: NDArray[np.float64]
    reprojection_px: float
    leave_one_out_mm: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """A camera placed in an arm's base frame.

    Attributes:
        date: when, ISO 8601.
        arm_name, camera_serial, intrinsics: what it holds for.
        board: that was used.
        T_base_camera: (4, 4) camera coordinates to base coordinates, metres.
        T_gripper_board: (4, 4) where the gripper held the board.
        reprojection_px: rms over all corners.
        leave_one_out_mm: rms over the views of the error at the board when solved without the view in question.
        views: raw observations; ``calib.routine.solve_again`` computes the rest from them.
        joint_zeros_rad: true joint = measured + zero, in the arm's order, or empty where the zeros were taken as good.
            T_base_camera holds for an arm that is corrected by them.
        outliers: views (from 0) that contradict the others and do not count.
        expected_mm: expected rms distance of the tip from a point the camera saw, from the calibration alone.
        expected_reach_mm: the same for an arm with encoders as noisy as assumed.
        covariance: (6, 6) of the twist (rotation rad, translation m; camera frame) from T_base_camera to the truth,
            T_base_camera @ exp(twist).
        point_covariance_m2: (3, 3) of where the tip ends up in the middle of the workspace, base frame.

        The last six are missing from files of before they were computed: empty or None.
    """

    date: str
    arm_name: str
    camera_serial: str
    intrinsics: Intrinsics
    board: Board
    T_base_camera: NDArray[np.float64]
    T_gripper_board: NDArray[np.float64]
    reprojection_px: float
    leave_one_out_mm: float
    views: tuple[View, ...]
    joint_zeros_rad: tuple[float, ...] = ()
    outliers: tuple[int, ...] = ()
    expected_mm: float | None = None
    expected_reach_mm: float | None = None
    covariance: NDArray[np.float64] | None = None
    point_covariance_m2: NDArray[np.float64] | None = None

    def check(self, intrinsics: Intrinsics, serial: str, arm_name: str) -> None:
        """Raise UserError unless this calibration is of this camera, at this image size, and of this arm."""
        intrinsics.require_measured()
        mine = self.intrinsics
        again = "; calibrate this pair, or name its calibration file"
        if serial != self.camera_serial:
            raise UserError(f"calibration is of camera '{self.camera_serial}', this one is '{serial}'{again}")
        if arm_name != self.arm_name:
            raise UserError(f"calibration is of arm '{self.arm_name}', this one is '{arm_name}'{again}")
        if (intrinsics.width, intrinsics.height) != (mine.width, mine.height):
            raise UserError(
                f"calibration is for images of {mine.width}x{mine.height}, camera '{serial}' gives "
                f"{intrinsics.width}x{intrinsics.height}; set the camera to that size or calibrate again"
            )
        for name in ("fx", "fy", "cx", "cy"):
            now_px, then_px = float(getattr(intrinsics, name)), float(getattr(mine, name))
            if not abs(now_px - then_px) <= _INTRINSICS_PX:
                raise UserError(
                    f"calibration was made with {name} = {then_px:.1f} px, camera '{serial}' now has {now_px:.1f}; "
                    "calibrate again"
                )
        size = max(len(mine.distortion), len(intrinsics.distortion))
        then, now = (np.array([*d, *[0.0] * (size - len(d))]) for d in (mine.distortion, intrinsics.distortion))
        if not np.allclose(now, then, rtol=0.0, atol=_DISTORTION):
            raise UserError(f"calibration was made with another lens distortion of camera '{serial}'; calibrate again")


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write the file at once or not at all.

    Raises:
        UserError: there is a file already that is no calibration of the same camera and arm; or it cannot be written.
    """
    path = Path(path)
    if path.exists():
        try:
            old = load_calibration(path)
        except UserError as error:
            raise UserError(f"not overwriting what is there: {error}") from None
        if (old.camera_serial, old.arm_name) != (calibration.camera_serial, calibration.arm_name):
            raise UserError(
                f"{path} holds the calibration of camera '{old.camera_serial}' with arm '{old.arm_name}', not "
                f"overwritten by '{calibration.camera_serial}' with '{calibration.arm_name}'; "
                "choose another path or delete it"
            )
    text = "# vlar1 hand-eye calibration: a fixed camera and an arm\n" + yaml.safe_dump(
        _to_dict(calibration), sort_keys=False, default_flow_style=None, width=10_000
    )
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"{path}: cannot write the calibration ({error.strerror}); choose a writable folder") from None


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration file. Raises UserError, one line: which file, which field, what was expected."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such calibration file; calibrate the camera first, or correct the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the calibration ({error.strerror})") from None
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{path}: not a YAML file, or damaged; calibrate again or take it from a backup") from None
    reader = _Reader(path, content, "")
    schema = reader.get("schema")
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, this version reads schema {SCHEMA}; calibrate again")
    return _from_reader(reader)


def _to_dict(calibration: Calibration) -> dict[str, Any]:
    intrinsics, board = calibration.intrinsics, calibration.board
    expected = {"expected_mm": calibration.expected_mm, "expected_reach_mm": calibration.expected_reach_mm}
    covariances = {"covariance": calibration.covariance, "point_covariance_m2": calibration.point_covariance_m2}
    return {
        "schema": SCHEMA,
        "units": UNITS,
        "frames": FRAMES,
        "date": calibration.date,
        "arm": calibration.arm_name,
        "camera": {
            "serial": calibration.camera_serial,
            "width": int(intrinsics.width),
            "height": int(intrinsics.height),
            **{name: float(getattr(intrinsics, name)) for name in ("fx", "fy", "cx", "cy")},
            "distortion": [float(d) for d in intrinsics.distortion],
        },
        "T_base_camera": calibration.T_base_camera.tolist(),
        "T_gripper_board": calibration.T_gripper_board.tolist(),
        "errors": {
            "reprojection_px": round(float(calibration.reprojection_px), 6),
            "leave_one_out_mm": round(float(calibration.leave_one_out_mm), 6),
            **{name: round(float(value), 6) for name, value in expected.items() if value is not None},
        },
        "joint_zeros_rad": [float(zero) for zero in calibration.joint_zeros_rad],
        "outliers": [int(i) for i in calibration.outliers],
        **{name: value.tolist() for name, value in covariances.items() if value is not None},
        "board": {
            "squares_x": board.squares_x,
            "squares_y": board.squares_y,
            "square_m": board.square_m,
            "marker_m": board.marker_m,
            "margin_m": board.margin_m,
            "dictionary": board.dictionary,
        },
        "views": [
            {
                "joints_rad": np.round(view.joints_rad, 6).tolist(),
                "reprojection_px": round(float(view.reprojection_px), 6),
                "leave_one_out_mm": round(float(view.leave_one_out_mm), 6),
                "ids": view.ids.tolist(),
                "corners_px": np.round(view.corners_px, 3).ravel().tolist(),  # x y x y ...
            }
            for view in calibration.views
        ],
    }


class _Reader:
    """One mapping of the file; every complaint names the file and the field."""

    def __init__(self, path: Path, content: Any, where: str) -> None:
        self.path, self.where = path, where
        if not isinstance(content, dict):
            raise self.error("" if where else "the file", "a mapping of fields")
        self.content = content

    def error(self, field: str, expected: str) -> UserError:
        name = ".".join(part for part in (self.where, field) if part)
        return UserError(f"{self.path}: {name}: expected {expected}; calibrate again or correct the file")

    def only(self, *fields: str) -> None:
        unknown = [str(field) for field in self.content if field not in fields]
        if unknown:
            raise self.error(unknown[0], "no such field in schema 1")

    def get(self, field: str) -> Any:
        if field not in self.content:
            raise self.error(field, "this field, it is missing")
        return self.content[field]

    def text(self, field: str) -> str:
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, "text")
        return value

    def number(self, field: str, *, positive: bool = False) -> float:
        value = self.get(field)
        if not _is_number(value) or (positive and value <= 0):
            raise self.error(field, "a positive number" if positive else "a number")
        return float(value)

    def integer(self, field: str) -> int:
        value = self.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.error(field, "a positive whole number")
        return value

    def numbers(self, field: str) -> NDArray[np.float64]:
        value = self.get(field)
        if not isinstance(value, list) or not all(_is_number(v) for v in value):
            raise self.error(field, "a list of numbers")
        return np.array(value, dtype=float)

    def square(self, field: str, side: int) -> NDArray[np.float64]:
        rows = self.get(field)
        shaped = isinstance(rows, list) and len(rows) == side
        if not shaped or not all(isinstance(row, list) and len(row) == side for row in rows):
            raise self.error(field, f"{side} rows of {side} numbers")
        if not all(_is_number(v) for row in rows for v in row):
            raise self.error(field, f"{side} rows of {side} numbers")
        return np.array(rows, dtype=float)

    def transform(self, field: str) -> NDArray[np.float64]:
        T = self.square(field, 4)
        R = T[:3, :3]
        rotates = np.allclose(R @ R.T, np.eye(3), atol=1e-5) and np.linalg.det(R) > 0
        if not rotates or not np.allclose(T[3], [0, 0, 0, 1], atol=1e-9):
            raise self.error(field, "a rotation, a translation in metres, and the last row 0 0 0 1")
        return T


def _is_number(value: Any) -> bool:
    # the bound keeps a damaged integer of a thousand digits from overflowing a float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12 and math.isfinite(value)


def _from_reader(reader: _Reader) -> Calibration:
    reader.only(
        *("schema", "units", "frames", "date", "arm", "camera", "T_base_camera", "T_gripper_board"),
        *("errors", "board", "views", "joint_zeros_rad", "outliers", "covariance", "point_covariance_m2"),
    )
    if reader.get("units") != UNITS:
        raise reader.error("units", str(UNITS))
    camera = _Reader(reader.path, reader.get("camera"), "camera")
    camera.only("serial", "width", "height", "fx", "fy", "cx", "cy", "distortion")
    distortion = camera.numbers("distortion")
    if len(distortion) not in (0, 4, 5, 8, 12, 14):
        raise camera.error("distortion", "no coefficients, or OpenCV's 4, 5, 8, 12 or 14")
    intrinsics = Intrinsics(
        width=camera.integer("width"),
        height=camera.integer("height"),
        fx=camera.number("fx", positive=True),
        fy=camera.number("fy", positive=True),
        cx=camera.number("cx"),
        cy=camera.number("cy"),
        distortion=tuple(distortion.tolist()),
    )
    errors = _Reader(reader.path, reader.get("errors"), "errors")
    errors.only("reprojection_px", "leave_one_out_mm", "expected_mm", "expected_reach_mm")
    board = _board(_Reader(reader.path, reader.get("board"), "board"))
    views = reader.get("views")
    if not isinstance(views, list):
        raise reader.error("views", "a list")
    zeros = reader.numbers("joint_zeros_rad") if "joint_zeros_rad" in reader.content else np.zeros(0)
    outliers = reader.numbers("outliers") if "outliers" in reader.content else np.zeros(0)
    if not np.isin(outliers, np.arange(len(views))).all():
        raise reader.error("outliers", f"whole numbers below {len(views)}, the number of views")
    return Calibration(
        date=reader.text("date"),
        arm_name=reader.text("arm"),
        camera_serial=camera.text("serial"),
        intrinsics=intrinsics,
        board=board,
        T_base_camera=reader.transform("T_base_camera"),
        T_gripper_board=reader.transform("T_gripper_board"),
        reprojection_px=errors.number("reprojection_px"),
        leave_one_out_mm=errors.number("leave_one_out_mm"),
        views=tuple(_view(_Reader(reader.path, view, f"views[{i}]"), board) for i, view in enumerate(views)),
        joint_zeros_rad=tuple(zeros.tolist()),
        outliers=tuple(int(i) for i in outliers),
        expected_mm=errors.number("expected_mm") if "expected_mm" in errors.content else None,
        expected_reach_mm=errors.number("expected_reach_mm") if "expected_reach_mm" in errors.content else None,
        covariance=reader.square("covariance", 6) if "covariance" in reader.content else None,
        point_covariance_m2=reader.square("point_covariance_m2", 3)
        if "point_covariance_m2" in reader.content
        else None,
    )


def _board(reader: _Reader) -> Board:
    reader.only("squares_x", "squares_y", "square_m", "marker_m", "margin_m", "dictionary")
    try:
        return Board(
            squares_x=reader.integer("squares_x"),
            squares_y=reader.integer("squares_y"),
            square_m=reader.number("square_m", positive=True),
            marker_m=reader.number("marker_m", positive=True),
            margin_m=reader.number("margin_m"),
            dictionary=reader.text("dictionary"),
        )
    except UserError as error:
        if str(error).startswith(str(reader.path)):
            raise
        raise UserError(f"{reader.path}: {error}") from None


def _view(reader: _Reader, board: Board) -> View:
    reader.only("joints_rad", "reprojection_px", "leave_one_out_mm", "ids", "corners_px")
    ids, corners = reader.numbers("ids"), reader.numbers("corners_px")
    known = (board.squares_x - 1) * (board.squares_y - 1)
    if not np.isin(ids, np.arange(known)).all() or len(np.unique(ids)) != len(ids):
        raise reader.error("ids", f"different whole numbers below {known}, the board's inner corners")
    if len(corners) != 2 * len(ids):
        raise reader.error("corners_px", f"x and y of {len(ids)} corners")
    return View(
        joints_rad=reader.numbers("joints_rad"),
        ids=ids.astype(np.int64),
        corners_px=corners.reshape(-1, 2),
        reprojection_px=reader.number("reprojection_px"),
        leave_one_out_mm=reader.number("leave_one_out_mm"),
    )
