"""The bytes of Dynamixel protocol 2.0: packets, their CRC, byte stuffing, a parser that finds them again after noise.

A packet is ``FF FF FD 00 id len_l len_h code params... crc_l crc_h``: ``len`` counts code, params and CRC. The code
of a status packet is 0x55 and its first parameter the error byte. Wherever ``FF FF FD`` arises from code to params,
another ``FD`` follows it, so that no header begins inside a packet. The CRC covers all before it, as it is sent.
(Robotis e-manual, "DYNAMIXEL Protocol 2.0".)

The answer to a FAST_SYNC_READ is one status packet of all servos, with the broadcast id: ``error id data... crc_l
crc_h`` from each, every CRC over all of the packet before it. It is not stuffed: its length was fixed before the data
was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drivers.arm.dynamixel_tables import MAX_ID
from drivers.arm.packets import BROADCAST, Packet, Wire, encode
from drivers.arm.tables import Register

PING, READ, WRITE, REBOOT, STATUS = 0x01, 0x02, 0x03, 0x08, 0x55
SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x82, 0x83, 0x8A
HEADER = b"\xff\xff\xfd\x00"
ALERT = 0x80
"""Bit of the error byte: Hardware_Error_Status is not zero."""

RESULT_FAIL, INSTRUCTION, CRC, DATA_RANGE, DATA_LENGTH, DATA_LIMIT, ACCESS = range(1, 8)
ERRORS = (
    "",
    "it failed to carry it out",
    "it does not know the instruction",
    "the request arrived damaged",
    "the value is out of the register's range",
    "the value has too few bytes",
    "the value exceeds a limit set in another register",
    "the register is read-only, missing, or locked while torque is on",
)
"""What the error byte, without its alert bit, says."""

MAX_LENGTH = 1024
_START = len(HEADER) + 3  # id and length follow the header
_MARK, _STUFFED = b"\xff\xff\xfd", b"\xff\xff\xfd\xfd"


def _crc_of_byte(byte: int) -> int:
    crc = byte << 8
    for _ in range(8):
        crc = crc << 1 ^ (0x18005 if crc & 0x8000 else 0)
    return crc


_CRC = tuple(_crc_of_byte(byte) for byte in range(256))


def crc16(data: bytes) -> int:
    """CRC-16 of ``data``: polynomial 0x8005, most significant bit first, from 0."""
    crc = 0
    for byte in data:
        crc = crc << 8 & 0xFFFF ^ _CRC[crc >> 8 ^ byte]
    return crc


def build_packet(packet: Packet) -> bytes:
    """The bytes of an instruction. Raises ValueError where id or length cannot be sent."""
    return _build(packet.id, (bytes([packet.code]) + packet.params).replace(_MARK, _STUFFED))


def build_status(packet: Packet) -> bytes:
    """The bytes of a status packet, whose ``code`` is the error byte."""
    body = bytes([STATUS, packet.code]) + packet.params
    return _build(packet.id, body if packet.id == BROADCAST else body.replace(_MARK, _STUFFED))


def fast_status(answers: Sequence[Packet]) -> Packet:
    """The one packet that servos answer a FAST_SYNC_READ with; ``answers`` are theirs, all of one size."""
    length = 1 + sum(len(answer.params) + 4 for answer in answers)
    sent = _head(BROADCAST, length) + bytes([STATUS])
    for answer in answers:
        sent += bytes([answer.code, answer.id]) + answer.params
        sent += crc16(sent).to_bytes(2, "little")
    return Packet(BROADCAST, answers[0].code, sent[_START + 2 : -2])


def read_packet(id: int, register: Register) -> Packet:
    return Packet(id, READ, _span(register))


def write_packet(id: int, register: Register, value: int) -> Packet:
    return Packet(id, WRITE, register.address.to_bytes(2, "little") + encode(register, value))


def sync_read_packet(ids: Sequence[int], register: Register) -> Packet:
    return Packet(BROADCAST, SYNC_READ, _span(register) + bytes(ids))


def fast_sync_read_packet(ids: Sequence[int], register: Register) -> Packet:
    return Packet(BROADCAST, FAST_SYNC_READ, _span(register) + bytes(ids))


def sync_write_packet(values: Iterable[tuple[int, int]], register: Register) -> Packet:
    """One goal for each ``(id, value)``; no servo answers it."""
    return Packet(
        BROADCAST, SYNC_WRITE, _span(register) + b"".join(bytes([id]) + encode(register, value) for id, value in values)
    )


class PacketParser:
    """Finds packets in a stream of bytes that may hold noise, in whatever pieces it arrives.

    Anything that is no packet is skipped one byte at a time, so a packet that follows a damaged one is still found.

    Args:
        statuses: whether to look for status packets, or for instructions; the others are skipped, so that a host which
            hears its own bytes again does not take them for answers.
        params: how many parameter bytes a status packet must have (or none, if it reports an error); None takes any
            number. Naming it means that a damaged length cannot make the parser wait for bytes
            that never come, and that the answer to a FAST_SYNC_READ is taken apart.

    Attributes:
        damaged: packets of a right header and length whose CRC was wrong; of a FAST_SYNC_READ's answer, its parts.
        skipped: bytes that belonged to no packet.
    """

    def __init__(self, statuses: bool = False, params: int | None = None) -> None:
        self._statuses = statuses
        self._params = params
        self._buffer = bytearray()
        self.damaged = 0
        self.skipped = 0

    def feed(self, data: bytes) -> list[Packet]:
        """Take the next bytes of the stream; return the packets they complete."""
        self._buffer += data
        packets: list[Packet] = []
        while (size := self._packet_size()) is not None:
            found = self._packets(bytes(self._buffer[:size])) if size else []
            taken = size if found else 1
            self.skipped += 0 if found else 1
            del self._buffer[:taken]
            packets += found
        return packets

    def clear(self) -> None:
        """Forget an unfinished packet."""
        self._buffer.clear()

    def _packet_size(self) -> int | None:
        """Size of the packet at the front of the buffer; 0 if none begins there; None if more bytes are needed."""
        buffer = self._buffer
        if not buffer or not HEADER.startswith(bytes(buffer[: len(HEADER)])):
            return 0 if buffer else None
        if len(buffer) >= 5 and buffer[4] > MAX_ID and buffer[4] != BROADCAST:
            return 0
        if len(buffer) < _START:
            return None
        length = buffer[5] | buffer[6] << 8
        if not self._may_be(length, buffer[4]):
            return 0
        if len(buffer) > _START and (buffer[_START] == STATUS) != self._statuses:
            return 0
        return length + _START if len(buffer) >= length + _START else None

    def _may_be(self, length: int, id: int) -> bool:
        if not 3 + self._statuses <= length <= MAX_LENGTH - _START:
            return False
        if not self._statuses or self._params is None:
            return True
        if id == BROADCAST:
            return length % (self._params + 4) == 1
        stuffing = (self._params + 1) // 3
        return length == 4 or self._params + 4 <= length <= self._params + 4 + stuffing

    def _packets(self, data: bytes) -> list[Packet]:
        """What ``data``, one packet by its length, holds; nothing if it is damaged."""
        id, body = data[4], data[_START:-2]
        if self._statuses and self._params is not None and id == BROADCAST:
            return self._parts(data, self._params + 4)
        if crc16(data[:-2]) != int.from_bytes(data[-2:], "little"):
            self.damaged += 1
            return []
        if id != BROADCAST or not self._statuses:
            body = body.replace(_STUFFED, _MARK)
        if not self._statuses:
            return [Packet(id, body[0], body[1:])]
        packet = Packet(id, body[1], body[2:])
        refused = not packet.params and packet.code & ~ALERT
        return [packet] if refused or self._params in (None, len(packet.params)) else []

    def _parts(self, data: bytes, size: int) -> list[Packet]:
        """The answers of single servos within one to FAST_SYNC_READ, up to the first that is damaged."""
        starts = range(_START + 1, len(data), size)
        parts = []
        for at in starts:
            end = at + size - 2
            if crc16(data[:end]) != int.from_bytes(data[end : end + 2], "little"):
                break
            parts.append(Packet(data[at + 1], data[at], data[at + 2 : end]))
        self.damaged += len(starts) - len(parts)
        return parts


def _span(register: Register) -> bytes:
    return register.address.to_bytes(2, "little") + register.size.to_bytes(2, "little")


def _head(id: int, length: int) -> bytes:
    return HEADER + bytes([id]) + length.to_bytes(2, "little")


def _build(id: int, body: bytes) -> bytes:
    if not (0 <= id <= MAX_ID or id == BROADCAST):
        raise ValueError(f"servo id {id} is outside 0..{MAX_ID}")
    if len(body) + 2 > MAX_LENGTH - _START:
        raise ValueError(f"{len(body)} bytes do not fit a packet (at most {MAX_LENGTH - _START - 2})")
    data = _head(id, len(body) + 2) + body
    return data + crc16(data).to_bytes(2, "little")


DYNAMIXEL = Wire(
    name="Dynamixel",
    build_instruction=build_packet,
    build_status=build_status,
    hear_instructions=PacketParser,
    hear_statuses=lambda params: PacketParser(True, params),
    read=read_packet,
    write=write_packet,
    sync_read=sync_read_packet,
    sync_write=sync_write_packet,
    ping_params=3,
    fast_sync_read=fast_sync_read_packet,
    reboot=REBOOT,
    fault_mask=ALERT,
    error_mask=0x7F,
    errors=ERRORS,
    heard_damaged=CRC,
)
