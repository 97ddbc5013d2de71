"""Dynamixel X servos without the servos: their memory, what they refuse, and their protocol 2.0."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.arm import dynamixel_packets as packets
from drivers.arm import dynamixel_tables as tables
from drivers.arm.packets import BROADCAST, Packet, decode, encode
from drivers.arm.tables import Register
from drivers.sim.servo_bus import scaled_whole

_MEMORY_BYTES = 228
_COUNTS_PER_S = 60 / 4096 / 0.229  # counts/s in units of Present_Velocity
_TURNS = 1_048_575  # 256 turns
_POSITION_MODE = 3
# XL330-M288: register -> (value when new, least, greatest).
_FACTORY = {
    tables.MODEL_NUMBER: (tables.MODEL_XL330_M288, 0, 0xFFFF),
    tables.FIRMWARE_VERSION: (46, 0, 0xFF),
    tables.ID: (1, 0, tables.MAX_ID),
    tables.BAUD_RATE: (1, 0, 6),
    tables.RETURN_DELAY: (250, 0, 254),
    tables.DRIVE_MODE: (0, 0, 13),
    tables.OPERATING_MODE: (_POSITION_MODE, 0, 16),
    tables.SECONDARY_ID: (255, 0, 255),
    tables.PROTOCOL_TYPE: (2, 2, 22),
    tables.HOMING_OFFSET: (0, -1_044_479, 1_044_479),
    tables.MOVING_THRESHOLD: (10, 0, 1023),
    tables.TEMPERATURE_LIMIT: (70, 0, 100),
    tables.MAX_VOLTAGE_LIMIT: (140, 31, 160),  # of XL430: the bank takes 5 V and 12 V arms alike
    tables.MIN_VOLTAGE_LIMIT: (35, 31, 160),
    tables.PWM_LIMIT: (885, 0, 885),
    tables.CURRENT_LIMIT: (1750, 0, 1750),
    tables.VELOCITY_LIMIT: (445, 0, 2047),
    tables.MAX_POSITION_LIMIT: (4095, 0, 4095),
    tables.MIN_POSITION_LIMIT: (0, 0, 4095),
    tables.SHUTDOWN: (0b110101, 0, 255),
    tables.TORQUE_ENABLE: (0, 0, 1),
    tables.LED: (0, 0, 1),
    tables.STATUS_RETURN_LEVEL: (2, 0, 2),
    tables.VELOCITY_I_GAIN: (1600, 0, 16_383),
    tables.VELOCITY_P_GAIN: (180, 0, 16_383),
    tables.POSITION_D_GAIN: (0, 0, 16_383),
    tables.POSITION_I_GAIN: (0, 0, 16_383),
    tables.POSITION_P_GAIN: (400, 0, 16_383),
    tables.FEEDFORWARD_2ND_GAIN: (0, 0, 16_383),
    tables.FEEDFORWARD_1ST_GAIN: (0, 0, 16_383),
    tables.BUS_WATCHDOG: (0, 0, 127),
    tables.GOAL_PWM: (885, -885, 885),
    tables.GOAL_CURRENT: (1750, -1750, 1750),
    tables.GOAL_VELOCITY: (445, -2047, 2047),
    tables.PROFILE_ACCELERATION: (0, 0, 32_767),
    tables.PROFILE_VELOCITY: (0, 0, 32_767),
    tables.GOAL_POSITION: (2048, -_TURNS, _TURNS),
    tables.PRESENT_POSITION: (2048, -_TURNS, _TURNS),
    tables.PRESENT_INPUT_VOLTAGE: (50, 0, 0xFFFF),
    tables.PRESENT_TEMPERATURE: (30, 0, 0xFF),
}
_MODES = (0, 1, _POSITION_MODE, 4, 5, 16)
_BY_ADDRESS = {register.address: register for register in tables.REGISTERS}


class _Servo:
    """One servo's memory. Not thread-safe; the bank holds the lock."""

    def __init__(self, id: int) -> None:
        self.memory = bytearray(_MEMORY_BYTES)
        self.encoder_counts = 2048
        for register, (value, _, _) in _FACTORY.items():
            self.set(register, value)
        self.set(tables.ID, id)
        self.power_on()

    def power_on(self) -> None:
        """As after the supply came, or a REBOOT: torque off, goals forgotten, the EEPROM as it was."""
        for register, (value, _, _) in _FACTORY.items():
            if register.address >= tables.EEPROM_END and register.writable:
                self.set(register, value)
        self.set(tables.HARDWARE_ERROR_STATUS, 0)
        self.goal_written = False
        self.set_encoder(self.encoder_counts)

    def get(self, register: Register) -> int:
        return decode(register, bytes(self.memory[register.address : register.address + register.size]))

    def set(self, register: Register, value: int) -> None:
        self.memory[register.address : register.address + register.size] = encode(register, value)

    def set_encoder(self, counts: int) -> None:
        self.encoder_counts = counts
        present = self._sign() * counts + self.get(tables.HOMING_OFFSET)
        self.set(tables.PRESENT_POSITION, present)
        if not self.goal_written:
            self.set(tables.GOAL_POSITION, present)

    def goal_encoder(self) -> int:
        return self._sign() * (self.get(tables.GOAL_POSITION) - self.get(tables.HOMING_OFFSET))

    def store(self, address: int, data: bytes) -> int:
        """Write as the bus does: all of it, or nothing and the number of the error."""
        values: list[tuple[Register, int]] = []
        at = address
        while at < address + len(data):
            register = _BY_ADDRESS.get(at)
            locked = at < tables.EEPROM_END and self.get(tables.TORQUE_ENABLE)
            if register is None or not register.writable or locked:
                return packets.ACCESS
            word = data[at - address : at - address + register.size]
            if len(word) < register.size:
                return packets.DATA_LENGTH
            values.append((register, decode(register, word)))
            at += register.size
        for error in (self._error_of(register, value) for register, value in values):
            if error:
                return error
        for register, value in values:
            if register == tables.TORQUE_ENABLE and self._shut_down():
                continue  # until the reboot
            self.set(register, value)
            self.goal_written |= register == tables.GOAL_POSITION
            if register == tables.OPERATING_MODE:
                self.goal_written = False
        self.set_encoder(self.encoder_counts)
        return 0

    def check_health(self) -> None:
        """Latch the hardware errors that hold now; those that Shutdown names cut torque."""
        voltage = self.get(tables.PRESENT_INPUT_VOLTAGE)
        low, high = self.get(tables.MIN_VOLTAGE_LIMIT), self.get(tables.MAX_VOLTAGE_LIMIT)
        too_hot = self.get(tables.PRESENT_TEMPERATURE) > self.get(tables.TEMPERATURE_LIMIT)
        self.fail((not low <= voltage <= high) << 0 | too_hot << 2)

    def fail(self, bits: int) -> None:
        self.set(tables.HARDWARE_ERROR_STATUS, self.get(tables.HARDWARE_ERROR_STATUS) | bits)
        if self._shut_down():
            self.set(tables.TORQUE_ENABLE, 0)

    def alert(self) -> int:
        return packets.ALERT if self.get(tables.HARDWARE_ERROR_STATUS) else 0

    def _sign(self) -> int:
        return -1 if self.get(tables.DRIVE_MODE) & 1 else 1

    def _shut_down(self) -> bool:
        return bool(self.get(tables.HARDWARE_ERROR_STATUS) & self.get(tables.SHUTDOWN))

    def _error_of(self, register: Register, value: int) -> int:
        _, least, greatest = _FACTORY[register]
        if not least <= value <= greatest or register == tables.OPERATING_MODE and value not in _MODES:
            return packets.DATA_RANGE
        if register == tables.GOAL_POSITION and self.get(tables.OPERATING_MODE) == _POSITION_MODE:
            least, greatest = self.get(tables.MIN_POSITION_LIMIT), self.get(tables.MAX_POSITION_LIMIT)
        elif register == tables.GOAL_CURRENT:
            least, greatest = -self.get(tables.CURRENT_LIMIT), self.get(tables.CURRENT_LIMIT)
        return 0 if least <= value <= greatest else packets.DATA_LIMIT


