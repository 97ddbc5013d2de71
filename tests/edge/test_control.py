"""The servo loop on an arm that lags, sticks, fails or is interrupted. Nothing here is decided by how fast it runs."""

import os
import signal
import threading

import numpy as np
import pytest

from drivers.errors import DeviceError
from drivers.protocols import JointState
from edge.control import Controller, MotionError, Stopped
from edge.motion import JointTrajectory, plan_move
from edge.trace import Tracer

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
REST = np.array([0.0, -0.15, 0.15, 0.1, 0.0, 0.1])


class FakeArm:
    """First-order lag towards the setpoint at every write; records what it is told."""

    def __init__(self, start: np.ndarray | None = None, lag: float = 0.5) -> None:
        self.position = np.zeros(6) if start is None else np.array(start, dtype=float)
        self.lag = lag
        self.stuck: set[int] = set()
        self.written: list[np.ndarray] = []
        self.events: list[str] = []
        self.on_write: list = []
        self.fail_reads = 0
        self._torque = False

    @property
    def joint_names(self) -> tuple[str, ...]:
        return NAMES

    @property
    def torque_on(self) -> bool:
        return self._torque

    def read(self) -> JointState:
        if self.fail_reads:
            self.fail_reads -= 1
            raise DeviceError("/dev/fake: no answer")
        return JointState(self.position.copy(), 0.0)

    def enable(self) -> JointState:
        self._torque = True
        self.events.append("enable")
        return JointState(self.position.copy(), 0.0)

    def write(self, position_rad: np.ndarray) -> None:
        if not self._torque:
            raise DeviceError("torque is off")
        self.written.append(np.array(position_rad))
        for joint in range(6):
            if joint not in self.stuck:
                self.position[joint] += self.lag * (position_rad[joint] - self.position[joint])
        if self.on_write:
            self.on_write.pop(0)()

    def disable(self) -> None:
        self._torque = False
        self.events.append("disable")

    def close(self) -> None:
        pass


def started(arm: FakeArm, **options: object) -> Controller:
    controller = Controller(arm, Tracer(), REST, **options)  # type: ignore[arg-type]
    controller.startup()
    return controller


def short_move(to: float = 0.12) -> JointTrajectory:
    return plan_move(np.zeros(6), np.full(6, to))


def test_a_trajectory_is_streamed_from_its_start_to_its_end_in_small_steps() -> None:
    arm = FakeArm()
    controller = started(arm)
    trajectory = short_move()
    controller.execute(trajectory)
    written = np.array(arm.written)
    np.testing.assert_allclose(written[-1], trajectory.position_rad[-1])
    np.testing.assert_allclose(controller.setpoint_rad, written[-1])
    assert np.all(np.diff(written, axis=0) >= -1e-12)
    assert np.abs(np.diff(written, axis=0)).max() <= controller.max_step_rad + 1e-12


def test_every_cycle_is_traced() -> None:
    arm = FakeArm()
    controller = started(arm)
    writes = len(arm.written)
    controller.execute(short_move())
    assert controller.tracer.summary()["actuate"]["count"] == len(arm.written) - writes


def test_starting_up_moves_nothing() -> None:
    arm = FakeArm(start=np.full(6, 0.4))
    assert np.allclose(started(arm).setpoint_rad, 0.4)
    assert arm.written == []


def test_an_arm_that_is_elsewhere_does_not_move() -> None:
    arm = FakeArm(start=np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0]))
    controller = started(arm)
    written = len(arm.written)
    with pytest.raises(MotionError, match="elbow_flex is at 0.50.*starts at 0.00.*nothing moved"):
        controller.execute(short_move())
    assert len(arm.written) == written


def test_a_trajectory_of_another_arm_is_refused() -> None:
    controller = started(FakeArm())
    with pytest.raises(MotionError, match="4 joints"):
        controller.execute(JointTrajectory(np.array([0.0, 0.1]), np.zeros((2, 4))))


