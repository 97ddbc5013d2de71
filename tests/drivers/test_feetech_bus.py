"""The bus driver against servos on a pseudo-terminal: real bytes through a real serial port."""

import os
import pty
import select
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.arm import tables
from drivers.arm.feetech import FeetechBus, fault_names
from drivers.arm.packets import Packet, build_packet
from drivers.errors import DeviceError, UserError
from drivers.sim.servo_bus import ServoBank, ServoBus, line_noise

IDS = (1, 2, 3, 4, 5, 6)
COUNTS = [2048, 1000, 3000, 0, 4095, 2222]


@pytest.fixture
def bank() -> ServoBank:
    bank = ServoBank(IDS)
    bank.set_present(COUNTS, [0, 10, -10, 0, 0, 500], [0.0, -0.25, 1.0, 0.0, 0.0, 0.0])
    return bank


@pytest.fixture
def bus(bank: ServoBank) -> Iterator[FeetechBus]:
    with ServoBus(bank) as servos:
        bus = FeetechBus(servos.port)
        yield bus
        bus.close()


def break_answers(how: Callable[[bytes], bytes], which: set[int]) -> Callable[[bytes], bytes]:
    """Line damage that breaks the answers (6 bytes or 8, from ids below 0xFE) whose number is in ``which``."""
    seen = 0

    def damage(data: bytes) -> bytes:
        nonlocal seen
        is_answer = data[4] not in (0x01, 0x02, 0x03, 0x82, 0x83)
        seen += is_answer
        return how(data) if is_answer and seen - 1 in which else data

    return damage


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 0x10])


def test_ping_finds_who_is_there(bus: FeetechBus) -> None:
    assert [bus.ping(id) for id in (1, 6, 7)] == [True, True, False]


def test_reads_return_what_the_servos_measure(bus: FeetechBus) -> None:
    assert bus.read(2, tables.PRESENT_POSITION) == 1000
    assert bus.read(1, tables.MODEL_NUMBER) == tables.MODEL_STS3215
    assert list(bus.sync_read(IDS, tables.PRESENT_POSITION).items()) == list(zip(IDS, COUNTS, strict=True))
    assert bus.sync_read((3, 2), tables.PRESENT_VELOCITY) == {3: -10, 2: 10}
    assert bus.sync_read((3, 2), tables.PRESENT_LOAD) == {3: 1000, 2: -250}


def test_writes_arrive_and_leave_the_bus_in_step(bus: FeetechBus, bank: ServoBank) -> None:
    for id in IDS:
        bus.write(id, tables.GOAL_POSITION, 100 * id)
        assert bus.read(id, tables.GOAL_POSITION) == 100 * id
    bus.sync_write({id: 2000 + id for id in IDS}, tables.GOAL_POSITION)
    assert bus.sync_read(IDS, tables.GOAL_POSITION) == {id: 2000 + id for id in IDS}
    assert bank.goal_counts().tolist() == [2001, 2002, 2003, 2004, 2005, 2006]
    assert bus.counts.stale == bus.counts.timeouts == bus.counts.damaged == 0


@pytest.mark.parametrize("how", [flip_last, lambda data: b"", lambda data: b"\xff\xff\x02" + data[1:]])
def test_a_broken_answer_is_asked_for_again(bank: ServoBank, how: Callable[[bytes], bytes]) -> None:
    with ServoBus(bank, break_answers(how, {0, 3})) as servos:
        bus = FeetechBus(servos.port)
        assert bus.read(2, tables.PRESENT_POSITION) == 1000
        assert bus.sync_read(IDS, tables.PRESENT_POSITION) == dict(zip(IDS, COUNTS, strict=True))
        assert bus.counts.damaged + bus.counts.timeouts >= 2
        bus.close()


def test_a_damaged_answer_is_counted_as_such(bank: ServoBank) -> None:
    with ServoBus(bank, break_answers(flip_last, {0})) as servos:
        bus = FeetechBus(servos.port, timeout_s=30.0)  # long: a damaged answer must not be waited out
        assert bus.read(2, tables.PRESENT_POSITION) == 1000
        assert bus.counts.damaged == 1
        assert bus.counts.timeouts == 0
        bus.close()


