"""A camera with its calibration applied: every frame has measured intrinsics and corrected depth."""

from __future__ import annotations

from dataclasses import replace

from calib.calibration import CameraCalibration
from drivers.errors import UserError
from drivers.protocols import Camera, Frame, Intrinsics


class CalibratedCamera:
    """The Camera protocol around another camera.

    Frames of a size of the same aspect get the intrinsics scaled.

    Args:
        depth_scale: true depth = the camera's depth times this.

    Raises:
        UserError: it is another camera, its images are of another aspect, or it knows its intrinsics and they are
            others than the calibration's.
    """

    def __init__(self, camera: Camera, calibration: CameraCalibration, depth_scale: float = 1.0) -> None:
        self._camera, self._calibration, self._depth_scale = camera, calibration, depth_scale
        if camera.serial != calibration.serial:
            raise UserError(
                f"calibration is of camera '{calibration.serial}', this one is '{camera.serial}'; calibrate this "
                "camera, or name its calibration file"
            )
        if not camera.intrinsics.nominal and calibration.source == "factory":
            calibration.check(camera.intrinsics, camera.serial)
        self._intrinsics = calibration.intrinsics_at(camera.intrinsics.width, camera.intrinsics.height)

    @property
    def serial(self) -> str:
        return self._camera.serial

    @property
    def intrinsics(self) -> Intrinsics:
        return self._intrinsics

    def read(self) -> Frame:
        frame = self._camera.read()
        height, width = frame.rgb.shape[:2]
        if (width, height) != (self._intrinsics.width, self._intrinsics.height):
            self._intrinsics = self._calibration.intrinsics_at(width, height)
        depth_m = frame.depth_m
        if depth_m is not None and self._depth_scale != 1.0:
            depth_m = (depth_m * self._depth_scale).astype(depth_m.dtype)
        return replace(frame, intrinsics=self._intrinsics, depth_m=depth_m)

    def close(self) -> None:
        self._camera.close()
