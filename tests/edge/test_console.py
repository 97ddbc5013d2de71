"""The operator's page without a browser: what its process shows, takes and refuses, and that its stop needs nobody."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from drivers.errors import UserError
from drivers.protocols import Frame, Intrinsics
from edge.console import stage as stage_module
from edge.console.console import Console
from edge.console.stage import Page, Stage
from edge.contract import Affordance, Trajectory
from edge.control import Controller, MotionError, ServoWatch, State
from edge.decode import OutputEvent, TextEvent, WaypointEvent
from edge.loop import Order
from edge.motion import plan_move
from edge.trace import Tracer
from tests.edge.test_controller import ROBOT, SIDE, Bench, in_thread, moving, until

PICTURE = Frame(np.full((48, 64, 3), 90, np.uint8), None, 1.0, Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5), "C")


@pytest.fixture
def controller() -> Iterator[Controller]:
    bench = Bench(ROBOT.ready_rad)
    with suppress(MotionError), Controller(ROBOT, bench.bus.port, Tracer()) as one:  # a stop leaves it holding
        yield one
    bench.bus.close()


@contextmanager
def served(controller: Controller, **options: bool) -> Iterator[Console]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        console = Console(listener, controller, controller.tracer, {"robot": "so101"}, **options)
    try:
        yield console
    finally:
        console.close()


Browse = Callable[..., ClientConnection]


@pytest.fixture
def browse() -> Iterator[Browse]:
    """Opens the WebSocket of a console's page as a browser does."""
    with ExitStack() as pages:

        def a_page(console: Console, token: str = "", **headers: str) -> ClientConnection:
            address = console.url.partition("#")[0].replace("http://", "ws://") + "ws"
            options = {"open_timeout": 20, "ping_interval": None, "close_timeout": 0.5}
            page = pages.enter_context(connect(address, additional_headers=headers, **options))  # type: ignore[arg-type]
            page.send(token)
            return page

        yield a_page


def message(page: ClientConnection, kind: str, **wanted: object) -> dict:
    """The next of that kind, with these values; an image is of kind "jpeg"."""
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        told = page.recv(timeout=20)
        told = {"kind": "jpeg", "jpeg": told} if isinstance(told, bytes) else json.loads(told)
        if told["kind"] == kind and all(told.get(name) == value for name, value in wanted.items()):
            return told
    raise AssertionError(f"no {kind} {wanted} came")


def asked(console: Console) -> dict:
    request = console.request(20.0)
    assert request is not None, "nothing came from the page"
    return request


def move(controller: Controller) -> tuple[threading.Thread, list[BaseException]]:
    thread, errors = in_thread(lambda: controller.execute(plan_move(controller.setpoint_rad, SIDE)))
    until(moving(controller))
    return thread, errors


# A third process at the servo loop's memory


def test_a_third_process_sees_the_arm_and_its_stop_holds_until_a_restart(controller: Controller) -> None:
    watch = ServoWatch(os.dup(controller.loop.memory_fd))
    thread, errors = move(controller)
    seen = watch.state()
    assert seen.state == State.MOVING and seen.port == controller.state().port
    watch.stop()
    thread.join()
    assert isinstance(errors[0], MotionError) and watch.state().state == State.STOPPED
    until(lambda: watch.state().settled)
    _, cycles = watch.cycles()
    stopped_rad = cycles.setpoint_rad[cycles.state == State.STOPPED]
    assert (stopped_rad[-1] == watch.state().setpoint_rad.astype(np.float32)).all()  # it stands
    assert np.abs(stopped_rad[-1] - stopped_rad[0]).max() < 0.3  # soon
    with pytest.raises(MotionError, match="restart it first"):
        controller.execute(plan_move(controller.setpoint_rad, SIDE))
    controller.restart()
    assert watch.state().state == State.ARMED


def test_other_memory_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="no servo loop's memory"):
        ServoWatch(fd)
    os.close(fd)  # it is still the caller's


# The page's process


