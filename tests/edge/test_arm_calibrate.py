"""`vlar1 arm calibrate` with somebody who moves the arm, loses patience, forgets a joint, or pulls a plug."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from arm_terminal import Terminal, person, terminal, wait_for  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.arm import dynamixel_tables, packets, tables
from drivers.arm.lerobot import LeRobotMotor, load_lerobot, robot_with_lerobot
from drivers.arm.packets import Packet
from drivers.arm.tables import RAD_PER_COUNT
from drivers.errors import UserError
from drivers.robot import load_robot
from drivers.sim.dynamixel_bank import DynamixelBank
from drivers.sim.servo_bus import ServoBank, ServoBus
from edge import arm_scan, cli
from edge.arm_robot_file import write_robot_file

ROBOT = load_robot()
KOCH = load_robot(ROBOT.path.with_name("koch.yaml"))
IDS = [joint.id for joint in ROBOT.arm.joints]
HALF = ((ROBOT.upper_rad - ROBOT.lower_rad) / 2 / RAD_PER_COUNT).astype(int)
KOCH_HALF = ((KOCH.upper_rad - KOCH.lower_rad) / 2 / RAD_PER_COUNT).astype(int)
MIDDLE = np.array([2048, 900, 3100, 2000, 2100, 4000])
"""What the encoders read with every joint in its middle, on servos screwed on any way round."""
FACTORY = ([0] * 6, [0] * 6, [4095] * 6, [1] * 6)


class User:
    """Somebody at the arm and at the keyboard."""

    def __init__(self, bank: ServoBank | DynamixelBank, terminal: Terminal) -> None:  # noqa: F811
        self.bank, self.terminal = bank, terminal
        self.asked = 0
        self._handle = bank.handle
        bank.handle = self._count  # type: ignore[method-assign]

    def _count(self, packet: Packet) -> list[Packet]:
        answers = self._handle(packet)
        self.asked += packet.code == packets.SYNC_READ
        return answers

    def pose(self, counts: np.ndarray) -> None:
        """Hold the arm there until the program has seen it."""
        self.bank.set_present(counts)
        seen = self.asked
        wait_for(lambda: self.asked >= seen + 2)

    def middle(self, counts: np.ndarray = MIDDLE) -> None:
        self.bank.set_present(counts)
        self.terminal.press("\n")
        wait_for(lambda: self.asked >= 2)  # it records

    def sweep(self, half: np.ndarray = HALF, middle: np.ndarray = MIDDLE) -> None:
        for share in (0.5, 1.0, 0.5, 0.0, -0.5, -1.0, -0.5, 0.0):
            self.pose(middle + np.rint(share * half).astype(int))


def registers(bank: ServoBank) -> tuple[list[int], ...]:
    kept = (tables.HOMING_OFFSET, tables.MIN_POSITION_LIMIT, tables.MAX_POSITION_LIMIT, tables.LOCK)
    return tuple(bank.values(register).tolist() for register in kept)


@pytest.fixture
def bank() -> ServoBank:
    return ServoBank(IDS)


@pytest.fixture
def bus(bank: ServoBank) -> Iterator[ServoBus]:
    with ServoBus(bank) as one:
        yield one


@pytest.fixture
def user(bank: ServoBank, terminal: Terminal) -> User:  # noqa: F811
    return User(bank, terminal)


def calibrate(bus: ServoBus, *arguments: str | Path) -> int:
    return cli.main(["arm", "calibrate", "--port", bus.port, *map(str, arguments)])


def test_what_is_recorded_is_in_the_file_and_in_the_servos(
    user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "arm.json"

    def act() -> None:
        user.middle()
        user.sweep()
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", out) == 0
    motors = json.loads(out.read_text())
    assert list(motors) == list(ROBOT.joint_names)
    for i, name in enumerate(ROBOT.joint_names):
        assert motors[name] == {
            "id": IDS[i],
            "drive_mode": 0,
            "homing_offset": MIDDLE[i] - 2047,
            "range_min": 2047 - HALF[i],
            "range_max": 2047 + HALF[i],
        }
    bank.power_cycle()
    assert registers(bank) == ((MIDDLE - 2047).tolist(), (2047 - HALF).tolist(), (2047 + HALF).tolist(), [1] * 6)
    assert user.terminal.restored
    told = capsys.readouterr().out
    assert "move every joint from stop to stop" in told and "wrist_roll" in told

    calibrated = robot_with_lerobot(ROBOT, out)
    assert calibrated.lower_rad == pytest.approx(ROBOT.lower_rad, abs=0.002)
    assert not any(address == tables.TORQUE_ENABLE.address for _, address, _ in bank.writes)


def test_an_earlier_offset_makes_no_difference(user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path) -> None:
    for servo in bank._servos:
        servo.set(tables.HOMING_OFFSET, -700)

    def act() -> None:
        user.middle()
        user.sweep()
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 0
    assert registers(bank)[0] == (MIDDLE - 2047).tolist()


def test_the_last_count_of_the_turn_fits_the_register(
    user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path
) -> None:
    middle = MIDDLE.copy()
    middle[3] = 4095

    def act() -> None:
        user.middle(middle)
        user.sweep(middle=middle)
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 0
    assert load_lerobot(tmp_path / "arm.json")["wrist_flex"].homing_offset == 2047


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaving_undoes_what_was_written_and_keeps_what_was_recorded(
    user: User,
    bank: ServoBank,
    bus: ServoBus,
    tmp_path: Path,
    number: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "arm.json"

    def act() -> None:
        user.middle()
        assert registers(bank)[0] == (MIDDLE - 2047).tolist()
        user.pose(MIDDLE + np.array([300, 0, 0, 0, 0, 0]))
        os.kill(os.getpid(), number)

    with person(act):
        if number == signal.SIGINT:
            assert calibrate(bus, "--out", out) == 130
        else:
            with pytest.raises(SystemExit) as left:
                calibrate(bus, "--out", out)
            assert left.value.code == 143
    assert registers(bank) == FACTORY
    bank.power_cycle()
    assert registers(bank) == FACTORY
    assert user.terminal.restored
    assert not out.exists()
    partial = json.loads((tmp_path / "arm.partial.json").read_text())
    assert list(partial) == ["shoulder_pan"] and partial["shoulder_pan"]["range_max"] == 2347
    assert "what was recorded of shoulder_pan" in capsys.readouterr().out.replace("\n", "")


def test_a_closed_terminal_undoes_it_too(user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path) -> None:
    def act() -> None:
        user.middle()
        user.terminal.hang_up()

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 2
    assert registers(bank) == FACTORY


def test_enter_waits_for_a_forgotten_joint(user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path) -> None:
    half = HALF.copy()
    half[4] = 0

    def act() -> None:
        user.middle()
        user.sweep(half)
        for _ in range(2):
            user.terminal.press("\n")
            user.pose(MIDDLE)
        user.sweep()
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 0
    assert load_lerobot(tmp_path / "arm.json")["wrist_roll"].range_max == 2047 + HALF[4]


def test_a_range_that_the_robot_cannot_use_is_doubted_once(
    user: User, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = HALF.copy()
    half[2] = 300  # elbow_flex does not get to the rest pose

    def act() -> None:
        user.middle()
        user.sweep(half)
        user.terminal.press("\n")
        user.pose(MIDDLE)
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 0
    assert load_lerobot(tmp_path / "arm.json")["elbow_flex"].range_max == 2347


def test_a_joint_that_leaves_its_turn_was_not_in_its_middle(
    user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        user.middle()
        user.sweep()
        user.pose(MIDDLE + np.array([0, 2000, 0, 0, 0, 0]))
        user.pose(MIDDLE + np.array([0, 2100, 0, 0, 0, 0]))
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 2
    assert "shoulder_lift left the servo's turn" in capsys.readouterr().err
    assert registers(bank) == FACTORY


def test_a_wrist_may_turn_round(user: User, bus: ServoBus, tmp_path: Path) -> None:
    def act() -> None:
        user.middle()
        user.sweep()
        user.pose(MIDDLE + np.array([0, 0, 0, 0, 2000, 0]))
        user.pose(MIDDLE + np.array([0, 0, 0, 0, 2100, 0]))
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", tmp_path / "arm.json") == 0
    wrist = load_lerobot(tmp_path / "arm.json")["wrist_roll"]
    assert (wrist.range_min, wrist.range_max) == (0, 4095)


def test_torque_goes_off_only_when_told_and_held(
    user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank._servos[1].set(tables.TORQUE_ENABLE, 1)
    out = tmp_path / "arm.json"
    assert calibrate(bus, "--out", out) == 2
    error = capsys.readouterr().err
    assert "torque is on at shoulder_lift" in error and "--torque-off" in error and error.count("\n") == 1
    assert not bank.writes and bank.torque_enabled()[1]

    def act() -> None:
        wait_for(lambda: user.terminal.gives_keys)
        assert bank.torque_enabled()[1]
        user.terminal.press("\n")
        wait_for(lambda: not bank.torque_enabled().any())
        user.middle()
        user.sweep()
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", out, "--torque-off") == 0
    assert "it drops when torque goes off" in capsys.readouterr().out


def test_a_calibration_is_not_overwritten_unless_told(
    user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "arm.json"
    out.write_text("dear to somebody")
    assert calibrate(bus, "--out", out) == 2
    assert "exists already; name a new file, or add --force" in capsys.readouterr().err
    assert out.read_text() == "dear to somebody" and not bank.writes
    assert calibrate(bus, "--out", tmp_path / "nowhere" / "arm.json") == 2
    assert "there is no folder" in capsys.readouterr().err

    def act() -> None:
        user.middle()
        user.sweep()
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", out, "--force") == 0
    load_lerobot(out)


def test_a_servo_that_takes_no_limits_costs_no_recording(
    user: User, bank: ServoBank, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "arm.json"

    def act() -> None:
        user.middle()
        user.sweep()
        handle = bank.handle

        def stubborn(packet: Packet) -> list[Packet]:
            answers = handle(packet)
            bank._servos[5].set(tables.MAX_POSITION_LIMIT, 4095)
            return answers

        bank.handle = stubborn  # type: ignore[method-assign]
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", out) == 2
    error = capsys.readouterr().err
    assert "for Max_Position_Limit and holds 4095" in error and f"vlar1 arm calibrate --from {out}`" in error
    assert registers(bank) == FACTORY
    assert load_lerobot(out)["gripper"].range_max == 2047 + HALF[5]


# From a file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lerobot.json"
    path.write_text(
        json.dumps(
            {
                name: {
                    "id": IDS[i],
                    "drive_mode": 0,
                    "homing_offset": int(MIDDLE[i]) - 2047,
                    "range_min": 2047 - int(HALF[i]),
                    "range_max": 2047 + int(HALF[i]),
                }
                for i, name in enumerate(ROBOT.joint_names)
            }
        )
    )
    return path


def test_a_file_goes_into_the_servos_for_good(file: Path, bank: ServoBank, bus: ServoBus) -> None:
    assert cli.main(["arm", "monitor", "--once", "--port", bus.port, "--calibration", str(file)]) == 2
    assert calibrate(bus, "--from", file) == 0
    bank.power_cycle()
    assert registers(bank) == ((MIDDLE - 2047).tolist(), (2047 - HALF).tolist(), (2047 + HALF).tolist(), [1] * 6)
    assert cli.main(["arm", "monitor", "--once", "--port", bus.port, "--calibration", str(file)]) == 0
    written = len(bank.writes)
    assert calibrate(bus, "--from", file) == 0
    assert len(bank.writes) == written  # all was there


def test_a_servo_that_falls_silent_midway_leaves_the_others_as_they_were(
    file: Path, bank: ServoBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = bank.handle

    def pulled(packet: Packet) -> list[Packet]:
        if packet.code == packets.WRITE and packet.id == 4:
            bank.silent.add(4)
        return handle(packet)

    bank.handle = pulled  # type: ignore[method-assign]
    assert calibrate(bus, "--from", file) == 2
    assert "servo 4 does not answer" in capsys.readouterr().err
    assert registers(bank) == FACTORY


def test_what_cannot_be_put_back_is_told(
    file: Path, bank: ServoBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = bank.handle

    def pulled(packet: Packet) -> list[Packet]:
        if packet.code == packets.WRITE and packet.id == 2 and packet.params[0] == tables.MAX_POSITION_LIMIT.address:
            bank.silent.update((1, 2))
        return handle(packet)

    bank.handle = pulled  # type: ignore[method-assign]
    assert calibrate(bus, "--from", file) == 2
    error = capsys.readouterr().err
    assert "could not be given back what they had: " in error and error.count("\n") == 1
    assert "shoulder_pan Homing_Offset 0" in error and "shoulder_lift Lock 1" in error


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"homing_offset": 3000}, "servo 3 (elbow_flex): Homing_Offset cannot hold 3000"),
        ({"range_min": 4000}, "field elbow_flex.range_min is 4000, not below range_max"),
    ],
)
def test_a_file_that_the_servos_cannot_hold(
    file: Path, bank: ServoBank, bus: ServoBus, capsys: pytest.CaptureFixture[str], change: dict[str, int], told: str
) -> None:
    motors = json.loads(file.read_text())
    motors["elbow_flex"] |= change
    file.write_text(json.dumps(motors))
    assert calibrate(bus, "--from", file) == 2
    assert told in capsys.readouterr().err
    assert registers(bank) == FACTORY


def test_torque_is_no_matter_of_the_file_either(
    file: Path, bank: ServoBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]
) -> None:
    bank._servos[0].set(tables.TORQUE_ENABLE, 1)
    assert calibrate(bus, "--from", file) == 2
    assert "torque is on at shoulder_pan" in capsys.readouterr().err
    assert calibrate(bus, "--from", file, "--torque-off") == 2
    assert "needs a keyboard" in capsys.readouterr().err
    assert not bank.writes


def test_other_offsets_in_the_servos_are_refused_by_name(
    file: Path, bank: ServoBank, bus: ServoBus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(bus, "--from", file) == 0
    bank._servos[2].set(tables.HOMING_OFFSET, 11)
    for command in ("monitor", "park", "jog"):
        more = ["--yes"] if command == "park" else ["--once"] if command == "monitor" else []
        code = cli.main(["arm", command, "--port", bus.port, "--calibration", str(file), *more])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1
        if command != "jog":  # which wants a keyboard first
            assert f"servo 3 (elbow_flex) holds Homing_Offset 11, but {file} was made with 1053" in error
            assert f"vlar1 arm calibrate --from {file}`" in error
    assert not bank.torque_enabled().any()


# A robot file of one's own


def own(bus: ServoBus, file: Path, out: Path, *more: str | Path) -> int:
    return calibrate(bus, "--from", file, "--robot-out", out, *more)


def test_a_recording_makes_a_robot_file(user: User, bus: ServoBus, tmp_path: Path) -> None:
    """The shipped one, comments and all, but for the joints and the port."""
    out, path = tmp_path / "arm.json", tmp_path / "my-arm.yaml"

    def act() -> None:
        user.middle()
        user.sweep()
        user.terminal.press("\n")

    with person(act):
        assert calibrate(bus, "--out", out, "--robot-out", path) == 0
    robot, calibrated = load_robot(path), robot_with_lerobot(ROBOT, out)
    assert robot.arm.port == bus.port and robot.arm.joints == calibrated.arm.joints
    assert robot.rest_rad.tolist() == calibrated.rest_rad.tolist()
    lines, shipped = path.read_text().splitlines(), ROBOT.path.read_text().splitlines()
    changed = [line.split()[0] for line, before in zip(lines, shipped, strict=True) if line != before]
    turned = [a.name for a, b in zip(robot.arm.joints, ROBOT.arm.joints, strict=True) if a != b]
    assert turned and changed == ["port:", *(f"{name}:" for name in turned)]
    assert sorted(os.listdir(tmp_path)) == ["arm.json", "my-arm.yaml", "so101.xml"]
    assert (tmp_path / "so101.xml").read_bytes() == ROBOT.model.read_bytes()
    assert cli.main(["arm", "monitor", "--once", "--robot", str(path)]) == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_robot_file_is_the_calibrated_robot_or_none(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever was recorded: what is loaded has the calibration's joints and poses, or nothing is there."""
    robot = data.draw(st.sampled_from([ROBOT, KOCH]))
    half = HALF if robot is ROBOT else KOCH_HALF
    motors = {}
    for i, joint in enumerate(data.draw(st.permutations(robot.arm.joints))):
        middle = 2047 + data.draw(st.integers(-200, 200))
        reach = int(half[robot.arm.joints.index(joint)]) + data.draw(st.integers(-60, 60))
        low, high = max(middle - reach, 0), min(middle + reach, 4095)
        mode = data.draw(st.integers(0, 1))
        motors[joint.name] = asdict(LeRobotMotor(i + 1, mode, 0, low, high))
    file, out = tmp_path / "arm.json", tmp_path / "my-arm.yaml"
    file.write_text(json.dumps(motors))
    out.unlink(missing_ok=True)
    try:
        write_robot_file(out, robot, file, "/dev/ttyUSB7")
    except UserError as error:
        assert str(error).startswith(("LeRobot calibration", f"robot file {out}: field arm.joints."))
        assert not {"my-arm.yaml", ".my-arm.yaml.tmp"} & set(os.listdir(tmp_path))
        return
    written, calibrated = load_robot(out), robot_with_lerobot(robot, file)
    assert written.arm == replace(calibrated.arm, port="/dev/ttyUSB7")
    assert np.array_equal([written.rest_rad, written.ready_rad], [calibrated.rest_rad, calibrated.ready_rad])
    assert written.safety == robot.safety and "# " in out.read_text()


