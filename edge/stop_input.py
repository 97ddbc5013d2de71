"""Ways to say stop: a key, a button on a second serial line or a GPIO, and the thread that listens to all of them.

What is broken says stop too: an input that fails, hangs up or is unplugged is one that could not say it when it
matters. A stop is said again every ``POLL_S`` for as long as its cause lasts, so whoever latches it cannot be reset
while a button is held or gone.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import importlib
import os
import select
import struct
import sys
import termios
import threading
import tty
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import serial

from drivers.errors import DeviceError, UserError

POLL_S = 0.01
STOP_KEYS = {b" ": "the space bar", b"\x1b": "Esc", b"q": "q", b"Q": "q"}

_MODEM_LINES = {"CTS": termios.TIOCM_CTS, "DSR": termios.TIOCM_DSR, "DCD": termios.TIOCM_CD, "RI": termios.TIOCM_RI}
_NO_MODEM = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP)
_READ_BYTES = 256
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


class StopInput(Protocol):
    """Something that can say stop. ``name`` says which, in words."""

    @property
    def name(self) -> str: ...

    def fileno(self) -> int:
        """Readable when there may be something to hear."""
        ...

    def tripped(self) -> str:
        """The reason to stop, in words, or "" for none; never waits. Called when readable, and every ``POLL_S``.

        Whatever it raises is a reason to stop.
        """
        ...

    def close(self) -> None: ...


class KeyboardStop:
    """Space, Esc or q on a terminal. Other keys do nothing; anything that sends Esc first (an arrow) stops.

    The terminal gives each key at once and shows none (cbreak mode) until ``close``, or until Python exits.

    Args:
        fd: of the terminal; standard input by default.

    Raises:
        UserError: it is no terminal, or one that this process does not own (it runs in the background).
    """

    name = "keyboard"

    def __init__(self, fd: int | None = None) -> None:
        try:
            self._fd = sys.stdin.fileno() if fd is None else fd
            is_terminal = os.isatty(self._fd)
        except (AttributeError, ValueError, OSError):  # no standard input at all
            is_terminal = False
        if not is_terminal:
            raise UserError("stop input keyboard: standard input is no terminal; run in one, or use another stop input")
        # Python would be suspended for changing the terminal's mode from the background.
        with contextlib.suppress(OSError):
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                raise UserError("stop input keyboard: runs in the background; bring it to the foreground (fg)")
        try:
            self._before: list[Any] | None = termios.tcgetattr(self._fd)
            atexit.register(self.close)
            tty.setcbreak(self._fd)
        except termios.error as error:
            atexit.unregister(self.close)
            raise UserError(f"stop input keyboard: the terminal cannot be set up ({error.args[-1]})") from None

    def fileno(self) -> int:
        return self._fd

    def tripped(self) -> str:
        typed = _pending(self._fd)
        if typed is None:
            return "the terminal was closed"
        for key in typed:
            if name := STOP_KEYS.get(bytes([key])):
                return f"{name} was pressed"
        return ""

    def close(self) -> None:
        """Put the terminal back as it was. The descriptor stays open: it is not ours."""
        atexit.unregister(self.close)
        before, self._before = self._before, None
        if before is not None:
            with contextlib.suppress(termios.error):  # a terminal that is gone needs nothing
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)


class SerialStop:
    """A serial line that stops by any byte, by a change of CTS, DSR, DCD or RI, or by going away.

    A button between RTS and CTS is enough, closed at rest, so that a broken wire stops as well; RTS is on while the
    port is open. What the lines are when the port is opened counts as rest.

    Args:
        port: serial device, not the arm's.

    Raises:
        DeviceError: it cannot be opened, or another program has it.
    """

    def __init__(self, port: str) -> None:
        self.name = f"serial line {port}"
        try:
            self._serial = serial.Serial(port, 9600, timeout=0, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise DeviceError(
                f"stop input {port}: cannot be opened ({reason}); plug it in, check its name and what else uses it"
            ) from None
        self._rest: int | None = None  # a line of data only
        try:
            self._rest = self._lines()
        except OSError as error:
            if error.errno not in _NO_MODEM:
                self._serial.close()
                raise DeviceError(f"stop input {port}: its lines cannot be read ({error.strerror})") from None

    def fileno(self) -> int:
        return int(self._serial.fileno())

    def tripped(self) -> str:
        data = _pending(self.fileno())
        if data is None:
            return "the line hung up or was unplugged"
        if data:
            return f"received {data[:4].hex(' ')}"
        if self._rest is not None and (changed := self._lines() ^ self._rest):
            return f"{' and '.join(name for name, bit in _MODEM_LINES.items() if changed & bit)} changed"
        return ""

    def close(self) -> None:
        self._serial.close()

    def _lines(self) -> int:
        state = fcntl.ioctl(self.fileno(), termios.TIOCMGET, struct.pack("I", 0))
        return int(struct.unpack("I", state)[0]) & sum(_MODEM_LINES.values())


class GpioStop:
    """A button on a GPIO line, through the package ``gpiod`` (2 or newer), which is not installed with this project.

    The line is pulled up. At rest the button connects it to ground; pressed, or with its wire broken, it goes high.
    A button that is open at rest works too, but nobody notices when its wire breaks.

    Args:
        chip: device of the GPIO chip, for example /dev/gpiochip0.
        line: its number on the chip.
        open_at_rest: the button connects the line to ground when it is pressed.

    Raises:
        UserError: the package is missing.
        DeviceError: the line cannot be had, or cannot report edges.
    """

    def __init__(self, chip: str, line: int, *, open_at_rest: bool = False) -> None:
        self.name = f"GPIO line {line} of {chip}"
        try:
            gpiod = importlib.import_module("gpiod")
            levels = importlib.import_module("gpiod.line")
            request_lines = gpiod.request_lines  # version 1 has none
        except (ImportError, AttributeError):
            raise UserError(
                f"stop input {self.name}: needs the package gpiod, 2 or newer; pip install 'gpiod>=2'"
            ) from None
        settings = gpiod.LineSettings(
            direction=levels.Direction.INPUT,
            bias=levels.Bias.PULL_UP,
            active_low=open_at_rest,  # active is pressed, either way
            edge_detection=levels.Edge.RISING,
            debounce_period=timedelta(milliseconds=2),
        )
        try:
            self._request = request_lines(chip, consumer="vlar1 stop", config={line: settings})
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DeviceError(
                f"stop input {self.name}: cannot be had ({reason}); check chip, line and what else uses it (gpioinfo)"
            ) from None
        self._line, self._pressed = line, levels.Value.ACTIVE

    def fileno(self) -> int:
        return int(self._request.fd)

    def tripped(self) -> str:
        if self._request.wait_edge_events(0) and self._request.read_edge_events():
            return "the button was pressed"
        if self._request.get_value(self._line) == self._pressed:
            return "the button is pressed, or its wire is broken"
        return ""

    def close(self) -> None:
        self._request.release()


def open_stop_inputs(texts: Sequence[str]) -> list[StopInput]:
    """The inputs that a robot file names: ``keyboard``, ``serial:PORT``, ``gpio:CHIP:LINE``.

    Raises UserError for one that is none of these or cannot be opened; those before it are closed again.
    """
    opened: list[StopInput] = []
    try:
        for text in texts:
            opened.append(_open(text))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def _open(text: str) -> StopInput:
    kind, _, rest = text.partition(":")
    chip, _, line = rest.rpartition(":")
    if text == "keyboard":
        return KeyboardStop()
    if kind == "serial" and rest:
        return SerialStop(rest)
    if kind == "gpio" and chip and line.isdecimal():
        return GpioStop(chip, int(line))
    raise UserError(f"stop input {text!r}: expected keyboard, serial:PORT or gpio:CHIP:LINE (gpio:/dev/gpiochip0:17)")


class StopWatch:
    """One thread that listens to stop inputs and calls ``stop`` with the name and the reason, as soon as one says so.

    A context manager; leaving it ends the thread and closes the inputs.

    Args:
        inputs: open; closed with the watch.
        stop: called from the watch's thread, again and again while a cause lasts: it must be quick and may be called
            twice. If it raises, it is called again with the same reason.
    """

    def __init__(self, inputs: Sequence[StopInput], stop: Callable[[str], None]) -> None:
        self._inputs, self._stop = tuple(inputs), stop
        self._untold: list[str] = []
        self._broken: dict[int, str] = {}  # by place among the inputs: why it will not be heard again
        self._wake_read, self._wake_write = os.pipe()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop watch", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether anybody is listening."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread, then close every input, even if one fails to."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.write(self._wake_write, b"\0")
        if self._thread is not threading.current_thread():
            self._thread.join()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._wake_read)
            stack.callback(os.close, self._wake_write)
            for one in self._inputs:
                stack.callback(one.close)

    def __enter__(self) -> StopWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            self._tell(f"stop watch: {_in_words(error)}")

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        fds: dict[int, int] = {}
        for i, one in enumerate(self._inputs):
            try:
                fds[i] = one.fileno()
                poll.register(fds[i], select.POLLIN)
            except Exception as error:
                self._broken[i] = _in_words(error)
        while not self._closing.is_set():
            events = dict(poll.poll(POLL_S * 1e3))
            for i, one in enumerate(self._inputs):
                if i not in self._broken:
                    self._listen(i, one, events.get(fds[i], 0))
                    if i in self._broken:
                        poll.unregister(fds[i])  # it would be ready for ever
                if i in self._broken:
                    self._tell(f"{one.name}: {self._broken[i]}")
            for reason in self._untold.copy():
                self._tell(reason)

    def _listen(self, i: int, one: StopInput, events: int) -> None:
        try:
            reason = one.tripped()
        except Exception as error:
            self._broken[i] = _in_words(error)
            return
        if events & _BROKEN:
            self._broken[i] = reason or "hung up"
        elif reason:
            self._tell(f"{one.name}: {reason}")

    def _tell(self, reason: str) -> None:
        if reason not in self._untold:
            self._untold.append(reason)
        with contextlib.suppress(Exception):
            self._stop(reason)
            self._untold.remove(reason)


def _pending(fd: int) -> bytes | None:
    """What can be read without waiting: b"" for nothing, None when the other end is gone."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(0):
        return b""
    try:
        return os.read(fd, _READ_BYTES) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


def _in_words(error: Exception) -> str:
    return f"failed ({' '.join(str(error).split()) or type(error).__name__})"
