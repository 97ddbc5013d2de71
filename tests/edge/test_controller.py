"""The controller and its servo loop on an emulated arm, over a pseudo-terminal. How fast it runs decides nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivers.arm import dynamixel_tables, tables
from drivers.arm.dynamixel_packets import DYNAMIXEL
from drivers.arm.packets import FEETECH, SYNC_READ, Packet
from drivers.errors import DeviceError, UserError
from drivers.robot import SO101_PATH, load_robot
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.following_arm import FollowingBank, WireTap
from drivers.sim.servo_bus import LineFaults, ServoBus
from edge.control import Cause, Controller, MotionError, ServoLoop, State, Stopped
from edge.control.loop_arm import LoopArm
from edge.motion import JointTrajectory, plan_move
from edge.plan_check import LimitError

SHIPPED = load_robot()
# Its rest pose is near the ready pose, so that every test is soon through.
ROBOT = replace(SHIPPED, rest_rad=SHIPPED.ready_rad + [0, 0, 0.2, 0, 0, 0])
SIDE = ROBOT.ready_rad + [0.5, 0, 0, 0, 0, 0]
COUNT_RAD = 2 * np.pi / 4096


class Bench:
    """An arm at rest on a wire."""

    def __init__(self, position: np.ndarray = ROBOT.rest_rad, faults: LineFaults | None = None, **line: object) -> None:
        self.bank = FollowingBank(ROBOT, position)
        self.tap = WireTap(FEETECH, tables.GOAL_POSITION)
        self.bus = ServoBus(self.bank, faults, tap=self.tap, **line)  # type: ignore[arg-type]

    @property
    def torque(self) -> list[int]:
        return self.bank.values(tables.TORQUE_ENABLE).tolist()

    def sent(self) -> np.ndarray:
        return self.tap.angles(ROBOT)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.bus.close()


@pytest.fixture
def ready() -> Iterator[Bench]:
    """The arm lies where it is ready, without torque."""
    bench = Bench(ROBOT.ready_rad)
    yield bench
    bench.bus.close()


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come about"
        time.sleep(0.002)


def moving(controller: Controller) -> Callable[[], bool]:
    """Whether a motion is well under way."""
    return lambda: (
        controller.state().state == State.MOVING
        and abs(controller.state().setpoint_rad[0] - ROBOT.ready_rad[0]) > 0.05
    )


def in_thread(action: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def check_wire(bench: Bench) -> None:
    """Every setpoint that went out is within the limits, and no further from the one before than velocity allows."""
    sent, t_s = bench.sent(), np.array(bench.tap.t_s)
    assert (sent >= np.minimum(ROBOT.lower_rad, sent[0]) - 1e-9).all()
    assert (sent <= np.maximum(ROBOT.upper_rad, sent[0]) + 1e-9).all()
    steps = np.abs(np.diff(sent, axis=0)).max(axis=1)
    assert len(t_s) > 1 and steps.max() <= ROBOT.limits.velocity_rad_s.max() * 0.005 + COUNT_RAD


# Up and down


def test_starting_moves_nothing_and_leaving_parks_before_torque_goes_off(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        until(lambda: len(ready.tap.goals) > 20)
        assert ready.torque == [1] * 6
        assert np.abs(ready.sent() - ready.sent()[0]).max() < COUNT_RAD / 2
        assert controller.state().state == State.ARMED
    assert ready.torque == [0] * 6
    np.testing.assert_allclose(ready.bank.position_rad, ROBOT.rest_rad, atol=0.03)
    check_wire(ready)


def test_a_servo_that_is_silent_at_the_start_is_named_and_nothing_is_switched_on(bench: Bench) -> None:
    bench.bank.silent = {4}
    with pytest.raises(DeviceError, match="wrist_flex"), Controller(ROBOT, bench.bus.port):
        pass
    assert bench.torque == [0] * 6 and not bench.bank.writes


def test_a_start_that_fails_leaves_torque_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ServoLoop, "arm", refuse)
    with pytest.raises(KeyboardInterrupt), Controller(ROBOT, bench.bus.port):
        pass
    assert bench.torque == [0] * 6
    for servo in (1, 2, 3):
        bench.bank.handle(FEETECH.write(servo, tables.TORQUE_ENABLE, 1))
    with pytest.raises(KeyboardInterrupt), Controller(ROBOT, bench.bus.port):
        pass
    assert bench.torque == [1, 1, 1, 0, 0, 0]


def test_a_port_that_does_not_exist_or_is_in_use_is_said_in_a_line(bench: Bench) -> None:
    with pytest.raises(DeviceError, match="there is no such device"), Controller(ROBOT, "/dev/ttyNOPE"):
        pass
    with Controller(ROBOT, bench.bus.port):
        with pytest.raises(DeviceError, match="another program is using it"):
            ServoLoop(ROBOT, bench.bus.port)


# Motions


def test_a_trajectory_is_run_to_its_end_within_the_limits(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        controller.execute(plan_move(controller.setpoint_rad, SIDE))
        np.testing.assert_allclose(controller.setpoint_rad, SIDE, atol=1e-6)
        assert controller.state().state == State.ARMED
        assert controller.tracer.summary()["actuate"]["count"] > 50
    check_wire(ready)


def test_an_arm_that_is_elsewhere_does_not_move(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        with pytest.raises(MotionError, match="shoulder_pan is at 0.00.*starts at 0.50.*nothing moved"):
            controller.execute(plan_move(SIDE, ROBOT.ready_rad))
        assert np.abs(ready.sent() - ready.sent()[0]).max() < COUNT_RAD / 2


def test_a_plan_that_breaks_a_limit_is_refused_by_its_name_and_nothing_moves(ready: Bench) -> None:
    below = ROBOT.ready_rad.copy()
    below[1:4] = [0.6, 0.9, 0.9]
    with Controller(ROBOT, ready.bus.port) as controller:
        with pytest.raises(LimitError, match="table"):
            controller.move_to(below)
        with pytest.raises(LimitError, match="joint limit of shoulder_pan"):
            controller.move_to(ROBOT.ready_rad + [9, 0, 0, 0, 0, 0])
        assert np.abs(ready.sent() - ready.sent()[0]).max() < COUNT_RAD / 2


def test_a_trajectory_of_another_arm_is_refused(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        with pytest.raises(ValueError, match="must be .waypoints, joints."):
            controller.loop.move(np.array([0.0, 0.1]), np.zeros((2, 4)))
        with pytest.raises(ValueError, match="finite"):
            controller.loop.move(np.array([0.0, 0.1]), np.full((2, 6), np.nan))
        with pytest.raises(UserError, match="expected .samples, 6. joint angles; nothing moved"):
            controller.execute(JointTrajectory(np.array([0.0, 0.1]), np.zeros((2, 4))))
        assert controller.state().state == State.ARMED


def test_a_jump_in_a_trajectory_is_taken_within_the_limits(ready: Bench) -> None:
    goal = ROBOT.ready_rad + [0.4, 0, 0, 0, 0, 0]
    with Controller(ROBOT, ready.bus.port) as controller:
        controller.execute(JointTrajectory(np.array([0.0, 0.01, 0.02]), np.array([ROBOT.ready_rad, goal, goal])))
        np.testing.assert_allclose(controller.setpoint_rad, goal, atol=1e-6)
    check_wire(ready)


def test_jogging_goes_on_while_it_is_called_and_then_stops(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.6:
            controller.jog(0, 0.5)
            time.sleep(0.05)
        took_s = time.monotonic() - began_s
        until(lambda: controller.state().settled)
        assert 0.35 * took_s < controller.setpoint_rad[0] < 0.5 * (took_s + 0.25)
    check_wire(ready)


# Stops


def test_stopping_decelerates_within_the_limits_and_is_latched(ready: Bench) -> None:
    with pytest.raises(MotionError, match="stopped .the red button.*not parked"):
        with Controller(ROBOT, ready.bus.port) as controller:
            thread, errors = in_thread(lambda: controller.move_to(SIDE))
            until(moving(controller))
            controller.stop("the red button")
            thread.join()
            assert "stopped (the red button)" in str(errors[0])
            assert controller.state().state == State.STOPPED and controller.state().settled
            with pytest.raises(MotionError, match="restart it first"):
                controller.move_to(controller.setpoint_rad)
            where = controller.setpoint_rad
            assert where[0] < SIDE[0] - 0.05
    assert ready.torque == [1] * 6
    check_wire(ready)
    sent = ready.sent()[:, 0]
    deceleration = np.abs(np.diff(sent, 2)).max() / 0.005**2
    assert deceleration <= ROBOT.limits.acceleration_rad_s2[0] + 3 * COUNT_RAD / 0.005**2


def test_a_restart_after_a_stop_goes_on_from_there_without_a_jump(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        thread, _ = in_thread(lambda: controller.move_to(SIDE))
        until(moving(controller))
        controller.stop()
        thread.join()
        controller.restart()
        controller.move_to(SIDE)
        np.testing.assert_allclose(controller.setpoint_rad, SIDE, atol=1e-6)
    assert ready.torque == [0] * 6
    check_wire(ready)


def test_the_callers_event_holds(ready: Bench) -> None:
    stop = threading.Event()
    with Controller(ROBOT, ready.bus.port) as controller:
        thread, errors = in_thread(lambda: controller.execute(plan_move(ROBOT.ready_rad, SIDE), stop=stop))
        until(moving(controller))
        stop.set()
        thread.join()
        assert isinstance(errors[0], Stopped)
        assert controller.state().state == State.HOLDING and controller.state().settled
        controller.move_to(SIDE)  # a new plan is word enough
    check_wire(ready)


def test_a_commander_that_falls_silent_makes_the_arm_hold(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        trajectory = plan_move(ROBOT.ready_rad, ROBOT.ready_rad + [1.8, 0, 0, 0, 0, 0])
        controller.loop.move(trajectory.times_s, trajectory.position_rad)
        until(lambda: controller.state().state == State.HOLDING)
        assert controller.state().cause == Cause.WATCHDOG
        until(lambda: controller.state().settled)
        assert controller.setpoint_rad[0] < 1.0
    check_wire(ready)


CHILD = """
import sys, numpy as np
from drivers.robot import SO101_PATH, load_robot
from drivers.sim.dynamixel_bank import DynamixelBank
from edge.control import Controller
from edge.motion import plan_move
robot = load_robot()
with Controller(robot, sys.argv[1]) as controller:
    print(controller.loop.pid, flush=True)
    controller.move_to(robot.ready_rad + [1.8, 0, 0, 0, 0, 0])
    controller.move_to(robot.ready_rad)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_hung_program_leaves_the_arm_holding(ready: Bench, number: signal.Signals) -> None:
    command = [sys.executable, "-c", CHILD, ready.bus.port]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert child.stdout
    servo_process = int(child.stdout.readline())
    until(lambda: len(ready.tap.goals) > 0 and ready.sent()[-1][0] > 0.2, 30.0)
    child.send_signal(number)
    try:
        until(lambda: len({tuple(goal.items()) for goal in ready.tap.goals[-20:]}) == 1)
        assert 0.2 < ready.sent()[-1][0] < 1.7
        assert ready.torque == [1] * 6
        if number == signal.SIGKILL:  # the arm is at rest: nothing is left to do
            until(lambda: not Path(f"/proc/{servo_process}/fd").exists() or is_zombie(servo_process))
    finally:
        child.kill()
        child.wait()
    check_wire(ready)
    deceleration = np.abs(np.diff(ready.sent()[:, 0], 2)).max() / 0.005**2
    assert deceleration <= ROBOT.limits.acceleration_rad_s2[0] + 3 * COUNT_RAD / 0.005**2


