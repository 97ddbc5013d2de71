"""One order from frame to motion: what is wrong is said before anything moves, an empty grip is noticed."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

import edge.loop
from calib.board import Board
from calib.calibration import Calibration, CameraCalibration
from drivers.errors import UserError
from drivers.protocols import Frame, JointState
from drivers.recording import Recorder, Recording
from drivers.robot import load_robot, robot_with_zeros
from drivers.sim.render import CAMERA, camera_pose, render
from drivers.sim.scene import Item, Scene, draw_look
from drivers.sim.world import build_model, set_arm
from edge.contract import Affordance, Answer, Trajectory
from edge.decode import Decision, TextEvent
from edge.freshness import FreshnessLimits
from edge.grasp import Grasp
from edge.loop import Order, Outcome, Runtime
from edge.motion import JointTrajectory
from edge.plan_check import PlanChecker
from edge.trace import Tracer
from edge.watch import Watcher, Watchers

ROBOT = load_robot()
CUBE = Item("cube", "red", 0.22, 0.02, 0.3, (0.015, 0.015, 0.015))
BOWL = Item("bowl", "blue", 0.19, -0.11, 0.0, (0.044, 0.028))
SCENE = Scene((CUBE, BOWL), draw_look(np.random.default_rng(0)))
T_BASE_CAMERA = camera_pose(SCENE.look)
SERIAL = "TEST-CAMERA"


class StillCamera:
    """One picture of the scene, with the depth a depth camera would give."""

    serial, intrinsics = SERIAL, CAMERA

    def __init__(self, scene: Scene = SCENE) -> None:
        model = build_model(scene)
        data = mujoco.MjData(model)
        set_arm(model, data, ROBOT.ready_rad)
        mujoco.mj_kinematics(model, data)
        picture = render(model, data, SCENE.look, T_BASE_CAMERA, CAMERA, np.random.default_rng(1))
        self.frame = Frame(picture.rgb, picture.depth_m, 0.0, CAMERA, SERIAL)

    def read(self) -> Frame:
        return replace(self.frame, t_s=time.monotonic())

    def close(self) -> None:
        pass


class ObedientController:
    """An arm that is where it is told to be, at once, and never meets anything; trajectories are checked as ever."""

    stopped = False

    def __init__(self) -> None:
        self.position = ROBOT.ready_rad.copy()
        self.moves: list[JointTrajectory] = []
        self._checker = PlanChecker(ROBOT)

    @property
    def setpoint_rad(self) -> np.ndarray:
        return self.position.copy()

    def read(self) -> JointState:
        return JointState(self.position.copy())

    def check(self, trajectory: JointTrajectory) -> None:
        self._checker.check(trajectory.position_rad)

    def execute(self, trajectory: JointTrajectory) -> None:
        self.check(trajectory)
        self.moves.append(trajectory)
        self.position = trajectory.position_rad[-1].copy()


class Notes(Watcher):
    """What a run was said to do, and all that it told besides, by name."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.told: list[str] = []

    def ordered(self, order: Order) -> None:
        self.told.append(f"ordered {order.instruction}")

    def said(self, text: str) -> None:
        self.texts.append(text)

    def asked(self, task: str, frame: Frame) -> None:
        self.told.append(f"asked {task}")

    def decided(self, task: str, decision: Decision) -> None:
        self.told.append(f"decided {task}")

    def planned(self, grasp: Grasp, waypoints_m: np.ndarray | None) -> None:
        self.told.append(f"planned {0 if waypoints_m is None else len(waypoints_m)}")

    def ended(self, outcome: Outcome) -> None:
        self.told.append(f"ended {outcome.reason}")


def calibration() -> Calibration:
    camera = CameraCalibration("2026-01-01", SERIAL, CAMERA)
    return Calibration("2026-01-01", ROBOT.name, camera, Board(), "base", T_BASE_CAMERA, np.eye(4), 0.1, 0.5)


