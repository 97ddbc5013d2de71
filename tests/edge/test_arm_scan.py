"""Servos found by `vlar1 arm scan`, of both protocols, at baud rates that deaf servos do not hear."""

from collections.abc import Iterator

import pytest
from arm_terminal import quick  # noqa: F401

from drivers.arm import dynamixel_tables, packets, tables
from drivers.arm.packets import BROADCAST, Packet
from drivers.errors import DeviceError
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.servo_bus import LineFaults, ServoBank, ServoBus
from edge import arm_scan, cli
from edge.arm_scan import Rate, find_servos, rates

QUICK = pytest.mark.usefixtures("quick")
FEETECH, DYNAMIXEL = Rate("feetech", 500_000), Rate("dynamixel", 57_600)


class Shouting(ServoBank):
    """Servos whose answers to a ping to all collide, as on a wire."""

    def handle(self, packet: Packet) -> list[Packet]:
        answers = super().handle(packet)
        if packet.id == BROADCAST and packet.code == packets.PING and len(answers) > 1:
            return [Packet(0x33, 0x55, b"\x0f\xf0")]  # of a length that nobody expects
        return answers


def at(bank: ServoBank | DynamixelBank, **numbers: int) -> None:
    """Set the servos to a number of the Baud_Rate register."""
    register = dynamixel_tables.BAUD_RATE if isinstance(bank, DynamixelBank) else tables.BAUD_RATE
    for servo in bank._servos:
        servo.set(register, numbers["baud"])  # type: ignore[arg-type]


@pytest.fixture
def shouting() -> Iterator[ServoBus]:
    bank = Shouting([1, 6, 253])
    at(bank, baud=1)
    with ServoBus(bank, heed_baudrate=True) as bus:
        yield bus


def found(port: str, *tried: Rate, every_id: bool = False) -> list[tuple[str, int, int]]:
    return [(s.rate.protocol, s.rate.baudrate, s.id) for s in find_servos(port, tried, every_id=every_id)]


def test_feetech_servos_that_answer_all_at_once_are_found_one_by_one(shouting: ServoBus) -> None:
    servos = list(find_servos(shouting.port, [Rate("feetech", 1_000_000), FEETECH, DYNAMIXEL]))
    assert [(s.rate, s.id) for s in servos] == [(FEETECH, 1), (FEETECH, 6), (FEETECH, 253)]
    first = servos[0]
    assert (first.model_name, first.voltage_v, first.temperature_c) == ("STS3215", pytest.approx(7.4), 30.0)


@QUICK
def test_dynamixels_are_found_by_one_ping_whatever_their_ids_and_rate() -> None:
    bank = DynamixelBank([1, 252])
    with ServoBus(bank, heed_baudrate=True) as bus:
        told: list[str] = []
        tried = [Rate("dynamixel", 1_000_000), DYNAMIXEL, Rate("feetech", 57_600)]
        servos = list(find_servos(bus.port, tried, told=told.append))
        assert [(s.rate, s.id, s.model_name) for s in servos] == [
            (DYNAMIXEL, 1, "XL330-M288"),
            (DYNAMIXEL, 252, "XL330-M288"),
        ]
        assert told == [f"{bus.port}: {rate.protocol} at {rate.baudrate}" for rate in tried]


@QUICK
def test_servos_at_different_rates_are_all_found_and_nothing_is_written() -> None:
    bank = ServoBank([1, 2])
    bank._servos[1].set(tables.BAUD_RATE, 7)
    with ServoBus(bank, heed_baudrate=True) as bus:
        tried = rates(["feetech"])
        assert found(bus.port, *tried) == [("feetech", 1_000_000, 1), ("feetech", 38_400, 2)]
    assert not bank.writes


def test_every_rate_of_both_protocols_is_tried() -> None:
    every = {(rate.protocol, rate.baudrate) for rate in rates()}
    assert len(every) == 15
    assert {("feetech", 38_400), ("feetech", 76_800), ("dynamixel", 9_600), ("dynamixel", 4_000_000)} <= every
    assert sum(rate.silence_s for rate in rates()) < 10.0  # an empty port takes seconds


@QUICK
def test_a_servo_deaf_to_pings_to_all_is_found_by_its_id() -> None:
    bank = ServoBank([9])
    handle = bank.handle
    bank.handle = lambda packet: [] if packet.id == BROADCAST else handle(packet)  # type: ignore[method-assign]
    with ServoBus(bank) as bus:
        assert found(bus.port, FEETECH) == []
        assert found(bus.port, FEETECH, every_id=True) == [("feetech", 500_000, 9)]


@QUICK
def test_an_adapter_that_echoes_is_not_taken_for_servos() -> None:
    with ServoBus(ServoBank([1]), LineFaults(echo=1.0)) as bus, pytest.raises(DeviceError, match="echoes what is sent"):
        found(bus.port, FEETECH)


@QUICK
def test_the_command_shows_a_table_and_what_the_robot_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServoBus(ServoBank([1, 2, 3, 4, 5]), heed_baudrate=True) as bus:
        monkeypatch.setattr(arm_scan, "adapters", lambda: [(bus.port, "A50285BI")])
        monkeypatch.setenv("COLUMNS", "120")
        assert cli.main(["arm", "scan"]) == 0
        told = capsys.readouterr().out
        assert "one without servos takes" in told and "5 servo(s), found in" in told
        row = next(line for line in told.splitlines() if "STS3215" in line)
        assert row.split() == [bus.port, "A50285BI", "feetech", "1000000", "1", "STS3215", "7.4", "30"]
        assert f"{bus.port} at 1000000: so101 lacks id 6 (gripper)" in told


@QUICK
def test_an_empty_bus_and_no_bus_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServoBus(ServoBank([])) as bus:
        assert cli.main(["arm", "scan", "--port", bus.port]) == 0
        assert "no servo answers" in capsys.readouterr().out
    monkeypatch.setattr(arm_scan, "adapters", lambda: [])
    assert cli.main(["arm", "scan"]) == 0
    assert "no serial adapter found" in capsys.readouterr().out
    assert cli.main(["arm", "scan", "--port", "/dev/nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlar1: error: arm port /dev/nothing: there is no such device") and error.count("\n") == 1


@QUICK
def test_a_port_in_use_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServoBus(ServoBank([1]), heed_baudrate=True) as bus:
        monkeypatch.setattr(arm_scan, "adapters", lambda: [("/dev/nothing", ""), (bus.port, "")])
        assert cli.main(["arm", "scan"]) == 0
        told = capsys.readouterr().out
        assert "arm port /dev/nothing: there is no such device" in told and "1 servo(s), found in" in told