def test_a_joint_that_does_not_follow_makes_the_arm_hold_and_is_named() -> None:
    arm = FakeArm()
    controller = started(arm)
    arm.stuck = {3}
    with pytest.raises(MotionError, match="wrist_flex does not follow"):
        controller.execute(plan_move(np.zeros(6), np.full(6, 1.2)))
    assert abs(arm.written[-1][3] - arm.position[3]) < 1e-9
    assert arm.torque_on


def test_a_gripper_that_closes_on_something_is_no_error() -> None:
    arm = FakeArm()
    controller = started(arm)
    arm.stuck = {5}
    goal = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.6])
    controller.execute(plan_move(np.zeros(6), goal))
    assert controller.setpoint_rad[5] == pytest.approx(0.6)


def test_a_jump_in_a_trajectory_is_taken_in_bounded_steps() -> None:
    arm = FakeArm(lag=1.0)
    controller = started(arm)
    goal = np.array([0.25, 0, 0, 0, 0, 0])
    controller.execute(JointTrajectory(np.array([0.0, 0.01, 0.02]), np.array([np.zeros(6), goal, goal])))
    steps = np.abs(np.diff(np.array(arm.written), axis=0)).max(axis=1)
    assert steps.max() <= controller.max_step_rad + 1e-12
    np.testing.assert_allclose(arm.written[-1], goal)


def test_stop_holds_where_the_arm_is() -> None:
    arm = FakeArm()
    controller = started(arm)
    stop = threading.Event()
    arm.on_write = [lambda: None] * 12 + [stop.set]
    with pytest.raises(Stopped):
        controller.execute(short_move(), stop=stop)
    before_hold = len(arm.written)
    assert before_hold < 20
    assert arm.written[-1][0] <= arm.written[-2][0]  # from the setpoint ahead back to where the arm is
    assert arm.torque_on


def test_holding_keeps_the_grip() -> None:
    arm = FakeArm()
    controller = started(arm)
    arm.stuck = {5}
    controller.execute(plan_move(np.zeros(6), np.array([0, 0, 0, 0, 0, 0.2])))
    controller.hold()
    assert arm.written[-1][5] == pytest.approx(0.2)


def test_ctrl_c_holds_at_once() -> None:
    arm = FakeArm()
    controller = started(arm)

    def interrupt() -> None:
        raise KeyboardInterrupt

    arm.on_write = [lambda: None] * 10 + [interrupt]
    with pytest.raises(KeyboardInterrupt):
        controller.execute(short_move())
    assert len(arm.written) == 11 + 1


def test_a_bus_failure_in_motion_is_the_error_that_is_seen() -> None:
    arm = FakeArm()
    controller = started(arm)

    def unplug() -> None:
        arm.fail_reads = 1000

    arm.on_write = [lambda: None] * 3 + [unplug]
    with pytest.raises(DeviceError, match="no answer"):
        controller.execute(short_move())


def test_leaving_parks_before_torque_goes_off() -> None:
    arm = FakeArm()
    with Controller(arm, Tracer(), REST) as controller:
        controller.execute(short_move(0.15))
    assert arm.events == ["enable", "disable"]
    np.testing.assert_allclose(arm.written[-1], REST)
    np.testing.assert_allclose(arm.position[:5], REST[:5], atol=0.12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, DeviceError])
def test_any_way_out_parks(error: type[BaseException]) -> None:
    arm = FakeArm()
    with pytest.raises(error), Controller(arm, Tracer(), REST):
        raise error("x")
    assert not arm.torque_on
    np.testing.assert_allclose(arm.written[-1], REST)


def test_a_second_ctrl_c_does_not_keep_the_arm_from_parking() -> None:
    arm = FakeArm()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Controller(arm, Tracer(), REST):
        arm.on_write = [lambda: None] * 4 + [interrupt]
        raise KeyboardInterrupt
    assert not arm.torque_on
    np.testing.assert_allclose(arm.written[-1], REST)