def pixel_of(point_m: tuple[float, float, float]) -> tuple[float, float]:
    x, y, z, _ = np.linalg.inv(T_BASE_CAMERA) @ [*point_m, 1.0]
    u, v = CAMERA.fx * x / z + CAMERA.cx, CAMERA.fy * y / z + CAMERA.cy
    return (u + 0.5) / CAMERA.width, (v + 0.5) / CAMERA.height


@pytest.fixture(scope="module")
def camera() -> StillCamera:
    return StillCamera()


@pytest.fixture
def arm() -> ObedientController:
    return ObedientController()


def started(camera: StillCamera, arm: ObedientController, **options: object) -> Runtime:
    return Runtime(ROBOT, camera, arm, None, calibration(), Tracer(), **options)  # type: ignore[arg-type]


@pytest.fixture
def runtime(camera: StillCamera, arm: ObedientController) -> Runtime:
    return started(camera, arm)


def answers(
    monkeypatch: pytest.MonkeyPatch, box: Affordance | None, path: Trajectory | None = None
) -> list[tuple[str, str]]:
    """The model answers so; what it was asked."""
    asked: list[tuple[str, str]] = []

    def decide(engine: object, rgb: object, task: str, instruction: str, **kwargs: object) -> Decision:
        asked.append((task, instruction))
        return Decision(Answer("because", box if task == "affordance" else path), "", 0, 0, 0)

    monkeypatch.setattr(edge.loop, "decide", decide)
    return asked


