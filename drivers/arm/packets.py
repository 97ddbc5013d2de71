"""The bytes of the Feetech STS bus: packets, their checksum, a parser that finds them again after noise.

A packet is ``FF FF id len code params... checksum``: ``len`` counts code, params and checksum, ``code`` is the
instruction (host to servo) or the error byte (servo to host), and the checksum is the inverted low byte of the sum
from ``id`` on (Feetech, "Magnetic encoding STS servo communication protocol").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from drivers.arm.tables import MAX_ID, Register

PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x82, 0x83
BROADCAST = 0xFE
HEADER = b"\xff\xff"
MAX_PARAMS = 250


@dataclass(frozen=True)
class Packet:
    """One packet; ``code`` is the instruction, or the error byte of a status packet."""

    id: int
    code: int
    params: bytes = b""


class Parser(Protocol):
    """Finds the packets of one protocol in a stream of bytes; `PacketParser` says what the members mean."""

    damaged: int
    skipped: int

    def feed(self, data: bytes) -> list[Packet]: ...

    def clear(self) -> None: ...


@dataclass(frozen=True)
class Wire:
    """A protocol's bytes in both directions: all that a bus, real or emulated, has to know of it.

    Attributes:
        name: of the make of servo, for messages.
        build_instruction, build_status: the bytes of a packet from the host, or from a servo.
        hear_instructions: a parser of what the host sends.
        hear_statuses: a parser of answers that carry that many parameter bytes.
        ping_params: how many parameter bytes the answer to a PING carries.
        fast_sync_read: a request that all servos answer within one packet, where the protocol has it.
        reboot: the instruction that restarts a servo, where the protocol has it.
        fault_mask: bits of the error byte that report the servo's health.
        error_mask: bits of the error byte that say why a request was not carried out.
        errors: what these say.
        heard_damaged: the one that says the request itself arrived damaged.
    """

    name: str
    build_instruction: Callable[[Packet], bytes]
    build_status: Callable[[Packet], bytes]
    hear_instructions: Callable[[], Parser]
    hear_statuses: Callable[[int], Parser]
    read: Callable[[int, Register], Packet]
    write: Callable[[int, Register, int], Packet]
    sync_read: Callable[[Sequence[int], Register], Packet]
    sync_write: Callable[[Iterable[tuple[int, int]], Register], Packet]
    ping_params: int = 0
    fast_sync_read: Callable[[Sequence[int], Register], Packet] | None = None
    reboot: int | None = None
    fault_mask: int = 0xFF
    error_mask: int = 0
    errors: tuple[str, ...] = ()
    heard_damaged: int = -1


def checksum(body: bytes) -> int:
    """The checksum of ``body``, the bytes from the id up to the last parameter."""
    return ~sum(body) & 0xFF


def build_packet(packet: Packet) -> bytes:
    """The bytes of ``packet``. Raises ValueError where id, code or length cannot be sent."""
    if not (0 <= packet.id <= MAX_ID or packet.id == BROADCAST):
        raise ValueError(f"servo id {packet.id} is outside 0..{MAX_ID}")
    if len(packet.params) > MAX_PARAMS:
        raise ValueError(f"{len(packet.params)} parameter bytes do not fit a packet (at most {MAX_PARAMS})")
    body = bytes([packet.id, len(packet.params) + 2, packet.code]) + packet.params
    return HEADER + body + bytes([checksum(body)])


def read_packet(id: int, register: Register) -> Packet:
    return Packet(id, READ, bytes([register.address, register.size]))


def write_packet(id: int, register: Register, value: int) -> Packet:
    return Packet(id, WRITE, bytes([register.address]) + encode(register, value))


def sync_read_packet(ids: Sequence[int], register: Register) -> Packet:
    return Packet(BROADCAST, SYNC_READ, bytes([register.address, register.size, *ids]))


def sync_write_packet(values: Iterable[tuple[int, int]], register: Register) -> Packet:
    """One goal for each ``(id, value)``; no servo answers it."""
    blocks = b"".join(bytes([id]) + encode(register, value) for id, value in values)
    return Packet(BROADCAST, SYNC_WRITE, bytes([register.address, register.size]) + blocks)


def encode(register: Register, value: int) -> bytes:
    """``value`` as the register's bytes. Raises ValueError when it does not fit."""
    if register.signed:
        if not -1 << 8 * register.size - 1 <= value < 1 << 8 * register.size - 1:
            raise ValueError(f"{value} does not fit register {register.name}")
        return value.to_bytes(register.size, "little", signed=True)
    magnitude, word = abs(value), abs(value)
    bits = register.sign_bit if register.sign_bit is not None else 8 * register.size
    if magnitude >= 1 << bits or (value < 0 and register.sign_bit is None):
        raise ValueError(f"{value} does not fit register {register.name}")
    if value < 0:
        word |= 1 << bits
    return word.to_bytes(register.size, "little")


def decode(register: Register, data: bytes) -> int:
    """The register's value from its bytes. Raises ValueError on a wrong number of bytes."""
    if len(data) != register.size:
        raise ValueError(f"register {register.name} has {register.size} bytes, got {len(data)}")
    word = int.from_bytes(data, "little", signed=register.signed)
    if register.sign_bit is None:
        return word
    magnitude = word & ((1 << register.sign_bit) - 1)
    return -magnitude if word >> register.sign_bit & 1 else magnitude


class PacketParser:
    """Finds packets in a stream of bytes that may hold noise, in whatever pieces it arrives.

    Anything that is no packet is skipped one byte at a time, so a packet that follows a damaged one is still found.

    Args:
        params: how many parameter bytes a packet must have; None takes any number. Naming it means that a damaged
            length cannot make the parser wait for bytes that never come.

    Attributes:
        damaged: packets of a right header and length whose checksum was wrong.
        skipped: bytes that belonged to no packet.
    """

    def __init__(self, params: int | None = None) -> None:
        self._length = None if params is None else params + 2
        self._buffer = bytearray()
        self.damaged = 0
        self.skipped = 0

    def feed(self, data: bytes) -> list[Packet]:
        """Take the next bytes of the stream; return the packets they complete."""
        self._buffer += data
        packets: list[Packet] = []
        while (size := self._packet_size()) is not None:
            if size == 0:
                del self._buffer[0]
                self.skipped += 1
                continue
            id, _, code, *rest = self._buffer[2:size]
            packets.append(Packet(id, code, bytes(rest[:-1])))
            del self._buffer[:size]
        return packets

    def clear(self) -> None:
        """Forget an unfinished packet."""
        self._buffer.clear()

    def _packet_size(self) -> int | None:
        """Size of the packet at the front of the buffer; 0 if none begins there; None if more bytes are needed."""
        buffer = self._buffer
        if not buffer or not HEADER.startswith(bytes(buffer[:2])):
            return 0 if buffer else None
        if len(buffer) < 4:
            return 0 if len(buffer) == 3 and buffer[2] == 0xFF else None
        length = buffer[3]
        if buffer[2] == 0xFF or not 2 <= length <= MAX_PARAMS + 2 or length != (self._length or length):
            return 0
        if len(buffer) < length + 4:
            return None
        if checksum(bytes(buffer[2 : length + 3])) != buffer[length + 3]:
            self.damaged += 1
            return 0
        return length + 4


FEETECH = Wire(
    name="Feetech",
    build_instruction=build_packet,
    build_status=build_packet,
    hear_instructions=PacketParser,
    hear_statuses=PacketParser,
    read=read_packet,
    write=write_packet,
    sync_read=sync_read_packet,
    sync_write=sync_write_packet,
)
