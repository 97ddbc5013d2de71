"""The vendors' own SDKs as clients of the emulated servos: they have to find what they find on real ones."""

from collections.abc import Iterator
from typing import Any

import dynamixel_sdk
import pytest
import scservo_sdk
from hypothesis import given
from hypothesis import strategies as st

from drivers.arm import dynamixel_tables, tables
from drivers.arm.dynamixel_packets import crc16
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.servo_bus import ServoBank, ServoBus

IDS = (1, 2, 3, 4, 5, 6)
COUNTS = [2048, 1000, 3000, 0, 4095, 2222]
PATIENT_MS = 2000.0


def give_time(handler: Any) -> Any:
    """The SDKs give up after some 30 ms, which a busy test machine takes."""
    handler.setPacketTimeout = lambda length: handler.setPacketTimeoutMillis(PATIENT_MS)
    assert handler.openPort() and handler.setBaudRate(1_000_000)
    return handler


class TestFeetech:
    packets = scservo_sdk.PacketHandler(0)

    @pytest.fixture
    def bank(self) -> ServoBank:
        bank = ServoBank(IDS)
        bank.set_present(COUNTS, [0, 10, -10, 0, 0, 500], [0.0, -0.25, 1.0, 0.0, 0.0, 0.0])
        return bank

    @pytest.fixture
    def port(self, bank: ServoBank) -> Iterator[Any]:
        with ServoBus(bank) as servos:
            port = give_time(scservo_sdk.PortHandler(servos.port))
            yield port
            port.closePort()

    def test_ping(self, port: Any) -> None:
        for id in IDS:
            assert self.packets.ping(port, id) == (tables.MODEL_STS3215, scservo_sdk.COMM_SUCCESS, 0)

    def test_ping_of_nobody(self, port: Any) -> None:
        port.setPacketTimeout = lambda length: port.setPacketTimeoutMillis(50.0)
        assert self.packets.ping(port, 9)[1] == scservo_sdk.COMM_RX_TIMEOUT

    def test_read(self, port: Any) -> None:
        for id, count in zip(IDS, COUNTS, strict=True):
            assert self.packets.read2ByteTxRx(port, id, tables.PRESENT_POSITION.address) == (count, 0, 0)
        speed, *_ = self.packets.read2ByteTxRx(port, 3, tables.PRESENT_VELOCITY.address)
        assert scservo_sdk.SCS_TOHOST(speed, 15) == -10
        assert self.packets.read1ByteTxRx(port, 1, tables.PRESENT_TEMPERATURE.address) == (30, 0, 0)

    def test_write(self, port: Any, bank: ServoBank) -> None:
        assert self.packets.write2ByteTxRx(port, 2, tables.GOAL_POSITION.address, 1234) == (0, 0)
        assert self.packets.write1ByteTxRx(port, 2, tables.TORQUE_ENABLE.address, 1) == (0, 0)
        assert bank.goal_counts().tolist() == [2048, 1234, 3000, 0, 4095, 2222]
        assert bank.torque_enabled().tolist() == [False, True, False, False, False, False]

    def test_a_new_id(self, port: Any) -> None:
        assert self.packets.write1ByteTxRx(port, 6, tables.LOCK.address, 0) == (0, 0)
        assert self.packets.writeTxOnly(port, 6, tables.ID.address, 1, [16]) == scservo_sdk.COMM_SUCCESS
        assert self.packets.ping(port, 16)[0] == tables.MODEL_STS3215

    def test_sync_read(self, port: Any) -> None:
        group = scservo_sdk.GroupSyncRead(port, self.packets, tables.PRESENT_POSITION.address, 2)
        assert all(group.addParam(id) for id in IDS)
        assert group.txRxPacket() == scservo_sdk.COMM_SUCCESS
        assert [group.getData(id, tables.PRESENT_POSITION.address, 2) for id in IDS] == COUNTS

    def test_sync_write(self, port: Any, bank: ServoBank) -> None:
        group = scservo_sdk.GroupSyncWrite(port, self.packets, tables.GOAL_POSITION.address, 2)
        for id in IDS:
            assert group.addParam(id, (1500 + id).to_bytes(2, "little"))
        assert group.txPacket() == scservo_sdk.COMM_SUCCESS
        assert self.packets.ping(port, 1)[1] == scservo_sdk.COMM_SUCCESS  # answered after the goals were taken
        assert bank.goal_counts().tolist() == [1501, 1502, 1503, 1504, 1505, 1506]

    def test_a_fault_is_reported_with_every_answer(self, port: Any, bank: ServoBank) -> None:
        bank.set_present(COUNTS, temperature_c=80)
        *_, error = self.packets.read2ByteTxRx(port, 1, tables.PRESENT_POSITION.address)
        assert self.packets.getRxPacketError(error) == "[RxPacketError] Overheat error!"


