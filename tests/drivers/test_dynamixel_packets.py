"""The bytes of Dynamixel protocol 2.0, against the examples of Robotis' manual."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.arm import dynamixel_packets as packets
from drivers.arm import dynamixel_tables as tables
from drivers.arm.dynamixel_packets import PacketParser, build_packet, build_status, crc16, fast_status
from drivers.arm.packets import BROADCAST, Packet, decode, encode

ids = st.integers(0, tables.MAX_ID)
stuffy = st.lists(st.sampled_from([0xFF, 0xFF, 0xFD, 0x00, 0x55]), max_size=40).map(bytes)
instructions = st.builds(
    Packet,
    ids | st.just(BROADCAST),
    st.integers(0, 255).filter(lambda code: code != packets.STATUS),
    st.binary(max_size=40) | stuffy,
)
statuses = st.builds(Packet, ids, st.integers(0, 255), st.binary(max_size=40) | stuffy)
noise_without_header = st.binary(max_size=30).map(lambda data: data.replace(b"\xff", b"\xfe"))
signed_registers = st.sampled_from([register for register in tables.REGISTERS if register.signed])


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (Packet(1, packets.PING), "FF FF FD 00 01 03 00 01 19 4E"),
        (Packet(BROADCAST, packets.PING), "FF FF FD 00 FE 03 00 01 31 42"),
        (packets.read_packet(1, tables.PRESENT_POSITION), "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
        (packets.write_packet(1, tables.GOAL_POSITION, 512), "FF FF FD 00 01 09 00 03 74 00 00 02 00 00 CA 89"),
        (Packet(1, packets.REBOOT), "FF FF FD 00 01 03 00 08 2F 4E"),
        (
            packets.sync_read_packet([1, 2], tables.PRESENT_POSITION),
            "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA",
        ),
        (
            packets.sync_write_packet([(1, 150), (2, 170)], tables.GOAL_POSITION),
            "FF FF FD 00 FE 11 00 83 74 00 04 00 01 96 00 00 00 02 AA 00 00 00 82 87",
        ),
    ],
)
def test_instructions_are_the_manuals_bytes(packet: Packet, expected: str) -> None:
    data = bytes.fromhex(expected)
    assert build_packet(packet) == data
    assert PacketParser().feed(data) == [packet]


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (Packet(1, 0, b"\x06\x04\x26"), "FF FF FD 00 01 07 00 55 00 06 04 26 65 5D"),
        (Packet(2, 0, b"\x06\x04\x26"), "FF FF FD 00 02 07 00 55 00 06 04 26 6F 6D"),
        (Packet(1, 0, b"\xa6\x00\x00\x00"), "FF FF FD 00 01 08 00 55 00 A6 00 00 00 8C C0"),
        (Packet(2, 0, b"\x1f\x08\x00\x00"), "FF FF FD 00 02 08 00 55 00 1F 08 00 00 BA BE"),
        (Packet(1, 0), "FF FF FD 00 01 04 00 55 00 A1 0C"),
    ],
)
def test_statuses_are_the_manuals_bytes(packet: Packet, expected: str) -> None:
    data = bytes.fromhex(expected)
    assert build_status(packet) == data
    assert PacketParser(True).feed(data) == [packet]
    assert PacketParser(True, len(packet.params)).feed(data) == [packet]


FAST = bytes.fromhex(
    "FF FF FD 00 FE 19 00 55 00 03 A6 00 00 00 84 08 00 07 1F 08 00 00 16 CA 00 04 FF 03 00 00 D1 9E".replace(" ", "")
)
FAST_PARTS = [Packet(3, 0, b"\xa6\x00\x00\x00"), Packet(7, 0, b"\x1f\x08\x00\x00"), Packet(4, 0, b"\xff\x03\x00\x00")]


def test_a_fast_answer_is_the_manuals_bytes() -> None:
    assert build_status(fast_status(FAST_PARTS)) == FAST
    assert PacketParser(True, 4).feed(FAST) == FAST_PARTS


@given(st.integers(0, len(FAST) - 1), st.integers(0, 7), st.binary(max_size=5))
def test_what_precedes_the_damage_in_a_fast_answer_counts(at: int, bit: int, after: bytes) -> None:
    wire = bytearray(FAST)
    wire[at] ^= 1 << bit
    parser = PacketParser(True, 4)
    found = parser.feed(bytes(wire) + after)
    whole = max(0, (at - 8) // 8) if at >= 8 else 0
    assert found == FAST_PARTS[:whole]
    if at >= 8:
        assert parser.damaged == 3 - whole


def test_the_crc_is_crc_16_umts() -> None:
    assert crc16(b"123456789") == 0xFEE8  # check value of the catalogue entry CRC-16/UMTS
    assert crc16(b"") == 0


def test_a_header_within_the_data_is_stuffed() -> None:
    packet = Packet(1, packets.WRITE, b"\x74\x00\xff\xff\xfd\x00")
    data = build_packet(packet)
    assert data[7:-2] == b"\x03\x74\x00\xff\xff\xfd\xfd\x00"
    assert data[5:7] == b"\x0a\x00"
    assert PacketParser().feed(data) == [packet]


@given(instructions)
def test_instructions_survive_the_wire(packet: Packet) -> None:
    data = build_packet(packet)
    assert data.count(packets.HEADER, 0, -2) == 1
    assert PacketParser().feed(data) == [packet]
    assert PacketParser(True).feed(data) == []


@given(statuses)
def test_statuses_survive_the_wire(packet: Packet) -> None:
    data = build_status(packet)
    assert PacketParser(True).feed(data) == [packet]
    assert PacketParser(True, len(packet.params)).feed(data) == [packet]
    assert PacketParser().feed(data) == []


@given(st.lists(st.builds(Packet, ids, st.just(0), st.binary(min_size=4, max_size=4)), min_size=1, max_size=8))
def test_fast_answers_survive_the_wire(parts: list[Packet]) -> None:
    assert PacketParser(True, 4).feed(build_status(fast_status(parts))) == parts


@given(signed_registers, st.data())
def test_every_value_a_signed_register_holds_survives_coding(register: tables.Register, data: st.DataObject) -> None:
    bound = 1 << 8 * register.size - 1
    value = data.draw(st.integers(-bound, bound - 1))
    coded = encode(register, value)
    assert decode(register, coded) == value
    assert int.from_bytes(coded, "little") == value % (2 * bound)
    for outside in (bound, -bound - 1):
        with pytest.raises(ValueError, match=register.name):
            encode(register, outside)


def test_registers_do_not_overlap() -> None:
    taken = [at for register in tables.REGISTERS for at in range(register.address, register.address + register.size)]
    assert len(taken) == len(set(taken))


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="253"):
        build_packet(Packet(253, packets.PING))
    with pytest.raises(ValueError, match="2001"):
        build_packet(Packet(1, packets.WRITE, bytes(2000)))


@given(st.lists(st.tuples(noise_without_header, statuses), max_size=6), st.data())
def test_packets_are_found_between_noise_however_they_arrive(
    stream: list[tuple[bytes, Packet]], data: st.DataObject
) -> None:
    wire = b"".join(noise + build_status(packet) for noise, packet in stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    parser = PacketParser(True)
    found = [
        packet
        for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        for packet in parser.feed(wire[start:stop])
    ]
    assert found == [packet for _, packet in stream]
    assert parser.skipped == sum(len(noise) for noise, _ in stream)


@pytest.mark.parametrize("stray", [b"\xff", b"\xff\xff", b"\xff\xff\xfd", b"\xff\xff\xfd\xfd", packets.HEADER])
def test_stray_header_bytes_do_not_hide_the_packet_after_them(stray: bytes) -> None:
    sent = [Packet(3, 0, b"\x01\x02\x03\x04"), Packet(4, 0, b"\x05\x06\x07\x08")]
    assert PacketParser(True, 4).feed(b"".join(stray + build_status(packet) for packet in sent)) == sent


@given(st.integers(0, 5), ids, st.binary(min_size=4, max_size=4), st.integers(0, 14), st.integers(0, 7))
def test_a_damaged_answer_costs_only_itself(damaged: int, id: int, params: bytes, at: int, bit: int) -> None:
    params = params.replace(b"\xff", b"\x7f")  # so that no false header arises inside
    sent = [Packet((id + n) % 250, 0, params) for n in range(6)]
    wires = [bytearray(build_status(packet)) for packet in sent]
    wires[damaged][at] ^= 1 << bit
    after = bytes(64)  # a damaged length may claim some bytes more
    found = PacketParser(True, params=4).feed(b"".join(wires) + after)
    assert found == sent[:damaged] + sent[damaged + 1 :]


def test_an_answer_without_the_data_asked_for_counts_only_if_it_reports_an_error() -> None:
    refused = Packet(1, packets.ACCESS)
    assert PacketParser(True, 4).feed(build_status(refused)) == [refused]
    assert PacketParser(True, 4).feed(build_status(Packet(1, 0))) == []
    assert PacketParser(True, 4).feed(build_status(Packet(1, packets.ALERT))) == []


@given(st.binary(max_size=400) | stuffy)
def test_noise_never_breaks_the_parser_and_pieces_change_nothing(noise: bytes) -> None:
    for statuses_only in (False, True):
        whole = PacketParser(statuses_only).feed(noise)
        parser = PacketParser(statuses_only)
        assert [packet for byte in noise for packet in parser.feed(bytes([byte]))] == whole
