"""Dynamixels on a pseudo-terminal: the bus driver, the arm, and what goes wrong on the line under either protocol."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivers.arm import dynamixel_packets as packets
from drivers.arm import dynamixel_tables as tables
from drivers.arm.bus import ServoBus as HostBus
from drivers.arm.dynamixel import DynamixelBus
from drivers.arm.dynamixel_tables import DYNAMIXEL_X
from drivers.arm.feetech import FeetechBus
from drivers.arm.packets import BROADCAST, Packet
from drivers.arm.servo_arm import ServoArm, open_arm
from drivers.arm.tables import FEETECH_STS, RAD_PER_COUNT, ServoTable
from drivers.errors import DeviceError
from drivers.protocols import Arm
from drivers.robot import load_robot
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.servo_bus import LineFaults, ServoBank, ServoBus, line_noise

IDS = (1, 2, 3, 4, 5, 6)
COUNTS = [2048, 1000, 3000, 2500, 1800, 2100]
ROBOT = load_robot()
ROBOT = replace(ROBOT, arm=replace(ROBOT.arm, type="dynamixel"))
PRESENT = dict(zip(IDS, COUNTS, strict=True))


@pytest.fixture
def bank() -> DynamixelBank:
    bank = DynamixelBank(IDS)
    bank.set_present(COUNTS, [0, 100, -100, 0, 0, 500], [0.0, -0.25, 1.0, 0.0, 0.0, 0.0])
    return bank


@pytest.fixture
def bus(bank: DynamixelBank) -> Iterator[DynamixelBus]:
    with ServoBus(bank) as servos:
        bus = DynamixelBus(servos.port)
        yield bus
        bus.close()


@pytest.fixture
def arm(bank: DynamixelBank) -> Iterator[ServoArm]:
    with ServoBus(bank) as servos:
        arm = open_arm(ROBOT, servos.port)
        yield arm
        arm.close()


def test_ping_finds_who_is_there(bus: DynamixelBus) -> None:
    assert [bus.ping(id) for id in (1, 6, 7)] == [True, True, False]


def test_reads_return_what_the_servos_measure(bus: DynamixelBus) -> None:
    assert bus.read(2, tables.PRESENT_POSITION) == 1000
    assert bus.read(1, tables.MODEL_NUMBER) == tables.MODEL_XL330_M288
    assert list(bus.sync_read(IDS, tables.PRESENT_POSITION).items()) == list(PRESENT.items())
    assert bus.sync_read((3, 2), tables.PRESENT_VELOCITY) == {3: -6, 2: 6}
    assert bus.sync_read((3, 2), tables.PRESENT_CURRENT) == {3: 1750, 2: -438}


def test_writes_arrive_and_leave_the_bus_in_step(bus: DynamixelBus, bank: DynamixelBank) -> None:
    for id in IDS:
        bus.write(id, tables.GOAL_POSITION, 100 * id)
        assert bus.read(id, tables.GOAL_POSITION) == 100 * id
    bus.write(1, tables.HOMING_OFFSET, -1000)
    assert bus.read(1, tables.HOMING_OFFSET) == -1000
    bus.sync_write({id: 2000 + id for id in IDS}, tables.GOAL_POSITION)
    assert bus.sync_read(IDS, tables.GOAL_POSITION) == {id: 2000 + id for id in IDS}
    assert bank.goal_counts().tolist() == [3001, 2002, 2003, 2004, 2005, 2006]
    assert bus.counts.stale == bus.counts.timeouts == bus.counts.damaged == 0


def test_values_that_look_like_a_header_get_through(bus: DynamixelBus) -> None:
    bus.write(2, tables.OPERATING_MODE, 4)
    for value in (-513, -131_073, 0x0FFFF - 0x20000, 0x0D_FFFF):
        bus.write(2, tables.GOAL_POSITION, value)
        assert bus.read(2, tables.GOAL_POSITION) == value
    assert bus.counts.damaged == bus.counts.timeouts == 0


def test_a_silent_servo_is_named(bus: DynamixelBus, bank: DynamixelBank) -> None:
    bank.silent.add(3)
    with pytest.raises(DeviceError, match=r"/dev/pts/\d+: servo 3 does not answer.*power.*cable"):
        bus.read(3, tables.PRESENT_POSITION)
    assert set(bus.sync_read(IDS, tables.PRESENT_POSITION)) == {1, 2, 4, 5, 6}


def test_a_refused_write_says_why(bus: DynamixelBus) -> None:
    bus.write(1, tables.TORQUE_ENABLE, 1)
    with pytest.raises(DeviceError, match="servo 1 refuses 4 for Operating_Mode: the register is .*locked"):
        bus.write(1, tables.OPERATING_MODE, 4)
    with pytest.raises(DeviceError, match="servo 1 refuses 5000 for Goal_Position: the value exceeds a limit"):
        bus.write(1, tables.GOAL_POSITION, 5000)
    assert bus.counts.timeouts == 0  # a refusal is an answer: nobody is asked again


def test_a_request_that_arrived_damaged_is_sent_again(bus: DynamixelBus, bank: DynamixelBank) -> None:
    handle, complaints = bank.handle, [Packet(2, packets.CRC)]
    bank.handle = lambda packet: [complaints.pop()] if complaints else handle(packet)  # type: ignore[method-assign]
    assert bus.read(2, tables.PRESENT_POSITION) == 1000
    assert (bus.counts.damaged, bus.counts.timeouts) == (1, 0)


def test_an_alert_is_noted_and_a_reboot_clears_it(bus: DynamixelBus, bank: DynamixelBank) -> None:
    bus.write(3, tables.TORQUE_ENABLE, 1)
    bank.fail(3, 0x20)
    bus.sync_read(IDS, tables.PRESENT_POSITION)
    assert bus.faults == {3: packets.ALERT}
    bus.reboot(3)
    assert bus.faults == {}
    assert bus.read(3, tables.HARDWARE_ERROR_STATUS) == 0
    assert not bank.torque_enabled().any()


def test_feetech_servos_have_no_reboot() -> None:
    with ServoBus(ServoBank([1])) as servos:
        bus = FeetechBus(servos.port)
        with pytest.raises(DeviceError, match="Feetech servos cannot be rebooted over the bus; cycle the power"):
            bus.reboot(1)
        bus.close()


def test_a_fast_read_is_one_packet_and_falls_back_where_there_is_a_gap(bank: DynamixelBank) -> None:
    asked: list[int] = []
    handle = bank.handle
    bank.handle = lambda packet: asked.append(packet.code) or handle(packet)  # type: ignore[method-assign,func-returns-value]
    with ServoBus(bank) as servos:
        bus = DynamixelBus(servos.port, fast=True)
        assert bus.sync_read(IDS, tables.PRESENT_POSITION) == PRESENT
        assert asked == [packets.FAST_SYNC_READ]
        bank.silent.add(4)
        assert set(bus.sync_read(IDS, tables.PRESENT_POSITION)) == {1, 2, 3, 5, 6}
        assert asked[1:3] == [packets.FAST_SYNC_READ, packets.SYNC_READ]
        bus.close()


# The emulated servo.


def test_the_eeprom_outlives_the_power_and_the_rest_does_not() -> None:
    bank = DynamixelBank([1])
    for register, value in ((tables.CURRENT_LIMIT, 900), (tables.PROFILE_VELOCITY, 50), (tables.TORQUE_ENABLE, 1)):
        assert bank.handle(packets.write_packet(1, register, value)) == [Packet(1, 0)]
    bank.power_cycle()
    registers = (tables.CURRENT_LIMIT, tables.PROFILE_VELOCITY, tables.TORQUE_ENABLE)
    assert [int(bank.values(register)[0]) for register in registers] == [900, 0, 0]


@pytest.mark.parametrize(
    ("address", "data", "error"),
    [
        (tables.GOAL_POSITION.address, b"\x00\x01", packets.DATA_LENGTH),
        (tables.GOAL_POSITION.address + 1, b"\x00\x01\x00\x00", packets.ACCESS),
        (tables.PRESENT_POSITION.address, bytes(4), packets.ACCESS),
        (200, b"\x00", packets.ACCESS),
        (tables.ID.address, b"\xfd", packets.DATA_RANGE),
        (tables.OPERATING_MODE.address, b"\x02", packets.DATA_RANGE),
        (tables.GOAL_CURRENT.address, b"\xd0\x07", packets.DATA_RANGE),
        (tables.PROFILE_ACCELERATION.address, bytes(8) + (5000).to_bytes(4, "little"), packets.DATA_LIMIT),
        (tables.PROFILE_ACCELERATION.address, bytes(8) + (500).to_bytes(4, "little"), 0),
    ],
)
def test_a_write_is_done_whole_or_refused_whole(address: int, data: bytes, error: int) -> None:
    bank = DynamixelBank([1])
    before = bank.values(tables.GOAL_POSITION)
    answer = bank.handle(Packet(1, packets.WRITE, address.to_bytes(2, "little") + data))
    assert answer == [Packet(1, error)]
    assert (bank.values(tables.GOAL_POSITION) == before).all() == bool(error)


def test_unknown_and_malformed_instructions_are_refused() -> None:
    bank = DynamixelBank([1])
    assert bank.handle(Packet(1, 0x77)) == [Packet(1, packets.INSTRUCTION)]
    assert bank.handle(Packet(1, packets.READ, b"\x84")) == [Packet(1, packets.DATA_LENGTH)]
    assert bank.handle(Packet(1, packets.READ, b"\xff\x00\x04\x00")) == [Packet(1, packets.ACCESS)]
    assert bank.handle(Packet(BROADCAST, packets.WRITE, b"\x40\x00\x01")) == []
    assert bank.torque_enabled().all()


def test_the_return_level_decides_what_is_answered() -> None:
    bank = DynamixelBank([1])
    bank.handle(packets.write_packet(1, tables.STATUS_RETURN_LEVEL, 0))
    assert bank.handle(packets.write_packet(1, tables.LED, 1)) == []
    assert bank.handle(packets.read_packet(1, tables.LED)) == []
    assert len(bank.handle(Packet(1, packets.PING))) == 1
    assert bank.values(tables.LED).tolist() == [1]


@pytest.mark.parametrize("mode", [0, 1])
def test_offset_and_drive_mode_shift_and_turn_what_is_read_and_asked_for(mode: int) -> None:
    bank = DynamixelBank([1])
    bank.handle(packets.write_packet(1, tables.DRIVE_MODE, mode))
    bank.handle(packets.write_packet(1, tables.HOMING_OFFSET, 3000))
    bank.set_present([1500])
    present = int(bank.values(tables.PRESENT_POSITION)[0])
    assert present == (1500 if mode else 4500)
    bank.handle(packets.write_packet(1, tables.GOAL_POSITION, 1600))
    assert bank.goal_counts().tolist() == [1400 if mode else -1400]


@pytest.mark.parametrize(("state", "bit"), [({"temperature_c": 80}, 0x04), ({"voltage_v": 20.0}, 0x01)])
def test_what_is_out_of_bounds_cuts_torque_until_the_reboot(state: dict[str, float], bit: int) -> None:
    bank = DynamixelBank([1])
    bank.handle(packets.write_packet(1, tables.TORQUE_ENABLE, 1))
    bank.set_present([2048], **state)
    bank.set_present([2048])
    assert bank.values(tables.HARDWARE_ERROR_STATUS).tolist() == [bit]
    assert bank.handle(packets.write_packet(1, tables.TORQUE_ENABLE, 1)) == [Packet(1, packets.ALERT)]
    assert not bank.torque_enabled().any()
    bank.handle(Packet(1, packets.REBOOT))
    assert bank.handle(packets.write_packet(1, tables.TORQUE_ENABLE, 1)) == [Packet(1, 0)]
    assert bank.torque_enabled().all()


# The arm.


def test_the_arm_is_opened_by_its_type_and_writes_nothing(arm: ServoArm, bank: DynamixelBank) -> None:
    protocol: Arm = arm
    assert arm.table is DYNAMIXEL_X
    assert not bank.writes
    np.testing.assert_allclose(protocol.read().position_rad, (np.array(COUNTS) - 2048) * RAD_PER_COUNT)


def test_enable_writes_every_goal_before_any_torque(arm: ServoArm, bank: DynamixelBank) -> None:
    arm.bus.sync_write({id: 2048 for id in IDS}, tables.GOAL_POSITION)  # left by another run
    arm.read()
    bank.writes.clear()
    arm.enable()
    goal, torque = tables.GOAL_POSITION.address, tables.TORQUE_ENABLE.address
    assert [(id, at) for id, at, _ in bank.writes] == [*((id, goal) for id in IDS), *((id, torque) for id in IDS)]
    assert bank.goal_counts().tolist() == COUNTS
    assert bank.torque_enabled().all()
    arm.disable()
    assert not bank.torque_enabled().any()


def test_a_servo_in_velocity_mode_is_refused(arm: ServoArm, bank: DynamixelBank) -> None:
    arm.bus.write(5, tables.OPERATING_MODE, 1)
    with pytest.raises(DeviceError, match=r"servo 5 \(wrist_roll\) has Operating_Mode 1, expected 3 or 4 or 5"):
        arm.enable()
    assert not bank.torque_enabled().any()


def test_a_shut_down_servo_leaves_the_arm_limp(arm: ServoArm, bank: DynamixelBank) -> None:
    bank.fail(4, 0x24)
    with pytest.raises(DeviceError, match=r"torque stays off on servo 4 \(wrist_flex\)"):
        arm.enable()
    assert not bank.torque_enabled().any()
    assert arm.faults() == {"wrist_flex": ["overheated", "overloaded"]}


def test_load_is_in_ampere(arm: ServoArm) -> None:
    np.testing.assert_allclose(arm.read_load(), [0, -0.438, 1.75, 0, 0, 0])


# The line, under either protocol.


def feetech(servos: ServoBus, **options: float) -> HostBus:
    return FeetechBus(servos.port, **options)  # type: ignore[arg-type]


def dynamixel(servos: ServoBus, **options: float) -> HostBus:
    return DynamixelBus(servos.port, **options)  # type: ignore[arg-type]


def fast(servos: ServoBus, **options: float) -> HostBus:
    return DynamixelBus(servos.port, fast=True, **options)  # type: ignore[arg-type]


Opener = Callable[..., HostBus]
KINDS = [
    pytest.param(ServoBank, feetech, FEETECH_STS, id="feetech"),
    pytest.param(DynamixelBank, dynamixel, DYNAMIXEL_X, id="dynamixel"),
    pytest.param(DynamixelBank, fast, DYNAMIXEL_X, id="fast"),
]
FAULTS = [
    LineFaults(corrupt=0.1, seed=1),
    LineFaults(drop=0.05, seed=2),
    LineFaults(duplicate=0.3, seed=3),
    LineFaults(delay=0.03, delay_s=0.08, seed=4),
    LineFaults(corrupt=0.05, drop=0.02, duplicate=0.1, seed=5),
]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
@pytest.mark.parametrize(("make_bank", "opened", "table"), KINDS)
def test_a_bad_line_gives_no_wrong_value(
    make_bank: type[ServoBank] | type[DynamixelBank], opened: Opener, table: ServoTable, faults: LineFaults
) -> None:
    bank = make_bank(IDS)
    bank.set_present(COUNTS)
    with ServoBus(bank, faults) as servos:
        bus = opened(servos, attempts=20)
        for turn in range(8):
            bank.set_present([count + turn for count in COUNTS])
            assert bus.sync_read(IDS, table.present_position) == {id: count + turn for id, count in PRESENT.items()}
            bus.write(1, table.goal_position, 2000 + turn)
            assert bus.read(1, table.goal_position) == 2000 + turn
        bus.close()


def test_what_the_adapter_echoes_is_no_answer(bank: DynamixelBank) -> None:
    with ServoBus(bank, LineFaults(echo=1.0)) as servos:
        bus = DynamixelBus(servos.port)
        assert [bus.ping(id) for id in (1, 7)] == [True, False]
        assert bus.sync_read(IDS, tables.PRESENT_POSITION) == PRESENT
        bus.write(1, tables.GOAL_POSITION, 1234)
        assert bus.read(1, tables.GOAL_POSITION) == 1234
        assert bus.counts.stale == bus.counts.damaged == 0
        bus.close()


def test_a_delayed_answer_comes_late_and_others_overtake_it() -> None:
    bank = ServoBank([1])
    with ServoBus(bank, LineFaults(delay=1.0, delay_s=0.1)) as servos:
        bus = FeetechBus(servos.port, timeout_s=5.0)
        start_s = time.monotonic()
        assert bus.ping(1)
        assert time.monotonic() - start_s >= 0.1
        bus.close()


def test_duplicates_are_counted_as_stale() -> None:
    with ServoBus(ServoBank(IDS), LineFaults(duplicate=1.0)) as servos:
        bus = FeetechBus(servos.port, timeout_s=5.0)
        assert set(bus.sync_read(IDS, FEETECH_STS.present_position)) == set(IDS)
        assert bus.counts.stale >= 5
        bus.close()


def test_line_noise_is_a_function_of_bytes() -> None:
    noise = line_noise(corrupt=1.0, drop=0.0, seed=0)
    assert sum(a != b for a, b in zip(noise(b"abcdef"), b"abcdef", strict=True)) == 1
    assert line_noise(corrupt=0.0, drop=1.0, seed=0)(b"abc") == b""


@pytest.mark.parametrize(("make_bank", "opened", "table"), KINDS)
def test_an_adapter_that_is_plugged_in_again_is_found_by_its_link(
    make_bank: type[ServoBank] | type[DynamixelBank], opened: Opener, table: ServoTable, tmp_path: Path
) -> None:
    bank = make_bank(IDS)
    bank.set_present(COUNTS)
    link = tmp_path / "arm"
    with ServoBus(bank, link=link) as servos:
        assert servos.port == str(link)
        bus = opened(servos)
        bus.write(2, table.goal_position, 1500)
        for turn in range(1, 3):
            names = [os.readlink(link)]
            servos.unplug()
            assert not os.path.lexists(link)
            servos.plug()
            names.append(os.readlink(link))
            assert names[0] != names[1]
            assert bus.sync_read(IDS, table.present_position) == PRESENT
            assert bus.read(2, table.goal_position) == 1500  # the servos had their power all along
            assert bus.counts.reopened == turn
        servos.unplug()
        with pytest.raises(DeviceError, match="was lost; check the USB cable"):
            bus.read(2, table.present_position)
        bus.close()


def test_without_a_link_the_port_gets_another_name(bank: DynamixelBank) -> None:
    with ServoBus(bank) as servos:
        before = servos.port
        servos.unplug()
        servos.unplug()
        servos.plug()
        servos.plug()
        assert servos.port != before
        bus = DynamixelBus(servos.port)
        assert bus.ping(1)
        bus.close()
    servos.close()
