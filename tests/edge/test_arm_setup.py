"""`vlar1 arm setup`: ids and rates for servos as they come out of the box."""

from dataclasses import replace

import pytest
from arm_terminal import Terminal, person, quick, terminal, wait_for  # noqa: F401

from drivers.arm import dynamixel_tables, tables
from drivers.arm.packets import Packet
from drivers.errors import DeviceError, UserError
from drivers.robot import load_robot
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.servo_bus import ServoBank, ServoBus
from edge import arm_setup, cli
from edge.arm_setup import find_the_one, set_up

ROBOT = load_robot()
KOCH = load_robot(ROBOT.path.with_name("koch.yaml"))
ELBOW = ROBOT.arm.joints[2]


pytestmark = pytest.mark.usefixtures("quick")


def feetech(*ids: int, **values: int) -> ServoBank:
    bank = ServoBank(ids)
    for servo in bank._servos:
        for name, value in values.items():
            servo.set(getattr(tables, name), value)
        servo._saved[:] = servo.memory
    return bank


def saved(bank: ServoBank, register: tables.Register) -> int:
    bank.power_cycle()
    return int(bank.values(register)[0])


def test_a_new_servo_gets_its_id_and_rate_for_good() -> None:
    bank = feetech(1, BAUD_RATE=4, RETURN_DELAY=250, RESPONSE_LEVEL=0)
    with ServoBus(bank, heed_baudrate=True) as bus:
        servo = find_the_one(ROBOT, bus.port)
        assert (servo.id, servo.rate.baudrate) == (1, 115_200)
        changed = set_up(ROBOT, ELBOW, servo)
        assert changed == ["Response_Level 1", "Return_Delay 0", "1000000 baud", "id 3"]
    expected = {tables.ID: 3, tables.BAUD_RATE: 0, tables.RETURN_DELAY: 0, tables.RESPONSE_LEVEL: 1, tables.LOCK: 1}
    assert {register: saved(bank, register) for register in expected} == expected
    assert not any(address == tables.TORQUE_ENABLE.address for _, address, _ in bank.writes)


def test_a_new_dynamixel_too() -> None:
    bank = DynamixelBank([1])
    with ServoBus(bank, heed_baudrate=True) as bus:
        changed = set_up(KOCH, KOCH.arm.joints[2], find_the_one(KOCH, bus.port))
        assert changed == ["Return_Delay 0", "1000000 baud", "id 3"]
    assert bank.values(dynamixel_tables.ID) == 3 and bank.values(dynamixel_tables.BAUD_RATE) == 3


def test_a_servo_that_is_set_up_already_is_left_alone() -> None:
    bank = feetech(3)
    with ServoBus(bank, heed_baudrate=True) as bus:
        assert set_up(ROBOT, ELBOW, find_the_one(ROBOT, bus.port)) == []
    assert {address for _, address, _ in bank.writes} == {tables.LOCK.address}


def test_two_servos_are_refused_also_at_different_rates() -> None:
    bank = feetech(1, 2)
    bank._servos[1].set(tables.BAUD_RATE, 1)
    with ServoBus(bank, heed_baudrate=True) as bus:
        with pytest.raises(DeviceError, match=r"2 servos answer \(id 1 at 1000000, id 2 at 500000\)"):
            find_the_one(ROBOT, bus.port)
    assert not bank.writes


def test_two_servos_of_one_id_are_refused() -> None:
    bank = feetech(1, 1)
    with ServoBus(bank, heed_baudrate=True) as bus:
        with pytest.raises(DeviceError, match="two servos may have this id"):
            set_up(ROBOT, ELBOW, find_the_one(ROBOT, bus.port))
    assert not bank.writes


def test_nothing_is_written_with_torque_on() -> None:
    bank = feetech(1, TORQUE_ENABLE=1)
    bank._servos[0].set(tables.TORQUE_ENABLE, 1)
    with ServoBus(bank, heed_baudrate=True) as bus:
        with pytest.raises(DeviceError, match="servo 1 has torque on; cycle its power; nothing was written"):
            set_up(ROBOT, ELBOW, find_the_one(ROBOT, bus.port))
    assert not bank.writes


def test_a_register_that_does_not_take_is_told() -> None:
    bank = feetech(1, RETURN_DELAY=250)
    handle = bank.handle

    def stubborn(packet: Packet) -> list[Packet]:
        answers = handle(packet)
        bank._servos[0].set(tables.RETURN_DELAY, 250)
        return answers

    bank.handle = stubborn  # type: ignore[method-assign]
    with ServoBus(bank, heed_baudrate=True) as bus:
        with pytest.raises(DeviceError, match="servo 1 holds 250 in Return_Delay, not 0; cycle its power"):
            set_up(ROBOT, ELBOW, find_the_one(ROBOT, bus.port))


def test_a_rate_that_the_servos_do_not_have_is_the_robot_files_fault() -> None:
    with ServoBus(feetech(1), heed_baudrate=True) as bus:
        servo = find_the_one(ROBOT, bus.port)
        odd = replace(ROBOT, arm=replace(ROBOT.arm, baudrate=123_456))
        with pytest.raises(UserError, match=r"field arm\.baudrate must be one of 1000000, "):
            set_up(odd, ELBOW, servo)


def test_one_servo_after_the_other(
    terminal: Terminal,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As at a desk: one servo is plugged in, then another; once both, and that is refused."""
    bank = feetech(1, 1)
    unplugged = [bank._servos.pop()]

    def user() -> None:
        terminal.press("x", "\n")  # what is not Enter does nothing
        wait_for(lambda: bank.values(tables.LOCK).tolist() == [1] and bank.values(tables.ID).tolist() == [6])
        bank._servos.append(unplugged.pop())
        writes = len(bank.writes)
        wait_for(lambda: len(asked) >= 2)
        terminal.press("\n")  # both are plugged in
        wait_for(lambda: len(asked) >= 3)
        assert len(bank.writes) == writes
        unplugged.append(bank._servos.pop(0))
        terminal.press("\n")

    asked: list[int] = []
    wait = arm_setup.Keys.wait

    def counted(keys: arm_setup.Keys, *wanted: str) -> str:
        asked.append(1)
        return wait(keys, *wanted)

    monkeypatch.setattr(arm_setup.Keys, "wait", counted)
    with ServoBus(bank, heed_baudrate=True) as bus, person(user):
        command = ["arm", "setup", "--port", bus.port, "--joint", "gripper", "--joint", "wrist_roll"]
        assert cli.main(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "connect only the servo of gripper (it gets id 6), then press Enter" in told
    assert "gripper: STS3215, was id 1 at 1000000: id 6" in told
    assert "2 servos answer (id 1 at 1000000, id 6 at 1000000); connect one only" in told
    assert "wrist_roll: STS3215, was id 1 at 1000000: id 5" in told
    assert bank.values(tables.ID).tolist() == [5]
    assert terminal.restored


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "arm setup: needs a keyboard, and standard input is no terminal"),
        (["--joint", "knee"], "--joint knee: "),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(["arm", "setup", "--port", "/dev/nothing", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vlar1: error: {told}") and error.count("\n") == 1
