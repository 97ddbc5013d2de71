"""The calibration file: intrinsics, hand-eye, joint zeros, how good they are, and all they were computed from."""

from __future__ import annotations

import base64
import binascii
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from calib.board import Board
from calib.calibration import MOUNTS, SOURCES, BoardView, Calibration, CameraCalibration, Reference, View
from drivers.errors import UserError
from drivers.protocols import Intrinsics

SCHEMA = 2

UNITS = {"length": "m", "angle": "rad", "image": "px", "leave_one_out": "mm", "expected": "mm"}
FRAMES = {
    "base": "the arm's base, z up; MJCF body base",
    "gripper": "MJCF body gripper, the link of the fixed jaw",
    "camera": "OpenCV optical frame: x right, y down, z forward",
    "board": "outer corner of the top left square, x right, y down, z into the board",
    "T_a_b": "maps b coordinates to a coordinates, row by row",
}

_DEPTH_UNIT_M = 5e-4
_JPEG_QUALITY = 92


def save_calibration(calibration: Calibration | CameraCalibration, path: str | Path) -> None:
    """Write the file at once or not at all. Intrinsics alone make a file, too; the hand-eye part comes later.

    Raises:
        UserError: there is a file already that is of another camera or arm, or no calibration at all; it has a
            hand-eye part and these are only intrinsics; or it cannot be written.
    """
    path = Path(path)
    camera = calibration if isinstance(calibration, CameraCalibration) else calibration.camera
    if path.exists():
        try:
            old_camera, old = _read(path)
        except UserError as error:
            raise UserError(f"not overwriting what is there: {error}") from None
        if old_camera.serial != camera.serial:
            raise UserError(
                f"{path} is of camera '{old_camera.serial}', not overwritten by '{camera.serial}'; choose another path "
                "or delete it"
            )
        if old is not None and isinstance(calibration, CameraCalibration):
            raise UserError(f"{path} has a hand-eye calibration that these intrinsics would undo; choose another path")
        if old is not None and isinstance(calibration, Calibration) and old.arm_name != calibration.arm_name:
            raise UserError(
                f"{path} is of arm '{old.arm_name}', not overwritten by '{calibration.arm_name}'; choose another path "
                "or delete it"
            )
    content: dict[str, Any] = {"schema": SCHEMA, "units": UNITS, "frames": FRAMES, "camera": _camera_to_dict(camera)}
    if isinstance(calibration, Calibration):
        content["hand_eye"] = _hand_eye_to_dict(calibration)
    text = "# vlar1 calibration: a camera and where it is on an arm\n" + yaml.dump(
        content, Dumper=_FastDumper, sort_keys=False, default_flow_style=None, width=10_000
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
    """A camera placed on an arm. Raises UserError, one line: which file, which field, what was expected."""
    calibration = _read(Path(path))[1]
    if calibration is None:
        raise UserError(f"{path}: has intrinsics only; `vlar1 calibrate hand-eye` adds where the camera is")
    return calibration


def load_camera(path: str | Path) -> CameraCalibration:
    """The intrinsics, from a file with or without a hand-eye part. Raises UserError as `load_calibration`."""
    return load_file(path)[0]


def load_file(path: str | Path) -> tuple[CameraCalibration, Calibration | None]:
    """Both parts, the second None where there is none yet. Raises UserError as `load_calibration`."""
    return _read(Path(path))


def rejected_path(out: Path) -> Path:
    """Where a result goes that is not fit for ``out``: beside it, under a name that is free."""
    k, path = 1, out.with_suffix(".rejected.yaml")
    while path.exists():
        k += 1
        path = out.with_suffix(f".rejected-{k}.yaml")
    return path


def _read(path: Path) -> tuple[CameraCalibration, Calibration | None]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_FastLoader)
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
    reader.only("schema", "units", "frames", "camera", "hand_eye")
    if reader.get("units") != UNITS:
        raise reader.error("units", str(UNITS))
    camera = _camera(_Reader(path, reader.get("camera"), "camera"))
    if "hand_eye" not in reader.content:
        return camera, None
    return camera, _hand_eye(_Reader(path, reader.get("hand_eye"), "hand_eye"), camera)


