"""A recording in place of a camera. (A video or numbered pictures: `drivers.camera.opencv`.)"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from drivers.errors import DeviceError
from drivers.protocols import Frame, Intrinsics
from drivers.recording import Recording


class ReplayCamera:
    """The Camera protocol over a recording: its frames in order, one a call, with depth, intrinsics and serial.

    Args:
        path: of the recording.
        realtime: frames come at the pace they were recorded at, counted from the first call, stamped with the present
            clock; one that is asked for too late comes at once. Otherwise each comes at once, stamped as recorded.

    Raises:
        UserError: not a recording.
        DeviceError: it holds no frames.
    """

    def __init__(self, path: Path | str, *, realtime: bool = False) -> None:
        self._path, self._realtime = Path(path), realtime
        self._frames = Recording(path).frames()
        first = next(self._frames, None)
        if first is None:
            raise DeviceError(f"camera {path}: the recording holds no frames")
        self._next: Frame | None = first
        self._recorded_s = first.t_s
        self._began_s: float | None = None
        self.serial: str = first.serial
        self.intrinsics: Intrinsics = first.intrinsics

    def read(self) -> Frame:
        """The next frame. Raises DeviceError after the last."""
        frame = self._next if self._next is not None else next(self._frames, None)
        self._next = None
        if frame is None:
            raise DeviceError(f"camera {self._path}: has no more frames")
        if not self._realtime:
            return frame
        if self._began_s is None:
            self._began_s = time.monotonic()
        wait_s = self._began_s + (frame.t_s - self._recorded_s) - time.monotonic()
        if wait_s > 0.0:
            time.sleep(wait_s)
        return replace(frame, t_s=time.monotonic())

    def close(self) -> None:
        """No more frames come. May be called twice."""
        self._next = None
        self._frames = iter(())
