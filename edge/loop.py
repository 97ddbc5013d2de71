"""Slow reasoning and fast control, tied together: one order in, one frame looked at, one motion made."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.calibration import Calibration
from calib.camera import CalibratedCamera
from drivers.errors import UserError
from drivers.protocols import Camera, Frame
from drivers.recording import Recorder
from drivers.robot import Robot
from edge.carrying import Carried, Carrier
from edge.contract import Affordance, Task, Trajectory, not_found
from edge.control import Controller, MotionError
from edge.decode import Decision, Event, decide
from edge.engine.protocol import Engine
from edge.follower import Follower
from edge.freshness import FreshnessLimits, StaleError, check_fresh
from edge.geometry import Grasp, lift_affordance, lift_trajectory
from edge.kinematics import Kinematics
from edge.motion import JointTrajectory, is_holding, plan_move, plan_pick, plan_place
from edge.recorded import decision_record
from edge.trace import Tracer
from edge.watch import Watcher

CLEARANCE_M = 0.015  # between what is carried and everything it passes over
_STILL = 0.008  # of the image: what a target at rest seems to move, 4 mm at 0.6 m
_LOOKS = 10  # for a target to come to rest
_DRAFTS = 32  # answers remembered, one a task and instruction


@dataclass(frozen=True, eq=False)
class Planned:
    """What is grasped, and the pick; for a place also the way from there, (m, 3), base frame, and its motion."""

    grasp: Grasp
    pick: JointTrajectory
    waypoints_m: NDArray[np.float64] | None = None
    place: JointTrajectory | None = None


@dataclass(frozen=True)
class Order:
    """What to do: ``instruction`` in words; ``place`` when the object is to be put somewhere, not only picked up."""

    instruction: str
    place: bool


@dataclass(frozen=True)
class Outcome:
    """How one order went, as far as the robot itself can tell.

    Attributes:
        done: every motion was made and the jaws held something where they should.
        reason: in words, why not; "done" otherwise.
        frame: what was decided on (of the last attempt).
        grasp: decision for the box; ``path``: decision for the way, for a place.
        decision_s, motion_s: summed over the attempts.
    """

    done: bool
    reason: str
    attempts: int
    frame: Frame
    grasp: Decision | None
    path: Decision | None
    decision_s: float
    motion_s: float


class Runtime:
    """A robot that carries out orders: camera and engine decide, the controller moves.

    The calibration must be of this camera and this arm; otherwise `UserError`, and nothing moves.

    Args:
        controller: started. ``robot.ready_rad`` must be free to reach from where the arm is.
        watcher: told of all that goes on.
        deadline_s: an answer comes within so many seconds, of a reasoning or a path cut short if need be.
        trust_cut: act on answers cut short. What is forced out of half a thought may be a guess, and half a path ends
            somewhere; without this such an answer ends the order.
        freshness: what a decision may have become until the motion starts.
        track: follow the target while a decision is made and planned, and grasp it where it is by then; a target that
            is lost is decided on again. Otherwise one that moved is. Following ends when the motion begins: the arm is
            before the target then, and one that moves later is noticed by the jaws.
        recorder: gets frames and decisions; the controller has its own.
    """

    def __init__(
        self,
        robot: Robot,
        camera: Camera,
        controller: Controller,
        engine: Engine,
        calibration: Calibration,
        tracer: Tracer,
        watcher: Watcher = Watcher(),  # noqa: B008 (it does nothing)
        deadline_s: float | None = None,
        trust_cut: bool = False,
        freshness: FreshnessLimits = FreshnessLimits(),  # noqa: B008 (frozen)
        track: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        self.camera = CalibratedCamera(camera, calibration.camera, calibration.depth_scale)
        calibration.check(self.camera.intrinsics, camera.serial, robot.name)
        _check_zeros(robot, calibration)
        self.robot, self.controller, self.engine = robot, controller, engine
        self.calibration, self.tracer, self.watcher = calibration, tracer, watcher
        self.kinematics = Kinematics(robot)
        self._deadline_s, self._trust_cut, self._freshness = deadline_s, trust_cut, freshness
        self._track, self._recorder = track, recorder
        self._drafts: dict[tuple[Task, str], tuple[int, ...]] = {}
        self._held: Grasp | None = None  # what the last order picked up

    def go_ready(self) -> None:
        """To the pose from which the camera sees the whole table, with the jaws open: what they hold is let go."""
        self.watcher.said("to the ready pose")
        self._held = None
        self.controller.execute(plan_move(self.controller.setpoint_rad, self.robot.ready_rad))

    def put_back(self) -> None:
        """Set what was picked up down where it was; nothing where the jaws hold nothing.

        Raises:
            UserError: the place cannot be reached from where the arm is; nothing moves, and it is not tried again.
            DeviceError: as `Controller.execute` does.
        """
        grasp = self._held
        if grasp is None or not is_holding(self.kinematics, self.controller.read().position_rad, grasp):
            return
        self.watcher.said("putting back what is held")
        was = grasp.position_base_m
        way = np.array([was, was + (0.0, 0.0, CLEARANCE_M), was])
        try:
            plan = plan_place(self.kinematics, self.controller.setpoint_rad, way, grasp, self.robot.safety.table_z_m)
            self.controller.check(plan)
        except UserError as error:
            self._held = None
            told = f"what is held cannot be put back from here ({error}); take it: the jaws open next"
            raise UserError(told) from None
        self.controller.execute(plan)
        self._held = None

    def carry_out(self, order: Order, attempts: int = 2) -> Outcome:
        """Look, decide, plan and move; look again when the jaws came up empty. Starts from the ready pose.

        Whatever is not found, cannot be decided, reached or grasped ends the order with its reason before anything
        moves; so does an answer that the model is not sure of (`Decision.unsure`), and one that was cut short, unless
        the runtime trusts such.

        Raises:
            DeviceError: the camera or the bus failed; the arm holds.
        """
        self.watcher.ordered(order)
        outcome = self._carry_out(order, attempts)
        self.watcher.ended(outcome)
        return outcome

    def _carry_out(self, order: Order, attempts: int) -> Outcome:
        decision_s = motion_s = 0.0
        for attempt in range(1, attempts + 1):
            grasp_decision = path_decision = None
            with Follower(self.camera) if self._track else nullcontext() as follower:
                with self.tracer.stage("capture"):
                    frame = follower.newest() if follower else self.camera.read()
                self._aged(frame)
                if self._recorder is not None:
                    self._recorder.frame(frame)
                began = time.monotonic()
                try:
                    self.watcher.said("thinking")
                    try:
                        grasp_decision = self._decide(frame, order, "affordance")
                        self._require_answer(grasp_decision, "affordance", order)
                        if order.place:
                            path_decision = self._decide(frame, order, "trajectory")
                            self._require_answer(path_decision, "trajectory", order)
                    finally:
                        decision_s += time.monotonic() - began
                    plan = self._settle(follower, frame, grasp_decision, path_decision)
                except StaleError as error:
                    reason = str(error)
                    if attempt < attempts:
                        self.watcher.said(f"{reason}; looking again")
                        continue
                    return Outcome(False, reason, attempt, frame, grasp_decision, path_decision, decision_s, motion_s)
                except UserError as error:  # not found, too wide, out of reach: said in words, nothing moved
                    reason = str(error)
                    return Outcome(False, reason, attempt, frame, grasp_decision, path_decision, decision_s, motion_s)
            began = time.monotonic()
            try:
                reason = self._move(plan)
            except MotionError as error:
                reason = str(error)
            motion_s += time.monotonic() - began
            if not reason or attempt == attempts or self.controller.stopped:
                break
            self.watcher.said(f"{reason}; looking again")
            try:
                self.go_ready()
            except MotionError as error:  # it is jammed, or was stopped
                reason = f"{reason}; then {error}"
                break
        return Outcome(
            not reason, reason or "done", attempt, frame, grasp_decision, path_decision, decision_s, motion_s
        )

    def _decide(self, frame: Frame, order: Order, task: Task) -> Decision:
        """One decision, with the last answer to the same question as its draft."""
        question = (task, order.instruction)
        draft = self._drafts.pop(question, None)
        self.watcher.asked(task, frame)
        decision = decide(
            self.engine,
            frame.rgb,
            task,
            order.instruction,
            draft=draft,
            deadline_s=self._deadline_s,
            on_event=self._heard,
            tracer=self.tracer,
        )
        self.watcher.decided(task, decision)
        self._drafts[question] = decision.tokens
        if self._recorder is not None:
            record = decision_record(
                decision,
                frame,
                task,
                order.instruction,
                self.engine.bundle,
                deadline_s=self._deadline_s,
                draft=draft,
            )
            self._recorder.decision(time.monotonic(), record)
        if len(self._drafts) > _DRAFTS:
            del self._drafts[next(iter(self._drafts))]
        return decision

    def _heard(self, event: Event) -> None:
        """Of an answer that is being written. Raises MotionError where the arm was stopped: nobody waits for it."""
        self.watcher.event(event)
        if self.controller.stopped:
            raise MotionError("arm: stopped while the model was thinking; nothing moved")

    def _require_answer(self, decision: Decision, task: Task, order: Order) -> None:
        if decision.thinking_cut and not self._trust_cut:
            raise UserError("the model did not come to the end of its reasoning; say the order in other words")
        if decision.points_cut and not self._trust_cut:
            raise UserError("the model may not have come to the end of the path; say the order in other words")
        if decision.answer.output is None:
            raise UserError(not_found(task, order.instruction))
        if decision.unsure:
            raise UserError(decision.unsure)

    def _settle(
        self, follower: Follower | None, frame: Frame, grasp_decision: Decision, path_decision: Decision | None
    ) -> Planned:
        """Plans for what was decided on as it is now. Raises StaleError where that cannot be said."""
        box = grasp_decision.answer.output
        path = path_decision.answer.output if path_decision else None
        assert isinstance(box, Affordance) and (path is None or isinstance(path, Trajectory))
        if follower is None:
            plan = self._plan(frame, box, path)
            with self.tracer.stage("capture"):
                newest = self.camera.read()
            self._aged(newest)
            check_fresh(frame, newest, box, self._freshness)
            return plan
        with self.tracer.stage("track"):
            follower.follow(Carrier(frame, box, path, self._freshness))
        now = self._carried(follower)
        if now.moved:
            self.watcher.said("following what moved")
        for _ in range(_LOOKS):
            plan = self._plan(now.frame, now.box, now.path)
            before, now = now, self._carried(follower)
            if now.agrees(before, _STILL):
                return plan
        raise StaleError("target", "decision: the target does not come to rest; nothing moved; give the order again")

    def _carried(self, follower: Follower) -> Carried:
        with self.tracer.stage("capture"):
            now = follower.carried()
        self._aged(now.frame)
        return now

    def _aged(self, frame: Frame) -> None:
        """How old the frame is as work on it begins, to the tracer."""
        height_px, width_px = frame.rgb.shape[:2]
        size = {"width_px": width_px, "height_px": height_px, "bytes": frame.rgb.nbytes}
        self.tracer.record("frame age", frame.t_s, time.monotonic(), "camera", **size)

    def _plan(self, frame: Frame, box: Affordance, path: Trajectory | None) -> Planned:
        T = self.calibration.T_base_camera(self.kinematics.fk(self.controller.read().position_rad, "gripper"))
        known_m2, table_z_m = self.calibration.reach_covariance_m2(), self.robot.safety.table_z_m
        with self.tracer.stage("lift"):
            grasp = lift_affordance(box, frame, T, table_z_m, reach_covariance_m2=known_m2)
            waypoints = None
            if path is not None:
                waypoints = lift_trajectory(
                    path, frame, T, CLEARANCE_M, grasp=grasp, table_z_m=table_z_m, reach_covariance_m2=known_m2
                )
        self.watcher.said("; ".join(("planning", *grasp.notes)))
        with self.tracer.stage("plan"):
            pick = plan_pick(self.kinematics, self.controller.setpoint_rad, grasp, self.robot.ready_rad, table_z_m)
            if waypoints is None:
                return Planned(grasp, pick)
            place = plan_place(self.kinematics, pick.position_rad[-1], waypoints, grasp, table_z_m)
            self.controller.check(place)  # before the object is picked up
        return Planned(grasp, pick, waypoints, place)

    def _move(self, plan: Planned) -> str:
        """Make the motions; why it failed, or nothing."""
        self.watcher.planned(plan.grasp, plan.waypoints_m)
        self.watcher.said("picking")
        self._held = None
        self.controller.execute(plan.pick)
        if not is_holding(self.kinematics, self.controller.read().position_rad, plan.grasp):
            return "the jaws closed on nothing"
        if plan.place is not None:
            self.watcher.said("placing")
            self.controller.execute(plan.place)
        else:
            self._held = plan.grasp
        return ""


def _check_zeros(robot: Robot, calibration: Calibration) -> None:
    """The calibration's transform holds for an arm with the calibration's joint zeros. Raises UserError otherwise."""
    found, has = calibration.joint_zeros_rad, robot.joint_zeros_rad
    n = len(robot.arm.joints)
    if not np.allclose(found or np.zeros(n), has or np.zeros(n), atol=1e-9):
        raise UserError(
            "calibration: it found the arm's joint zeros to be off, and the robot is used without them; open it as "
            "robot_with_zeros(robot, calibration.joint_zeros_rad)"
        )