# libyaml's are twenty times quicker, where PyYAML was built with it
_FastDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _figure(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)


def _flat(corners_px: NDArray[np.float64]) -> list[float]:
    return np.round(corners_px, 3).ravel().tolist()  # x y x y ...


def _camera_to_dict(camera: CameraCalibration) -> dict[str, Any]:
    intrinsics = camera.intrinsics
    return _known(
        {
            "serial": camera.serial,
            "date": camera.date,
            "source": camera.source,
            "width": int(intrinsics.width),
            "height": int(intrinsics.height),
            **{name: float(getattr(intrinsics, name)) for name in ("fx", "fy", "cx", "cy")},
            "distortion": [float(d) for d in intrinsics.distortion],
            "reprojection_px": _figure(camera.reprojection_px),
            "holdout_px": _figure(camera.holdout_px),
            "sigma_px": [round(float(s), 6) for s in camera.sigma_px],
            "board": _board_to_dict(camera.board) if camera.board else None,
            "views": [
                {
                    "ids": view.ids.tolist(),
                    "corners_px": _flat(view.corners_px),
                    "reprojection_px": _figure(view.reprojection_px),
                    "used": bool(view.used),
                }
                for view in camera.views
            ],
        }
    )


def _hand_eye_to_dict(calibration: Calibration) -> dict[str, Any]:
    camera_name, board_name = _transform_names(calibration.mount)
    covariances = {"covariance": calibration.covariance, "point_covariance_m2": calibration.point_covariance_m2}
    return _known(
        {
            "date": calibration.date,
            "arm": calibration.arm_name,
            "mount": calibration.mount,
            camera_name: calibration.T_mount_camera.tolist(),
            board_name: calibration.T_other_board.tolist(),
            "joint_zeros_rad": [float(zero) for zero in calibration.joint_zeros_rad],
            "depth_scale": float(calibration.depth_scale),
            "errors": _known(
                {
                    "reprojection_px": _figure(calibration.reprojection_px),
                    "leave_one_out_mm": _figure(calibration.leave_one_out_mm),
                    "expected_mm": _figure(calibration.expected_mm),
                    "expected_reach_mm": _figure(calibration.expected_reach_mm),
                }
            ),
            "diagnosis": list(calibration.diagnosis),
            "outliers": [int(i) for i in calibration.outliers],
            **{name: value.tolist() for name, value in covariances.items() if value is not None},
            "board": _board_to_dict(calibration.board),
            "views": [
                _known(
                    {
                        "joints_rad": np.round(view.joints_rad, 6).tolist(),
                        "reprojection_px": _figure(view.reprojection_px),
                        "leave_one_out_mm": _figure(view.leave_one_out_mm),
                        "ids": view.ids.tolist(),
                        "corners_px": _flat(view.corners_px),
                        "depth_m": None if view.depth_m is None else np.round(view.depth_m, 5).tolist(),
                    }
                )
                for view in calibration.views
            ],
            "reference": _reference_to_dict(calibration.reference) if calibration.reference else None,
        }
    )


def _transform_names(mount: str) -> tuple[str, str]:
    return ("T_base_camera", "T_gripper_board") if mount == "base" else ("T_gripper_camera", "T_base_board")


def _board_to_dict(board: Board) -> dict[str, Any]:
    return {
        "squares_x": board.squares_x,
        "squares_y": board.squares_y,
        "square_m": board.square_m,
        "marker_m": board.marker_m,
        "margin_m": board.margin_m,
        "dictionary": board.dictionary,
    }


