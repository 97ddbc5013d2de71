"""The simulated tabletop as its own process: physics in real time, servos on a bus, a camera on a socket, a referee.

The runtime gets two addresses from it and nothing else: the bus's pseudo-terminal and the camera's socket. The
referee's pipe belongs to the harness that lays out scenes and judges the outcome.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.protocols import Frame
from drivers.robot import Robot
from drivers.sim.judge import Verdict, judge
from drivers.sim.render import CAMERA, camera_pose, render
from drivers.sim.scene import Scene, Task
from drivers.sim.servo_bus import ServoBank, ServoBus
from drivers.sim.slide import Slide
from drivers.sim.world import build_model, set_arm

BUS_PERIOD_STEPS = 2  # registers are refreshed every 4 ms
RECORD_PERIOD_STEPS = 50  # a state for the video every 100 ms
REST_STEPS = 1000
MAX_SPEED_RAD_S = 4.7  # STS3215 at 7.4 V without load: 0.222 s for 60 degrees
COUNTS_PER_RAD = 4096 / (2 * np.pi)
SERIAL = "SIM-RGBD-0001"


@dataclass(frozen=True)
class HeldBoard:
    """A calibration board in the gripper: ``half_m`` (x, y, thickness), ``T_gripper_board``, its printed face as
    (h, w) grey pixels, row 0 at +y of the board frame."""

    half_m: tuple[float, float, float]
    T_gripper_board: NDArray[np.float64]
    face: NDArray[np.uint8]


@dataclass(frozen=True)
class State:
    """One recorded moment: simulated time and ``MjData.qpos``."""

    t_s: float
    qpos: NDArray[np.float64]


class Tabletop:
    """Physics, servos and camera of one table; steps in a thread of its own until closed."""

    def __init__(self, robot: Robot, scene: Scene, seed: int) -> None:
        joints = robot.arm.joints
        self.zero = np.array([j.zero_count for j in joints], float)
        self.direction = np.array([j.direction for j in joints], float)
        self.bank = ServoBank([j.id for j in joints])
        self.bus = ServoBus(self.bank)
        self.rng = np.random.default_rng([seed, 0xCA3E])
        self.lock = threading.Lock()
        self.board: HeldBoard | None = None
        self.record: list[State] | None = None
        self.sliding: Slide | None = None
        self.late_s = 0.0
        self._load(scene, robot.rest_rad)
        self._show_servos()
        self._hear_servos()
        for _ in range(REST_STEPS):  # nobody has touched it for a while: it lies as it lies without torque
            self._slew()
            mujoco.mj_step(self.model, self.data)
        self._show_servos()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="physics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(2.0)
        self.bus.close()

    def lay_out(self, scene: Scene, board: HeldBoard | None = None) -> None:
        """Put other things on the table; the arm stays as it is."""
        with self.lock:
            arm, speed, ctrl = self.data.qpos[:6].copy(), self.data.qvel[:6].copy(), self.data.ctrl.copy()
            self.board = board
            self._load(scene, arm)
            self.data.qvel[:6], self.data.ctrl[:] = speed, ctrl

    def frame(self) -> Frame:
        """What the camera sees now."""
        with self.lock:
            model, qpos, scene, board = self.model, self.data.qpos.copy(), self.scene, self.board
            t_s = time.monotonic()
        data = mujoco.MjData(model)
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        face = board.face if board else None
        picture = render(model, data, scene.look, camera_pose(scene.look), CAMERA, self.rng, face)
        # Structured light and stereo are about 0.3 % of the range off, and blind beyond their reach.
        noise = 1.0 + 0.0015 * self.rng.standard_normal(picture.depth_m.shape, np.float32)
        depth = np.where(picture.depth_m < 2.0, picture.depth_m * noise, 0.0).astype(np.float32)
        return Frame(picture.rgb, depth, t_s, CAMERA, SERIAL)

    def verdict(self, task: Task) -> Verdict:
        with self.lock:
            return judge(self.model, self.data, self.scene, task)

    def slide(self, item: int, dx_m: float, dy_m: float, duration_s: float) -> None:
        """Push an item over the table from now on, as a finger would; returns at once."""
        with self.lock:
            self._lay = self.data.joint(f"item{item}").qpos.copy()
            x_m, y_m = self._lay[:2]
            self.sliding = Slide(item, (float(x_m), float(y_m)), (dx_m, dy_m), float(self.data.time), duration_s)

    def position(self, item: int) -> tuple[float, float, float]:
        with self.lock:
            x_m, y_m, z_m = self.data.body(f"item{item}").xpos
            return float(x_m), float(y_m), float(z_m)

    def start_recording(self) -> None:
        with self.lock:
            self.record = []

    def stop_recording(self) -> list[State]:
        with self.lock:
            states, self.record = self.record or [], None
            return states

    def _load(self, scene: Scene, arm_rad: NDArray[np.float64]) -> None:
        board = None
        if self.board is not None:
            board = np.concatenate([self.board.half_m, self.board.T_gripper_board.ravel()])
        self.scene = scene
        self.sliding = None  # of the items before
        self.model = build_model(scene, board)
        self.data = mujoco.MjData(self.model)
        set_arm(self.model, self.data, arm_rad)
        self._gain = self.model.actuator_gainprm.copy()
        self._bias = self.model.actuator_biasprm.copy()
        self._powered = np.ones(6, bool)
        mujoco.mj_forward(self.model, self.data)

    def _run(self) -> None:
        start, steps = time.monotonic(), 0
        dt = float(self.model.opt.timestep)
        while not self._stopping.is_set():
            behind = time.monotonic() - start - steps * dt
            if behind > 0.25:  # a busy machine: lose the time rather than rush after it
                self.late_s += behind
                start += behind
            if behind < dt:
                time.sleep(dt - max(behind, 0.0))
                continue
            with self.lock:
                for _ in range(min(int(behind / dt), 5)):
                    if steps % BUS_PERIOD_STEPS == 0:
                        self._hear_servos()
                    self._slew()
                    self._push()
                    mujoco.mj_step(self.model, self.data)
                    steps += 1
                    if steps % BUS_PERIOD_STEPS == 0:
                        self._show_servos()
                    if self.record is not None and steps % RECORD_PERIOD_STEPS == 0:
                        self.record.append(State(float(steps * dt), self.data.qpos.copy()))

    def _hear_servos(self) -> None:
        self._goal_rad = (self.bank.goal_counts() - self.zero) * self.direction / COUNTS_PER_RAD
        powered = self.bank.torque_enabled()
        if (powered != self._powered).any():
            self.model.actuator_gainprm[:] = np.where(powered[:, None], self._gain, 0.0)
            self.model.actuator_biasprm[:] = np.where(powered[:, None], self._bias, 0.0)
            rising = powered & ~self._powered
            self.data.ctrl[rising] = self.data.qpos[:6][rising]
            self._powered = powered

    def _slew(self) -> None:
        most = MAX_SPEED_RAD_S * self.model.opt.timestep
        ctrl = self.data.ctrl
        ctrl[:] = np.where(self._powered, ctrl + np.clip(self._goal_rad - ctrl, -most, most), self.data.qpos[:6])

    def _push(self) -> None:
        """Put the sliding item where it belongs now: as it lay, so that it neither tips nor rolls."""
        slide = self.sliding
        if slide is None:
            return
        joint = self.data.joint(f"item{slide.item}")
        x_m, y_m, *speed_m_s = slide.at(float(self.data.time))
        joint.qpos[:2], joint.qpos[2:] = (x_m, y_m), self._lay[2:]
        joint.qvel[:2], joint.qvel[2:] = speed_m_s, 0.0
        if self.data.time >= slide.began_s + slide.duration_s:
            self.sliding = None

    def _show_servos(self) -> None:
        q, v = self.data.qpos[:6], self.data.qvel[:6]
        limit = self.model.actuator_forcerange[:, 1]
        self.bank.set_present(
            np.round(self.zero + self.direction * q * COUNTS_PER_RAD),
            np.round(self.direction * v * COUNTS_PER_RAD),
            load=np.clip(self.data.actuator_force / limit, -1, 1),
        )


def run(referee: Connection, camera_path: str, robot: Robot, scene: Scene, seed: int) -> None:
    """The process's main: serves frames on the socket ``camera_path`` and the referee until told to stop."""
    table = Tabletop(robot, scene, seed)
    listener = Listener(camera_path, "AF_UNIX")
    threading.Thread(target=_serve_camera, args=(listener, table), name="camera", daemon=True).start()
    try:
        referee.send(table.bus.port)
        while True:
            name, args = referee.recv()
            if name == "stop":
                return
            result: Any = table.late_s if name == "late_s" else getattr(table, name)(*args)
            referee.send(result)
    except (EOFError, KeyboardInterrupt):
        pass  # the harness is gone
    finally:
        listener.close()
        table.close()


def _serve_camera(listener: Listener, table: Tabletop) -> None:
    while True:
        try:
            connection = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, table), daemon=True).start()


def _answer(connection: Connection, table: Tabletop) -> None:
    with connection:
        try:
            while connection.recv() == "frame":
                connection.send(table.frame())
        except (EOFError, OSError):
            return
