"""What an arm needs to know of a make of servo, and the register table of Feetech STS servos (STS3215), as data.

Source: Feetech's memory table of the magnetic-encoder STS series. Words are little-endian. Some words are
sign-magnitude: ``sign_bit`` is the bit that says "negative".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import tau

COUNTS_PER_TURN = 4096
RAD_PER_COUNT = tau / COUNTS_PER_TURN
MODEL_STS3215 = 777
MAX_ID = 253

EPROM_END = 40
"""Registers below this address keep their value through a power cycle, if Lock was 0 when they were written."""

FAULT_BITS = {0: "supply voltage", 1: "angle sensor", 2: "overheated", 3: "overcurrent", 5: "overloaded"}
"""Bits of the error byte that every status packet carries."""


@dataclass(frozen=True)
class Register:
    """One register: ``size`` bytes at ``address``.

    Its word is sign-magnitude where ``sign_bit`` names the bit that says "negative", two's complement where it is
    ``signed``, and never negative otherwise.
    """

    name: str
    address: int
    size: int
    sign_bit: int | None = None
    writable: bool = True
    signed: bool = False


@dataclass(frozen=True)
class ServoTable:
    """One make of servo: the registers that an arm uses, and what their counts mean. All count 4096 a turn.

    Attributes:
        protocol: "feetech" or "dynamixel".
        present_load: how hard the motor works, by torque or by current.
        position_modes: values of ``operating_mode`` in which ``goal_position`` is obeyed.
        load_unit: what one count of ``present_load`` stands for; a share of the greatest torque on Feetech servos, for
            Dynamixels see `drivers.arm.dynamixel_tables.DYNAMIXEL_X`.
        velocity_unit_rad_s: what one count of ``present_velocity`` stands for.
        voltage_unit_v: what one count of ``present_voltage`` stands for.
        baud_rates: value of ``baud_rate`` -> bits per second.
        max_id: greatest id of a single servo.
        fault_bits: bit of the error byte, or of ``hardware_error`` where there is one -> fault.
        hardware_error: the register that says which fault it is, where the error byte says only that there is one.
    """

    protocol: str
    torque_enable: Register
    goal_position: Register
    present_position: Register
    present_velocity: Register
    present_load: Register
    present_voltage: Register
    present_temperature: Register
    operating_mode: Register
    homing_offset: Register
    id: Register
    baud_rate: Register
    position_modes: tuple[int, ...]
    load_unit: float
    velocity_unit_rad_s: float
    baud_rates: Mapping[int, int] = field(hash=False)
    max_id: int
    fault_bits: Mapping[int, str] = field(hash=False)
    hardware_error: Register | None = None
    voltage_unit_v: float = 0.1


def _read_only(name: str, address: int, size: int, sign_bit: int | None = None) -> Register:
    return Register(name, address, size, sign_bit, writable=False)


FIRMWARE_MAJOR = _read_only("Firmware_Major", 0, 1)
FIRMWARE_MINOR = _read_only("Firmware_Minor", 1, 1)
MODEL_NUMBER = _read_only("Model_Number", 3, 2)
ID = Register("ID", 5, 1)
BAUD_RATE = Register("Baud_Rate", 6, 1)
RETURN_DELAY = Register("Return_Delay", 7, 1)
RESPONSE_LEVEL = Register("Response_Level", 8, 1)  # 0: only PING and READ are answered
MIN_POSITION_LIMIT = Register("Min_Position_Limit", 9, 2)
MAX_POSITION_LIMIT = Register("Max_Position_Limit", 11, 2)
MAX_TEMPERATURE = Register("Max_Temperature", 13, 1)  # degrees Celsius
MAX_VOLTAGE = Register("Max_Voltage", 14, 1)  # 0.1 V
MIN_VOLTAGE = Register("Min_Voltage", 15, 1)  # 0.1 V
MAX_TORQUE = Register("Max_Torque", 16, 2)  # 0.1 %
PHASE = Register("Phase", 18, 1)
UNLOAD_CONDITION = Register("Unload_Condition", 19, 1)  # which fault bits cut torque
LED_ALARM = Register("LED_Alarm", 20, 1)
P_GAIN = Register("P_Gain", 21, 1)
D_GAIN = Register("D_Gain", 22, 1)
I_GAIN = Register("I_Gain", 23, 1)
MIN_STARTUP_FORCE = Register("Min_Startup_Force", 24, 2)  # 0.1 %
CW_DEAD_ZONE = Register("CW_Dead_Zone", 26, 1)
CCW_DEAD_ZONE = Register("CCW_Dead_Zone", 27, 1)
PROTECTION_CURRENT = Register("Protection_Current", 28, 2)  # 6.5 mA
ANGULAR_RESOLUTION = Register("Angular_Resolution", 30, 1)
HOMING_OFFSET = Register("Homing_Offset", 31, 2, sign_bit=11)  # counts; present = encoder - offset
OPERATING_MODE = Register("Operating_Mode", 33, 1)  # 0: position
PROTECTIVE_TORQUE = Register("Protective_Torque", 34, 1)  # %
PROTECTION_TIME = Register("Protection_Time", 35, 1)  # 10 ms
OVERLOAD_TORQUE = Register("Overload_Torque", 36, 1)  # %
VELOCITY_P_GAIN = Register("Velocity_P_Gain", 37, 1)
OVERCURRENT_TIME = Register("Overcurrent_Time", 38, 1)  # 10 ms
VELOCITY_I_GAIN = Register("Velocity_I_Gain", 39, 1)
TORQUE_ENABLE = Register("Torque_Enable", 40, 1)
ACCELERATION = Register("Acceleration", 41, 1)  # 100 counts/s^2; 0: as fast as it can
GOAL_POSITION = Register("Goal_Position", 42, 2, sign_bit=15)  # counts
GOAL_TIME = Register("Goal_Time", 44, 2)
GOAL_VELOCITY = Register("Goal_Velocity", 46, 2, sign_bit=15)  # counts/s
TORQUE_LIMIT = Register("Torque_Limit", 48, 2)  # 0.1 %
LOCK = Register("Lock", 55, 1)  # 1: what is written below EPROM_END is lost with the power
PRESENT_POSITION = _read_only("Present_Position", 56, 2, sign_bit=15)  # counts
PRESENT_VELOCITY = _read_only("Present_Velocity", 58, 2, sign_bit=15)  # counts/s
PRESENT_LOAD = _read_only("Present_Load", 60, 2, sign_bit=10)  # 0.1 % of the greatest torque
PRESENT_VOLTAGE = _read_only("Present_Voltage", 62, 1)  # 0.1 V
PRESENT_TEMPERATURE = _read_only("Present_Temperature", 63, 1)  # degrees Celsius
STATUS = _read_only("Status", 65, 1)  # the error byte
MOVING = _read_only("Moving", 66, 1)
PRESENT_CURRENT = _read_only("Present_Current", 69, 2, sign_bit=15)  # 6.5 mA

REGISTERS = tuple(value for value in list(globals().values()) if isinstance(value, Register))

FEETECH_STS = ServoTable(
    protocol="feetech",
    torque_enable=TORQUE_ENABLE,
    goal_position=GOAL_POSITION,
    present_position=PRESENT_POSITION,
    present_velocity=PRESENT_VELOCITY,
    present_load=PRESENT_LOAD,
    present_voltage=PRESENT_VOLTAGE,
    present_temperature=PRESENT_TEMPERATURE,
    operating_mode=OPERATING_MODE,
    homing_offset=HOMING_OFFSET,
    id=ID,
    baud_rate=BAUD_RATE,
    position_modes=(0,),
    load_unit=0.001,
    velocity_unit_rad_s=RAD_PER_COUNT,
    baud_rates={
        0: 1_000_000,
        1: 500_000,
        2: 250_000,
        3: 128_000,
        4: 115_200,
        5: 76_800,
        6: 57_600,
        7: 38_400,
    },
    max_id=MAX_ID,
    fault_bits=FAULT_BITS,
)
