"""``vlar1 doctor``: what this machine has and lacks for each feature, and what to type."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from edge.doctor import decide, extras, machine, move, realtime, see
from edge.doctor.findings import Check, Finding, examine, works
from edge.shipped import SHIPPED_BUNDLE

COLOURS = {"fine": "green", "warning": "yellow", "absent": "dim", "missing": "bold red"}


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="what this machine has and lacks, and what to type",
        description="What this machine has and lacks for each feature, and what to type. Nothing is changed, no arm is "
        "spoken to and no camera is opened. Exit code 0: `vlar1 demo`, `vlar1 ask` and what was named would work; "
        "1: something is missing. The files of a large bundle are read once, when it is first seen.",
    )
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument(
        "--robot", type=Path, metavar="FILE", help="robot file: is its arm's port there, and open to you"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Look and print; 0 when nothing is missing, else 1."""
    report = examine(checks(args.bundle, args.robot))
    if args.json:
        groups = {group: [asdict(finding) for finding in findings] for group, findings in report.items()}
        print(json.dumps({"works": works(report), "groups": groups}, indent=2))
    else:
        show(report)
    return 0 if works(report) else 1


def checks(bundle: Path, robot: Path | None) -> list[Check]:
    """Everything that is looked at, under its heading."""
    found = [
        Check("machine", "board", lambda: [machine.board()]),
        Check("machine", "power mode", machine.power_mode),
        Check("machine", "clocks", lambda: [machine.clocks()]),
        Check("machine", "memory", lambda: [machine.memory(), machine.swap()]),
        Check("machine", "disk", lambda: [machine.disk(bundle)]),
        Check("decide", "packages", lambda: [decide.packages()]),
        Check("decide", "ONNX Runtime", decide.providers, limit_s=30.0),
        Check("decide", "CUDA driver", lambda: [decide.cuda()]),
        Check("decide", "TensorRT", lambda: [decide.tensorrt()]),
        Check("decide", "bundle", partial(decide.bundle, bundle), limit_s=decide.bundle_limit_s(bundle) + 10),
        Check("see", "camera", see.cameras),
        Check("see", "RealSense", see.realsense),
        Check("see", "calibration check", lambda: [see.calibration_check()]),
        Check("move", "native extension", move.native),
        Check("move", "serial adapter", move.serial_adapters),
        Check("real time", "real-time priority", realtime.realtime),
        Check("extras", "extras", extras.extras),
    ]
    if robot is not None:
        named = Check("move", "robot file", partial(move.robot, str(robot)))
        found.insert([check.group for check in found].index("real time"), named)
    return found


def show(report: dict[str, list[Finding]]) -> None:
    """Print findings by group, each with what to type."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True, highlight=False)
    width = max(len(finding.name) for findings in report.values() for finding in findings if len(finding.name) < 24)
    for group, findings in report.items():
        console.print(f"[bold]{group}[/bold]")
        for finding in findings:
            state = f"[{COLOURS[finding.state]}]{finding.state:7}[/]"
            console.print(f"  {state}  {escape(finding.name):{width}}  {escape(finding.told)}")
            if finding.to_type:
                console.print(f"{'':{13 + width}}[bold]{escape(finding.to_type)}[/bold]")
    missing = [finding.name for findings in report.values() for finding in findings if finding.state == "missing"]
    warnings = sum(finding.state == "warning" for findings in report.values() for finding in findings)
    verdict = f"missing: {escape(', '.join(missing))}" if missing else "`vlar1 demo` and `vlar1 ask` work here"
    console.print(f"{verdict}; {warnings} warning{'s' * (warnings != 1)}")
