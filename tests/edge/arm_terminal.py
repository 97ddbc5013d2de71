"""A terminal with a person at it, for the commands of `vlar1 arm` that are worked by keys."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from edge import arm_scan

SOON_S = 20.0  # on a busy machine


class Terminal:
    """A pseudo-terminal as standard input."""

    def __init__(self) -> None:
        self.person_fd, self.fd = pty.openpty()
        self.before = termios.tcgetattr(self.fd)

    @property
    def gives_keys(self) -> bool:
        """Whether the program has switched to single keys; what is typed before is thrown away then."""
        return not termios.tcgetattr(self.fd)[3] & termios.ICANON

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.fd) == self.before

    def press(self, *keys: str) -> None:
        for key in keys:
            wait_for(lambda: self.gives_keys)
            os.write(self.person_fd, key.encode())

    def hang_up(self) -> None:
        os.close(self.person_fd)
        self.person_fd = -1

    def close(self) -> None:
        for fd in (self.person_fd, self.fd):
            if fd >= 0:
                os.close(fd)


class _Stdin(io.StringIO):
    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    one = Terminal()
    monkeypatch.setattr(sys, "stdin", _Stdin(one.fd))
    yield one
    one.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan for servos that answer within a millisecond or two, and whose ids are small."""
    monkeypatch.setattr(arm_scan, "_USB_S", 0.008)
    monkeypatch.setattr(arm_scan, "_DYNAMIXEL_SLOT_S", 0.0005)
    monkeypatch.setattr(arm_scan, "_FEETECH_LISTEN_S", 0.02)
    tables = {**arm_scan.TABLES, "feetech": replace(arm_scan.TABLES["feetech"], max_id=12)}
    monkeypatch.setattr(arm_scan, "TABLES", tables)


@contextmanager
def person(does: Callable[[], None]) -> Iterator[None]:
    """Somebody who works the terminal and the arm meanwhile; what fails there fails the test."""
    failures: list[BaseException] = []

    def act() -> None:
        try:
            does()
        except BaseException as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGINT)  # or the program would wait for the next key for ever

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        if not failures:
            raise
    thread.join(SOON_S)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.005)