def _reference_to_dict(reference: Reference) -> dict[str, Any]:
    bgr = cv2.cvtColor(reference.rgb, cv2.COLOR_RGB2BGR)
    picture = _base64(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    depth = None
    if reference.depth_m is not None:
        depth = _base64(".png", np.clip(np.round(reference.depth_m / _DEPTH_UNIT_M), 0, 65535).astype(np.uint16), [])
    return _known({"joints_rad": np.round(reference.joints_rad, 6).tolist(), "jpeg": picture, "depth_png": depth})


def _base64(suffix: str, image: NDArray[Any], options: list[int]) -> str:
    return base64.b64encode(cv2.imencode(suffix, image, options)[1].tobytes()).decode("ascii")


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
            raise self.error(unknown[0], f"no such field in schema {SCHEMA}")

    def get(self, field: str) -> Any:
        if field not in self.content:
            raise self.error(field, "this field, it is missing")
        return self.content[field]

    def text(self, field: str) -> str:
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, "text")
        return value

    def one_of(self, field: str, choices: tuple[str, ...]) -> str:
        value = self.text(field)
        if value not in choices:
            raise self.error(field, " or ".join(choices))
        return value

    def items(self, field: str) -> list[Any]:
        value = self.get(field)
        if not isinstance(value, list):
            raise self.error(field, "a list")
        return value

    def maybe(self, field: str) -> float | None:
        return self.number(field) if field in self.content else None

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


def _camera(reader: _Reader) -> CameraCalibration:
    reader.only(
        *("serial", "date", "source", "width", "height", "fx", "fy", "cx", "cy", "distortion"),
        *("reprojection_px", "holdout_px", "sigma_px", "board", "views"),
    )
    distortion = reader.numbers("distortion")
    if len(distortion) not in (0, 4, 5, 8, 12, 14):
        raise reader.error("distortion", "no coefficients, or OpenCV's 4, 5, 8, 12 or 14")
    intrinsics = Intrinsics(
        width=reader.integer("width"),
        height=reader.integer("height"),
        fx=reader.number("fx", positive=True),
        fy=reader.number("fy", positive=True),
        cx=reader.number("cx"),
        cy=reader.number("cy"),
        distortion=tuple(distortion.tolist()),
    )
    views = reader.items("views")
    board = _board(_Reader(reader.path, reader.get("board"), "camera.board")) if "board" in reader.content else None
    if views and board is None:
        raise reader.error("board", "this field, there are views")
    read = []
    for i, content in enumerate(views):
        view = _Reader(reader.path, content, f"camera.views[{i}]")
        view.only("ids", "corners_px", "reprojection_px", "used")
        assert board is not None
        used = view.get("used")
        if not isinstance(used, bool):
            raise view.error("used", "true or false")
        read.append(BoardView(*_corners(view, board), view.number("reprojection_px"), used))
    return CameraCalibration(
        date=reader.text("date"),
        serial=reader.text("serial"),
        intrinsics=intrinsics,
        source=reader.one_of("source", SOURCES),
        board=board,
        reprojection_px=reader.maybe("reprojection_px"),
        holdout_px=reader.maybe("holdout_px"),
        sigma_px=tuple(reader.numbers("sigma_px").tolist()),
        views=tuple(read),
    )


