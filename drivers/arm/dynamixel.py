"""The Dynamixel X bus."""

from __future__ import annotations

from drivers.arm.bus import ServoBus
from drivers.arm.dynamixel_packets import DYNAMIXEL


class DynamixelBus(ServoBus):
    """A chain of Dynamixel X servos, protocol 2.0; see `ServoBus`. What the adapter echoes is passed over.

    Args:
        fast: read many servos with FAST_SYNC_READ, one packet for all; firmware from 2022 on has it. What it does not
            bring is asked for again with SYNC_READ.
    """

    def __init__(
        self,
        port: str,
        baudrate: int = 1_000_000,
        *,
        timeout_s: float = 0.05,
        attempts: int = 3,
        fast: bool = False,
    ) -> None:
        super().__init__(port, baudrate, DYNAMIXEL, timeout_s=timeout_s, attempts=attempts, fast=fast)