def cube_box() -> Affordance:
    return Affordance(*pixel_of((CUBE.x_m, CUBE.y_m, 0.015)), 0.09, 0.12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"camera": CameraCalibration("2026-01-01", "ANOTHER", CAMERA)}, "camera 'ANOTHER'"),
        ({"arm_name": "so100"}, "arm 'so100'"),
        ({"camera": CameraCalibration("2026-01-01", SERIAL, replace(CAMERA, width=320))}, "320x480"),
    ],
)
def test_a_calibration_of_something_else_is_refused_and_nothing_moves(
    camera: StillCamera, arm: ObedientController, wrong: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Runtime(ROBOT, camera, arm, None, replace(calibration(), **wrong), Tracer())  # type: ignore[arg-type]
    assert not arm.moves


def test_joint_zeros_that_the_calibration_found_must_be_the_robots(
    camera: StillCamera, arm: ObedientController
) -> None:
    zeros = (0.0, 0.02, -0.03, 0.01, 0.0, 0.0)
    found = replace(calibration(), joint_zeros_rad=zeros)
    with pytest.raises(UserError, match="robot_with_zeros"):
        Runtime(ROBOT, camera, arm, None, found, Tracer())  # type: ignore[arg-type]
    Runtime(robot_with_zeros(ROBOT, zeros), camera, arm, None, found, Tracer())  # type: ignore[arg-type]


def test_a_box_on_the_bare_table_is_said_and_nothing_moves(runtime, arm, monkeypatch) -> None:
    answers(monkeypatch, Affordance(*pixel_of((0.24, 0.12, 0.0)), 0.05, 0.05))
    outcome = runtime.carry_out(Order("pick up the red cube", place=False))
    assert not outcome.done and "nothing stands on the table" in outcome.reason
    assert not arm.moves


def test_a_box_on_something_too_wide_is_said_and_nothing_moves(runtime, arm, monkeypatch) -> None:
    answers(monkeypatch, Affordance(*pixel_of((BOWL.x_m, BOWL.y_m, 0.015)), 0.25, 0.3))
    outcome = runtime.carry_out(Order("pick up the blue bowl", place=False))
    assert not outcome.done and "wide" in outcome.reason
    assert not arm.moves


@pytest.mark.parametrize("place", [False, True])
def test_an_object_that_is_not_there_is_said_and_nothing_is_planned_or_moves(
    runtime, arm, monkeypatch, place: bool
) -> None:
    asked = answers(monkeypatch, None, Trajectory(((0.5, 0.5), (0.6, 0.5))))
    outcome = runtime.carry_out(Order("pick up the pink duck", place=place))
    assert not outcome.done and outcome.attempts == 1
    assert outcome.reason == 'not found: the model sees no such thing for "pick up the pink duck"'
    assert asked == [("affordance", "pick up the pink duck")]
    assert outcome.grasp is not None and outcome.grasp.answer == Answer("because", None)
    assert outcome.path is None and outcome.motion_s == 0.0
    assert not arm.moves
    assert not {"lift", "plan"} & set(runtime.tracer.summary())


def test_a_container_that_is_not_there_is_said_and_nothing_is_planned_or_moves(runtime, arm, monkeypatch) -> None:
    asked = answers(monkeypatch, cube_box(), None)
    outcome = runtime.carry_out(Order("put the red cube in the pink pot", place=True))
    assert not outcome.done and outcome.attempts == 1
    assert outcome.reason == 'not found: the model sees no target to go to for "put the red cube in the pink pot"'
    assert [task for task, _ in asked] == ["affordance", "trajectory"]
    assert outcome.grasp is not None and outcome.grasp.answer.output == cube_box()
    assert outcome.path is not None and outcome.path.answer.output is None
    assert not arm.moves and outcome.motion_s == 0.0
    assert not {"lift", "plan"} & set(runtime.tracer.summary())


@pytest.mark.parametrize(
    ("cut", "field", "said"),
    [
        ("affordance", "thinking_cut", "end of its reasoning"),
        ("trajectory", "thinking_cut", "end of its reasoning"),
        ("trajectory", "points_cut", "end of the path"),
    ],
)
@pytest.mark.parametrize("by", ["tokens", "deadline"])
@pytest.mark.parametrize("trusted", [False, True])
def test_half_an_answer_moves_nothing_unless_trusted(
    camera, arm, monkeypatch, cut: str, field: str, said: str, by: str, trusted: bool
) -> None:
    runtime = started(camera, arm, deadline_s=2.0, trust_cut=trusted)
    bowl = pixel_of((BOWL.x_m, BOWL.y_m, 0.01))
    box = cube_box()
    outputs = {"affordance": box, "trajectory": Trajectory(((box.x, box.y), bowl))}

    def decide(engine: object, rgb: object, task: str, *args: object, deadline_s: float, **kwargs: object) -> Decision:
        assert deadline_s == 2.0
        return Decision(Answer("I see", outputs[task]), "", 0, 0, 0, **({field: by} if task == cut else {}))

    monkeypatch.setattr(edge.loop, "decide", decide)
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)
    outcome = runtime.carry_out(Order("put the red cube in the blue bowl", place=True))
    assert outcome.done == trusted and len(arm.moves) == 2 * trusted
    if not trusted:
        assert said in outcome.reason and outcome.motion_s == 0.0


@pytest.mark.parametrize("doubtful", ["affordance", "trajectory"])
def test_an_unsure_answer_ends_the_order_and_nothing_is_planned_or_moves(
    camera, arm, monkeypatch, doubtful: str
) -> None:
    runtime = started(camera, arm, trust_cut=True)
    box = cube_box()
    outputs = {"affordance": box, "trajectory": Trajectory(((box.x, box.y), pixel_of((BOWL.x_m, BOWL.y_m, 0.01))))}

    def decide(engine: object, rgb: object, task: str, *args: object, **kwargs: object) -> Decision:
        unsure = "not sure: because" if task == doubtful else None
        return Decision(Answer("I see", outputs[task]), "", 0, 0, 0, unsure=unsure)

    monkeypatch.setattr(edge.loop, "decide", decide)
    outcome = runtime.carry_out(Order("put the red cube in the blue bowl", place=True))
    assert not outcome.done and outcome.reason == "not sure: because" and outcome.attempts == 1
    assert not arm.moves and outcome.motion_s == 0.0
    assert not {"lift", "plan"} & set(runtime.tracer.summary())


