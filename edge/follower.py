"""The fast half of fast-slow: a camera's frames are kept while a decision is made, which is then carried to the newest.

A box is known only once the decision is made, a second or more after its frame was taken. Until then a thread keeps
the frames since, small. Then they are played through, quickly, and from then on each new one as it comes.
"""

from __future__ import annotations

import threading
import time

from drivers.errors import DeviceError
from drivers.protocols import Camera, Frame
from edge.appearance import Thumbnail, thumbnail_of
from edge.carrying import Carried, Carrier

RATE_HZ = 30.0
MAX_VIEWS = 64
"""Views kept while a decision is made: 35 MB with depth. Beyond that every other one is dropped, so that a long
decision is followed in longer steps."""

_TIMEOUT_S = 6.0  # longer than a camera takes to say that it is gone


class Follower:
    """Reads a camera in a thread of its own until closed; nobody else may read it meanwhile."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._came = threading.Condition()
        self._views: list[Thumbnail] = []
        self._newest: Frame | None = None
        self._error: Exception | None = None
        self._carrier: Carrier | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading; the camera is free again. May be called twice."""
        self._stopping.set()
        self._thread.join()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def newest(self) -> Frame:
        """A frame taken after the call. Raises DeviceError when none comes."""
        with self._came:
            return self._wait()

    def follow(self, carrier: Carrier) -> None:
        """Carry a decision on: through the frames kept since, then through each new one. It was made on one of them."""
        while True:
            with self._came:
                views = [view for view in self._views if view.t_s > carrier.since_s]
                self._views.clear()
                if not views:
                    self._carrier = carrier
                    return
            for view in views:
                carrier.update(view)

    def carried(self) -> Carried:
        """The decision that is followed, in a frame taken after the call.

        Raises:
            StaleError: what it is about is lost, or it is too old.
            DeviceError: no frame comes.
        """
        with self._came:
            frame = self._wait()
            assert self._carrier is not None, "nothing is followed"
            return self._carrier.at(frame)

    def _wait(self) -> Frame:
        called_s = time.monotonic()
        if not self._came.wait_for(lambda: self._error or self._is_since(called_s), _TIMEOUT_S):
            raise DeviceError(
                f"camera {self._camera.serial or '(no serial)'}: no new image within {_TIMEOUT_S:g} s; check its cable"
            )
        if self._error is not None:
            raise self._error
        assert self._newest is not None
        return self._newest

    def _is_since(self, called_s: float) -> bool:
        return self._newest is not None and self._newest.t_s >= called_s

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                began_s = time.monotonic()
                frame = self._camera.read()
                self._keep(frame, thumbnail_of(frame))
                self._stopping.wait(max(0.0, 1.0 / RATE_HZ - (time.monotonic() - began_s)))
        except Exception as error:  # whoever waits for a frame gets it, whatever it is
            with self._came:
                self._error = error
                self._came.notify_all()

    def _keep(self, frame: Frame, view: Thumbnail) -> None:
        with self._came:
            if self._carrier is not None:
                self._carrier.update(view)
            else:
                if len(self._views) >= MAX_VIEWS:
                    del self._views[1::2]
                self._views.append(view)
            self._newest = frame
            self._came.notify_all()
