"""The arm over the emulated bus: what it does to the servos, in which order, and how it fails."""

from collections.abc import Iterator

import numpy as np
import pytest

from drivers.arm import tables
from drivers.arm.packets import Packet, decode, encode
from drivers.arm.servo_arm import ServoArm, open_arm
from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import DeviceError
from drivers.protocols import Arm
from drivers.robot import load_robot
from drivers.sim.servo_bus import ServoBank, ServoBus

IDS = (1, 2, 3, 4, 5, 6)
COUNTS = [2048, 1000, 3000, 2500, 1800, 2100]
ROBOT = load_robot()


@pytest.fixture
def bank() -> ServoBank:
    bank = ServoBank(IDS)
    bank.set_present(COUNTS)
    return bank


@pytest.fixture
def arm(bank: ServoBank) -> Iterator[ServoArm]:
    with ServoBus(bank) as servos:
        arm = open_arm(ROBOT, servos.port)
        yield arm
        arm.close()


def steps(bank: ServoBank) -> list[tuple[str, int, int]]:
    """(register, id, value) of every write so far."""
    by_address = {register.address: register for register in tables.REGISTERS}
    return [(by_address[at].name, id, decode(by_address[at], data)) for id, at, data in bank.writes]


def refuse(bank: ServoBank, monkeypatch: pytest.MonkeyPatch, id: int, address: int, value: bytes) -> None:
    """Make servo ``id`` ignore, without an answer, one kind of write."""
    handle = bank.handle

    def deaf(packet: Packet) -> list[Packet]:
        return [] if packet == Packet(id, 3, bytes([address]) + value) else handle(packet)

    monkeypatch.setattr(bank, "handle", deaf)


def test_opening_writes_nothing(arm: ServoArm, bank: ServoBank) -> None:
    protocol: Arm = arm
    assert protocol.joint_names == ROBOT.joint_names
    assert not protocol.torque_on
    assert not bank.writes


def test_positions_are_angles_about_the_zero_count(arm: ServoArm) -> None:
    state = arm.read()
    np.testing.assert_allclose(state.position_rad, (np.array(COUNTS) - 2048) * 2 * np.pi / 4096)


def test_enable_writes_every_goal_before_any_torque(arm: ServoArm, bank: ServoBank) -> None:
    state = arm.enable()
    assert steps(bank) == [
        *(("Goal_Position", id, count) for id, count in zip(IDS, COUNTS, strict=True)),
        *(("Torque_Enable", id, 1) for id in IDS),
    ]
    assert arm.torque_on
    assert bank.torque_enabled().all()
    assert bank.goal_counts().tolist() == COUNTS
    np.testing.assert_allclose(state.position_rad, (np.array(COUNTS) - 2048) * RAD_PER_COUNT)


def test_a_goal_left_by_another_run_does_not_move_the_arm(arm: ServoArm, bank: ServoBank) -> None:
    arm.bus.sync_write({id: 2048 for id in IDS}, tables.GOAL_POSITION)
    arm.enable()
    assert bank.goal_counts().tolist() == COUNTS


@pytest.mark.parametrize("id", [1, 4, 6])
def test_enable_that_fails_leaves_the_arm_limp(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch, id: int
) -> None:
    refuse(bank, monkeypatch, id, tables.TORQUE_ENABLE.address, b"\x01")
    with pytest.raises(DeviceError, match=f"servo {id} does not answer"):
        arm.enable()
    assert not bank.torque_enabled().any()
    assert not arm.torque_on