def test_the_last_answer_to_a_question_is_its_next_draft(runtime, monkeypatch) -> None:
    drafts: list[tuple[str, str, object]] = []

    def decide(
        engine: object, rgb: object, task: str, instruction: str, *, draft: object, **kwargs: object
    ) -> Decision:
        drafts.append((task, instruction, draft))
        output = cube_box() if task == "affordance" else None
        return Decision(Answer("", output), "", 0, 0, 0, tokens=(len(drafts),))

    monkeypatch.setattr(edge.loop, "decide", decide)
    for words in ("a", "b", "a"):
        runtime.carry_out(Order(words, place=True))
    assert drafts == [
        ("affordance", "a", None),
        ("trajectory", "a", None),
        ("affordance", "b", None),
        ("trajectory", "b", None),
        ("affordance", "a", (1,)),
        ("trajectory", "a", (2,)),
    ]
    for i in range(100):
        runtime.carry_out(Order(str(i), place=True))
    assert len(runtime._drafts) < 40


def test_what_is_gone_at_the_second_look_ends_the_order_at_the_ready_pose(runtime, arm, monkeypatch) -> None:
    boxes = iter([cube_box(), None])

    def decide(*args: object, **kwargs: object) -> Decision:
        return Decision(Answer("because", next(boxes)), "", 0, 0, 0)

    monkeypatch.setattr(edge.loop, "decide", decide)
    outcome = runtime.carry_out(Order("pick up the red cube", place=False), attempts=3)
    assert not outcome.done and outcome.attempts == 2 and outcome.reason.startswith("not found: ")
    assert outcome.motion_s > 0.0
    assert arm.position == pytest.approx(ROBOT.ready_rad, abs=1e-6)


def test_jaws_that_close_on_nothing_are_noticed_and_nothing_is_carried(runtime, arm, monkeypatch) -> None:
    bowl = pixel_of((BOWL.x_m, BOWL.y_m, 0.01))
    box = cube_box()
    answers(monkeypatch, box, Trajectory(((box.x, box.y), bowl)))
    outcome = runtime.carry_out(Order("put the red cube in the blue bowl", place=True), attempts=1)
    assert not outcome.done and "closed on nothing" in outcome.reason
    tip = runtime.kinematics.fk(arm.position)[:3, 3]
    assert np.hypot(tip[0] - CUBE.x_m, tip[1] - CUBE.y_m) < 0.04  # still over the cube, not at the bowl
    assert {"capture", "lift", "plan"} <= set(runtime.tracer.summary())


def test_a_held_object_is_carried_to_the_container(runtime, arm, monkeypatch) -> None:
    bowl = pixel_of((BOWL.x_m, BOWL.y_m, 0.01))
    box = cube_box()
    answers(monkeypatch, box, Trajectory(((box.x, box.y), bowl)))
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)
    outcome = runtime.carry_out(Order("put the red cube in the blue bowl", place=True))
    assert outcome.done and outcome.attempts == 1
    tip = runtime.kinematics.fk(arm.position)[:3, 3]
    assert np.hypot(tip[0] - BOWL.x_m, tip[1] - BOWL.y_m) < 0.04


def moved(dx_m: float, dy_m: float) -> Scene:
    """The scene with the cube elsewhere."""
    return Scene((replace(CUBE, x_m=CUBE.x_m + dx_m, y_m=CUBE.y_m + dy_m), BOWL), SCENE.look)


def while_deciding(monkeypatch: pytest.MonkeyPatch, camera: StillCamera, *frames: Frame) -> list[str]:
    """The model says where the cube was at first; by then the camera sees the next of the frames. What it was asked."""
    asked: list[str] = []
    shown = iter(frames)

    def decide(engine: object, rgb: object, task: str, *args: object, **kwargs: object) -> Decision:
        asked.append(task)
        monkeypatch.setattr(camera, "frame", next(shown, camera.frame))
        return Decision(Answer("because", cube_box()), "", 0, 0, 0)

    monkeypatch.setattr(edge.loop, "decide", decide)
    return asked


