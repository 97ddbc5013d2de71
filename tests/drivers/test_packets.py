"""The bytes of the Feetech bus, against examples worked out by hand from the protocol's description."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.arm import packets, tables
from drivers.arm.packets import BROADCAST, Packet, PacketParser, build_packet, decode, encode

ids = st.integers(0, tables.MAX_ID)
some_packets = st.builds(Packet, ids | st.just(BROADCAST), st.integers(0, 255), st.binary(max_size=40))
noise_without_header = st.binary(max_size=30).map(lambda data: data.replace(b"\xff", b"\xfe"))
signed_registers = st.sampled_from([register for register in tables.REGISTERS if register.sign_bit is not None])


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (Packet(1, packets.PING), "FF FF 01 02 01 FB"),
        (packets.read_packet(1, tables.PRESENT_POSITION), "FF FF 01 04 02 38 02 BE"),
        (packets.write_packet(1, tables.ID, 5), "FF FF 01 04 03 05 05 ED"),
        (packets.write_packet(1, tables.GOAL_POSITION, 2048), "FF FF 01 05 03 2A 00 08 C4"),
        (packets.write_packet(254, tables.TORQUE_ENABLE, 0), "FF FF FE 04 03 28 00 D2"),
        (packets.sync_read_packet([1, 2], tables.PRESENT_POSITION), "FF FF FE 06 82 38 02 01 02 3C"),
        (
            packets.sync_write_packet([(1, 2048), (2, -1)], tables.GOAL_POSITION),
            "FF FF FE 0A 83 2A 02 01 00 08 02 01 80 BC",
        ),
        (Packet(1, 0x04, b"\x18\x05"), "FF FF 01 04 04 18 05 D9"),
    ],
)
def test_packets_are_the_protocols_bytes(packet: Packet, expected: str) -> None:
    data = bytes.fromhex(expected)
    assert build_packet(packet) == data
    assert PacketParser().feed(data) == [packet]


@pytest.mark.parametrize(
    ("register", "value", "data"),
    [
        (tables.PRESENT_POSITION, 2048, "00 08"),
        (tables.PRESENT_POSITION, -2048, "00 88"),
        (tables.PRESENT_VELOCITY, -300, "2C 81"),
        (tables.PRESENT_LOAD, -1000, "E8 07"),
        (tables.HOMING_OFFSET, -5, "05 08"),
        (tables.TORQUE_LIMIT, 1000, "E8 03"),
        (tables.TORQUE_ENABLE, 1, "01"),
    ],
)
def test_registers_code_the_sign_in_their_own_bit(register: tables.Register, value: int, data: str) -> None:
    assert encode(register, value) == bytes.fromhex(data)
    assert decode(register, bytes.fromhex(data)) == value


@given(signed_registers, st.data())
def test_every_value_a_register_holds_survives_coding(register: tables.Register, data: st.DataObject) -> None:
    assert register.sign_bit is not None
    bound = (1 << register.sign_bit) - 1
    value = data.draw(st.integers(-bound, bound))
    assert decode(register, encode(register, value)) == value
    with pytest.raises(ValueError, match=register.name):
        encode(register, bound + 1)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="Torque_Enable"):
        encode(tables.TORQUE_ENABLE, -1)
    with pytest.raises(ValueError, match="255"):
        build_packet(Packet(255, packets.PING))
    with pytest.raises(ValueError, match="300"):
        build_packet(Packet(1, packets.WRITE, bytes(300)))
    with pytest.raises(ValueError, match="2 bytes"):
        decode(tables.GOAL_POSITION, b"\x00")


def test_registers_do_not_overlap() -> None:
    taken = [at for register in tables.REGISTERS for at in range(register.address, register.address + register.size)]
    assert len(taken) == len(set(taken))


@given(st.lists(st.tuples(noise_without_header, some_packets), max_size=6), st.data())
def test_packets_are_found_between_noise_however_they_arrive(
    stream: list[tuple[bytes, Packet]], data: st.DataObject
) -> None:
    wire = b"".join(noise + build_packet(packet) for noise, packet in stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    parser = PacketParser()
    found = [
        packet
        for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        for packet in parser.feed(wire[start:stop])
    ]
    assert found == [packet for _, packet in stream]
    assert parser.skipped == sum(len(noise) for noise, _ in stream)


@given(st.lists(some_packets, min_size=1, max_size=4), st.sampled_from([b"\xff", b"\xff\xff", b"\xff\xff\xff"]))
def test_stray_header_bytes_do_not_hide_the_packet_after_them(sent: list[Packet], stray: bytes) -> None:
    assert PacketParser().feed(b"".join(stray + build_packet(packet) for packet in sent)) == sent


@given(st.integers(0, 5), ids, st.binary(min_size=2, max_size=2), st.integers(0, 7), st.integers(0, 7))
def test_a_damaged_answer_costs_only_itself(damaged: int, id: int, params: bytes, at: int, bit: int) -> None:
    params = params.replace(b"\xff", b"\x7f")  # so that no false header arises inside
    sent = [Packet((id + n) % 250, 0, params) for n in range(6)]
    wires = [bytearray(build_packet(packet)) for packet in sent]
    wires[damaged][at] ^= 1 << bit
    found = PacketParser(params=2).feed(b"".join(wires))
    assert found == sent[:damaged] + sent[damaged + 1 :]


@given(st.binary(max_size=400))
def test_noise_never_breaks_the_parser_and_pieces_change_nothing(noise: bytes) -> None:
    whole = PacketParser().feed(noise)
    parser = PacketParser()
    assert [packet for byte in noise for packet in parser.feed(bytes([byte]))] == whole
    assert all(build_packet(packet) in noise for packet in whole)
