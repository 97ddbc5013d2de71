"""``vlar1 arm``: find the servos, set them up, calibrate, watch, park and move them by hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drivers.robot import SO101_PATH
from edge import arm_calibrate, arm_jog, arm_monitor, arm_scan, arm_setup


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    text = "find, set up, calibrate, watch, park and move an arm"
    parser: argparse.ArgumentParser = subparsers.add_parser("arm", help=text)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, func: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text)
        command.add_argument(
            "--robot", type=Path, default=SO101_PATH, metavar="FILE", help="robot file (default: the shipped so101)"
        )
        command.add_argument("--port", metavar="P", help="serial port (default: the robot file's)")
        command.set_defaults(func=func)
        return command

    scan = add("scan", arm_scan.run, "servos on every USB serial adapter (or --port), at every baud rate")
    scan.add_argument("--every-id", action="store_true", help="ask for each id at each rate: minutes, not seconds")

    setup = add("setup", arm_setup.run, "give new servos their ids and baud rate, one after the other")
    setup.add_argument("--joint", action="append", metavar="NAME", help="only this one (may be given again)")

    calibrate = add("calibrate", arm_calibrate.run, "record zero and range of every joint, as LeRobot does")
    what = calibrate.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE.json", help="record, and write LeRobot's calibration file")
    what.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE.json",
        help="put the offsets and limits of a file into the servos",
    )
    calibrate.add_argument(
        "--robot-out",
        type=Path,
        metavar="FILE.yaml",
        help="write a robot file of this arm too: --robot's, with the calibration and the port",
    )
    calibrate.add_argument("--force", action="store_true", help="replace FILE.json and FILE.yaml")
    calibrate.add_argument("--torque-off", action="store_true", help="switch torque off first (hold the arm)")

    monitor = add("monitor", arm_monitor.run, "angles, load, temperature, faults, live; writes nothing")
    monitor.add_argument("--once", action="store_true", help="print once; exit 2 when a servo is silent or has a fault")
    park = add("park", arm_jog.run_park, "go to the rest pose, then torque off")
    park.add_argument("--yes", action="store_true", help="do not ask")
    jog = add("jog", arm_jog.run_jog, "move one joint at a time from the keyboard")
    for command in (monitor, park, jog):
        command.add_argument(
            "--calibration",
            type=Path,
            metavar="FILE.json",
            help="LeRobot calibration of this arm; the servos must hold it",
        )