def test_without_tracking_a_target_that_moved_since_the_decision_is_looked_at_again_and_nothing_moves(
    arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = StillCamera()
    home, away = camera.frame, StillCamera(moved(0.0, -0.05)).frame
    asked = while_deciding(monkeypatch, camera, away, home)
    outcome = started(camera, arm, track=False).carry_out(Order("pick up the red cube", place=False))
    assert not outcome.done and not arm.moves
    assert len(asked) == 2 and outcome.attempts == 2


def test_a_target_that_moved_during_the_decision_is_grasped_where_it_is_now(
    arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = StillCamera()
    asked = while_deciding(monkeypatch, camera, StillCamera(moved(0.01, -0.04)).frame)
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)
    readers: list[str] = []
    execute = arm.execute

    def watched(trajectory: JointTrajectory) -> None:
        readers.extend(thread.name for thread in threading.enumerate() if thread.name == "follower")
        execute(trajectory)

    monkeypatch.setattr(arm, "execute", watched)
    runtime = started(camera, arm)
    grasps: list[Grasp] = []
    move = runtime._move
    monkeypatch.setattr(runtime, "_move", lambda plan: [grasps.append(plan.grasp), move(plan)][1])
    outcome = runtime.carry_out(Order("pick up the red cube", place=False))
    assert outcome.done and outcome.attempts == 1 and asked == ["affordance"]
    assert grasps[0].position_base_m[:2] == pytest.approx([CUBE.x_m + 0.01, CUBE.y_m - 0.04], abs=0.002)
    assert not readers  # following ends where the motion begins


def test_a_target_that_is_lost_is_decided_on_again_and_that_is_said(
    arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = StillCamera()
    home, gone = camera.frame, StillCamera(Scene((BOWL,), SCENE.look)).frame
    asked = while_deciding(monkeypatch, camera, gone, home)
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)
    watcher = Notes()
    runtime = started(camera, arm, watcher=watcher)
    outcome = runtime.carry_out(Order("pick up the red cube", place=False), attempts=2)
    assert len(asked) == 2 and outcome.attempts == 2
    assert any("the target was lost" in text and "looking again" in text for text in watcher.texts)


def test_a_target_that_does_not_come_to_rest_is_not_grasped_at(
    arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = StillCamera()
    frames = [camera.frame, *(StillCamera(moved(0.0, dy_m)).frame for dy_m in (-0.02, -0.04))]
    answers(monkeypatch, cube_box())
    runtime = started(camera, arm)
    plan, planned = runtime._plan, []

    def and_then_it_moves(*args: object) -> object:
        planned.append(plan(*args))  # type: ignore[arg-type]
        camera.frame = frames[len(planned) % len(frames)]
        return planned[-1]

    monkeypatch.setattr(runtime, "_plan", and_then_it_moves)
    outcome = runtime.carry_out(Order("pick up the red cube", place=False), attempts=1)
    assert not outcome.done and "come to rest" in outcome.reason and not arm.moves


def test_a_decision_older_than_its_limit_starts_no_motion(
    camera: StillCamera, arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cube_box())
    runtime = started(camera, arm, freshness=FreshnessLimits(decision_s=0.0))
    outcome = runtime.carry_out(Order("pick up the red cube", place=False))
    assert not outcome.done and "decision" in outcome.reason and not arm.moves


def test_a_run_is_recorded_with_what_was_seen_and_decided(
    camera: StillCamera, arm: ObedientController, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, cube_box())
    monkeypatch.setattr(edge.loop, "decision_record", lambda decision, frame, task, *_, **__: {"task": task})
    with Recorder(tmp_path / "run.mcap", joint_names=ROBOT.joint_names) as recorder:
        runtime = started(camera, arm, recorder=recorder)
        monkeypatch.setattr(runtime, "engine", SimpleNamespace(bundle=None))
        runtime.carry_out(Order("pick up the red cube", place=False), attempts=1)
    recording = Recording(tmp_path / "run.mcap")
    assert [message.data["task"] for message in recording.messages("/decision")] == ["affordance"]
    np.testing.assert_array_equal(next(iter(recording.frames())).rgb, camera.frame.rgb)


def test_whoever_watches_is_told_and_one_that_fails_disturbs_nobody(
    camera: StillCamera, arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Watcher):
        def asked(self, task: str, frame: Frame) -> None:
            raise ValueError("no screen")

    answers(monkeypatch, cube_box(), Trajectory((pixel_of((0.2, 0.0, 0.0)), pixel_of((BOWL.x_m, BOWL.y_m, 0.0)))))
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)
    notes, complaints = Notes(), []
    runtime = started(camera, arm, watcher=Watchers([Broken(), notes], complaints.append))
    assert runtime.carry_out(Order("put the red cube into the blue bowl", place=True)).done
    named = ("ordered", "asked", "decided", "asked", "decided", "planned", "ended")
    assert [text.split()[0] for text in notes.told] == list(named)
    assert notes.told[-2] != "planned 0" and notes.told[-1] == "ended done" and "picking" in notes.texts
    assert complaints == ["Broken: no screen; it is told nothing more"]


def test_an_arm_that_is_stopped_ends_the_thinking(
    camera: StillCamera, arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decide(*args: object, on_event: Callable[[object], None], **kwargs: object) -> Decision:
        on_event(TextEvent("I see", True))
        arm.stopped = True  # meanwhile, from another thread
        on_event(TextEvent(" the red cube", True))
        raise AssertionError("nobody waits for this answer any more")

    monkeypatch.setattr(edge.loop, "decide", decide)
    outcome = started(camera, arm).carry_out(Order("pick up the red cube", place=False))
    assert not outcome.done and "stopped while the model was thinking" in outcome.reason and not arm.moves


def test_what_was_picked_up_is_put_back_once(
    camera: StillCamera, arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cube_box())
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)
    runtime = started(camera, arm)
    runtime.put_back()
    assert not arm.moves  # nothing is held
    assert runtime.carry_out(Order("pick up the red cube", place=False)).done
    held_rad = arm.position.copy()
    runtime.put_back()
    put, kinematics = arm.moves[-1].position_rad, runtime.kinematics
    lowest = min(put, key=lambda q_rad: kinematics.fk(q_rad)[2, 3])
    x, y, z = kinematics.grasp_point(lowest, kinematics.angle_to_opening(lowest[-1]))[:3, 3]
    assert np.hypot(x - CUBE.x_m, y - CUBE.y_m) < 0.005 and z < 0.03 < kinematics.grasp_point(held_rad, 0.03)[2, 3]
    assert put[-1][-1] > held_rad[-1]  # the jaws have let go
    moves = len(arm.moves)
    runtime.put_back()
    assert len(arm.moves) == moves


def test_what_cannot_be_put_back_or_was_let_go_is_not_tried_again(
    camera: StillCamera, arm: ObedientController, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cube_box())
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)  # jaws that stand open look like it
    runtime = started(camera, arm)
    order = Order("pick up the red cube", place=False)
    assert runtime.carry_out(order).done
    runtime.go_ready()
    moves = len(arm.moves)
    runtime.put_back()
    assert len(arm.moves) == moves
    assert runtime.carry_out(order).done
    arm.position = ROBOT.ready_rad.copy()  # somebody moved it there, the jaws closed
    moves = len(arm.moves)
    with pytest.raises(UserError, match="cannot be put back from here .*; take it: the jaws open next"):
        runtime.put_back()
    runtime.put_back()
    assert len(arm.moves) == moves