def test_a_page_is_shown_the_order_its_reasoning_and_its_output_and_whoever_comes_later_as_well(
    controller: Controller,
    browse: Browse,
) -> None:
    with served(controller) as console:
        page = browse(console)
        hello = message(page, "hello")
        assert hello["about"] == {"robot": "so101"} and "token" not in hello
        assert [joint["name"] for joint in hello["joints"]] == list(ROBOT.joint_names)
        console.ordered(Order("pick up the red cube", place=True))
        console.asked("affordance", PICTURE)
        console.event(TextEvent("<think>I see", True))
        console.event(OutputEvent(Affordance(0.4, 0.5, 0.1, 0.2)))
        console.event(WaypointEvent(0, (0.25, 0.5)))
        console.event(OutputEvent(Trajectory(((0.25, 0.5), (0.5, 0.75)))))
        for one in (page, browse(console)):
            assert message(one, "order")["instruction"] == "pick up the red cube"
            assert message(one, "text") == {"kind": "text", "text": "<think>I see", "reasoning": True}
            assert message(one, "box")["box"] == {"x": 0.4, "y": 0.5, "width": 0.1, "height": 0.2}
            assert message(one, "point")["point"] == [0.25, 0.5]
            assert message(one, "path")["points"] == [[0.25, 0.5], [0.5, 0.75]]
            servo = message(one, "servo")
            assert servo["state"] in ("armed", "holding")
            np.testing.assert_allclose(servo["setpoint_rad"], controller.setpoint_rad, atol=1e-4)
            console.frame(PICTURE)
            assert message(one, "jpeg")["jpeg"].startswith(b"\xff\xd8")


def test_a_stop_on_the_page_is_confirmed_latched_and_says_who(controller: Controller, browse: Browse) -> None:
    with served(controller) as console:
        page = browse(console)
        thread, errors = move(controller)
        page.send('{"do": "stop"}')
        assert message(page, "stop")["stopped"] is True
        thread.join()
        assert "the operator's page at 127.0.0.1" in str(errors[0])
        assert message(page, "servo", state="stopped")
        console.phase("waiting")
        message(page, "phase", phase="waiting")
        page.send('{"do": "order", "instruction": "pick up the red cube", "place": false}')
        assert "was stopped" in message(page, "refused")["text"]
        page.send('{"do": "restart"}')
        assert asked(console) == {"do": "restart"}


def test_the_stop_works_while_the_program_that_commands_the_arm_hangs(controller: Controller, browse: Browse) -> None:
    with served(controller) as console:
        browse(console)
        thread, errors = move(controller)
        pipe, console._pipe = console._pipe, Deaf()  # type: ignore[assignment]  # the run tells nothing any more
        answer = httpx.post(console.url + "stop", timeout=20)
        assert answer.json() == {"stopped": True} and controller.state().state == State.STOPPED
        thread.join()
        assert isinstance(errors[0], MotionError)
        console._pipe = pipe


class Deaf:
    """A pipe into which nothing goes."""

    def send_bytes(self, data: bytes) -> None:
        raise OSError("broken")

    def recv_bytes(self) -> bytes:
        raise EOFError


def test_one_order_at_a_time_and_only_when_the_run_waits_for_it(controller: Controller, browse: Browse) -> None:
    order = {"do": "order", "instruction": "pick up the red cube", "place": False}
    with served(controller) as console:
        page = browse(console)
        page.send(json.dumps(order))
        assert "busy" in message(page, "refused")["text"]
        console.phase("waiting")
        message(page, "phase", phase="waiting")
        page.send(json.dumps({**order, "instruction": "  "}))
        assert "instruction: is empty" in message(page, "refused")["text"]
        page.send(json.dumps(order))
        page.send(json.dumps(order))
        assert "busy" in message(page, "refused")["text"]
        assert asked(console) == order and console.request(0.0) is None


def test_a_page_of_another_site_and_another_name_of_this_machine_are_refused(
    controller: Controller, browse: Browse
) -> None:
    with served(controller) as console:
        assert httpx.get(console.url, timeout=20).status_code == 200
        assert httpx.get(console.url, headers={"Host": "robot.example"}).status_code == 403
        evil = {"Origin": "http://robot.example"}
        assert httpx.post(console.url + "stop", headers=evil).status_code == 403
        with pytest.raises((InvalidStatus, ConnectionClosed)):
            browse(console, **evil).recv(timeout=20)
        assert controller.state().state != State.STOPPED


