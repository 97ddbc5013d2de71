"""The Feetech STS bus."""

from __future__ import annotations

from drivers.arm import packets
from drivers.arm.bus import ErrorCounts, ServoBus
from drivers.arm.tables import FAULT_BITS

__all__ = ["ErrorCounts", "FeetechBus", "fault_names"]


class FeetechBus(ServoBus):
    """A chain of STS servos; see `ServoBus`. The adapter must not echo what is sent: a PING reads like its answer."""

    def __init__(self, port: str, baudrate: int = 1_000_000, *, timeout_s: float = 0.05, attempts: int = 3) -> None:
        super().__init__(port, baudrate, packets.FEETECH, timeout_s=timeout_s, attempts=attempts)


def fault_names(error: int) -> list[str]:
    """The faults that a status packet's error byte reports."""
    return [FAULT_BITS.get(bit, f"bit {bit}") for bit in range(8) if error >> bit & 1]
