import enum
import fcntl
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import DeviceError, UserError
from edge import stop_input
from edge.stop_input import POLL_S, STOP_KEYS, GpioStop, KeyboardStop, SerialStop, StopWatch, open_stop_inputs

ROOT = Path(__file__).parents[2]
SOON_S = 2.0  # on a busy machine


class Stops:
    """A stop function that remembers."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.times_s: list[float] = []
        self.heard = threading.Event()

    def __call__(self, reason: str) -> None:
        self.times_s.append(time.monotonic())
        self.reasons.append(reason)
        self.heard.set()

    def wait(self) -> str:
        assert self.heard.wait(SOON_S), "nobody said stop"
        return self.reasons[0]

    def none(self) -> bool:
        return not self.heard.wait(6 * POLL_S)


class Pipe:
    """A stop input of a test: ``press`` makes it say so; ``fails`` makes it break."""

    def __init__(self, name: str = "button") -> None:
        self.name = name
        self.read_fd, self.write_fd = os.pipe()
        self.fails = self.closed = False

    def fileno(self) -> int:
        return self.read_fd

    def tripped(self) -> str:
        if self.fails:
            raise OSError("no answer")
        return "pressed" if stop_input._pending(self.read_fd) else ""

    def press(self) -> None:
        os.write(self.write_fd, b"x")

    def close(self) -> None:
        self.closed = True
        os.close(self.read_fd)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The person's end and the program's end of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for fd in (ours, theirs):
        try:
            os.close(fd)
        except OSError:
            pass


# Keyboard


@pytest.mark.parametrize("key", STOP_KEYS)
def test_a_stop_key_stops_at_once_without_enter(terminal: tuple[int, int], key: bytes) -> None:
    ours, theirs = terminal
    stops = Stops()
    with StopWatch([KeyboardStop(theirs)], stops):
        pressed_s = time.monotonic()
        os.write(ours, key)
        assert stops.wait() == f"keyboard: {STOP_KEYS[key]} was pressed"
        assert stops.times_s[0] - pressed_s < 0.5


def test_other_keys_do_nothing(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    stops = Stops()
    with StopWatch([KeyboardStop(theirs)], stops):
        os.write(ours, b"hello\n")
        assert stops.none()
        os.write(ours, b"yes, stop")  # the space is what counts
        stops.wait()


def test_the_terminal_is_put_back(terminal: tuple[int, int]) -> None:
    _, theirs = terminal
    before = termios.tcgetattr(theirs)
    keyboard = KeyboardStop(theirs)
    assert not termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO)
    keyboard.close()
    assert termios.tcgetattr(theirs) == before
    keyboard.close()


def test_the_terminal_is_put_back_when_python_ends_without_closing(terminal: tuple[int, int]) -> None:
    _, theirs = terminal
    before = termios.tcgetattr(theirs)
    code = "from edge.stop_input import KeyboardStop; KeyboardStop(); raise SystemExit('an error')"
    done = subprocess.run([sys.executable, "-c", code], stdin=theirs, cwd=ROOT, capture_output=True, timeout=60)
    assert b"an error" in done.stderr and done.returncode == 1
    assert termios.tcgetattr(theirs) == before


def test_a_closed_terminal_stops(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    stops = Stops()
    with StopWatch([KeyboardStop(theirs)], stops):
        os.close(ours)
        assert stops.wait() == "keyboard: the terminal was closed"


def test_without_a_terminal_there_is_no_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing, pytest.raises(UserError, match="is no terminal; run in one"):
        KeyboardStop(nothing.fileno())
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="is no terminal"):
        KeyboardStop()


# Serial line


@given(st.binary(min_size=1, max_size=20))
def test_any_byte_on_the_line_stops(data: bytes) -> None:
    ours, theirs = pty.openpty()
    line = SerialStop(os.ttyname(theirs))
    try:
        assert line.tripped() == ""
        os.write(ours, data)
        reason = next(r for r in iter(line.tripped, None) if r)
        assert reason.startswith("received ")
        assert bytes.fromhex(reason.removeprefix("received ")) == data[:4][: len(reason.split()) - 1]
    finally:
        line.close()
        os.close(ours)
        os.close(theirs)


def test_an_unplugged_line_stops_and_goes_on_saying_so(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    port = os.ttyname(theirs)
    stops = Stops()
    with StopWatch([SerialStop(port)], stops) as watch:
        assert stops.none()
        os.close(theirs)
        os.close(ours)
        assert stops.wait() == f"serial line {port}: the line hung up or was unplugged"
        count = len(stops.reasons)
        time.sleep(10 * POLL_S)
        assert count < len(stops.reasons) < count + 50  # without turning into a busy loop
        assert watch.running


@pytest.mark.parametrize("bit", ["CTS", "DSR", "DCD", "RI"])
@pytest.mark.parametrize("rest_high", [True, False])
def test_a_change_of_a_modem_line_stops(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch, bit: str, rest_high: bool
) -> None:
    """A pseudo-terminal has none, so their state is made up here."""
    mask = stop_input._MODEM_LINES[bit]
    state = [termios.TIOCM_RTS | termios.TIOCM_DTR | (mask if rest_high else 0)]

    real = fcntl.ioctl

    def ioctl(fd: int, request: int, *args: bytes) -> bytes | int:
        return state[0].to_bytes(4, sys.byteorder) if request == termios.TIOCMGET else real(fd, request, *args)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    stops = Stops()
    port = os.ttyname(terminal[1])
    with StopWatch([SerialStop(port)], stops):
        state[0] ^= termios.TIOCM_RTS  # ours, not the button's
        assert stops.none()
        state[0] ^= mask
        assert stops.wait() == f"serial line {port}: {bit} changed"


def test_a_port_that_is_not_there_or_taken_is_refused(terminal: tuple[int, int]) -> None:
    with pytest.raises(DeviceError, match="stop input /dev/nowhere: cannot be opened .*plug it in"):
        SerialStop("/dev/nowhere")
    line = SerialStop(os.ttyname(terminal[1]))
    with pytest.raises(DeviceError, match="cannot be opened"):
        SerialStop(os.ttyname(terminal[1]))
    line.close()


# GPIO


class FakeGpio:
    """The package gpiod as far as it is used: an edge is a byte in a pipe, the level an attribute."""

    def __init__(self) -> None:
        self.line = ModuleType("gpiod.line")
        for name, values in (
            ("Direction", "INPUT"),
            ("Bias", "PULL_UP"),
            ("Edge", "RISING"),
            ("Value", "ACTIVE INACTIVE"),
        ):
            setattr(self.line, name, enum.Enum(name, values))  # type: ignore[misc]
        self.module = ModuleType("gpiod")
        self.module.LineSettings = SimpleNamespace  # type: ignore[attr-defined]
        self.module.request_lines = self.request_lines  # type: ignore[attr-defined]
        self.fd, self._edges = os.pipe()
        self.high, self.released, self.settings = False, False, SimpleNamespace()

    def request_lines(self, path: str, consumer: str, config: dict[int, SimpleNamespace]) -> "FakeGpio":
        if path != "/dev/gpiochip0":
            raise FileNotFoundError(2, "No such file or directory")
        (self.settings,) = config.values()
        return self

    def set(self, high: bool) -> None:
        rising = (high != self.settings.active_low) and high != self.high
        self.high = high
        if rising:
            os.write(self._edges, b"e")

    def wait_edge_events(self, timeout: float) -> bool:
        return bool(stop_input.select.select([self.fd], [], [], timeout)[0])

    def read_edge_events(self) -> list[bytes]:
        return [os.read(self.fd, 1)]

    def get_value(self, line: int) -> enum.Enum:
        return self.line.Value["ACTIVE" if self.high != self.settings.active_low else "INACTIVE"]

    def release(self) -> None:
        self.released = True


@pytest.fixture
def gpio(monkeypatch: pytest.MonkeyPatch) -> FakeGpio:
    fake = FakeGpio()
    monkeypatch.setitem(sys.modules, "gpiod", fake.module)
    monkeypatch.setitem(sys.modules, "gpiod.line", fake.line)
    return fake


@pytest.mark.parametrize("open_at_rest", [False, True])
def test_a_short_press_stops(gpio: FakeGpio, open_at_rest: bool) -> None:
    gpio.high = open_at_rest
    stops = Stops()
    with StopWatch([GpioStop("/dev/gpiochip0", 17, open_at_rest=open_at_rest)], stops):
        assert stops.none()
        gpio.set(not open_at_rest)
        gpio.set(open_at_rest)  # let go before anybody looked
        assert stops.wait() == "GPIO line 17 of /dev/gpiochip0: the button was pressed"
    assert gpio.released


def test_a_broken_wire_at_the_start_stops(gpio: FakeGpio) -> None:
    gpio.high = True
    stops = Stops()
    with StopWatch([GpioStop("/dev/gpiochip0", 17)], stops):
        assert "its wire is broken" in stops.wait()


def test_gpio_errors_say_what_to_do(gpio: FakeGpio, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"GPIO line 3 of /dev/gpiochip7: cannot be had \(No such file"):
        GpioStop("/dev/gpiochip7", 3)
    del gpio.module.request_lines  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"needs the package gpiod, 2 or newer; pip install 'gpiod>=2'"):
        GpioStop("/dev/gpiochip0", 3)
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(UserError, match="needs the package gpiod"):
        GpioStop("/dev/gpiochip0", 3)


# Watch


def test_each_of_several_is_heard_and_named() -> None:
    inputs = [Pipe(name) for name in ("left", "right", "door")]
    for pressed in inputs:
        others = [Pipe(one.name) if one is not pressed else pressed for one in inputs]
        stops = Stops()
        with StopWatch(others, stops):
            assert stops.none()
            pressed.press()
            assert stops.wait() == f"{pressed.name}: pressed"


def _fail(one: Pipe) -> None:
    one.fails = True


def _hang_up(one: Pipe) -> None:
    os.close(one.write_fd)


@pytest.mark.parametrize(
    ("end", "reason"),
    [(_fail, "button: failed (no answer)"), (_hang_up, "button: hung up")],
)
def test_an_input_that_breaks_stops_for_good(end: Callable[[Pipe], None], reason: str) -> None:
    broken, other, stops = Pipe(), Pipe("other"), Stops()
    with StopWatch([broken, other], stops) as watch:
        assert stops.none()
        end(broken)
        assert stops.wait() == reason
        other.press()  # the others are still listened to
        deadline_s = time.monotonic() + SOON_S
        while "other: pressed" not in stops.reasons and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        assert set(stops.reasons) == {reason, "other: pressed"}
        time.sleep(5 * POLL_S)
        assert stops.reasons[-1] == reason and stops.reasons.count("other: pressed") == 1
        assert watch.running


def test_an_input_without_a_descriptor_stops() -> None:
    one, stops = Pipe(), Stops()
    one.fileno = lambda: -1  # type: ignore[method-assign]
    with StopWatch([one], stops):
        assert stops.wait().startswith("button: failed")


def test_a_stop_that_fails_is_tried_again() -> None:
    one, stops, tries = Pipe(), Stops(), []

    def stop(reason: str) -> None:
        tries.append(reason)
        if len(tries) < 3:
            raise RuntimeError("busy")
        stops(reason)

    with StopWatch([one], stop):
        one.press()
        assert stops.wait() == "button: pressed"
        time.sleep(4 * POLL_S)
    assert len(tries) == 3 and len(stops.reasons) == 1


def test_closing_ends_the_thread_and_closes_all_inputs() -> None:
    inputs = [Pipe("a"), Pipe("b")]
    close = inputs[1].close

    def fails() -> None:
        close()
        raise OSError("cannot be closed")

    inputs[1].close = fails  # type: ignore[method-assign]
    watch = StopWatch(inputs, Stops())
    assert watch.running
    with pytest.raises(OSError, match="cannot be closed"):
        watch.close()
    assert not watch.running and inputs[0].closed and inputs[1].closed
    watch.close()


def test_a_robot_file_names_its_stop_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[object, ...]] = []
    for name in ("KeyboardStop", "SerialStop", "GpioStop"):
        monkeypatch.setattr(stop_input, name, lambda *args, name=name: opened.append((name, *args)))
    open_stop_inputs(["keyboard", "serial:/dev/ttyUSB1", "gpio:/dev/gpiochip0:17"])
    assert opened == [("KeyboardStop",), ("SerialStop", "/dev/ttyUSB1"), ("GpioStop", "/dev/gpiochip0", 17)]


@pytest.mark.parametrize("text", ["", "button", "serial:", "gpio:17", "gpio:/dev/gpiochip0:x", "keyboard:"])
def test_a_stop_input_that_is_none_is_refused_and_those_before_it_are_closed(text: str) -> None:
    line, far_end = pty.openpty()
    with pytest.raises(UserError, match="expected keyboard, serial:PORT or gpio:CHIP:LINE"):
        open_stop_inputs([f"serial:{os.ttyname(far_end)}", text])
    SerialStop(os.ttyname(far_end)).close()
    os.close(line)
    os.close(far_end)
