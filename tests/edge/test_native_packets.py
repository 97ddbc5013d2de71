"""The loop's own packets against the drivers', which speak with the vendors' SDKs in their own tests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.arm import dynamixel_packets, packets
from drivers.arm.dynamixel_tables import REGISTERS as DYNAMIXEL_REGISTERS
from drivers.arm.packets import Packet, decode, encode
from drivers.arm.tables import REGISTERS, Register
from edge.native import _native

FEETECH, DYNAMIXEL = 0, 1
bodies = st.binary(max_size=40) | st.lists(st.sampled_from([b"\xff", b"\xff\xff\xfd", b"\xfd", b"a"])).map(b"".join)


def native(register: Register) -> tuple[int, int, int, int]:
    sign_bit = -1 if register.sign_bit is None else register.sign_bit
    return register.address, register.size, sign_bit, int(register.signed)


@given(st.integers(0, 252), st.sampled_from([1, 2, 3, 0x82, 0x83]), bodies)
def test_instructions_are_the_same_bytes(id: int, instruction: int, params: bytes) -> None:
    packet = Packet(id, instruction, params)
    assert _native.build_packet(FEETECH, id, instruction, params) == packets.build_packet(packet)
    assert _native.build_packet(DYNAMIXEL, id, instruction, params) == dynamixel_packets.build_packet(packet)


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[Packet], bytes]:
    """Answers of one size with noise between them that holds no header."""
    size = draw(st.integers(0, 20))
    protocol = draw(st.sampled_from([FEETECH, DYNAMIXEL]))
    noise = st.binary(max_size=12).map(lambda data: data.replace(b"\xff", b"\x7f"))
    sent, stream = [], draw(noise)
    for _ in range(draw(st.integers(0, 4))):
        params = draw(st.binary(min_size=size, max_size=size))
        packet = Packet(draw(st.integers(0, 252)), draw(st.integers(0, 127)), params)
        sent.append(packet)
        built = packets.build_packet(packet) if protocol == FEETECH else dynamixel_packets.build_status(packet)
        stream += built + draw(noise)
    return protocol, sent, stream


@settings(deadline=None)
@given(streams(), st.data())
def test_answers_are_found_between_noise_however_they_arrive(
    stream: tuple[int, list[Packet], bytes], data: st.DataObject
) -> None:
    protocol, sent, bytes_ = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(bytes_)), max_size=6)))
    pieces = [bytes_[a:b] for a, b in zip([0, *cuts], [*cuts, len(bytes_)], strict=True)]
    size = len(sent[0].params) if sent else 0
    found, damaged = _native.parse_packets(protocol, pieces, size)
    assert found == [(packet.id, packet.code, packet.params) for packet in sent]
    assert damaged == 0


@given(st.sampled_from([FEETECH, DYNAMIXEL]), st.binary(min_size=2, max_size=2), st.data())
def test_one_flipped_bit_is_never_taken_for_an_answer_and_costs_only_itself(
    protocol: int, params: bytes, data: st.DataObject
) -> None:
    build = packets.build_packet if protocol == FEETECH else dynamixel_packets.build_status
    first, second = Packet(1, 0, params), Packet(2, 0, b"\x11\x22")
    damaged = bytearray(build(first))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found, _ = _native.parse_packets(protocol, [bytes(damaged) + build(second)], 2)
    assert found[-1:] == [(2, 0, b"\x11\x22")]
    assert (1, 0, params) not in found and len(found) == 1


@given(st.sampled_from([FEETECH, DYNAMIXEL]), st.lists(st.binary(max_size=60), max_size=5), st.integers(-1, 8))
def test_noise_never_breaks_the_parser(protocol: int, pieces: list[bytes], params: int) -> None:
    whole, damaged = _native.parse_packets(protocol, [b"".join(pieces)], params)
    assert _native.parse_packets(protocol, pieces, params) == (whole, damaged)


@pytest.mark.parametrize("register", [*REGISTERS, *DYNAMIXEL_REGISTERS], ids=lambda register: register.name)
@given(data=st.data())
def test_values_are_coded_alike(register: Register, data: st.DataObject) -> None:
    bits = 8 * register.size
    if register.sign_bit is not None:
        low, high = -(1 << register.sign_bit) + 1, (1 << register.sign_bit) - 1
    elif register.signed:
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    else:
        low, high = 0, (1 << bits) - 1
    value = data.draw(st.integers(low, high))
    coded = encode(register, value)
    assert _native.encode_value(native(register), value) == coded
    assert _native.decode_value(native(register), coded) == decode(register, coded) == value