def test_a_robot_file_is_replaced_only_when_told_and_keeps_what_was_changed_in_it(
    file: Path, bank: ServoBank, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my-arm.yaml"
    assert own(bus, file, out) == 0
    out.write_text(out.read_text().replace("table_z_m: 0.0", "table_z_m: 0.03  # measured"))
    mine, written = out.read_text(), len(bank.writes)
    assert own(bus, file, out) == 2
    assert "my-arm.yaml: exists already; name a new file, or add --force" in capsys.readouterr().err
    assert out.read_text() == mine and len(bank.writes) == written

    motors = json.loads(file.read_text())
    motors["wrist_flex"] |= {"range_min": motors["wrist_flex"]["range_min"] + 40}
    file.write_text(json.dumps(motors))
    before = load_robot(out).arm.joints
    assert own(bus, file, out, "--robot", out, "--force") == 0
    assert [a.name for a, b in zip(before, load_robot(out).arm.joints, strict=True) if a != b] == ["wrist_flex"]
    assert "table_z_m: 0.03  # measured" in out.read_text()


@pytest.mark.parametrize(
    ("out", "told"),
    [("nowhere/my-arm.yaml", "there is no folder"), ("", "exists already"), ("lerobot.json", "calibration's file too")],
)
def test_a_place_where_no_robot_file_can_be_is_refused_before_anything_is_written(
    file: Path, bank: ServoBank, bus: ServoBus, tmp_path: Path, out: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_text()
    assert own(bus, file, tmp_path / out, "--force") == 2
    error = capsys.readouterr().err
    assert error.startswith("vlar1: error: --robot-out ") and told in error and error.count("\n") == 1
    assert file.read_text() == before and not bank.writes and os.listdir(tmp_path) == ["lerobot.json"]


def test_a_range_that_no_robot_file_can_hold_leaves_none(
    file: Path, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motors = json.loads(file.read_text())
    motors["wrist_roll"] |= {"range_min": 1000, "range_max": 2400}
    file.write_text(json.dumps(motors))
    assert own(bus, file, tmp_path / "my-arm.yaml") == 2
    error = capsys.readouterr().err
    assert f"robot file {tmp_path / 'my-arm.yaml'}: field arm.joints.wrist_roll.zero_count" in error
    assert error.endswith("; calibrate again\n") and error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["lerobot.json", "so101.xml"]


def test_the_serial_number_is_that_of_the_adapter_that_was_used(
    file: Path, bus: ServoBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, first, second = (tmp_path / name for name in ("by-id", "first.yaml", "second.yaml"))
    link.symlink_to(bus.port)
    monkeypatch.setattr(arm_scan, "adapters", lambda: [("/dev/ttyACM9", "other"), (os.path.realpath(link), "5A46")])
    assert own(bus, file, first, "--port", link) == 0
    assert (load_robot(first).arm.port, load_robot(first).arm.usb_serial) == (str(link), "5A46")
    assert "# Folded onto itself" in first.read_text()
    assert own(bus, file, second, "--robot", first, "--port", link) == 0
    assert second.read_text() == first.read_text()
    monkeypatch.setattr(arm_scan, "adapters", lambda: [])
    assert own(bus, file, second, "--robot", first, "--port", link, "--force") == 0
    assert load_robot(second).arm.usb_serial == "5A46"  # same port: what the file knows stays
    assert own(bus, file, second, "--robot", first, "--force") == 0
    assert load_robot(second).arm.usb_serial == ""  # another one, that has none


SHIPPED = ROBOT.path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        yaml.safe_dump(yaml.safe_load(SHIPPED), sort_keys=False),
        yaml.safe_dump(yaml.safe_load(SHIPPED), sort_keys=False, default_flow_style=True),
        json.dumps(yaml.safe_load(SHIPPED)),
        SHIPPED.replace("zero_count: 2048", "zero_count: &z 2048", 1).replace("zero_count: 2048", "zero_count: *z"),
    ],
    ids=["block", "flow", "json", "anchors"],
)
def test_a_robot_file_in_other_yaml_does_as_well(
    file: Path, bus: ServoBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(arm_scan, "adapters", lambda: [(os.path.realpath(bus.port), "5A46")])
    base, out = tmp_path / "base.yaml", tmp_path / "my-arm.yaml"
    (tmp_path / "so101.xml").write_bytes(ROBOT.model.read_bytes())
    base.write_text(text)
    assert own(bus, file, out, "--robot", base) == 0
    calibrated = robot_with_lerobot(ROBOT, file).arm
    assert load_robot(out).arm == replace(calibrated, port=bus.port, usb_serial="5A46")


def test_a_model_comes_with_its_parts_and_replaces_no_other(
    file: Path, bus: ServoBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms, mine = tmp_path / "arms", tmp_path / "mine"
    (arms / "models" / "parts").mkdir(parents=True)
    mine.mkdir()
    text = ROBOT.model.read_text()
    head, tail = text.index(">", text.index("<mujoco")) + 1, text.rindex("</mujoco>")
    include = '<mujoco><include file="{}/body.xml"/></mujoco>'
    (arms / "models" / "so101.xml").write_text(include.format("parts"))
    (arms / "models" / "parts" / "body.xml").write_text(f"<mujoco>{text[head:tail]}</mujoco>")
    base = arms / "base.yaml"
    base.write_text(ROBOT.path.read_text().replace("model: so101.xml", "model: models/so101.xml"))
    assert own(bus, file, mine / "my-arm.yaml", "--robot", base) == 0
    assert own(bus, file, arms / "my-arm.yaml", "--robot", base) == 0
    assert sorted(path.name for path in arms.iterdir()) == ["base.yaml", "models", "my-arm.yaml"]
    shutil.copytree(mine, tmp_path / "there")

    (mine / "so101.xml").write_text(text)
    assert own(bus, file, mine / "my-arm.yaml", "--robot", base, "--force") == 2
    assert f"{mine / 'so101.xml'} is another model than {arms / 'models' / 'so101.xml'}" in capsys.readouterr().err
    assert (mine / "so101.xml").read_text() == text

    shutil.move(arms / "models" / "parts", arms)
    (arms / "models" / "so101.xml").write_text(include.format("../parts"))
    assert own(bus, file, mine / "new.yaml", "--robot", base) == 2
    error = capsys.readouterr().err
    assert f"needs {arms / 'parts' / 'body.xml'}" in error and f"name a file in {arms}" in error

    shutil.rmtree(arms)
    shutil.rmtree(mine)
    assert load_robot(tmp_path / "there" / "my-arm.yaml").arm.port == bus.port


# Dynamixels


def dynamixel_registers(bank: DynamixelBank) -> list[list[int]]:
    t = dynamixel_tables
    kept = (t.HOMING_OFFSET, t.MIN_POSITION_LIMIT, t.MAX_POSITION_LIMIT, t.DRIVE_MODE, t.OPERATING_MODE)
    return [bank.values(register).tolist() for register in kept]


def test_dynamixels_count_the_way_they_are_told_to(terminal: Terminal, tmp_path: Path) -> None:  # noqa: F811
    bank = DynamixelBank(IDS)
    bank._servos[2].set(dynamixel_tables.DRIVE_MODE, 1)
    user, out = User(bank, terminal), tmp_path / "koch.json"
    before = dynamixel_registers(bank)

    def act() -> None:
        user.middle()
        user.sweep(KOCH_HALF)
        user.terminal.press("\n")

    with ServoBus(bank) as bus:
        with person(act):
            assert calibrate(bus, "--out", out, "--robot", KOCH.path) == 0
        motors = load_lerobot(out)
        assert motors["shoulder_lift"].homing_offset == 2047 - 900 and not motors["shoulder_lift"].drive_mode
        assert motors["elbow_flex"].homing_offset == 2047 + 3100 and motors["elbow_flex"].drive_mode == 1
        offsets, low, high, drive, operating = dynamixel_registers(bank)
        assert offsets == [motor.homing_offset for motor in motors.values()]
        assert low == (2047 - KOCH_HALF).tolist() and high == (2047 + KOCH_HALF).tolist()
        assert drive == before[3]
        assert operating == [4 if abs(offset) > 1024 else 3 for offset in offsets]

        for servo in bank._servos:
            for register, values in zip(
                (dynamixel_tables.HOMING_OFFSET, dynamixel_tables.DRIVE_MODE), (0, 0), strict=True
            ):
                servo.set(register, values)
        command = ["arm", "monitor", "--once", "--robot", str(KOCH.path), "--port", bus.port, "--calibration", str(out)]
        assert cli.main(command) == 2
        assert calibrate(bus, "--from", out, "--robot", KOCH.path) == 0
        assert dynamixel_registers(bank) == [offsets, low, high, drive, operating]
        assert cli.main(command) == 0


def test_dynamixels_get_back_what_they_had(terminal: Terminal, tmp_path: Path) -> None:  # noqa: F811
    bank = DynamixelBank(IDS)
    user, before = User(bank, terminal), dynamixel_registers(bank)

    def act() -> None:
        user.middle()
        assert dynamixel_registers(bank) != before
        os.kill(os.getpid(), signal.SIGINT)

    with ServoBus(bank) as bus, person(act):
        assert calibrate(bus, "--out", tmp_path / "koch.json", "--robot", KOCH.path) == 130
    assert dynamixel_registers(bank) == before
    assert os.listdir(tmp_path) == []