def test_a_noisy_line_gives_no_wrong_value(bank: ServoBank) -> None:
    with ServoBus(bank, line_noise(corrupt=0.1, drop=0.03, seed=7)) as servos:
        bus = FeetechBus(servos.port, attempts=20)
        for _ in range(20):
            assert bus.sync_read(IDS, tables.PRESENT_POSITION) == dict(zip(IDS, COUNTS, strict=True))
        assert bus.counts.damaged + bus.counts.timeouts > 0
        bus.close()


def test_a_silent_servo_is_named(bus: FeetechBus, bank: ServoBank) -> None:
    bank.silent.add(3)
    with pytest.raises(DeviceError, match=r"/dev/pts/\d+: servo 3 does not answer.*power.*cable"):
        bus.read(3, tables.PRESENT_POSITION)
    with pytest.raises(DeviceError, match="servo 3"):
        bus.write(3, tables.GOAL_POSITION, 0)
    assert set(bus.sync_read(IDS, tables.PRESENT_POSITION)) == {1, 2, 4, 5, 6}
    assert bus.counts.timeouts >= 3


def test_faults_are_noted_until_they_pass(bus: FeetechBus, bank: ServoBank) -> None:
    bank.set_present(COUNTS, temperature_c=[30, 30, 75, 30, 30, 30], voltage_v=[7.4, 9.0, 9.0, 7.4, 7.4, 7.4])
    bus.sync_read(IDS, tables.PRESENT_POSITION)
    assert {id: fault_names(error) for id, error in bus.faults.items()} == {
        2: ["supply voltage"],
        3: ["supply voltage", "overheated"],
    }
    bank.set_present(COUNTS)
    bus.sync_read(IDS, tables.PRESENT_POSITION)
    assert bus.faults == {}
    assert bus.counts.faults == 2


def test_a_port_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match=r"arm port /dev/ttyNOPE: there is no such device"):
        FeetechBus("/dev/ttyNOPE")


def test_a_file_is_no_port(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(DeviceError, match="cannot be opened as a serial port"):
        FeetechBus(str(path))


def test_a_port_in_use_is_refused(bus: FeetechBus) -> None:
    with pytest.raises(DeviceError, match="another program is using it"):
        FeetechBus(bus.port)


def test_an_adapter_that_drops_out_is_found_again(bank: ServoBank, tmp_path: Path) -> None:
    port = tmp_path / "ttyACM0"
    first = ServoBus(bank)
    port.symlink_to(first.port)
    bus = FeetechBus(str(port))
    assert bus.ping(1)
    with ServoBus(bank) as second:
        first.close()
        os.unlink(port)
        port.symlink_to(second.port)
        assert bus.read(2, tables.PRESENT_POSITION) == 1000
        assert bus.counts.reopened == 1
        bus.close()


def test_an_adapter_that_stays_away_is_reported(bank: ServoBank, tmp_path: Path) -> None:
    port = tmp_path / "ttyACM0"
    servos = ServoBus(bank)
    port.symlink_to(servos.port)
    bus = FeetechBus(str(port))
    servos.close()
    os.unlink(port)
    for attempt in (lambda: bus.read(1, tables.ID), lambda: bus.sync_write({1: 0}, tables.GOAL_POSITION)):
        with pytest.raises(DeviceError, match="was lost; check the USB cable"):
            attempt()
    bus.close()
    bus.close()


def test_an_answer_that_came_too_late_is_not_taken_for_the_next() -> None:
    line, far_end = pty.openpty()
    tty.setraw(far_end)
    bus = FeetechBus(os.ttyname(far_end), timeout_s=10.0)
    os.write(line, build_packet(Packet(2, 0, b"\x01\x00")))
    assert select.select([far_end], [], [], 10.0)[0]

    def answer() -> None:
        os.read(line, 64)
        os.write(line, build_packet(Packet(2, 0, b"\x02\x00")))

    servo = threading.Thread(target=answer)
    servo.start()
    assert bus.read(2, tables.PRESENT_POSITION) == 2
    servo.join()
    bus.close()
    os.close(line)
    os.close(far_end)


def test_threads_do_not_take_each_others_answers(bus: FeetechBus) -> None:
    read: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}

    def ask(id: int) -> None:
        read[id] |= {bus.read(id, tables.PRESENT_POSITION) for _ in range(50)}

    threads = [threading.Thread(target=ask, args=(id,)) for id in read]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {1: {2048}, 2: {1000}, 3: {3000}}


def test_a_closed_bus_says_so(bus: FeetechBus) -> None:
    bus.close()
    with pytest.raises(DeviceError, match="was closed"):
        bus.read(1, tables.ID)
