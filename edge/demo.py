"""``vlar1 demo``: a simulated SO-101 calibrates its camera, then picks and places through the real path."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from calib.board import PLATE_THICKNESS_M, Board, T_gripper_board_nominal
from calib.calibration import Calibration
from calib.file import load_calibration, save_calibration
from calib.kinematics import GripperKinematics
from calib.poses import choose_poses
from calib.routine import calibrate_hand_eye
from drivers.camera.sim import SimCamera
from drivers.errors import UserError
from drivers.protocols import Camera
from drivers.recording import Recorder
from drivers.robot import Robot, load_robot
from drivers.sim.process import SimulatedTable
from drivers.sim.render import look_at
from drivers.sim.scene import Look, Scene, Task, draw_look, draw_scene, draw_task
from drivers.sim.server import HeldBoard, State
from edge.console.orders import take_orders
from edge.control import Controller, MotionError
from edge.decode import compile_grammars
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.film import Cinema
from edge.freshness import SIMULATED
from edge.loop import Order, Runtime
from edge.picture_file import write_picture
from edge.report import (
    Episode,
    decision_picture,
    outcome_table,
    report,
    told,
    write_report,
)
from edge.run_command import add_watchers
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import Tracer, latency_table
from edge.watch import Watcher, Watchers
from edge.watching import Watching

CALIBRATION_VIEWS = 12
# Where a tape measure says the camera stands: good to a centimetre or two. Calibration finds the rest.
CAMERA_GUESS = look_at(np.array([0.50, 0.0, 0.44]), np.array([0.195, 0.0, 0.0]))
SETTLE_S = 0.5


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser("demo", help="a simulated arm picks and places")
    parser.add_argument("--episodes", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="draws scenes, instructions, camera mounting (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument("--record", action="store_true", help="keep the whole run in DIR/run.mcap, for `vlar1 replay`")
    add_watchers(parser)
    parser.set_defaults(func=run)


@dataclass(frozen=True)
class Plan:
    """What one episode lays on the table and asks for."""

    scene: Scene
    task: Task


def run(args: argparse.Namespace) -> int:
    """0 when the run came to its end, whatever the arm achieved; the report says that."""
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: expected at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: expected 0 or more")
    engine = OnnxEngine(load_bundle(args.bundle))
    compile_grammars(engine.bundle)
    robot = load_robot()
    try:
        (args.out / "frames").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be made ({error.strerror}); name another folder") from None
    console = Console()
    plans = draw_plans(args.seed, args.episodes)
    tracer = Tracer()
    episodes: list[Episode] = []
    late_s = 0.0
    try:
        late_s = _play(args, engine, robot, plans, episodes, tracer, console)
    except KeyboardInterrupt:
        # Only said where it is so: had parking failed, its own error would be here instead.
        console.print("stopped; the arm is parked and its torque is off")
        raise
    finally:
        if episodes:
            console.print(outcome_table(episodes))
            console.print(latency_table(tracer.summary()))
            console.print(f"report, pictures and video: {args.out}/", highlight=False)
    if late_s > 0.0:
        console.print(f"The machine was too busy for real time: the simulation lost {late_s:.1f} s.")
    return 0


def _play(
    args: argparse.Namespace,
    engine: OnnxEngine,
    robot: Robot,
    plans: list[Plan],
    episodes: list[Episode],
    tracer: Tracer,
    console: Console,
) -> float:
    """Calibrate, then one episode after the other, into ``episodes``; how much time the simulation lost."""
    with Watching(args, console) as watching, _progress(console) as progress, Cinema(args.out / "demo.mp4") as cinema:
        line = progress.add_task("calibration: choosing arm poses", total=CALIBRATION_VIEWS + args.episodes)

        def say(text: str, steps: int = 0) -> None:
            progress.update(line, description=text, advance=steps)

        with (
            SimulatedTable(robot, Scene((), plans[0].scene.look), args.seed) as table,
            closing(watching.camera(SimCamera(table.camera_address))) as camera,
            ExitStack() as held,
            Controller(robot, table.port) as controller,
        ):
            look = plans[0].scene.look
            calibration = calibrate_table(table, camera, controller, robot, look, args, say)
            extra = {
                "seed": args.seed,
                "bundle": str(args.bundle),
                "quantization": engine.bundle.quantization,
                "calibration_leave_one_out_mm": calibration.leave_one_out_mm,
            }
            controller.tracer = tracer  # the calibration's motions are not the run's
            recorder = _recorder(args, robot, held)
            controller.recorder = recorder
            watching.begin(controller, calibration, tracer, engine.bundle.path.resolve().name)
            runtime = Runtime(
                robot, camera, controller, engine, calibration, tracer, freshness=SIMULATED, recorder=recorder
            )
            for k, plan in enumerate(plans):
                title = f"{k + 1}/{len(plans)} {plan.task.instruction}"
                runtime.watcher = Watchers([_Said(say, title), watching], watching.complain)
                try:
                    episode, states = _episode(table, runtime, plan)
                except MotionError:
                    if watching.console is None or not controller.stopped:
                        raise
                    table.stop_recording()
                    break  # stopped on the page, which goes on from here
                episodes.append(episode)
                write_picture(args.out / "frames" / f"{k + 1:02d}.png", episode.outcome.frame.rgb)
                picture = decision_picture(episode)
                write_picture(args.out / f"episode-{k + 1:02d}.png", picture)
                cinema.add(plan.scene, states, picture, title, episode.success)
                write_report(args.out / "report.json", report(episodes, tracer, extra))
                mark = "[green]✓[/green]" if episode.success else "[red]✗[/red]"
                progress.console.print(f"{mark} {title}: {told(episode)}", highlight=False)
                say(title, steps=1)
            if watching.console is not None:
                table.lay_out(plans[-1].scene)  # what was picked up fell out of the jaws
                say("orders from the page; Ctrl-C, or Park there, ends it")
                take_orders(watching.console, runtime)
            say("parking the arm")
            late_s = table.late_s()
        say("finishing the film")
    return late_s


def _recorder(args: argparse.Namespace, robot: Robot, held: ExitStack) -> Recorder | None:
    """Of the run, where it was asked for; closed with ``held``."""
    if not args.record:
        return None
    path = args.out / "run.mcap"
    path.unlink(missing_ok=True)  # of an earlier run into this folder, like its other files
    return held.enter_context(Recorder(path, joint_names=robot.joint_names))


def draw_plans(seed: int, count: int) -> list[Plan]:
    """Scenes and tasks of a seed; light and table change from episode to episode, the camera stays mounted."""
    mount = draw_look(np.random.default_rng([seed, 0xCA]))
    plans = []
    for k in range(count):
        rng = np.random.default_rng([seed, 0xDE, k])
        look = draw_look(rng)
        look = replace(
            look,
            camera_m=mount.camera_m,
            camera_target_m=mount.camera_target_m,
            camera_roll_rad=mount.camera_roll_rad,
        )
        scene = draw_scene(rng, look=look)
        plans.append(Plan(scene, draw_task(rng, scene)))
    return plans


def calibrate_table(
    table: SimulatedTable,
    camera: Camera,
    controller: Controller,
    robot: Robot,
    look: Look,
    args: argparse.Namespace,
    say: Callable[[str, int], None],
) -> Calibration:
    """Hold a board, show it to the camera in a dozen poses, solve, store; the stored file is what the run uses."""
    board = Board()
    rng = np.random.default_rng([args.seed, 0xB0])
    slip = np.eye(4)  # nobody holds a board exactly where the drawing says
    slip[:3, :3] = cv2.Rodrigues(rng.normal(0, 0.02, 3))[0]
    slip[:3, 3] = rng.normal(0, 0.002, 3)
    held = T_gripper_board_nominal(board) @ slip
    # The plate's body: origin in its middle, +z out of the print (OpenCV's board frame has z into it, y down).
    T_board_plate = np.diag([1.0, -1.0, -1.0, 1.0])
    T_board_plate[:3, 3] = board.centre_m + (0.0, 0.0, PLATE_THICKNESS_M / 2)
    half = (board.plate_size_m[0] / 2, board.plate_size_m[1] / 2, PLATE_THICKNESS_M / 2)
    plate = HeldBoard(half, held @ T_board_plate, board.image(px_per_m=5000.0))
    table.lay_out(Scene((), look), plate)
    fk = GripperKinematics(robot.model, robot.joint_names)
    poses = choose_poses(
        robot.model,
        robot.joint_names,
        board,
        camera.intrinsics,
        CAMERA_GUESS,
        robot.ready_rad,
        count=CALIBRATION_VIEWS,
        seed=args.seed,
    )

    def move(q_rad: NDArray[np.float64]) -> None:
        controller.move_to(q_rad)

    move(robot.ready_rad)
    calibration = calibrate_hand_eye(
        controller.arm,
        camera,
        poses,
        fk,
        board,
        arm_name=robot.name,
        move=move,
        progress=lambda done, total, text: say(f"calibration: view {done} of {total}, {text}", 1),
    )
    move(robot.ready_rad)
    path = args.out / "calibration.yaml"
    path.unlink(missing_ok=True)  # of an earlier run, with another simulated camera
    save_calibration(calibration, path)
    return load_calibration(path)


def _episode(table: SimulatedTable, runtime: Runtime, plan: Plan) -> tuple[Episode, list[State]]:
    table.lay_out(plan.scene)
    table.start_recording()
    time.sleep(SETTLE_S)
    order = Order(plan.task.instruction, place=plan.task.kind == "place")
    outcome = runtime.carry_out(order)
    time.sleep(SETTLE_S)
    verdict = table.verdict(plan.task)
    states = table.stop_recording()
    runtime.go_ready()
    return Episode(order, outcome, verdict.success, verdict.reason), states


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True)


class _Said(Watcher):
    """What goes on, beside the progress bar."""

    def __init__(self, say: Callable[[str], None], title: str) -> None:
        self._say, self._title = say, title

    def said(self, text: str) -> None:
        self._say(f"{self._title}: {text}")
