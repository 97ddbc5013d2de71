"""A decision made on an old frame is caught up through the frames kept since; the camera is read by one thread only."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

from drivers.errors import DeviceError
from drivers.protocols import Frame
from drivers.sim.render import CAMERA, scaled
from edge import follower as module
from edge.carrying import Carrier
from edge.contract import Affordance
from edge.follower import MAX_VIEWS, Follower

INTRINSICS = scaled(CAMERA, 160, 120)
BOX = Affordance(0.3, 0.5, 0.2, 0.25)


def picture(step: int) -> Frame:
    """A red block, one pixel further right a step, on a grey table."""
    rgb = np.full((120, 160, 3), 120, np.uint8)
    rgb[45:75, 32 + step : 64 + step] = (200, 30, 30)
    return Frame(rgb, None, time.monotonic(), INTRINSICS, "TEST")


class Handed:
    """A camera that gives the pictures it is handed, when it is handed them. Notes how many read it at once."""

    serial, intrinsics = "TEST", INTRINSICS

    def __init__(self) -> None:
        self.queue: queue.Queue[int | Exception | None] = queue.Queue()
        self.readers, self.most, self.given = 0, 0, 0

    def read(self) -> Frame:
        self.readers += 1
        self.most = max(self.most, self.readers)
        try:
            step = self.queue.get(timeout=5.0)
            if isinstance(step, Exception):
                raise step
            if step is None:
                raise DeviceError("camera TEST: closed")
            self.given += 1
            return picture(step)
        finally:
            self.readers -= 1

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE_HZ", 1e6)


@pytest.fixture
def camera():
    return Handed()


@pytest.fixture
def follower(camera):
    follower = Follower(camera)
    yield follower
    camera.queue.put(None)
    follower.close()
    assert camera.most == 1


class Asking(threading.Thread):
    """Waits for something in a thread of its own, so that a picture can be handed over after the call."""

    def __init__(self, follower: Follower, call: str) -> None:
        super().__init__(daemon=True)
        self._call = getattr(follower, call)
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error


def ask(follower: Follower, camera: Handed, call: str, *steps: int) -> object:
    """The answer to ``newest`` or ``carried``, pictures being handed over until it comes."""
    asking = Asking(follower, call)
    handed = list(steps)
    while asking.is_alive():
        if camera.queue.empty():
            camera.queue.put(handed.pop(0) if len(handed) > 1 else handed[0])
        asking.join(0.002)
    return asking.result


def drained(camera: Handed) -> bool:
    deadline_s = time.monotonic() + 5.0
    while not camera.queue.empty() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    return camera.queue.empty()


def test_a_decision_is_caught_up_through_what_happened_meanwhile_and_goes_on(follower, camera) -> None:
    decided = ask(follower, camera, "newest", 0)
    assert isinstance(decided, Frame)
    for step in range(0, 60, 3):  # farther in all than can be seen at once
        camera.queue.put(step)
    assert drained(camera)
    follower.follow(Carrier(decided, BOX))
    carried = ask(follower, camera, "carried", 60)
    assert carried.moved and carried.frame.t_s > decided.t_s
    assert carried.box.x == pytest.approx(BOX.x + 60 / 160, abs=0.01)
    carried = ask(follower, camera, "carried", 55, 50)
    assert BOX.x + 50 / 160 - 0.01 < carried.box.x < BOX.x + 55 / 160 + 0.01


def test_a_long_decision_keeps_a_bounded_number_of_views_and_is_caught_up_all_the_same(follower, camera) -> None:
    decided = ask(follower, camera, "newest", 0)
    for k in range(5 * MAX_VIEWS):
        camera.queue.put(k * 50 // (5 * MAX_VIEWS))
    assert drained(camera)
    assert len(follower._views) <= MAX_VIEWS
    follower.follow(Carrier(decided, BOX))
    carried = ask(follower, camera, "carried", 50)
    assert carried.box.x == pytest.approx(BOX.x + 50 / 160, abs=0.01)


def test_a_frame_is_never_older_than_the_question(follower, camera) -> None:
    ask(follower, camera, "newest", 0)
    asked_s = time.monotonic()
    assert ask(follower, camera, "newest", 0).t_s >= asked_s


def test_a_camera_that_fails_is_said_to_whoever_waits_for_it(follower, camera) -> None:
    camera.queue.put(DeviceError("camera TEST: is unplugged"))
    with pytest.raises(DeviceError, match="unplugged"):
        follower.newest()
    with pytest.raises(DeviceError, match="unplugged"):
        follower.newest()


def test_once_closed_the_camera_is_read_no_more(camera) -> None:
    follower = Follower(camera)
    camera.queue.put(0)
    assert drained(camera)
    camera.queue.put(1)
    follower.close()
    follower.close()
    given = camera.given
    camera.queue.put(2)
    assert not camera.queue.empty() and camera.given == given
