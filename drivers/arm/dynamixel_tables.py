"""The register table of Dynamixel X servos (protocol 2.0), as data.

Source: the control tables of Robotis' e-manual for the X series (XL330, XL430, XC430, XM430, XM540, ...), which agree
on all of these addresses. Words are little-endian; those that can be negative are two's complement.
"""

from __future__ import annotations

from math import tau

from drivers.arm.tables import Register, ServoTable

MODEL_XL330_M288 = 1200
MAX_ID = 252

EEPROM_END = 64
"""Registers below this address outlive the power, and can only be written while torque is off."""

HARDWARE_ERROR_BITS = {
    0: "supply voltage",
    2: "overheated",
    3: "angle sensor",
    4: "electrical shock",
    5: "overloaded",
}
"""Bits of Hardware_Error_Status, and of Shutdown: those that cut torque until the servo is rebooted."""


def _signed(name: str, address: int, size: int, writable: bool = True) -> Register:
    return Register(name, address, size, writable=writable, signed=True)


def _read_only(name: str, address: int, size: int) -> Register:
    return Register(name, address, size, writable=False)


MODEL_NUMBER = _read_only("Model_Number", 0, 2)
MODEL_INFORMATION = _read_only("Model_Information", 2, 4)
FIRMWARE_VERSION = _read_only("Firmware_Version", 6, 1)
ID = Register("ID", 7, 1)
BAUD_RATE = Register("Baud_Rate", 8, 1)
RETURN_DELAY = Register("Return_Delay", 9, 1)  # 2 us
DRIVE_MODE = Register("Drive_Mode", 10, 1)  # bit 0: counts run the other way; bit 2: profiles are in time
OPERATING_MODE = Register("Operating_Mode", 11, 1)  # 1 velocity, 3 position, 4 more turns, 5 with current
SECONDARY_ID = Register("Secondary_ID", 12, 1)  # above MAX_ID: none
PROTOCOL_TYPE = Register("Protocol_Type", 13, 1)
HOMING_OFFSET = _signed("Homing_Offset", 20, 4)  # counts; present = encoder + offset
MOVING_THRESHOLD = Register("Moving_Threshold", 24, 4)  # 0.229 rev/min
TEMPERATURE_LIMIT = Register("Temperature_Limit", 31, 1)  # degrees Celsius
MAX_VOLTAGE_LIMIT = Register("Max_Voltage_Limit", 32, 2)  # 0.1 V
MIN_VOLTAGE_LIMIT = Register("Min_Voltage_Limit", 34, 2)  # 0.1 V
PWM_LIMIT = Register("PWM_Limit", 36, 2)  # 0.113 %
CURRENT_LIMIT = Register("Current_Limit", 38, 2)  # as Present_Current; XL430, XC430: not there
VELOCITY_LIMIT = Register("Velocity_Limit", 44, 4)  # 0.229 rev/min
MAX_POSITION_LIMIT = Register("Max_Position_Limit", 48, 4)  # counts
MIN_POSITION_LIMIT = Register("Min_Position_Limit", 52, 4)  # counts
SHUTDOWN = Register("Shutdown", 63, 1)  # which hardware errors cut torque
TORQUE_ENABLE = Register("Torque_Enable", 64, 1)
LED = Register("LED", 65, 1)
STATUS_RETURN_LEVEL = Register("Status_Return_Level", 68, 1)  # 0: only PING is answered, 1: READ too, 2: all
REGISTERED_INSTRUCTION = _read_only("Registered_Instruction", 69, 1)
HARDWARE_ERROR_STATUS = _read_only("Hardware_Error_Status", 70, 1)  # stays until reboot
VELOCITY_I_GAIN = Register("Velocity_I_Gain", 76, 2)
VELOCITY_P_GAIN = Register("Velocity_P_Gain", 78, 2)
POSITION_D_GAIN = Register("Position_D_Gain", 80, 2)
POSITION_I_GAIN = Register("Position_I_Gain", 82, 2)
POSITION_P_GAIN = Register("Position_P_Gain", 84, 2)
FEEDFORWARD_2ND_GAIN = Register("Feedforward_2nd_Gain", 88, 2)
FEEDFORWARD_1ST_GAIN = Register("Feedforward_1st_Gain", 90, 2)
BUS_WATCHDOG = _signed("Bus_Watchdog", 98, 1)  # 20 ms; 0: off, -1: it has bitten
GOAL_PWM = _signed("Goal_PWM", 100, 2)  # 0.113 %
GOAL_CURRENT = _signed("Goal_Current", 102, 2)  # as Present_Current
GOAL_VELOCITY = _signed("Goal_Velocity", 104, 4)  # 0.229 rev/min
PROFILE_ACCELERATION = Register("Profile_Acceleration", 108, 4)  # 214.577 rev/min^2; 0: as fast as it can
PROFILE_VELOCITY = Register("Profile_Velocity", 112, 4)  # 0.229 rev/min; 0: as fast as it can
GOAL_POSITION = _signed("Goal_Position", 116, 4)  # counts
REALTIME_TICK = _read_only("Realtime_Tick", 120, 2)  # ms
MOVING = _read_only("Moving", 122, 1)
MOVING_STATUS = _read_only("Moving_Status", 123, 1)
PRESENT_PWM = _signed("Present_PWM", 124, 2, writable=False)  # 0.113 %
PRESENT_CURRENT = _signed("Present_Current", 126, 2, writable=False)  # see DYNAMIXEL_X
PRESENT_VELOCITY = _signed("Present_Velocity", 128, 4, writable=False)  # 0.229 rev/min
PRESENT_POSITION = _signed("Present_Position", 132, 4, writable=False)  # counts
VELOCITY_TRAJECTORY = _signed("Velocity_Trajectory", 136, 4, writable=False)  # 0.229 rev/min
POSITION_TRAJECTORY = _signed("Position_Trajectory", 140, 4, writable=False)  # counts
PRESENT_INPUT_VOLTAGE = _read_only("Present_Input_Voltage", 144, 2)  # 0.1 V
PRESENT_TEMPERATURE = _read_only("Present_Temperature", 146, 1)  # degrees Celsius

REGISTERS = tuple(value for value in list(globals().values()) if isinstance(value, Register))

DYNAMIXEL_X = ServoTable(
    protocol="dynamixel",
    torque_enable=TORQUE_ENABLE,
    goal_position=GOAL_POSITION,
    present_position=PRESENT_POSITION,
    present_velocity=PRESENT_VELOCITY,
    present_load=PRESENT_CURRENT,
    present_voltage=PRESENT_INPUT_VOLTAGE,
    present_temperature=PRESENT_TEMPERATURE,
    operating_mode=OPERATING_MODE,
    homing_offset=HOMING_OFFSET,
    id=ID,
    baud_rate=BAUD_RATE,
    position_modes=(3, 4, 5),
    load_unit=0.001,
    velocity_unit_rad_s=0.229 * tau / 60,
    baud_rates={0: 9_600, 1: 57_600, 2: 115_200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000},
    max_id=MAX_ID,
    fault_bits=HARDWARE_ERROR_BITS,
    hardware_error=HARDWARE_ERROR_STATUS,
)
"""The load is the motor's current in ampere on XL330 (1 mA a count). XL430 and XC430, without a current sensor, keep a
share of the greatest torque there (0.1 % a count). XM and XH servos count 2.69 mA: replace ``load_unit`` for those."""
