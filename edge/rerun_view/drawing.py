"""Draws a run into a Rerun stream: each message becomes entities at its own time.

The viewer's image has its origin at the corner of the first pixel, OpenCV's at its centre: hence the half pixels. It
knows no lens distortion: what is drawn in 3D lies beside its image by what the lens bends.
"""

from __future__ import annotations

import re
from typing import Any

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Intrinsics
from drivers.robot import Box
from edge.contract import THINK_CLOSE, THINK_OPEN
from edge.rerun_view.arm import DrawnArm
from edge.rerun_view.layout import (
    BASE,
    LATENCY,
    LOAD,
    LOG,
    PLAN,
    POSITION,
    REASONING,
    SETPOINT,
    STATE,
    TEMPERATURE,
    TIMELINE,
    VOLTAGE,
    camera_path,
)
from edge.rerun_view.messages import Array, Batch, Begin, Picture, Servos

JPEG_QUALITY = 85
_TAGS = re.compile(f"{THINK_OPEN}|{THINK_CLOSE}|<[a-z/]*$")  # the last: one that is being written
_FRUSTUM_M = 0.1
_BOX, _START, _END, _SPACE, _KEEP_OUT = (255, 176, 32), (64, 224, 255), (255, 72, 160), (120, 120, 120), (255, 80, 60)
_CURVES = np.array(
    [(86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (160, 160, 160)]
)
"""One a joint: the colours of Okabe and Ito, which eyes of all kinds tell apart."""
_GRASP_RADIUS_M, _WAY_RADIUS_M = 0.004, 0.002
_BALL = 2.796
"""So many standard deviations hold an error in space in 95 of 100 cases: the root of chi-square's 95 % of three degrees
of freedom."""


class Drawing:
    """What is drawn so far. Methods that take no time of their own draw at that of the last one told."""

    def __init__(self, stream: Any, begin: Begin) -> None:
        import rerun as rr

        self._rr, self._stream = rr, stream
        self._begin = begin
        self._camera = camera_path(begin.mount)
        self._image = f"{self._camera}/image"
        self._intrinsics: Intrinsics | None = None
        self._size_px = np.ones(2)
        self._text, self._written = "", ""
        self._path: list[tuple[float, float]] = []
        self._state = ""
        self._named: set[str] = set()
        self._draw_world()
        self._arm = DrawnArm(stream, begin.robot)

    def draw(self, batch: Batch) -> None:
        """All of a batch."""
        for picture in batch.pictures:
            self._draw_picture(picture)
        for told in batch.told:
            self._at(told.t_s)
            getattr(self, told.what)(*told.args)
        if self._text != self._written:
            self._written = self._text
            self._stream.log(REASONING, self._rr.TextDocument(_TAGS.sub("", self._text)))
        if batch.servos is not None:
            self._draw_servos(batch.servos)
        for name, passes in batch.passes.items():
            ended_s, took_s = np.array(passes).T
            self._name_points(f"{LATENCY}/{name}", name)
            self._plot(f"{LATENCY}/{name}", ended_s, 1e3 * took_s[:, None])

    # What is told

    def ordered(self, instruction: str) -> None:
        """An order begins: whatever an earlier one left goes."""
        self._text = instruction
        for path in (f"{self._image}/box", f"{self._image}/path", PLAN):
            self._stream.log(path, self._rr.Clear(recursive=True))
        self.said(instruction, "order")

    def said(self, text: str, level: str = "INFO") -> None:
        """A line of the log."""
        self._stream.log(LOG, self._rr.TextLog(text, level=level))

    def asked(self, task: str) -> None:
        """A decision begins."""
        self._text += f"\n\n{task}: "
        self._path = []
        name = "box" if task == "affordance" else "path"
        self._stream.log(f"{self._image}/{name}", self._rr.Clear(recursive=True))

    def text(self, piece: str) -> None:
        """A piece of the answer."""
        self._text += piece

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        """The box, as fractions of the image."""
        corners = np.array([left, top, right, bottom]) * np.tile(self._size_px, 2)
        self._stream.log(
            f"{self._image}/box", self._rr.Boxes2D(mins=corners[:2], sizes=corners[2:] - corners[:2], colors=_BOX)
        )

    def point(self, x: float, y: float) -> None:
        """The next point of the path, as fractions of the image."""
        self._path.append((x, y))
        points = np.array(self._path) * self._size_px
        share = np.linspace(0.0, 1.0, len(points))[:, None]
        colours = ((1 - share) * _START + share * np.array(_END)).astype(np.uint8)
        self._stream.log(f"{self._image}/path", self._rr.Points2D(points, colors=colours, radii=4.0))
        self._stream.log(f"{self._image}/path/line", self._rr.LineStrips2D([points], colors=_START))

    def planned(
        self, position_m: Array, jaw_axis: Array, opening_m: float, covariance_m2: Array, waypoints_m: Array | None
    ) -> None:
        """The grasp with its 95 % ellipsoid, the jaws that close on it along two arrows, and the way from there."""
        rr, half_m = self._rr, 0.5 * opening_m * jaw_axis
        self._stream.log(f"{PLAN}/grasp", rr.Points3D([position_m], colors=_BOX, radii=_GRASP_RADIUS_M))
        self._stream.log(
            f"{PLAN}/jaws",
            rr.Arrows3D(origins=[position_m - half_m, position_m + half_m], vectors=[half_m, -half_m], colors=_BOX),
        )
        variance_m2, axes = np.linalg.eigh(covariance_m2)
        half_sizes_m = _BALL * np.sqrt(np.maximum(variance_m2, 0.0))
        axes = axes * np.sign(np.linalg.det(axes))  # a rotation, not a reflection
        self._stream.log(
            f"{PLAN}/error",
            rr.Ellipsoids3D(half_sizes=[half_sizes_m], centers=[position_m], colors=_END, quaternions=[_xyzw(axes)]),
        )
        if waypoints_m is not None:
            self._stream.log(f"{PLAN}/way", rr.LineStrips3D([waypoints_m], colors=_START, radii=_WAY_RADIUS_M))

    # What is measured

    def _draw_picture(self, picture: Picture) -> None:
        rr = self._rr
        self._at(picture.t_s)
        if picture.intrinsics != self._intrinsics:
            self._intrinsics = picture.intrinsics
            self._size_px = np.array([picture.intrinsics.width, picture.intrinsics.height], dtype=float)
            self._stream.log(self._image, self._pinhole(picture.intrinsics, 1))
        bgr = cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        self._stream.log(self._image, rr.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg"))
        if picture.depth_mm is not None:
            depth = f"{self._camera}/depth"
            self._stream.log(depth, self._pinhole(picture.intrinsics, picture.step))
            self._stream.log(depth, rr.DepthImage(picture.depth_mm, meter=1000.0))

    def _draw_servos(self, servos: Servos) -> None:
        names = list(self._begin.robot.joint_names)
        if servos.cycles is not None:
            cycles_s, setpoints_rad, positions_rad = servos.cycles
            self._name(SETPOINT, [f"{name} told" for name in names], dim=0.5)
            self._name(POSITION, names)
            self._plot(SETPOINT, cycles_s, setpoints_rad)
            self._plot(POSITION, cycles_s, positions_rad)
        self._at(servos.t_s)
        for path, values in (
            (TEMPERATURE, servos.temperature_c),
            (LOAD, servos.load),
            (VOLTAGE, servos.voltage_v),
        ):
            self._name(path, names)
            self._stream.log(path, self._rr.Scalars(values))
        self._arm.pose(servos.position_rad)
        if servos.state != self._state:
            self._state = servos.state
            self._stream.log(STATE, self._rr.TextDocument(servos.state))
            self.said(f"arm {servos.state}", "arm")

    # Inside

    def _draw_world(self) -> None:
        rr, begin, safety = self._rr, self._begin, self._begin.robot.safety
        self._stream.log(BASE, rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        for path, box, colour in (
            (f"{BASE}/workspace", safety.workspace, _SPACE),
            *((f"{BASE}/keep_out/{name}", box, _KEEP_OUT) for name, box in safety.keep_out.items()),
        ):
            self._stream.log(path, _box(rr, box, colour), static=True)
        T = begin.T_mount_camera
        self._stream.log(self._camera, rr.Transform3D(translation=T[:3, 3], mat3x3=T[:3, :3]), static=True)

    def _pinhole(self, intrinsics: Intrinsics, step: int) -> Any:
        """Of an image of which every ``step``-th pixel is there, from the first on."""
        f, c = np.array([intrinsics.fx, intrinsics.fy]), np.array([intrinsics.cx, intrinsics.cy])
        size_px = [-(-intrinsics.width // step), -(-intrinsics.height // step)]
        return self._rr.Pinhole(
            focal_length=f / step,
            principal_point=c / step + 0.5,
            resolution=size_px,
            image_plane_distance=_FRUSTUM_M,
        )

    def _plot(self, path: str, t_s: Array, rows: NDArray[Any]) -> None:
        """Rows (m, n) of n curves."""
        rr = self._rr
        if len(rows) == 0:
            return
        values = rr.Scalars.columns(scalars=np.ravel(rows).astype(float)).partition([rows.shape[1]] * len(rows))
        self._stream.send_columns(path, indexes=[rr.TimeColumn(TIMELINE, duration=t_s)], columns=values)

    def _name(self, path: str, names: list[str], dim: float = 1.0) -> None:
        """Curves, one a joint, the same joint in the same colour everywhere."""
        if path not in self._named:
            self._named.add(path)
            colours = (dim * _CURVES[np.arange(len(names)) % len(_CURVES)]).astype(np.uint8)
            self._stream.log(path, self._rr.SeriesLines(names=names, colors=colours), static=True)

    def _name_points(self, path: str, name: str) -> None:
        if path not in self._named:
            self._named.add(path)
            self._stream.log(path, self._rr.SeriesPoints(names=name), static=True)

    def _at(self, t_s: float) -> None:
        self._stream.set_time(TIMELINE, duration=t_s)


def _box(rr: Any, box: Box, colour: tuple[int, int, int]) -> Any:
    lower, upper = np.array(box.lower_m), np.array(box.upper_m)
    return rr.Boxes3D(centers=[(lower + upper) / 2], half_sizes=[(upper - lower) / 2], colors=colour)


def _xyzw(R: Array) -> Array:
    wxyz = np.empty(4)
    mujoco.mju_mat2Quat(wxyz, np.ravel(R))
    return np.roll(wxyz, -1)
