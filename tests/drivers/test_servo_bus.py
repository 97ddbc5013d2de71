"""The emulated servos: what they store, what they refuse, what they answer."""

import numpy as np

from drivers.arm import packets, tables
from drivers.arm.packets import BROADCAST, Packet, read_packet, sync_read_packet, sync_write_packet, write_packet
from drivers.sim.servo_bus import ServoBank


def test_ping_is_answered_by_the_servo_it_names_or_by_all() -> None:
    bank = ServoBank([1, 2])
    assert bank.handle(Packet(2, packets.PING)) == [Packet(2, 0)]
    assert bank.handle(Packet(3, packets.PING)) == []
    assert bank.handle(Packet(BROADCAST, packets.PING)) == [Packet(1, 0), Packet(2, 0)]


def test_sync_read_answers_in_the_order_asked() -> None:
    bank = ServoBank([1, 2, 3])
    bank.set_present([10, 20, 30])
    answers = bank.handle(sync_read_packet([3, 9, 1], tables.PRESENT_POSITION))
    assert answers == [Packet(3, 0, b"\x1e\x00"), Packet(1, 0, b"\x0a\x00")]


def test_sync_write_is_carried_out_and_not_answered() -> None:
    bank = ServoBank([1, 2])
    assert bank.handle(sync_write_packet([(2, 7), (1, 9)], tables.GOAL_POSITION)) == []
    assert bank.goal_counts().tolist() == [9, 7]
    assert list(bank.writes) == [(2, 42, b"\x07\x00"), (1, 42, b"\x09\x00")]


def test_malformed_instructions_are_met_with_silence() -> None:
    bank = ServoBank([1])
    for packet in (
        Packet(1, packets.READ, b"\x38"),
        Packet(1, packets.READ, b"\x7f\x02"),
        Packet(1, packets.WRITE, b"\x2a"),
        Packet(BROADCAST, packets.SYNC_WRITE, b"\x2a\x02\x01\x00"),
        Packet(1, 0x77),
    ):
        assert bank.handle(packet) == []
    assert not bank.writes


def test_the_goal_follows_the_arm_until_it_is_written() -> None:
    bank = ServoBank([1])
    bank.set_present([1500])
    bank.handle(write_packet(1, tables.TORQUE_ENABLE, 1))
    assert bank.torque_enabled().tolist() == [True]
    assert bank.goal_counts().tolist() == [1500]
    bank.handle(write_packet(1, tables.GOAL_POSITION, 1600))
    bank.handle(write_packet(1, tables.TORQUE_ENABLE, 0))
    bank.set_present([1000])
    bank.handle(write_packet(1, tables.TORQUE_ENABLE, 1))
    assert bank.goal_counts().tolist() == [1600]  # the jump that a careful driver prevents


def test_goals_are_kept_within_the_position_limits() -> None:
    bank = ServoBank([1])
    bank.handle(write_packet(1, tables.LOCK, 0))
    bank.handle(write_packet(1, tables.MIN_POSITION_LIMIT, 1000))
    bank.handle(write_packet(1, tables.GOAL_POSITION, 10))
    assert bank.goal_counts().tolist() == [1000]


def test_what_a_servo_measures_cannot_be_written() -> None:
    bank = ServoBank([1])
    bank.set_present([1234])
    assert bank.handle(write_packet(1, tables.PRESENT_POSITION, 99)) == [Packet(1, 0)]
    assert bank.handle(write_packet(1, tables.MODEL_NUMBER, 99)) == [Packet(1, 0)]
    assert bank.values(tables.PRESENT_POSITION).tolist() == [1234]
    assert bank.values(tables.MODEL_NUMBER).tolist() == [tables.MODEL_STS3215]


def test_lock_decides_what_outlives_the_power() -> None:
    bank = ServoBank([1])
    bank.handle(write_packet(1, tables.P_GAIN, 16))
    assert bank.values(tables.P_GAIN).tolist() == [16]
    bank.power_cycle()
    assert bank.values(tables.P_GAIN).tolist() == [32]
    bank.handle(write_packet(1, tables.LOCK, 0))
    bank.handle(write_packet(1, tables.P_GAIN, 16))
    bank.handle(write_packet(1, tables.TORQUE_ENABLE, 1))
    bank.power_cycle()
    assert bank.values(tables.P_GAIN).tolist() == [16]
    assert bank.values(tables.LOCK).tolist() == [1]
    assert not bank.torque_enabled().any()


def test_a_homing_offset_shifts_what_is_read_and_what_is_asked_for() -> None:
    bank = ServoBank([1])
    bank.set_present([2000])
    bank.handle(write_packet(1, tables.HOMING_OFFSET, -48))
    assert bank.handle(read_packet(1, tables.PRESENT_POSITION)) == [Packet(1, 0, b"\x00\x08")]
    assert bank.goal_counts().tolist() == [2000]
    bank.handle(write_packet(1, tables.GOAL_POSITION, 2148))
    assert bank.goal_counts().tolist() == [2100]


def test_a_new_id_is_answered_to() -> None:
    bank = ServoBank([1])
    bank.handle(write_packet(1, tables.ID, 9))
    assert bank.handle(Packet(1, packets.PING)) == []
    assert bank.handle(Packet(9, packets.PING)) == [Packet(9, 0)]


def test_response_level_zero_answers_only_reads() -> None:
    bank = ServoBank([1])
    bank.handle(write_packet(1, tables.RESPONSE_LEVEL, 0))
    assert bank.handle(write_packet(1, tables.TORQUE_ENABLE, 1)) == []
    assert bank.torque_enabled().all()
    assert bank.handle(Packet(1, packets.PING)) == [Packet(1, 0)]


def test_measurements_are_scaled_and_bounded() -> None:
    bank = ServoBank([1, 2])
    bank.set_present([10.4, 10.6], [-5.0, 1e9], [-0.5, 3.0], 41.0, 7.25)
    assert bank.values(tables.PRESENT_POSITION).tolist() == [10, 11]
    assert bank.values(tables.PRESENT_VELOCITY).tolist() == [-5, 32767]
    assert bank.values(tables.PRESENT_LOAD).tolist() == [-500, 1000]
    assert bank.values(tables.PRESENT_TEMPERATURE).tolist() == [41, 41]
    assert bank.values(tables.MOVING).tolist() == [1, 1]
    bank.handle(write_packet(1, tables.ACCELERATION, 20))
    assert np.array_equal(bank.acceleration_counts_s2(), [2000, 0])
