"""An arm on a wire without physics: servos that go where they are told, and a record of what they were told."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.arm.packets import SYNC_WRITE, Packet, Wire, decode
from drivers.arm.tables import COUNTS_PER_TURN, Register
from drivers.robot import Robot
from drivers.sim.servo_bus import ServoBank

_SPEED_COUNTS_S = 4.7 * COUNTS_PER_TURN / (2 * np.pi)  # STS3215 at 7.4 V without load
_LAG_S = 0.03


class FollowingBank(ServoBank):
    """Servos with torque move towards their goals, with a lag and a top speed; the others stay.

    Attributes:
        blocked: (n,) servos that cannot move.
        load: (n,) what they measure, -1..1; ``temperature_c``, ``voltage_v``: of all.
    """

    def __init__(self, robot: Robot, position_rad: ArrayLike) -> None:
        joints = robot.arm.joints
        super().__init__([joint.id for joint in joints])
        self._zero = np.array([joint.zero_count for joint in joints], dtype=float)
        self._direction = np.array([joint.direction for joint in joints], dtype=float)
        self.counts = self._zero + self._direction * np.asarray(position_rad) * COUNTS_PER_TURN / (2 * np.pi)
        self.blocked = np.zeros(len(joints), dtype=bool)
        self.load = np.zeros(len(joints))
        self.temperature_c, self.voltage_v = 30.0, 7.4
        self._at_s = time.monotonic()
        self._show()

    @property
    def position_rad(self) -> NDArray[np.float64]:
        """(n,) where the joints are."""
        return (self.counts - self._zero) * self._direction * 2 * np.pi / COUNTS_PER_TURN

    def handle(self, packet: Packet) -> list[Packet]:
        self._advance()
        return super().handle(packet)

    def _advance(self) -> None:
        now_s = time.monotonic()
        elapsed_s, self._at_s = now_s - self._at_s, now_s
        wanted = (self.goal_counts() - self.counts) * (1.0 - np.exp(-elapsed_s / _LAG_S))
        step = np.clip(wanted, -_SPEED_COUNTS_S * elapsed_s, _SPEED_COUNTS_S * elapsed_s)
        self.counts += np.where(self.torque_enabled() & ~self.blocked, step, 0.0)
        self._show()

    def _show(self) -> None:
        self.set_present(np.rint(self.counts), 0.0, self.load, self.temperature_c, self.voltage_v)


class WireTap:
    """Keeps every goal that is sent to all servos at once.

    Attributes:
        t_s: when each was heard, ``time.monotonic()``; ``goals``: {servo id: count}, one for each.
    """

    def __init__(self, wire: Wire, goal: Register) -> None:
        self._parser = wire.hear_instructions()
        self._goal = goal
        self._head = wire.sync_write((), goal).params
        self.t_s: list[float] = []
        self.goals: list[dict[int, int]] = []

    def __call__(self, data: bytes) -> None:
        for packet in self._parser.feed(data):
            if packet.code == SYNC_WRITE and packet.params.startswith(self._head):
                size = self._goal.size + 1
                blocks = [packet.params[i : i + size] for i in range(len(self._head), len(packet.params), size)]
                self.t_s.append(time.monotonic())
                self.goals.append({block[0]: decode(self._goal, block[1:]) for block in blocks})

    def angles(self, robot: Robot, ids: Sequence[int] | None = None) -> NDArray[np.float64]:
        """(m, n) joint angles of the goals, NaN for servos that were left out."""
        joints = [joint for joint in robot.arm.joints if ids is None or joint.id in ids]
        counts = np.array([[goal.get(joint.id, np.nan) for joint in joints] for goal in self.goals], dtype=float)
        zero = np.array([joint.zero_count for joint in joints], dtype=float)
        direction = np.array([joint.direction for joint in joints], dtype=float)
        return (counts.reshape(-1, len(joints)) - zero) * direction * 2 * np.pi / COUNTS_PER_TURN