def is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_ctrl_c_brings_the_arm_to_rest_and_parks_it(ready: Bench) -> None:
    main = threading.main_thread().ident
    assert main
    with pytest.raises(KeyboardInterrupt), Controller(ROBOT, ready.bus.port) as controller:
        watcher, _ = in_thread(lambda: (until(moving(controller)), signal.pthread_kill(main, signal.SIGINT)))
        controller.move_to(SIDE)
    watcher.join()
    assert ready.torque == [0] * 6
    np.testing.assert_allclose(ready.bank.position_rad, ROBOT.rest_rad, atol=0.03)
    check_wire(ready)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_parks_and_leaves_with_its_code(bench: Bench, number: signal.Signals) -> None:
    found = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as leaving, Controller(ROBOT, bench.bus.port):
        os.kill(os.getpid(), number)
        time.sleep(5.0)
    assert leaving.value.code == 128 + number
    assert bench.torque == [0] * 6
    assert signal.getsignal(number) == before
    signal.signal(number, found)


def test_torque_that_does_not_go_off_at_once_is_switched_off_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    disable = LoopArm.disable

    def fail_once(arm: LoopArm) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise DeviceError("servo 3 does not confirm")
        disable(arm)

    monkeypatch.setattr(LoopArm, "disable", fail_once)
    with Controller(ROBOT, bench.bus.port):
        pass
    assert len(tries) == 2 and bench.torque == [0] * 6


