"""The newest frame of a live camera: a thread takes every frame, keeps the last, and outlives an unplugging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.errors import DeviceError, UserError

LOOK_AGAIN_S = 0.5
"""How long to wait before a camera that is gone is looked for again."""

STALE_CLOCK_S = 1.0
"""A device's timestamp further back than this is on another clock."""


@dataclass(frozen=True)
class Shot:
    """What a device gave: ``rgb`` (h, w, 3) uint8, ``depth_m`` (h, w) float32 or None.

    ``taken_s`` is when it was taken by the device's own account, ``time.monotonic()`` seconds; None where the device
    does not tell.
    """

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32] | None = None
    taken_s: float | None = None


class Device(Protocol):
    """A camera that is open. One thread uses it."""

    def read(self) -> Shot | None:
        """The next frame; None where none came within a second or so. Raises DeviceError once the device is gone."""
        ...

    def close(self) -> None: ...


def plausible(taken_s: float, now_s: float) -> float | None:
    """``taken_s`` if it can be a time on the clock of ``now_s``, else None: drivers may use a clock of their own."""
    return taken_s if 0.0 <= now_s - taken_s <= STALE_CLOCK_S else None


class Newest:
    """Empties ``device`` and keeps its last frame; opens it again whenever it has gone.

    Args:
        device: open. It is closed by the thread that reads it, never while it is being read.
        find: opens the device again; raises DeviceError while it is not there.
        name: what the camera is called in an error.
    """

    def __init__(self, device: Device, find: Callable[[], Device], name: str) -> None:
        self._device: Device | None = device
        self._find = find
        self._name = name
        self._changed = threading.Condition()
        self._shot: Shot | None = None
        self._fresh_s = self._t_s = float("-inf")
        self._gone = ""
        self._running = True
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> tuple[Shot, float]:
        """The newest frame, taken after the call, and when that was.

        Raises DeviceError where none comes within ``timeout_s``; a later call may find the camera back.
        """
        called_s = time.monotonic()
        with self._changed:
            if self._changed.wait_for(lambda: self._fresh_s > called_s or not self._running, timeout_s):
                if self._shot and self._fresh_s > called_s:
                    return self._shot, self._t_s
                raise DeviceError(f"camera {self._name}: is closed; open it again")
            if self._gone:
                raise DeviceError(
                    f"camera {self._name}: is unplugged or dead ({self._gone}); plug it in again, it is waited for"
                )
        raise DeviceError(f"camera {self._name}: delivers no frames within {timeout_s:g} s; check its cable")

    def stop(self) -> None:
        """Close the device. May be called twice."""
        with self._changed:
            self._running = False
            self._changed.notify_all()
        self._thread.join(2.0)  # a camera that hangs in its driver must not hang the exit

    def _run(self) -> None:
        try:
            while self._running:
                if self._device is None:
                    self._look_again()
                else:
                    self._take(self._device)
        finally:
            if self._device:
                self._device.close()
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _look_again(self) -> None:
        try:
            self._device = self._find()
        except UserError:  # not there, or not as it was; it may yet be
            with self._changed:
                self._changed.wait_for(lambda: not self._running, LOOK_AGAIN_S)

    def _take(self, device: Device) -> None:
        asked_s = time.monotonic()
        try:
            shot = device.read()
        except DeviceError as error:
            self._device = None
            device.close()
            with self._changed:
                self._gone = str(error).removeprefix(f"camera {self._name}: ")
            return
        if shot is None:
            return
        came_s = time.monotonic()
        with self._changed:
            self._shot, self._gone = shot, ""
            # Without the device's word, a frame is as new as the question for it, and as old as its arrival.
            self._fresh_s = asked_s if shot.taken_s is None else shot.taken_s
            self._t_s = came_s if shot.taken_s is None else shot.taken_s
            self._changed.notify_all()