def _hand_eye(reader: _Reader, camera: CameraCalibration) -> Calibration:
    mount = reader.one_of("mount", MOUNTS)
    names = _transform_names(mount)
    reader.only(
        *("date", "arm", "mount", *names, "joint_zeros_rad", "depth_scale", "errors", "diagnosis", "outliers"),
        *("covariance", "point_covariance_m2", "board", "views", "reference"),
    )
    errors = _Reader(reader.path, reader.get("errors"), "hand_eye.errors")
    errors.only("reprojection_px", "leave_one_out_mm", "expected_mm", "expected_reach_mm")
    board = _board(_Reader(reader.path, reader.get("board"), "hand_eye.board"))
    views, outliers = reader.items("views"), reader.numbers("outliers")
    if not np.isin(outliers, np.arange(len(views))).all():
        raise reader.error("outliers", f"whole numbers below {len(views)}, the number of views")
    sentences = reader.items("diagnosis")
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise reader.error("diagnosis", "a list of sentences")
    reference = None
    if "reference" in reader.content:
        reference = _reference(_Reader(reader.path, reader.get("reference"), "hand_eye.reference"))
    return Calibration(
        date=reader.text("date"),
        arm_name=reader.text("arm"),
        camera=camera,
        board=board,
        mount=mount,
        T_mount_camera=reader.transform(names[0]),
        T_other_board=reader.transform(names[1]),
        reprojection_px=errors.number("reprojection_px"),
        leave_one_out_mm=errors.number("leave_one_out_mm"),
        views=tuple(_view(_Reader(reader.path, view, f"hand_eye.views[{i}]"), board) for i, view in enumerate(views)),
        joint_zeros_rad=tuple(reader.numbers("joint_zeros_rad").tolist()),
        outliers=tuple(int(i) for i in outliers),
        expected_mm=errors.maybe("expected_mm"),
        expected_reach_mm=errors.maybe("expected_reach_mm"),
        covariance=reader.square("covariance", 6) if "covariance" in reader.content else None,
        point_covariance_m2=reader.square("point_covariance_m2", 3)
        if "point_covariance_m2" in reader.content
        else None,
        depth_scale=reader.number("depth_scale", positive=True),
        diagnosis=tuple(sentences),
        reference=reference,
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


def _corners(reader: _Reader, board: Board) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ids, corners = reader.numbers("ids"), reader.numbers("corners_px")
    known = (board.squares_x - 1) * (board.squares_y - 1)
    if not np.isin(ids, np.arange(known)).all() or len(np.unique(ids)) != len(ids):
        raise reader.error("ids", f"different whole numbers below {known}, the board's inner corners")
    if len(corners) != 2 * len(ids):
        raise reader.error("corners_px", f"x and y of {len(ids)} corners")
    return ids.astype(np.int64), corners.reshape(-1, 2)


def _view(reader: _Reader, board: Board) -> View:
    reader.only("joints_rad", "reprojection_px", "leave_one_out_mm", "ids", "corners_px", "depth_m")
    ids, corners = _corners(reader, board)
    depth_m = reader.numbers("depth_m") if "depth_m" in reader.content else None
    if depth_m is not None and len(depth_m) != len(ids):
        raise reader.error("depth_m", f"a number for each of the {len(ids)} corners")
    return View(
        joints_rad=reader.numbers("joints_rad"),
        ids=ids,
        corners_px=corners,
        reprojection_px=reader.number("reprojection_px"),
        leave_one_out_mm=reader.number("leave_one_out_mm"),
        depth_m=depth_m,
    )


def _reference(reader: _Reader) -> Reference:
    reader.only("joints_rad", "jpeg", "depth_png")
    bgr = _decoded(reader, "jpeg", cv2.IMREAD_COLOR, np.uint8)
    depth_m = None
    if "depth_png" in reader.content:
        depth_m = _decoded(reader, "depth_png", cv2.IMREAD_UNCHANGED, np.uint16).astype(np.float32) * _DEPTH_UNIT_M
        if depth_m.shape != bgr.shape[:2]:
            raise reader.error("depth_png", "an image as large as the jpeg")
    rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    return Reference(reader.numbers("joints_rad"), rgb, depth_m)


def _decoded(reader: _Reader, field: str, flags: int, kind: type) -> NDArray[Any]:
    expected = "an image in base64"
    try:
        packed = np.frombuffer(base64.b64decode(reader.text(field), validate=True), np.uint8)
        image = cv2.imdecode(packed, flags)
    except (binascii.Error, ValueError, cv2.error):
        raise reader.error(field, expected) from None
    if image is None or image.dtype != kind:
        raise reader.error(field, expected)
    return np.asarray(image)
