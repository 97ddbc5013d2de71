"""What ``vlar1 run`` does: bring everything up, have a person agree, carry out orders, park."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing

from rich.console import Console as Terminal
from rich.markup import escape

from calib.camera import CalibratedCamera
from calib.file import load_calibration
from drivers.camera.source import open_camera
from drivers.errors import UserError
from drivers.recording import Recorder
from drivers.robot import Robot, load_robot, robot_with_zeros
from edge.arm_keys import Keys
from edge.console.orders import take_orders
from edge.contract import prompt_text
from edge.control import Controller
from edge.decode import compile_grammars
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.freshness import SIMULATED, FreshnessLimits
from edge.loop import Order, Outcome, Runtime
from edge.trace import Tracer, latency_table
from edge.watching import Watching

NOT_DONE = 1


def run(args: argparse.Namespace) -> int:
    """0 when the order was carried out, or the page's orders were; 1 when the one order was not."""
    if args.instruction is not None:
        prompt_text("affordance", args.instruction)
    elif args.console is None:
        raise UserError('run: names no order; give one in words, for example "pick up the red cube", or --console')
    terminal = Terminal(highlight=False, soft_wrap=True)
    calibration = load_calibration(args.calibration)
    robot = load_robot(args.robot)
    if calibration.joint_zeros_rad:
        robot = robot_with_zeros(robot, calibration.joint_zeros_rad)
    engine = OnnxEngine(load_bundle(args.bundle))
    compile_grammars(engine.bundle)
    tracer = Tracer()
    with ExitStack() as held:
        watching = held.enter_context(Watching(args, terminal))
        camera = held.enter_context(closing(watching.camera(open_camera(args.camera))))
        known = CalibratedCamera(camera, calibration.camera, calibration.depth_scale)
        calibration.check(known.intrinsics, camera.serial, robot.name)  # before the arm has torque
        recorder = None
        if args.record is not None:
            recorder = held.enter_context(Recorder(args.record, joint_names=robot.joint_names))
        if args.console is None and not args.yes and not _agreed(args, robot, terminal):
            terminal.print("nothing moved")
            return 0
        controller = held.enter_context(Controller(robot, args.port, tracer, recorder=recorder))
        for message in controller.messages:
            terminal.print(message, style="dim", markup=False)
        watching.begin(controller, calibration, tracer, engine.bundle.path.resolve().name, args.instruction or "")
        freshness = SIMULATED if args.camera.startswith("sim:") else FreshnessLimits()
        runtime = Runtime(
            *(robot, camera, controller, engine, calibration, tracer, watching),
            freshness=freshness,
            recorder=recorder,
        )
        if watching.console is not None:
            take_orders(watching.console, runtime)
            terminal.print("parking")
            return 0
        runtime.go_ready()
        outcome = runtime.carry_out(Order(args.instruction, args.place))
        _tell(outcome, tracer, terminal)
        if not controller.stopped:
            runtime.put_back()
    return 0 if outcome.done else NOT_DONE


def _agreed(args: argparse.Namespace, robot: Robot, terminal: Terminal) -> bool:
    """Whether a person at the keyboard lets the arm move."""
    terminal.print(
        f"{robot.name}: torque on where it is, to its ready pose, then {args.instruction!r}. It moves: clear its way.",
        markup=False,
    )
    try:
        keys = Keys("run")
    except UserError as error:
        raise UserError(f"{error}, or add --yes") from None
    with keys:
        terminal.print("y: go, any other key: leave it as it is")
        return keys.key(float(10**6)) in ("y", "Y")


def _tell(outcome: Outcome, tracer: Tracer, terminal: Terminal) -> None:
    mark = "[green]✓[/green]" if outcome.done else "[red]✗[/red]"
    times = f"decided in {outcome.decision_s:.2f} s, moved for {outcome.motion_s:.1f} s"
    terminal.print(f"{mark} {escape(outcome.reason)}; {times}")
    terminal.print(latency_table(tracer.summary()))
