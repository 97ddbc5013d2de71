"""The arm while the servo loop owns its bus: the same bring-up, its requests between the loop's cycles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from drivers.arm import packets
from drivers.arm.servo_arm import TABLES, ServoArm
from drivers.arm.tables import Register
from drivers.errors import DeviceError
from drivers.protocols import JointState
from edge.control.servo_loop import ServoLoop
from edge.trace import OFF, Tracer

_ATTEMPTS = 10  # each waits no longer than the loop can spare in one cycle
_READ_TIMEOUT_S = 0.2


class LoopBus:
    """`drivers.arm.bus.Bus` through a running `ServoLoop`: one register at a time, asked again when nothing comes.

    Each request is a span ``bus``: how many servos were asked, how many answered, the bytes of data both ways.
    """

    def __init__(self, loop: ServoLoop, tracer: Callable[[], Tracer]) -> None:
        self._loop, self._tracer = loop, tracer

    @property
    def port(self) -> str:
        return self._loop.state().port

    @property
    def faults(self) -> Mapping[int, int]:
        """Servo id -> error byte of its latest answer, where that was not zero."""
        joints, fault = self._loop.robot.arm.joints, self._loop.state().fault
        return {joint.id: int(byte) for joint, byte in zip(joints, fault, strict=True) if byte}

    def ping(self, id: int) -> bool:
        return bool(self._ask("ping", (id,), None))

    def read(self, id: int, register: Register) -> int:
        """Raises DeviceError when the servo is silent."""
        return self._decoded(self._require(self._ask("read", (id,), register), id), register)

    def write(self, id: int, register: Register, value: int) -> None:
        """Raises DeviceError when the servo does not confirm, or refuses."""
        error, _ = self._require(self._ask("write", (id,), register, [packets.encode(register, value)]), id)
        if self._loop.robot.arm.type == "dynamixel" and error & 0x7F:
            raise DeviceError(f"arm port {self.port}: servo {id} refuses {value} for {register.name} (error {error})")

    def sync_read(self, ids: Sequence[int], register: Register) -> dict[int, int]:
        """Holds only the servos that answered."""
        answers = self._ask("read", ids, register)
        return {id: self._decoded(answer, register) for id, answer in answers.items()}

    def sync_write(self, values: Mapping[int, int], register: Register) -> None:
        self._transact(
            "sync_write", tuple(values), register, [packets.encode(register, value) for value in values.values()]
        )

    def close(self) -> None:
        """Nothing: the port is the loop's."""

    def _ask(
        self, operation: str, ids: Sequence[int], register: Register | None, data: Sequence[bytes] = ()
    ) -> dict[int, tuple[int, bytes]]:
        answers: dict[int, tuple[int, bytes]] = {}
        for _ in range(_ATTEMPTS):
            missing = [id for id in ids if id not in answers]
            if not missing:
                break
            answers |= self._transact(operation, missing, register, data)
        return {id: answers[id] for id in ids if id in answers}

    def _transact(
        self, operation: str, ids: Sequence[int], register: Register | None, data: Sequence[bytes]
    ) -> dict[int, tuple[int, bytes]]:
        with self._tracer().span("bus", servos=len(ids)) as span:
            answers = self._loop.transact(operation, ids, register, data)
            n_bytes = sum(map(len, data)) + sum(len(answer) for _, answer in answers.values())
            span.set(answers=len(answers), bytes=n_bytes)
            return answers

    def _require(self, answers: Mapping[int, tuple[int, bytes]], id: int) -> tuple[int, bytes]:
        if id not in answers:
            raise DeviceError(
                f"arm port {self.port}: servo {id} does not answer; check the arm's power, the servo's cable and its id"
            )
        return answers[id]

    @staticmethod
    def _decoded(answer: tuple[int, bytes], register: Register) -> int:
        return packets.decode(register, answer[1])


class LoopArm(ServoArm):
    """The arm of a running `ServoLoop`. Positions come from the loop's own readings."""

    def __init__(self, loop: ServoLoop, tracer: Callable[[], Tracer] = lambda: OFF) -> None:
        self._loop = loop
        super().__init__(LoopBus(loop, tracer), loop.robot, TABLES[loop.robot.arm.type])

    def read(self) -> JointState:
        """Measured positions, read after the call. Raises DeviceError naming the joints that are not heard."""
        asked_s = time.monotonic()
        while True:
            state = self._loop.state()
            if (state.position_s > asked_s).all():
                return JointState(state.position_rad, float(state.position_s.min()))
            if time.monotonic() - asked_s > _READ_TIMEOUT_S:
                silent = [n for n, t in zip(self.joint_names, state.position_s, strict=True) if t <= asked_s]
                raise DeviceError(
                    f"arm port {state.port}: {', '.join(silent)} not heard for {_READ_TIMEOUT_S:g} s; check the arm's "
                    "power and cables"
                )
            time.sleep(self._loop.period_s / 4)