def test_parking_ends_a_motion_in_another_thread(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        thread, errors = in_thread(lambda: controller.move_to(SIDE))
        until(moving(controller))
        controller.park()
        thread.join()
    assert isinstance(errors[0], Stopped)
    assert ready.torque == [0] * 6
    check_wire(ready)


def test_a_stop_while_it_parks_is_a_stop(ready: Bench) -> None:
    with pytest.raises(MotionError, match="torque stays on"), Controller(SHIPPED, ready.bus.port) as controller:
        rest = lambda: controller.state().state == State.MOVING and controller.setpoint_rad[3] > -0.7  # noqa: E731
        watcher, _ = in_thread(lambda: (until(rest), controller.stop("the red button")))
    watcher.join()
    assert ready.torque == [1] * 6
    assert np.abs(ready.bank.position_rad - SHIPPED.rest_rad).max() > 0.5


def test_an_arm_that_cannot_be_parked_keeps_its_torque(ready: Bench) -> None:
    with pytest.raises(MotionError, match="could not be parked.*torque stays on"):
        with Controller(ROBOT, ready.bus.port):
            ready.bank.blocked[:] = True
    assert ready.torque == [1] * 6


# What the loop notices


def test_a_joint_that_does_not_follow_makes_the_arm_hold_and_is_named(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        ready.bank.blocked[0] = True
        with pytest.raises(MotionError, match="shoulder_pan does not follow"):
            controller.move_to(ROBOT.ready_rad + [1.5, 0, 0, 0, 0, 0])
        until(lambda: abs(controller.setpoint_rad[0]) < 0.01)  # it does not go on pushing
        ready.bank.blocked[0] = False
    check_wire(ready)


def test_contact_makes_the_arm_hold_and_the_gripper_may_squeeze(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        ready.bank.load[5] = 1.0
        controller.move_to(SIDE)
        ready.bank.load[2] = -0.97
        with pytest.raises(MotionError, match="elbow_flex pushes against something"):
            controller.move_to(ROBOT.ready_rad)
            controller.move_to(SIDE)
        ready.bank.load[2] = 0.0
    check_wire(ready)


@pytest.mark.parametrize(("field", "value", "said"), [("temperature_c", 80, "80 degrees"), ("voltage_v", 5.0, "5.0 V")])
def test_hot_or_weak_servos_end_the_run_and_the_arm_is_parked(
    ready: Bench, field: str, value: float, said: str
) -> None:
    with pytest.raises(DeviceError, match=said), Controller(ROBOT, ready.bus.port) as controller:
        setattr(ready.bank, field, value)
        controller.move_to(SIDE)
        controller.move_to(ROBOT.ready_rad)
    assert ready.torque == [0] * 6
    np.testing.assert_allclose(ready.bank.position_rad, ROBOT.rest_rad, atol=0.03)


def test_a_servo_that_falls_silent_is_named_and_gets_no_setpoints_until_it_is_back(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        thread, errors = in_thread(lambda: controller.move_to(SIDE))
        until(moving(controller))
        ready.bank.silent = {3}
        until(lambda: controller.state().state == State.HOLDING)
        until(lambda: 3 not in ready.tap.goals[-1])
        ready.bank.silent = set()
        thread.join()
        assert "elbow_flex does not answer" in str(errors[0]) and "is back" in str(errors[0])
        controller.move_to(SIDE)
    assert ready.torque == [0] * 6


def test_a_servo_that_resets_does_not_leap_when_it_gets_its_torque_back(ready: Bench) -> None:
    with Controller(ROBOT, ready.bus.port) as controller:
        thread, errors = in_thread(lambda: controller.move_to(SIDE))
        until(moving(controller))
        ready.bank.power_cycle()  # all of them: torque off, goals forgotten
        ready.bank.counts[1] += 60  # and one sags
        sagged = ready.bank.counts[1]
        until(lambda: controller.state().state == State.HOLDING)
        thread.join()
        assert "lost its torque" in str(errors[0]) and "is back" in str(errors[0])
        assert ready.torque == [1] * 6
        assert abs(ready.bank.counts[1] - sagged) < 5
        controller.move_to(controller.setpoint_rad)
    assert ready.torque == [0] * 6


# A bad line


@pytest.mark.parametrize(
    "faults",
    [
        LineFaults(corrupt=0.01, drop=0.001, seed=1),
        LineFaults(duplicate=0.05, delay=0.02, delay_s=0.02, seed=2),
        LineFaults(echo=1.0, seed=3),
    ],
    ids=["corrupt", "late and double", "echo"],
)
def test_a_bad_line_is_seen_in_the_counters_only(faults: LineFaults) -> None:
    bench = Bench(ROBOT.ready_rad, faults)
    try:
        with Controller(ROBOT, bench.bus.port) as controller:
            for goal in (SIDE, ROBOT.ready_rad, SIDE):
                controller.move_to(goal)
            errors = controller.state().errors
        assert errors["implausible"] == 0
        if faults.corrupt:
            assert errors["damaged"] > 0 and errors["timeouts"] > 0
    finally:
        bench.bus.close()
    assert bench.torque == [0] * 6
    check_wire(bench)


@pytest.mark.parametrize("late_s", [0.003, 0.04])
def test_a_late_answer_is_not_taken_for_that_of_another_register(late_s: float) -> None:
    class LateTorque(FollowingBank):
        def handle(self, packet: Packet) -> list[Packet]:
            if packet.code == SYNC_READ and packet.params[0] == tables.TORQUE_ENABLE.address:
                time.sleep(late_s)  # the loop waits a quarter of 5 ms
            return super().handle(packet)

    bank = LateTorque(ROBOT, ROBOT.ready_rad)
    for servo in range(1, 7):
        bank.handle(FEETECH.write(servo, tables.TORQUE_ENABLE, 1))
    with ServoBus(bank) as bus, ServoLoop(ROBOT, bus.port) as loop:
        until(lambda: loop.state().cycle > 20)
        answers = [loop.transact("read", [1], tables.OPERATING_MODE) for _ in range(150)]
        assert {answer[1][1] for answer in answers if 1 in answer} == {b"\x00"}
        assert loop.state().errors["timeouts"] > 0


def test_an_adapter_that_is_pulled_out_comes_back_under_another_name(tmp_path: Path) -> None:
    """Found by its USB serial number, in a tree as the kernel shows it."""
    system, devices = tmp_path / "class", tmp_path / "dev"
    usb = tmp_path / "usb" / "1-1"
    for folder in (system, devices, usb):
        folder.mkdir(parents=True)
    (usb / "serial").write_text("5A68009540\n")

    def appear(name: str, port: str) -> None:
        (devices / name).symlink_to(port)
        (usb / "1-1:1.0" / name).mkdir(parents=True)
        (system / name).mkdir()
        (system / name / "device").symlink_to(usb / "1-1:1.0")

    bench = Bench(ROBOT.ready_rad)
    try:
        appear("ttyACM0", bench.bus.port)
        roots = {"sys_root": str(system), "dev_root": str(devices)}
        with ServoLoop(ROBOT, str(devices / "ttyACM0"), realtime=False, **roots) as loop:
            until(lambda: bool((loop.state().position_s > 0).all()))
            for servo in range(1, 7):
                bench.bank.handle(FEETECH.write(servo, tables.TORQUE_ENABLE, 1))
            loop.arm(ROBOT.ready_rad)
            trajectory = plan_move(ROBOT.ready_rad, SIDE)
            loop.move(trajectory.times_s, trajectory.position_rad)
            for _ in range(10):
                loop.heard()
                time.sleep(0.03)
            (devices / "ttyACM0").unlink()
            (system / "ttyACM0" / "device").unlink()
            (system / "ttyACM0").rmdir()
            bench.bus.unplug()
            gone_s = time.monotonic()
            while loop.state().state == State.MOVING:
                loop.heard()
            assert loop.state().cause == Cause.BUS_LOST
            assert loop.state().hold_began_s - gone_s < 0.05
            held = loop.state().setpoint_rad
            bench.bus.plug()
            appear("ttyACM3", bench.bus.port)
            until(lambda: loop.state().connected)
            until(lambda: bool((loop.state().position_s > gone_s).all()))
            state = loop.state()
            assert state.port == str(devices / "ttyACM3")
            assert (state.errors["lost"], state.errors["reopened"]) == (1, 1)
            assert state.state == State.HOLDING  # nothing goes on by itself
            np.testing.assert_allclose(state.setpoint_rad, held)
            for _ in range(10):  # a machine that stalls makes the arm hold on its way
                number = loop.move(np.array([0.0, 1.0]), np.array([loop.state().setpoint_rad, SIDE]))
                while loop.state().state == State.MOVING:
                    loop.heard()
                    time.sleep(0.005)
                assert loop.state().plan == number
                if np.abs(loop.state().setpoint_rad - SIDE).max() < 1e-6:
                    break
            np.testing.assert_allclose(loop.state().setpoint_rad, SIDE, atol=1e-6)
    finally:
        bench.bus.close()
    check_wire(bench)


def test_a_motion_goes_on_when_the_bus_that_was_lost_is_back(tmp_path: Path) -> None:
    bench = Bench(ROBOT.ready_rad, link=tmp_path / "arm")
    try:
        with Controller(ROBOT, bench.bus.port) as controller:
            thread, errors = in_thread(lambda: controller.move_to(SIDE))
            until(moving(controller))
            bench.bus.unplug()
            until(lambda: controller.state().state == State.HOLDING)
            held = controller.setpoint_rad
            assert held[0] < SIDE[0] - 0.05
            bench.bus.plug()
            thread.join()
            assert not errors
            np.testing.assert_allclose(controller.setpoint_rad, SIDE, atol=1e-6)
            assert controller.state().errors["reopened"] == 1
        assert bench.torque == [0] * 6
    finally:
        bench.bus.close()
    check_wire(bench)


def test_a_stop_is_not_lifted_by_a_bus_that_comes_back(tmp_path: Path) -> None:
    bench = Bench(ROBOT.ready_rad, link=tmp_path / "arm")
    try:
        with pytest.raises(MotionError, match="not parked"), Controller(ROBOT, bench.bus.port) as controller:
            thread, errors = in_thread(lambda: controller.move_to(SIDE))
            until(moving(controller))
            bench.bus.unplug()
            until(lambda: controller.state().state == State.HOLDING)
            controller.loop.stop()  # by another process, which shares the loop's memory
            until(lambda: controller.state().state == State.STOPPED)
            bench.bus.plug()
            thread.join()
            assert "arm: stopped" in str(errors[0]) and controller.state().state == State.STOPPED
            assert controller.setpoint_rad[0] < SIDE[0] - 0.05
    finally:
        bench.bus.close()


@pytest.mark.parametrize("when", ["before it is disarmed", "while it is disarmed"])
def test_a_stop_is_not_lifted_by_servos_that_get_their_torque_back(
    ready: Bench, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    with pytest.raises(MotionError, match="not parked"), Controller(ROBOT, ready.bus.port) as controller:
        name, holder = ("disarm", controller.loop) if when.startswith("before") else ("enable", controller.arm)
        usual = getattr(holder, name)

        def stopped() -> object:
            controller.loop.stop()
            return usual()

        monkeypatch.setattr(holder, name, stopped)
        thread, errors = in_thread(lambda: controller.move_to(SIDE))
        until(moving(controller))
        ready.bank.power_cycle()
        thread.join()
        assert errors and ready.torque == [1] * 6
        until(lambda: controller.state().state == State.STOPPED)
        with pytest.raises(MotionError, match="restart it first"):
            controller.move_to(SIDE)


def test_dynamixel_servos_are_driven_by_the_same_loop() -> None:
    robot = load_robot(SO101_PATH.with_name("koch.yaml"))
    ids = [joint.id for joint in robot.arm.joints]
    bank = DynamixelBank(ids)
    zero = np.array([joint.zero_count for joint in robot.arm.joints])
    direction = np.array([joint.direction for joint in robot.arm.joints])
    bank.set_present(np.rint(zero + direction * robot.ready_rad / COUNT_RAD), load=0.0, voltage_v=12.0)
    tap = WireTap(DYNAMIXEL, dynamixel_tables.GOAL_POSITION)
    goal = robot.ready_rad + [0.1, 0, 0, 0, 0, 0]  # within what the lag of a servo that does not move may be
    with ServoBus(bank, LineFaults(corrupt=0.01, seed=4), tap=tap) as bus:
        with pytest.raises(MotionError, match="could not be parked"), Controller(robot, bus.port) as controller:
            assert bank.torque_enabled().all()
            controller.move_to(goal)
            np.testing.assert_allclose(controller.setpoint_rad, goal, atol=1e-6)
            state = controller.state()
            np.testing.assert_allclose(state.position_rad, robot.ready_rad, atol=COUNT_RAD)
            np.testing.assert_allclose(state.voltage_v, 12.0)
            sent = tap.angles(robot)
    np.testing.assert_allclose(sent[-1], goal, atol=COUNT_RAD)
    assert np.abs(np.diff(sent, axis=0)).max() <= robot.limits.velocity_rad_s.max() * 0.005 + COUNT_RAD
    assert bank.torque_enabled().all()
