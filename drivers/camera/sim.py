"""The simulated table's RGB-D camera, reached through its socket."""

from __future__ import annotations

from multiprocessing.connection import Client

from drivers.errors import DeviceError
from drivers.protocols import Frame, Intrinsics

TIMEOUT_S = 5.0


class SimCamera:
    """The Camera protocol over a socket. ``serial`` and ``intrinsics`` are those of its first frame."""

    def __init__(self, address: str) -> None:
        try:
            self._connection = Client(address, "AF_UNIX")
        except OSError as error:
            raise DeviceError(
                f"camera {address}: nobody listens there ({error}); start the simulated table first"
            ) from None
        self.address = address
        first = self.read()
        self.serial: str = first.serial
        self.intrinsics: Intrinsics = first.intrinsics

    def read(self) -> Frame:
        """A frame taken after the call."""
        try:
            self._connection.send("frame")
            if self._connection.poll(TIMEOUT_S):
                frame: Frame = self._connection.recv()
                return frame
        except (EOFError, OSError):
            pass
        raise DeviceError(f"camera {self.address}: no frame within {TIMEOUT_S:g} s; is the simulated table running?")

    def close(self) -> None:
        self._connection.close()