def test_what_other_machines_reach_needs_the_token_of_its_address(controller: Controller, browse: Browse) -> None:
    with served(controller, remote=True) as console:
        address, _, token = console.url.partition("#")
        assert len(token) >= 16
        assert "STOP" in httpx.get(address, headers={"Host": "robot.local"}, timeout=20).text
        assert httpx.post(address + "stop").status_code == 401
        with pytest.raises(ConnectionClosed) as closed:
            browse(console, "guessed").recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
        assert controller.state().state != State.STOPPED
        assert message(browse(console, token, Origin="http://robot.local"), "hello")
        assert httpx.post(address + "stop", headers={"Authorization": f"Bearer {token}"}).json() == {"stopped": True}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_page_that_dies_or_hangs_disturbs_nothing(
    controller: Controller, browse: Browse, number: signal.Signals
) -> None:
    with served(controller) as console:
        message(browse(console), "hello")
        console._process.send_signal(number)
        thread, errors = move(controller)
        for _ in range(3 * 4096):
            console.event(TextEvent("I see", True))
            console.frame(PICTURE)
        thread.join()
        assert not errors


def test_an_arm_moved_from_a_page_stops_when_no_page_is_left(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "ALONE_S", 0.1)
    requests: list[dict] = []
    stage = Stage(ServoWatch(os.dup(controller.loop.memory_fd)), {"kind": "hello", "joints": JOINTS}, requests.append)

    async def for_a_while() -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stage.watch(), 0.5)

    thread, errors = move(controller)
    asyncio.run(for_a_while())
    thread.join()
    assert not errors  # nobody ordered this from a page
    stage.told({"kind": "phase", "phase": "waiting", "text": ""}, b"")
    stage.request({"do": "order", "instruction": "pick up the red cube", "place": False})
    thread, errors = in_thread(lambda: controller.execute(plan_move(controller.setpoint_rad, ROBOT.ready_rad)))
    until(lambda: controller.state().state == State.MOVING)
    asyncio.run(for_a_while())
    thread.join()
    assert isinstance(errors[0], MotionError) and "no operator's page" in requests[-1]["why"]


# What is shown, and what is asked


JOINTS = [{"name": name} for name in ROBOT.joint_names]


class Still:
    """A servo loop whose arm is armed and stands."""

    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1

    def state(self) -> object:
        return type("S", (), {"state": State.ARMED, "t_s": time.monotonic()})()


def stage(requests: list[dict] | None = None) -> Stage:
    ask = [] if requests is None else requests
    return Stage(Still(), {"kind": "hello", "joints": JOINTS}, ask.append)  # type: ignore[arg-type]


def shown(page: Page) -> list[dict | bytes]:
    """What it would be sent now."""

    async def take() -> list[dict | bytes]:
        page.close()
        return [item async for item in page.items()]

    return asyncio.run(take())


def test_only_the_latest_order_is_kept_for_those_who_come() -> None:
    one = stage()
    for instruction in ("the red cube", "the blue bowl"):
        one.told({"kind": "order", "instruction": instruction}, b"")
        one.told({"kind": "text", "text": instruction}, b"")
    one.told({"kind": "frame"}, b"old")
    one.told({"kind": "frame"}, b"new")
    assert [item if isinstance(item, bytes) else item["kind"] for item in shown(one.enter())] == [
        *("hello", "order", "text", "phase"),
        b"new",
    ]


def test_a_page_that_does_not_read_is_dropped_and_the_others_are_not() -> None:
    one = stage()
    slow = one.enter()
    for _ in range(3000):
        one.told({"kind": "text", "text": "x"}, b"")
    assert one.n_pages == 0 and shown(slow) == []
    assert len(shown(one.enter())) == 3002  # the scene is whole


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["do", "instruction", "place", "why"]), junk)
    | st.builds(
        lambda do, rest: {**rest, "do": do},
        st.sampled_from(["order", "restart", "park"]),
        st.dictionaries(st.text(), junk),
    )
)
def test_junk_is_refused_in_words_and_asks_nothing_of_the_arm(request_: dict) -> None:
    requests: list[dict] = []
    one = stage(requests)
    one.told({"kind": "phase", "phase": "waiting", "text": ""}, b"")
    try:
        one.request(request_)
    except UserError as error:
        assert str(error) and not requests
    else:  # a fair request after all
        assert requests[0]["do"] in ("order", "park") and request_["do"] == requests[0]["do"]
        assert requests[0]["do"] == "park" or isinstance(request_["instruction"], str)