class DynamixelBank:
    """The servos of an arm. The physics sets what they measure and takes their goals; the bus serves packets.

    Arrays are in the order of ``ids``. Positions are encoder counts (4096 a turn), before homing offset and drive mode.

    Attributes:
        wire: the protocol they speak.
        silent: ids that do not answer, as if unplugged.
        line_baudrate: what the line is set to: servos whose Baud_Rate says otherwise are deaf; None: all hear.
        writes: the latest (id, address, data) that servos were told to write, oldest first.
    """

    wire = packets.DYNAMIXEL
    line_baudrate: int | None = None

    def __init__(self, ids: Sequence[int]) -> None:
        self._servos = [_Servo(id) for id in ids]
        self._lock = threading.Lock()
        self.silent: set[int] = set()
        self.writes: deque[tuple[int, int, bytes]] = deque(maxlen=4096)

    def set_present(
        self,
        position_counts: ArrayLike,
        velocity_counts_s: ArrayLike = 0.0,
        load: ArrayLike = 0.0,
        temperature_c: ArrayLike = 30.0,
        voltage_v: ArrayLike = 5.0,
    ) -> None:
        """What the servos measure now; each value is a scalar or one a servo. ``load`` is -1..1 of greatest current."""
        shape = (len(self._servos),)
        velocity = np.asarray(velocity_counts_s, dtype=np.float64) * _COUNTS_PER_S
        rows = zip(
            self._servos,
            scaled_whole(position_counts, 1, 0x7000, shape),
            scaled_whole(velocity, 1, 0x7FFF, shape),
            scaled_whole(load, 1750, 1750, shape),
            scaled_whole(temperature_c, 1, 255, shape),
            scaled_whole(voltage_v, 10, 255, shape),
            strict=True,
        )
        with self._lock:
            for servo, position, speed, current, temperature, voltage in rows:
                servo.set_encoder(position)
                servo.set(tables.PRESENT_VELOCITY, speed)
                servo.set(tables.MOVING, int(speed != 0))
                servo.set(tables.PRESENT_CURRENT, current)
                servo.set(tables.PRESENT_TEMPERATURE, temperature)
                servo.set(tables.PRESENT_INPUT_VOLTAGE, voltage)
                servo.check_health()

    def fail(self, id: int, bits: int) -> None:
        """Let a servo find hardware errors, by their bits in Hardware_Error_Status: 0x20 is an overload."""
        with self._lock:
            for servo in self._servos:
                if servo.get(tables.ID) == id:
                    servo.fail(bits)

    def goal_counts(self) -> NDArray[np.int64]:
        """Where each servo is told to be; its present position as long as nobody wrote a goal."""
        with self._lock:
            return np.array([servo.goal_encoder() for servo in self._servos], dtype=np.int64)

    def torque_enabled(self) -> NDArray[np.bool_]:
        return np.equal(self.values(tables.TORQUE_ENABLE), 1)

    def values(self, register: Register) -> NDArray[np.int64]:
        """One register of every servo."""
        with self._lock:
            return np.array([servo.get(register) for servo in self._servos], dtype=np.int64)

    def power_cycle(self) -> None:
        """Switch the supply off and on."""
        with self._lock:
            for servo in self._servos:
                servo.power_on()

    def handle(self, packet: Packet) -> list[Packet]:
        """Carry out an instruction; the status packets it is answered with, in order."""
        params = packet.params
        with self._lock:
            match packet.code:
                case packets.PING if not params:
                    return [self._pong(servo) for servo in self._addressed(packet.id)]
                case packets.READ if len(params) == 4 and packet.id != BROADCAST:
                    return self._read([packet.id], *_span(params))
                case packets.WRITE if len(params) > 2:
                    return self._write(packet.id, int.from_bytes(params[:2], "little"), params[2:])
                case packets.REBOOT if not params:
                    return self._reboot(packet.id)
                case packets.SYNC_READ if len(params) > 4:
                    return self._read(params[4:], *_span(params))
                case packets.FAST_SYNC_READ if len(params) > 4:
                    answers = self._read(params[4:], *_span(params))
                    # Each waits for the one before it: a gap ends the packet for good.
                    return [packets.fast_status(answers)] if len(answers) == len(params) - 4 else []
                case packets.SYNC_WRITE if len(params) > 4:
                    address, size = _span(params)
                    blocks = params[4:]
                    if len(blocks) % (size + 1) == 0:
                        for start in range(0, len(blocks), size + 1):
                            self._write(blocks[start], address, blocks[start + 1 : start + 1 + size])
                    return []
                case packets.PING | packets.READ | packets.WRITE | packets.REBOOT if packet.id != BROADCAST:
                    return [self._status(servo, packets.DATA_LENGTH) for servo in self._addressed(packet.id)]
            if packet.id == BROADCAST:
                return []
            return [self._status(servo, packets.INSTRUCTION) for servo in self._addressed(packet.id)]

    def _addressed(self, id: int) -> list[_Servo]:
        rates = tables.DYNAMIXEL_X.baud_rates
        awake = [
            servo
            for servo in self._servos
            if servo.get(tables.ID) not in self.silent
            and self.line_baudrate in (None, rates.get(servo.get(tables.BAUD_RATE)))
        ]
        return [servo for servo in awake if id in (BROADCAST, servo.get(tables.ID))]

    def _status(self, servo: _Servo, error: int = 0, params: bytes = b"") -> Packet:
        return Packet(servo.get(tables.ID), servo.alert() | error, params)

    def _pong(self, servo: _Servo) -> Packet:
        return self._status(servo, 0, bytes(servo.memory[0:2]) + bytes(servo.memory[6:7]))

    def _read(self, ids: Sequence[int], address: int, size: int) -> list[Packet]:
        answers = []
        for servo in [servo for id in ids if id != BROADCAST for servo in self._addressed(id)]:
            if not servo.get(tables.STATUS_RETURN_LEVEL):
                continue
            if 0 < size <= _MEMORY_BYTES - address:
                answers.append(self._status(servo, 0, bytes(servo.memory[address : address + size])))
            else:
                answers.append(self._status(servo, packets.ACCESS))
        return answers

    def _write(self, id: int, address: int, data: bytes) -> list[Packet]:
        answers = []
        for servo in self._addressed(id):
            own_id, level = servo.get(tables.ID), servo.get(tables.STATUS_RETURN_LEVEL)
            self.writes.append((own_id, address, data))
            error = servo.store(address, data)
            if id != BROADCAST and level == 2:
                answers.append(Packet(own_id, servo.alert() | error))
        return answers

    def _reboot(self, id: int) -> list[Packet]:
        answers = []
        for servo in self._addressed(id):
            if id != BROADCAST and servo.get(tables.STATUS_RETURN_LEVEL) == 2:
                answers.append(self._status(servo))
            servo.power_on()
        return answers


def _span(params: bytes) -> tuple[int, int]:
    """Address and size, with which the parameters of a read begin."""
    return int.from_bytes(params[:2], "little"), int.from_bytes(params[2:4], "little")
