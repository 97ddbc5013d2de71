"""A camera that is watched: every frame is shown to a watcher, and one is read for it when nobody else reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from drivers.errors import DeviceError
from drivers.protocols import Camera, Frame, Intrinsics

_IDLE_S = 0.1
"""How long nobody reads before a frame is read for the watcher: ten pictures a second while nothing else goes on."""


class WatchedCamera:
    """The Camera protocol around another camera; safe to read from several threads.

    Args:
        camera: closed with this one.
        seen: called with each frame, in the thread that read it.
    """

    def __init__(self, camera: Camera, seen: Callable[[Frame], None]) -> None:
        self._camera, self._seen = camera, seen
        self._reading = threading.Lock()
        self._read_s = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watched camera", daemon=True)
        self._thread.start()

    @property
    def serial(self) -> str:
        """As the camera's."""
        return self._camera.serial

    @property
    def intrinsics(self) -> Intrinsics:
        """As the camera's, now."""
        return self._camera.intrinsics

    def read(self) -> Frame:
        """A frame taken after the call. Raises DeviceError when none comes."""
        with self._reading:
            frame = self._camera.read()
            self._read_s = time.monotonic()
        self._seen(frame)
        return frame

    def close(self) -> None:
        """Stop reading and close the camera."""
        self._closing.set()
        self._thread.join()
        self._camera.close()

    def _watch(self) -> None:
        rest_s = _IDLE_S
        while not self._closing.wait(rest_s):
            began_s = time.monotonic()
            if began_s - self._read_s >= _IDLE_S:
                try:
                    self.read()
                except DeviceError:
                    pass  # whoever needs the camera will say so
            rest_s = max(_IDLE_S, time.monotonic() - began_s)  # a slow camera is left free half of the time
