"""`vlar1 arm monitor`: what the servos say, in words and numbers, and nothing said to them."""

import os
import re
import signal
import time

import pytest
from arm_terminal import person

from drivers.arm import tables
from drivers.arm.servo_arm import open_bus
from drivers.robot import load_robot
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.servo_bus import LineFaults, ServoBank, ServoBus
from edge import cli
from edge.arm_monitor import read_all

ROBOT = load_robot()
KOCH = load_robot(ROBOT.path.with_name("koch.yaml"))
IDS = [joint.id for joint in ROBOT.arm.joints]


def rows(told: str) -> dict[str, list[str]]:
    lines = (re.split(r"\s{1,}", line.strip()) for line in told.splitlines())
    return {words[0]: words[1:] for words in lines if words[0] in ROBOT.joint_names}


def test_once_shows_every_joint_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bank = ServoBank(IDS)
    bank.set_present(
        [2048, 1024, 2048, 2048, 2048, 2148], load=[0, -0.25, 0, 0, 0, 0], temperature_c=[30, 41, 30, 30, 30, 30]
    )
    bank._servos[1].set(tables.PRESENT_CURRENT, 20)
    bank._servos[1].set(tables.TORQUE_ENABLE, 1)
    with ServoBus(bank) as bus:
        assert cli.main(["arm", "monitor", "--once", "--port", bus.port]) == 0
        told = capsys.readouterr().out
        assert max(map(len, told.splitlines())) <= 80
        assert rows(told)["shoulder_lift"] == ["2", "-90.0", "-1.571", "1024", "-25", "+0.130", "7.4", "41", "on"]
        assert rows(told)["gripper"] == ["6", "+8.8", "+0.153", "2148", "+0", "+0.000", "7.4", "30", "off"]
        assert f"{bus.port}: 0 timeouts, 0 damaged" in told
    assert not bank.writes


def test_faults_are_in_words_and_in_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    bank = ServoBank(IDS)
    bank.set_present(2048, temperature_c=[30, 30, 75, 30, 30, 30], voltage_v=[7.4, 7.4, 3.0, 7.4, 7.4, 7.4])
    with ServoBus(bank) as bus:
        assert cli.main(["arm", "monitor", "--once", "--port", bus.port]) == 2
    assert capsys.readouterr().out.splitlines()[-2] == "elbow_flex: supply voltage, overheated"


def test_a_silent_servo_is_a_fault_and_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    bank = ServoBank(IDS)
    bank.silent.add(5)
    with ServoBus(bank) as bus:
        assert cli.main(["arm", "monitor", "--once", "--port", bus.port]) == 2
    told = capsys.readouterr().out
    assert "\nwrist_roll: no answer\n" in told and rows(told)["gripper"][3] == "2048"
    assert " 0 timeouts" not in told


def test_a_dynamixel_says_which_fault_it_latched() -> None:
    bank = DynamixelBank(IDS)
    bank.set_present(2048, load=[0.1, 0, 0, 0, 0, 0])
    bank.fail(3, 0x20)
    with ServoBus(bank) as bus:
        open_one = open_bus(KOCH, bus.port)
        readings = read_all(KOCH, open_one)
        open_one.close()
    assert [list(reading.faults) for reading in readings] == [[], [], ["overloaded"], [], [], []]
    assert readings[0].current_a == pytest.approx(0.175) and readings[0].load is None
    assert [reading.well for reading in readings] == [True, True, False, True, True, True]


def test_damage_on_the_line_is_counted_and_made_good(capsys: pytest.CaptureFixture[str]) -> None:
    with ServoBus(ServoBank(IDS), LineFaults(corrupt=0.2, seed=3)) as bus:
        assert cli.main(["arm", "monitor", "--once", "--port", bus.port]) == 0
    told = capsys.readouterr().out
    assert all(row[3] == "2048" for row in rows(told).values())
    assert f"{bus.port}: 0 timeouts, 0 damaged" not in told


def test_it_goes_on_until_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    bank = ServoBank(IDS)

    def act() -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    with ServoBus(bank) as bus, person(act):
        assert cli.main(["arm", "monitor", "--port", bus.port]) == 0
    assert rows(capsys.readouterr().out)["gripper"][3] == "2048"
    assert not bank.writes


def test_a_port_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["arm", "monitor", "--port", "/dev/nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlar1: error: arm port /dev/nothing: there is no such device") and error.count("\n") == 1