class TestDynamixel:
    packets = dynamixel_sdk.PacketHandler(2.0)

    @pytest.fixture
    def bank(self) -> DynamixelBank:
        bank = DynamixelBank(IDS)
        bank.set_present(COUNTS, [0, 100, -100, 0, 0, 500], [0.0, -0.25, 1.0, 0.0, 0.0, 0.0])
        return bank

    @pytest.fixture
    def port(self, bank: DynamixelBank) -> Iterator[Any]:
        with ServoBus(bank) as servos:
            port = give_time(dynamixel_sdk.PortHandler(servos.port))
            yield port
            port.closePort()

    def test_ping(self, port: Any) -> None:
        for id in IDS:
            assert self.packets.ping(port, id) == (dynamixel_tables.MODEL_XL330_M288, dynamixel_sdk.COMM_SUCCESS, 0)

    def test_ping_of_nobody(self, port: Any) -> None:
        port.setPacketTimeout = lambda length: port.setPacketTimeoutMillis(50.0)
        assert self.packets.ping(port, 9)[1] == dynamixel_sdk.COMM_RX_TIMEOUT

    def test_a_broadcast_ping_finds_all(self, port: Any) -> None:
        found, result = self.packets.broadcastPing(port)
        assert result == dynamixel_sdk.COMM_SUCCESS
        assert found == {id: [dynamixel_tables.MODEL_XL330_M288, 46] for id in IDS}

    def test_read(self, port: Any) -> None:
        for id, count in zip(IDS, COUNTS, strict=True):
            position = self.packets.read4ByteTxRx(port, id, dynamixel_tables.PRESENT_POSITION.address)
            assert position == (count, 0, 0)
        current, *_ = self.packets.read2ByteTxRx(port, 2, dynamixel_tables.PRESENT_CURRENT.address)
        assert current == 0x10000 - 438
        assert self.packets.read1ByteTxRx(port, 1, dynamixel_tables.PRESENT_TEMPERATURE.address) == (30, 0, 0)

    def test_write(self, port: Any, bank: DynamixelBank) -> None:
        assert self.packets.write4ByteTxRx(port, 2, dynamixel_tables.GOAL_POSITION.address, 1234) == (0, 0)
        assert self.packets.write1ByteTxRx(port, 2, dynamixel_tables.TORQUE_ENABLE.address, 1) == (0, 0)
        assert bank.goal_counts().tolist() == [2048, 1234, 3000, 0, 4095, 2222]
        assert bank.torque_enabled().tolist() == [False, True, False, False, False, False]

    @given(st.binary(max_size=100))
    def test_the_crc_is_theirs(self, data: bytes) -> None:
        assert crc16(data) == self.packets.updateCRC(0, data, len(data))

    def test_a_new_id(self, port: Any) -> None:
        assert self.packets.write1ByteTxRx(port, 6, dynamixel_tables.ID.address, 16) == (0, 0)
        assert self.packets.ping(port, 16)[0] == dynamixel_tables.MODEL_XL330_M288

    @pytest.mark.parametrize(
        ("register", "value", "error"),
        [
            (dynamixel_tables.OPERATING_MODE, 4, dynamixel_sdk.ERRNUM_ACCESS),
            (dynamixel_tables.PRESENT_TEMPERATURE, 4, dynamixel_sdk.ERRNUM_ACCESS),
            (dynamixel_tables.LED, 2, dynamixel_sdk.ERRNUM_DATA_RANGE),
        ],
    )
    def test_refusals(self, port: Any, register: tables.Register, value: int, error: int) -> None:
        assert self.packets.write1ByteTxRx(port, 1, dynamixel_tables.TORQUE_ENABLE.address, 1) == (0, 0)
        assert self.packets.write1ByteTxRx(port, 1, register.address, value) == (0, error)

    def test_a_goal_beyond_the_limits_is_refused(self, port: Any) -> None:
        result, error = self.packets.write4ByteTxRx(port, 1, dynamixel_tables.GOAL_POSITION.address, 5000)
        assert self.packets.getRxPacketError(error) == "[RxPacketError] The data value exceeds the limit value!"

    def test_an_overload_lasts_until_the_reboot(self, port: Any, bank: DynamixelBank) -> None:
        torque = dynamixel_tables.TORQUE_ENABLE.address
        assert self.packets.write1ByteTxRx(port, 3, torque, 1) == (0, 0)
        bank.fail(3, 0x20)
        *_, error = self.packets.read1ByteTxRx(port, 3, torque)
        assert "Hardware error" in self.packets.getRxPacketError(error)
        self.packets.write1ByteTxRx(port, 3, torque, 1)
        assert not bank.torque_enabled().any()
        assert self.packets.reboot(port, 3)[0] == dynamixel_sdk.COMM_SUCCESS
        assert self.packets.write1ByteTxRx(port, 3, torque, 1) == (0, 0)
        assert bank.torque_enabled().tolist() == [False, False, True, False, False, False]

    @pytest.mark.parametrize("fast", [False, True])
    def test_sync_read(self, port: Any, fast: bool) -> None:
        group = dynamixel_sdk.GroupSyncRead(port, self.packets, dynamixel_tables.PRESENT_POSITION.address, 4)
        assert all(group.addParam(id) for id in IDS)
        assert (group.fastSyncRead() if fast else group.txRxPacket()) == dynamixel_sdk.COMM_SUCCESS
        assert [group.getData(id, dynamixel_tables.PRESENT_POSITION.address, 4) for id in IDS] == COUNTS

    def test_sync_write(self, port: Any, bank: DynamixelBank) -> None:
        group = dynamixel_sdk.GroupSyncWrite(port, self.packets, dynamixel_tables.GOAL_POSITION.address, 4)
        for id in IDS:
            assert group.addParam(id, (1500 + id).to_bytes(4, "little"))
        assert group.txPacket() == dynamixel_sdk.COMM_SUCCESS
        assert self.packets.ping(port, 1)[1] == dynamixel_sdk.COMM_SUCCESS  # answered after the goals were taken
        assert bank.goal_counts().tolist() == [1501, 1502, 1503, 1504, 1505, 1506]
