"""A datagram socket in systemd's place, and what the real server tells it."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from test_serve_limits import arguments, ask, until

from drivers.errors import UserError
from edge import serve_command
from edge.serve.line import DECISION_LIMIT_S, STUCK_AFTER_S, Line, Question
from edge.serve.notify import ALIVE, READY, STOPPING, Manager, take_manager
from tests.edge.serving import PATIENCE_S, png, seeing_engine, serving, text_of

WATCHDOG_S = 0.02
SILENCE_S = 0.3
"""How long a test listens for what must not come: 30 signs of life."""


class Systemd:
    """The other end. It reads all the time, since a socket keeps few datagrams."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while said := self._socket.recv(4096).decode():
            self._heard.put(said)

    def hear(self, within_s: float = PATIENCE_S) -> str:
        """The next datagram, "" for none."""
        try:
            return self._heard.get(timeout=within_s)
        except queue.Empty:
            return ""

    def heard(self) -> list[str]:
        """All that was sent until now and is not heard yet."""
        self._say(b"now")
        return list(iter(self.hear, "now"))

    def close(self) -> None:
        self._say(b"")
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _say(self, said: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(said, self.address)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    one = Systemd(str(tmp_path / "notify"))
    yield one
    one.close()


def test_the_command_tells_systemd_that_it_answers_lives_and_ends(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only of itself: the variables are gone by then."""
    for name, value in (("SOCKET", systemd.address), ("USEC", "20000"), ("PID", str(os.getpid()))):
        monkeypatch.setenv(f"NOTIFY_{name}" if name == "SOCKET" else f"WATCHDOG_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen: list[object] = []

    def manage() -> None:
        try:
            seen.append(systemd.hear())
            seen.append(httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE_S).json())
            seen.extend(systemd.hear() for _ in range(3))
            seen.append({name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_"))})
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    manager = threading.Thread(target=manage)
    manager.start()
    assert serve_command.run(arguments("--port", str(port))) == 0
    manager.join(PATIENCE_S)
    assert seen == [READY, {"ok": True}, ALIVE, ALIVE, ALIVE, set()]
    rest = systemd.heard()
    assert rest.count(STOPPING) == 1 and set(rest) <= {ALIVE, STOPPING}


def test_a_decision_within_its_limit_is_a_sign_of_life_and_the_last_one_is_waited_for(systemd: Systemd) -> None:
    engine = seeing_engine()
    with serving(engine, manager=Manager(systemd.address, WATCHDOG_S)) as server, ThreadPoolExecutor(1) as pool:
        assert systemd.hear() == READY and server.server.started
        engine.free.clear()
        reply = pool.submit(ask, server, 10)
        assert engine.at_model.wait(PATIENCE_S)
        systemd.heard()
        assert [systemd.hear() for _ in range(5)] == [ALIVE] * 5
        server.server.should_exit = True
        until(lambda: systemd.hear() == STOPPING)
        assert [systemd.hear() for _ in range(5)] == [ALIVE] * 5
        engine.free.set()
        assert reply.result().json()["text"] == text_of(10)
        server.stop()
    assert STOPPING not in systemd.heard()


def test_a_decision_that_never_ends_ends_the_signs_of_life(systemd: Systemd) -> None:
    assert STUCK_AFTER_S > DECISION_LIMIT_S
    engine = seeing_engine()
    manager = Manager(systemd.address, WATCHDOG_S)
    with serving(engine, manager=manager, stuck_after_s=0.0) as server, ThreadPoolExecutor(1) as pool:
        engine.free.clear()
        reply = pool.submit(ask, server, 10)
        assert engine.at_model.wait(PATIENCE_S)
        assert server.http.get("/health").json() == {"ok": True}  # the event loop is past any sign that was under way
        systemd.heard()
        assert systemd.hear(SILENCE_S) == ""
        assert server.http.get("/health").json() == {"ok": True}
        engine.free.set()
        assert reply.result().json()["text"] == text_of(10)
        assert systemd.hear() == ALIVE


def test_an_event_loop_that_hangs_gives_no_signs_of_life(systemd: Systemd) -> None:
    with serving(seeing_engine(), manager=Manager(systemd.address, WATCHDOG_S)) as server:
        assert systemd.hear() == READY
        hangs, on = threading.Event(), threading.Event()

        def hang() -> None:
            hangs.set()
            on.wait(PATIENCE_S)

        server.server.servers[0].get_loop().call_soon_threadsafe(hang)
        assert hangs.wait(PATIENCE_S)
        systemd.heard()
        assert systemd.hear(SILENCE_S) == ""
        on.set()
        assert systemd.hear() == ALIVE


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_whose_thread_has_ended_is_stuck() -> None:
    engine = seeing_engine()
    line = Line(engine)
    assert not line.stuck
    engine.fails = SystemExit()  # type: ignore[assignment]  # what ends a thread without a word
    line.join(Question(png(10), "affordance", "x"))
    until(lambda: line.stuck)
    line.close()


def test_without_a_watchdog_there_is_a_beginning_and_an_end(systemd: Systemd) -> None:
    with serving(seeing_engine(), manager=Manager(systemd.address, None)) as server:
        assert ask(server, 10).json()["text"] == text_of(10)
    assert systemd.heard() == [READY, STOPPING]


def test_a_manager_that_is_gone_is_no_matter(tmp_path: Path) -> None:
    with serving(seeing_engine(), manager=Manager(str(tmp_path / "gone"), WATCHDOG_S)) as server:
        assert ask(server, 10).json()["text"] == text_of(10)


OURS = str(os.getpid())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": OURS}, None),
        ({"NOTIFY_SOCKET": ""}, None),
        ({"NOTIFY_SOCKET": "/run/n"}, Manager("/run/n", None)),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000"}, Manager("/run/n", 30.0)),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "1500", "WATCHDOG_PID": OURS}, Manager("/run/n", 0.0015)),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, Manager("/run/n", None)),
        ({"NOTIFY_SOCKET": "@/a@b", "WATCHDOG_PID": OURS}, Manager("\0/a@b", None)),
    ],
)
def test_who_is_to_be_told_stands_in_the_environment_once(variables: dict[str, str], expected: Manager | None) -> None:
    environment = {"PATH": "/bin", **variables}
    assert take_manager(environment) == expected
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "variables",
    [
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30s"},
        {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "-1"},
    ],
)
def test_variables_that_cannot_be_used_are_one_line(variables: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^(NOTIFY_SOCKET|WATCHDOG_USEC) .*: expected .*; unset it$"):
        take_manager(dict(variables))


def test_an_abstract_address_is_reached() -> None:
    systemd = Systemd(f"\0vlar1-test-{OURS}")
    manager = take_manager({"NOTIFY_SOCKET": f"@vlar1-test-{OURS}"})
    assert manager is not None
    manager.tell(READY)
    assert systemd.heard() == [READY]
    systemd.close()
