"""`vlar1 arm park` and `vlar1 arm jog` by keys, on an emulated arm over a pseudo-terminal."""

from collections.abc import Iterator

import numpy as np
import pytest
from arm_terminal import Terminal, person, terminal, wait_for  # noqa: F401

from drivers.arm import tables
from drivers.robot import load_robot
from drivers.sim.following_arm import FollowingBank
from drivers.sim.servo_bus import ServoBus
from edge import cli

ROBOT = load_robot()
COUNT_RAD = 2 * np.pi / 4096
NEAR_RAD = 0.02


@pytest.fixture
def bank() -> FollowingBank:
    return FollowingBank(ROBOT, ROBOT.ready_rad)


@pytest.fixture
def bus(bank: FollowingBank) -> Iterator[ServoBus]:
    with ServoBus(bank) as one:
        yield one


def arm(bus: ServoBus, command: str, *arguments: str) -> int:
    return cli.main(["arm", command, "--port", bus.port, *arguments])


def torque(bank: FollowingBank) -> list[int]:
    return bank.values(tables.TORQUE_ENABLE).tolist()


def at_rest(bank: FollowingBank) -> bool:
    return bool(np.abs(bank.position_rad - ROBOT.rest_rad)[:-1].max() < NEAR_RAD) and not any(torque(bank))


# Park


def test_park_goes_to_rest_and_lets_go(bank: FollowingBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]) -> None:
    assert arm(bus, "park", "--yes") == 0
    told = capsys.readouterr().out
    assert "The arm moves: clear its way." in told and told.endswith("parked; torque is off\n")
    assert at_rest(bank)


def test_park_asks_before_anything_moves(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    with person(lambda: terminal.press("n")):
        assert arm(bus, "park") == 0
    assert "nothing was done" in capsys.readouterr().out
    assert not bank.writes and terminal.restored
    with person(lambda: terminal.press("y")):
        assert arm(bus, "park") == 0
    assert at_rest(bank)


def test_park_does_not_ask_where_nobody_is(
    bank: FollowingBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arm(bus, "park") == 2
    error = capsys.readouterr().err
    assert error.startswith("vlar1: error: arm park: needs a keyboard") and "or add --yes" in error
    assert error.count("\n") == 1 and not bank.writes


# Jog


def test_keys_choose_a_joint_and_move_it_by_steps(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    ready = ROBOT.ready_rad

    def moved(joint: int, degrees: float) -> None:
        goal = ready[joint] + np.radians(degrees)
        wait_for(lambda: abs(bank.position_rad[joint] - goal) < np.radians(0.6))

    def act() -> None:
        terminal.press("\x1b[A")  # up: 2 degrees on the first joint
        moved(0, 2.0)
        terminal.press("\x1b[C", "\x1b[C", "\x1b[D", "+")  # to the second; 5 degrees
        terminal.press("\x1b[A")
        moved(1, 5.0)
        terminal.press("4", "-", "-", "\x1b[B")  # the fourth down by 1
        moved(3, -1.0)
        assert np.abs(bank.position_rad - ready)[[2, 4, 5]].max() < 2 * COUNT_RAD
        terminal.press("q")

    with person(act):
        assert arm(bus, "jog") == 0
    assert at_rest(bank) and terminal.restored
    told = capsys.readouterr().out
    assert "4 wrist_flex" in told and "step 1 deg" in told and told.endswith("parked; torque is off\n")


def test_a_key_held_moves_on_to_the_limit_and_not_beyond(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
) -> None:
    def act() -> None:
        terminal.press("5", "+", "+", "+")

        def arrived() -> bool:
            terminal.press("\x1b[A")
            return bank.position_rad[4] > ROBOT.upper_rad[4] - NEAR_RAD

        wait_for(arrived)
        assert bank.position_rad[4] < ROBOT.upper_rad[4] + 2 * COUNT_RAD
        terminal.press("q")

    with person(act):
        assert arm(bus, "jog") == 0
    assert at_rest(bank)


def test_the_space_bar_stops_for_good_until_r(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
) -> None:
    def act() -> None:
        wait_for(lambda: all(torque(bank)))
        terminal.press("\x1b[A\x1b[A\x1b[A ")  # stop is heard before what was typed ahead of it
        held = bank.position_rad[0]
        terminal.press("\x1b[A", "\x1b[A", "1")
        assert abs(bank.position_rad[0] - held) < np.radians(4.0)
        terminal.press("r", "+", "+", "\x1b[A")
        wait_for(lambda: bank.position_rad[0] > held + np.radians(5.0))
        terminal.press("q")

    with person(act):
        assert arm(bus, "jog") == 0
    assert at_rest(bank)


def test_leaving_while_stopped_leaves_the_arm_holding(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        wait_for(lambda: all(torque(bank)))
        terminal.press(" ")
        terminal.press("q")

    with person(act):
        assert arm(bus, "jog") == 2
    error = capsys.readouterr().err
    assert "stopped (the space bar was pressed)" in error and error.count("\n") == 1
    assert all(torque(bank)) and terminal.restored
    assert np.abs(bank.position_rad - ROBOT.ready_rad).max() < NEAR_RAD


def test_p_parks_and_leaves_torque_off(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act() -> None:
        terminal.press("p")
        wait_for(lambda: at_rest(bank))
        terminal.press("\x1b[A")  # refused, and said so
        terminal.press("q")

    with person(act):
        assert arm(bus, "jog") == 0
    assert at_rest(bank)


def test_a_terminal_that_is_closed_parks_the_arm(
    bank: FollowingBank,
    bus: ServoBus,
    terminal: Terminal,  # noqa: F811
) -> None:
    def act() -> None:
        wait_for(lambda: all(torque(bank)))
        terminal.hang_up()

    with person(act):
        assert arm(bus, "jog") == 0
    assert at_rest(bank)


def test_jog_without_a_keyboard_touches_nothing(
    bank: FollowingBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arm(bus, "jog") == 2
    error = capsys.readouterr().err
    assert error.startswith("vlar1: error: arm jog: needs a keyboard") and error.count("\n") == 1
    assert not bank.writes
