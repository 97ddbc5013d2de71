"""A colour camera, or a recording, through OpenCV."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import v4l2
from drivers.camera.newest import Newest, Shot, plausible
from drivers.errors import DeviceError
from drivers.protocols import Frame, Intrinsics

MAX_MISSES = 3
"""Reads in a row that give nothing before a device counts as gone: a first frame may come damaged."""

Control = int | Literal["auto"]

# name -> its property, the property that makes it automatic, and what that is by hand and automatically (V4L2's words)
_CONTROLS = {
    "exposure": (cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_AUTO_EXPOSURE, 1, 3),
    "focus": (cv2.CAP_PROP_FOCUS, cv2.CAP_PROP_AUTOFOCUS, 0, 1),
    "white_balance": (cv2.CAP_PROP_WB_TEMPERATURE, cv2.CAP_PROP_AUTO_WB, 0, 1),
}


@dataclass(frozen=True)
class Settings:
    """What a device is told. None leaves a setting as it is; what the device does not take is an error.

    Attributes:
        fourcc: four-letter code of the image format. MJPG is tried where none is named: raw images of a webcam's full
            size take more than USB 2 carries.
        width, height: image size in px; the intrinsics' where there are some.
        fps: frames a second.
        exposure: in the device's steps, 100 us each with V4L2; or "auto".
        focus: in the device's steps; or "auto".
        white_balance: in kelvin; or "auto".
    """

    fourcc: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    exposure: Control | None = None
    focus: Control | None = None
    white_balance: Control | None = None


class OpenCVCamera:
    """The Camera protocol over ``cv2.VideoCapture``: a device by index or ``/dev/...`` path, or a file.

    A device is emptied by a thread that keeps only the newest frame, so no frame waits in the driver's queue and grows
    old. It may be unplugged: ``read`` says so, and works again once it is back, at another index too. A file (a video,
    an image, or a numbered series such as ``frame_%03d.png``) gives its frames in order, one a call, stamped with the
    time of the call.

    Args:
        source: index, device path or file.
        intrinsics: of the camera; its size is asked of the device, and every frame must have it. None: nominal ones.
        settings: of a device.
        serial: names the camera; ``opencv:SOURCE`` if left out.
        timeout_s: how long ``read`` waits for a frame of a device.
        sysfs: where the kernel lists its video devices.

    Raises:
        DeviceError: the source cannot be opened, refuses a setting, or gives frames of another size.
    """

    def __init__(
        self,
        source: int | str | Path,
        intrinsics: Intrinsics | None = None,
        settings: Settings | None = None,
        *,
        serial: str = "",
        timeout_s: float = 2.0,
        sysfs: Path = v4l2.SYSFS,
    ) -> None:
        self._source = source if isinstance(source, int) else str(source)
        self._serial = serial or f"opencv:{self._source}"
        self._timeout_s = timeout_s
        self._newest: Newest | None = None
        if isinstance(source, int) or str(source).startswith("/dev/"):
            settings = _sized(settings or Settings(), intrinsics)
            known = v4l2.video_device(self._source, sysfs)
            identity = known.identity if known else None
            device = _Device(self._source, settings)
            self._size_px, self.settings = device.size_px, device.settings

            def find() -> _Device:
                """It again, wherever it is by now: the index may have gone to another camera."""
                if identity is None:
                    return _Device(self._source, settings)
                for candidate in v4l2.video_devices(sysfs):
                    if candidate.identity == identity:
                        return _Device(candidate.path, settings)
                raise self._error("is not there")

            self._newest = Newest(device, find, str(self._source))
        else:
            self._file = cv2.VideoCapture(self._source)
            if not self._file.isOpened():
                self._file.release()
                raise self._error("cannot be opened; name an existing video, or numbered pictures that begin at 0 to 4")
            self._size_px, self.settings = _size_px(self._file), {}
        self._intrinsics = intrinsics or Intrinsics.assumed(*self._size_px)

    settings: dict[str, float | str]
    """What the device says its settings are; empty for a file."""

    @property
    def serial(self) -> str:
        return self._serial

    @property
    def intrinsics(self) -> Intrinsics:
        return self._intrinsics

    def read(self) -> Frame:
        """The newest frame, taken after the call; or the file's next one.

        Raises DeviceError when no frame comes, or one of a size other than the intrinsics'.
        """
        if self._newest:
            shot, t_s = self._newest.wait(self._timeout_s)
            rgb = shot.rgb
        else:
            bgr, t_s = self._file.read()[1], time.monotonic()
            if bgr is None:
                raise self._error("has no more frames")
            rgb = _red_first(bgr)
        height, width = rgb.shape[:2]
        expected = self._intrinsics
        if (width, height) != (expected.width, expected.height):
            raise self._error(f"gives {width}x{height} px, its calibration expects {expected.width}x{expected.height}")
        return Frame(rgb, None, t_s, expected, self._serial)

    def close(self) -> None:
        """Give the device back. May be called twice."""
        if self._newest:
            self._newest.stop()
        else:
            self._file.release()

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"camera {self._source}: {what}")


class _Device:
    """A V4L2 device that is open and set up (`newest.Device`)."""

    def __init__(self, source: int | str, settings: Settings) -> None:
        self._source = source
        self._misses = 0
        self._capture = cv2.VideoCapture(source, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            self._capture.release()
            raise self._error("cannot be opened; see `vlar1 camera list`, and close other programs that use it")
        try:
            self._set(settings)
        except DeviceError:
            self._capture.release()
            raise
        self.size_px = _size_px(self._capture)
        self.settings = self._settings()

    def read(self) -> Shot | None:
        image = self._capture.read()[1]
        if image is None:
            self._misses += 1
            if self._misses >= MAX_MISSES:
                raise self._error("gives no more frames")
            return None
        self._misses = 0
        # V4L2 stamps frames on the monotonic clock, in nearly every driver.
        taken_s = plausible(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3, time.monotonic())
        return Shot(_red_first(image), None, taken_s)

    def close(self) -> None:
        self._capture.release()

    def _set(self, settings: Settings) -> None:
        # The format first, then the size: the rates and sizes on offer depend on them, in this order.
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*(settings.fourcc or "MJPG")))
        if settings.fourcc and (has := self._fourcc()) != settings.fourcc:
            raise self._refused("fourcc", settings.fourcc, has)
        if settings.width and settings.height:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
            size_px = _size_px(self._capture)
            if size_px != (settings.width, settings.height):
                raise self._refused("size", f"{settings.width}x{settings.height}", f"{size_px[0]}x{size_px[1]}")
        if settings.fps is not None:
            self._capture.set(cv2.CAP_PROP_FPS, settings.fps)
            if abs((has_hz := self._capture.get(cv2.CAP_PROP_FPS)) - settings.fps) > 0.5:
                raise self._refused("fps", f"{settings.fps:g}", f"{has_hz:g}")
        for name, (key, automatic, off, on) in _CONTROLS.items():
            value: Control | None = getattr(settings, name)
            if value == "auto":
                self._capture.set(automatic, on)
                if self._capture.get(automatic) != on:
                    raise self._refused(name, "auto", "")
            elif value is not None:
                self._capture.set(automatic, off)  # a device that has no automatic refuses this, and need not have it
                self._capture.set(key, value)
                if self._capture.get(automatic) == on:
                    raise self._refused(name, str(value), "auto")
                if (has_value := self._capture.get(key)) != value:
                    raise self._refused(name, str(value), f"{has_value:g}")

    def _settings(self) -> dict[str, float | str]:
        told: dict[str, float | str] = {"fourcc": self._fourcc(), "fps": self._capture.get(cv2.CAP_PROP_FPS)}
        for name, (key, automatic, _, on) in _CONTROLS.items():
            value = self._capture.get(key)
            if self._capture.get(automatic) == on:
                told[name] = "auto"
            elif value >= 0:  # OpenCV says -1 for what the device does not have
                told[name] = value
        return told

    def _fourcc(self) -> str:
        return int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(8, "little", signed=True)[:4].decode("latin-1")

    def _refused(self, name: str, asked: str, has: str) -> DeviceError:
        instead = f", it has {has}" if has else ""
        return self._error(f"refuses {name}={asked}{instead}; leave it out, or see what it takes: v4l2-ctl -L")

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"camera {self._source}: {what}")


def _sized(settings: Settings, intrinsics: Intrinsics | None) -> Settings:
    """``settings`` with the size that the intrinsics are for."""
    if intrinsics is None:
        return settings
    return replace(settings, width=intrinsics.width, height=intrinsics.height)


def _size_px(capture: cv2.VideoCapture) -> tuple[int, int]:
    return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))


def _red_first(bgr: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)