def test_a_third_ctrl_c_leaves_the_arm_where_it_is_and_says_so() -> None:
    arm = FakeArm()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(MotionError, match="torque stays on"), Controller(arm, Tracer(), REST):
        arm.on_write = [lambda: None, interrupt, lambda: None, lambda: None, interrupt]
        raise KeyboardInterrupt
    assert arm.torque_on and "disable" not in arm.events


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_parks_and_leaves_with_its_code(number: signal.Signals) -> None:
    arm = FakeArm()
    inherited = signal.signal(number, signal.SIG_DFL)  # nohup leaves SIGHUP ignored
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as leaving, Controller(arm, Tracer(), REST) as controller:
        arm.on_write = [lambda: None] * 5 + [lambda: os.kill(os.getpid(), number)]
        controller.execute(short_move())
    assert leaving.value.code == 128 + number
    assert signal.signal(number, inherited) is before
    assert not arm.torque_on
    np.testing.assert_allclose(arm.written[-1], REST)


def test_an_arm_that_cannot_be_parked_keeps_its_torque() -> None:
    arm = FakeArm()
    with pytest.raises(MotionError, match="could not be parked.*torque stays on"), Controller(arm, Tracer(), REST):
        arm.fail_reads = 10_000
    assert arm.torque_on and "disable" not in arm.events


def test_an_arm_held_away_from_rest_keeps_its_torque() -> None:
    arm = FakeArm(start=np.full(6, 0.6))
    controller = started(arm)
    arm.stuck = {1}
    with pytest.raises(MotionError, match="torque stays on.*shoulder_lift"):
        controller.park()
    assert arm.torque_on


def test_one_lost_answer_does_not_keep_the_arm_from_parking() -> None:
    arm = FakeArm()
    controller = started(arm)
    arm.fail_reads = 1
    controller.park()
    assert not arm.torque_on


def test_an_aborted_start_leaves_no_torque() -> None:
    class Interrupted(FakeArm):
        def enable(self) -> JointState:
            super().enable()
            raise KeyboardInterrupt

    arm = Interrupted()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Controller(arm, Tracer(), REST):
        pytest.fail("the body must not run")
    assert not arm.torque_on
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_start_that_fails_does_not_drop_an_arm_found_in_the_air() -> None:
    class Refusing(FakeArm):
        def enable(self) -> JointState:
            raise DeviceError("/dev/fake: no answer")

    arm = Refusing()
    with pytest.raises(DeviceError, match="no answer"), Controller(arm, Tracer(), REST):
        pytest.fail("the body must not run")
    assert arm.events == []


def test_parking_stops_a_motion_in_another_thread() -> None:
    arm = FakeArm()
    controller = started(arm)
    moving, outcome = threading.Event(), []
    arm.on_write = [lambda: None] * 5 + [moving.set]

    def work() -> None:
        try:
            controller.execute(plan_move(np.zeros(6), np.full(6, 1.5)))
        except Stopped as stopped:
            outcome.append(stopped)

    thread = threading.Thread(target=work)
    thread.start()
    assert moving.wait(10)
    controller.park()
    thread.join(10)
    assert len(outcome) == 1
    assert not arm.torque_on


def test_parking_without_torque_does_nothing() -> None:
    arm = FakeArm()
    Controller(arm, Tracer(), REST).park()
    assert arm.written == [] and arm.events == []


def test_parking_from_far_away_goes_by_the_ready_pose_and_from_near_it_does_not() -> None:
    ready = np.array([0.0, -0.8, 0.6, -0.4, 0.0, 0.3])
    far = np.array([0.9, 0.5, -0.4, 0.6, 0.2, 0.5])
    arm = FakeArm(far)
    controller = started(arm, ready_rad=ready, rate_hz=1000.0)
    arm.written.clear()
    controller.park()
    passed = np.abs(np.array(arm.written)[:, :5] - ready[:5]).max(axis=1)
    assert passed.min() < 1e-6 and arm.events[-1] == "disable"
    assert np.abs(arm.written[int(passed.argmin())][-1] - far[-1]) < 1e-6  # what is held is kept until the rest pose

    arm = FakeArm(REST + 0.05)
    controller = started(arm, ready_rad=ready, rate_hz=1000.0)
    arm.written.clear()
    controller.park()
    assert np.abs(np.array(arm.written) - ready).max(axis=1).min() > 0.2
