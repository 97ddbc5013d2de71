"""A colour camera, or a recording, through OpenCV."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import DeviceError
from drivers.protocols import Frame, Intrinsics


class OpenCVCamera:
    """The Camera protocol over ``cv2.VideoCapture``: a device by index or ``/dev/...`` path, or a file.

    A device is emptied by a thread that keeps only the newest frame, so no frame waits in the driver's queue and grows
    old. A file (a video, an image, or a numbered series such as ``frame_%03d.png``) gives its frames in order, one a
    call, stamped with the time of the call.

    Args:
        source: index, device path or file.
        intrinsics: of the camera; its size is asked of the device, and every frame must have it.
        serial: names the camera; ``opencv:SOURCE`` if left out.
        timeout_s: how long ``read`` waits for a frame of a device.

    Raises:
        DeviceError: the source cannot be opened, or gives frames of another size.
    """

    def __init__(
        self, source: int | str | Path, intrinsics: Intrinsics, *, serial: str = "", timeout_s: float = 2.0
    ) -> None:
        self._source = source if isinstance(source, int) else str(source)
        self._intrinsics = intrinsics
        self._serial = serial or f"opencv:{self._source}"
        self._timeout_s = timeout_s
        live = str(source).startswith("/dev/") or isinstance(source, int)
        self._capture = cv2.VideoCapture(self._source)
        if not self._capture.isOpened():
            self._capture.release()
            hint = "see `ls /dev/video*`, and close other programs that use it" if live else "name an existing video"
            raise self._error(f"cannot be opened; {hint}")
        if live:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, intrinsics.width)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, intrinsics.height)
        self._newest = _Newest(self._capture) if live else None

    @property
    def serial(self) -> str:
        return self._serial

    @property
    def intrinsics(self) -> Intrinsics:
        return self._intrinsics

    def read(self) -> Frame:
        """The newest frame, which the device handed over after the call; or the file's next one.

        Raises DeviceError when no frame comes, or one of a size other than the intrinsics'.
        """
        bgr: NDArray[Any] | None
        if self._newest:
            bgr, t_s = self._newest.wait(time.monotonic(), self._timeout_s)
        else:
            bgr, t_s = self._capture.read()[1], time.monotonic()
        if bgr is None:
            what = "delivers no frames; check its cable" if self._newest else "has no more frames"
            raise self._error(what)
        height, width = bgr.shape[:2]
        expected = self._intrinsics
        if (width, height) != (expected.width, expected.height):
            raise self._error(f"gives {width}x{height} px, its calibration expects {expected.width}x{expected.height}")
        rgb = np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)
        return Frame(rgb, None, t_s, expected, self._serial)

    def close(self) -> None:
        """Give the device back. May be called twice."""
        if self._newest:
            self._newest.stop()
        self._capture.release()

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"camera {self._source}: {what}")


class _Newest:
    """A thread that takes every frame of a capture and keeps the last."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        self._changed = threading.Condition()
        self._image: NDArray[np.uint8] | None = None
        self._asked_s = self._came_s = float("-inf")
        self._running = True
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def wait(self, after_s: float, timeout_s: float) -> tuple[NDArray[np.uint8] | None, float]:
        """The newest frame that the device was asked for after ``after_s``, and when it came; None if none comes."""
        with self._changed:
            fresh = self._changed.wait_for(lambda: self._asked_s > after_s or not self._running, timeout_s)
            return (self._image if fresh and self._asked_s > after_s else None), self._came_s

    def stop(self) -> None:
        with self._changed:
            self._running = False
        self._thread.join(2.0)  # a camera that hangs in its driver must not hang the exit

    def _run(self) -> None:
        while self._running:
            asked_s = time.monotonic()
            image = self._capture.read()[1]
            with self._changed:
                if image is None:
                    self._running = False
                else:
                    self._image = np.asarray(image, dtype=np.uint8)
                    self._asked_s, self._came_s = asked_s, time.monotonic()
                self._changed.notify_all()