def test_enable_that_fails_leaves_torque_where_it_found_it(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in (2, 3):
        arm.bus.write(id, tables.TORQUE_ENABLE, 1)
    refuse(bank, monkeypatch, 5, tables.TORQUE_ENABLE.address, b"\x01")
    with pytest.raises(DeviceError, match="servo 5"):
        arm.enable()
    assert bank.torque_enabled().tolist() == [False, True, True, False, False, False]


def test_a_goal_that_does_not_arrive_stops_enable_before_torque(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = bank.handle
    wrong = bytes([tables.GOAL_POSITION.address]) + encode(tables.GOAL_POSITION, 1)

    def stubborn(packet: Packet) -> list[Packet]:
        is_goal = packet.id == 3 and packet.code == 3 and packet.params[0] == tables.GOAL_POSITION.address
        return handle(Packet(3, 3, wrong) if is_goal else packet)

    monkeypatch.setattr(bank, "handle", stubborn)
    with pytest.raises(DeviceError, match=r"servo 3 \(elbow_flex\) was given goal 3000 and holds 1"):
        arm.enable()
    assert ("Torque_Enable", 1, 1) not in steps(bank)
    assert not bank.torque_enabled().any()


def test_ctrl_c_while_torque_goes_on_leaves_the_arm_limp(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = arm.bus.write

    def interrupted(id: int, register: tables.Register, value: int) -> None:
        write(id, register, value)
        if (id, register, value) == (4, tables.TORQUE_ENABLE, 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(arm.bus, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        arm.enable()
    assert not bank.torque_enabled().any()
    assert not arm.torque_on


def test_a_second_ctrl_c_while_torque_goes_off_again_leaves_the_arm_limp(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, interrupts = arm.bus.write, [(4, tables.TORQUE_ENABLE, 1), (2, tables.TORQUE_ENABLE, 0)]

    def interrupted(id: int, register: tables.Register, value: int) -> None:
        write(id, register, value)
        if interrupts and (id, register, value) == interrupts[0]:
            interrupts.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(arm.bus, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        arm.enable()
    assert not interrupts and not bank.torque_enabled().any()


def test_a_joint_far_outside_its_limits_is_refused_before_anything_is_written(arm: ServoArm, bank: ServoBank) -> None:
    bank.set_present([2048, 1000, 3000, 2500, 1800, 3600])
    with pytest.raises(DeviceError, match=r"gripper reads 2.38 rad, outside its limits -0.17..1.75.*zero_count"):
        arm.enable()
    assert not bank.writes


def test_a_servo_that_cannot_be_released_is_named(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.enable()
    refuse(bank, monkeypatch, 2, tables.TORQUE_ENABLE.address, b"\x00")
    with pytest.raises(DeviceError, match=r"torque stays on at servo 2 \(shoulder_lift\)"):
        arm.disable()
    assert bank.torque_enabled().tolist() == [False, True, False, False, False, False]
    assert arm.torque_on


def test_a_servo_in_velocity_mode_is_refused(arm: ServoArm, bank: ServoBank) -> None:
    arm.bus.write(5, tables.OPERATING_MODE, 1)
    with pytest.raises(DeviceError, match=r"servo 5 \(wrist_roll\) has Operating_Mode 1, expected 0"):
        arm.enable()
    assert not bank.torque_enabled().any()


def test_disable_switches_all_off_and_close_switches_nothing(arm: ServoArm, bank: ServoBank) -> None:
    arm.enable()
    arm.disable()
    assert not bank.torque_enabled().any()
    assert not arm.torque_on
    arm.enable()
    arm.close()
    arm.close()
    assert bank.torque_enabled().all()


def test_read_survives_servos_that_miss_the_common_request(
    arm: ServoArm, bank: ServoBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_read = arm.bus.sync_read
    monkeypatch.setattr(arm.bus, "sync_read", lambda ids, register: sync_read([1, 2], register))
    np.testing.assert_allclose(arm.read().position_rad, (np.array(COUNTS) - 2048) * RAD_PER_COUNT)


def test_load_is_a_share_of_the_greatest_torque(arm: ServoArm, bank: ServoBank) -> None:
    bank.set_present(COUNTS, load=[0, 0.5, -0.25, 0, 0, 1])
    np.testing.assert_allclose(arm.read_load(), [0, 0.5, -0.25, 0, 0, 1])


def test_faults_go_by_joint_name(arm: ServoArm, bank: ServoBank) -> None:
    assert arm.faults() == {}
    bank.set_present(COUNTS, temperature_c=[30, 80, 30, 30, 30, 30])
    arm.read()
    assert arm.faults() == {"shoulder_lift": ["overheated"]}


def test_silent_servos_are_named_at_opening(bank: ServoBank) -> None:
    bank.silent |= {3, 6}
    with ServoBus(bank) as servos:
        with pytest.raises(DeviceError, match=r"no answer from servo 3 \(elbow_flex\), servo 6 \(gripper\); check"):
            open_arm(ROBOT, servos.port)
        bank.silent.clear()
        open_arm(ROBOT, servos.port).close()  # the failed opening gave the port back


def test_an_arm_without_power_is_reported_in_one_line(bank: ServoBank) -> None:
    bank.silent |= set(IDS)
    with ServoBus(bank) as servos, pytest.raises(DeviceError, match="no servo answers; check the arm's power"):
        open_arm(ROBOT, servos.port)


def test_a_servo_that_falls_silent_later_is_named(arm: ServoArm, bank: ServoBank) -> None:
    bank.silent.add(4)
    with pytest.raises(DeviceError, match="servo 4 does not answer"):
        arm.read()


def test_a_wrong_port_is_named() -> None:
    with pytest.raises(DeviceError, match="/dev/ttyNOPE"):
        open_arm(ROBOT, "/dev/ttyNOPE")
