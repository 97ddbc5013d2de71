"""What `vlar1 profile` does and prints: measures, tables, files, and what it is compared with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from drivers.errors import UserError
from edge.ask import read_image
from edge.picture_file import write_picture
from edge.profile.budget import judge, parse_budget
from edge.profile.command import BROKEN
from edge.profile.compare import ALPHA, LEAST_RUNS, Change, compare, differences, read_report
from edge.profile.picture import draw_profile
from edge.profile.run import Job, Report, profile
from edge.report import write_report
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import Tracer
from edge.trace_export import trace_events, write_trace

_SEED = 0


def run(args: argparse.Namespace) -> int:
    """See `edge.profile.command.run`."""
    budget_ms, before = _check(args)
    rgb, instruction = (read_image(args.image), args.instruction) if args.image else table_picture()
    job = Job(str(args.bundle or SHIPPED_BUNDLE), instruction, args.runs, args.trace is not None)
    console = Console(soft_wrap=True, highlight=False)
    tracer = Tracer()
    with console.status(f"measuring {args.runs} decisions, and the memory's speed"):
        report = _measure(args, job, rgb, tracer)
    events, dropped = report.pop("events"), report.pop("dropped")
    console.print(stage_table(report))
    for line in lines(report):
        console.print(line, markup=False)
    code = 0
    if before is not None:
        changes = compare(before, report)
        report["against"] = {"file": str(args.against), "slower": [c.stage for c in changes if c.slower]}
        console.print(change_table(changes, args.against))
        for line in differences(before, report):
            console.print(line, style="yellow", markup=False)
        if any(change.slower for change in changes):
            code = BROKEN
    if budget_ms is not None:
        kept, said = judge(report, budget_ms)
        report["budget"] = {"ms": budget_ms, "kept": kept}
        for line in said:
            console.print(line, style=None if kept else "yellow", markup=False)
        code = code if kept else BROKEN
    if args.json:
        _write_json(args.json, report)
    if args.trace:
        write_trace(args.trace, events + (trace_events(tracer.spans(), "servo loop") if args.robot else []))
        if dropped:
            console.print(f"{args.trace}: lacks the {dropped} oldest spans", style="yellow", markup=False)
    if args.picture:
        write_picture(args.picture, draw_profile(report, before, budget_ms))
    return code


def _check(args: argparse.Namespace) -> tuple[float | None, Report | None]:
    """The budget and the report to compare with; whatever is wrong is found before anything is measured."""
    if args.runs < 1:
        raise UserError(f"--runs {args.runs}: expected 1 or more")
    if args.against and args.runs < LEAST_RUNS:
        raise UserError(f"--runs {args.runs}: too few to compare by; expected {LEAST_RUNS} or more with --against")
    for option, path in (("--json", args.json), ("--trace", args.trace), ("--picture", args.picture)):
        if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
            raise UserError(f"{option} {path}: cannot be written; name a file in a folder that exists")
    return parse_budget(args.budget) if args.budget else None, read_report(args.against) if args.against else None


def _measure(args: argparse.Namespace, job: Job, rgb: NDArray[np.uint8], tracer: Tracer) -> Report:
    if args.robot is None:
        return profile(job, rgb)
    from drivers.robot import load_robot
    from edge.profile.servo import ServoWatch

    robot = load_robot(args.robot)
    with ExitStack() as held:
        watch = held.enter_context(ServoWatch(robot, tracer))
        alone = watch.alone()
        report = profile(job, rgb, watch)
        deciding = watch.figures()
    return {**report, "servo": {"alone": alone, "deciding": deciding, "messages": watch.messages}}


def table_picture() -> tuple[NDArray[np.uint8], str]:
    """The camera's view of a simulated table, (480, 640, 3), and what to pick up there; the same every time."""
    import mujoco

    from drivers.robot import load_robot
    from drivers.sim.render import CAMERA, camera_pose, render
    from drivers.sim.scene import draw_scene, draw_task
    from drivers.sim.world import build_model, set_arm

    rng = np.random.default_rng(_SEED)
    scene = draw_scene(rng)
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, load_robot().ready_rad)
    mujoco.mj_kinematics(model, data)
    picture = render(model, data, scene.look, camera_pose(scene.look), CAMERA, rng)
    return picture.rgb, draw_task(rng, scene, "pick").instruction


def stage_table(report: Report) -> Table:
    """A row a stage: the runs' milliseconds, the share of the whole, the floor and how many times above it."""
    runs_ms, floor = report["runs_ms"], report["floor"]
    title = f"{report['bundle']['path']} ({report['bundle']['quantization']}): one {report['task']} decision, ms"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 0, 0, 1))
    table.add_column("stage")
    for column in ("count", "p50", "p90", "p99", "max", "share", "floor", "x floor"):
        table.add_column(column, justify="right")
    all_ms = float(np.sum(runs_ms["decision"]))
    for name, values in runs_ms.items():
        p50, p90, p99, most = np.percentile(values, (50, 90, 99, 100))
        floor_ms, times = floor["ms"].get(name), floor["times"].get(name)
        table.add_row(
            name,
            str(len(values)),
            *(f"{ms:.2f}" for ms in (p50, p90, p99, most)),
            f"{float(np.sum(values)) / all_ms:.1%}",
            "" if floor_ms is None else f"{floor_ms:.2f}",
            "" if times is None else f"{times:.1f}",
            end_section=name == "rest",
        )
    return table


def lines(report: Report) -> Iterator[str]:
    """Everything else that was found, in words."""
    if not report["found"]:
        yield f'the answer to "{report["instruction"]}" is "not found", shorter than others: ask for what is there'
    cold = report["cold_start_ms"]
    steps = ", ".join(f"{name} {ms:.0f}" for name, ms in cold.items())
    yield f"cold start {sum(cold.values()):.0f} ms, once, files in the system's cache: {steps}"
    tokens, speed = report["tokens"], report["tokens_per_s"]
    yield (
        f"prefill {speed['prefill']:.0f} tokens/s: {tokens['prefilled']} of the prompt's {tokens['prompt']} each time, "
        "the text before the image is kept"
    )
    yield (
        f"decode {speed['decode']:.0f} tokens/s: {tokens['answer']:g} tokens, {tokens['forced']:g} forced by the "
        f"grammar, {tokens['thinking']} of reasoning, in {tokens['passes']} passes"
    )
    floor, step_bytes = report["floor"], report["step_bytes"]
    first, last = (bytes_per_s / 1e9 for bytes_per_s in floor["bytes_per_s"])
    yield (
        f"floor: a step reads {step_bytes / 1e6:.1f} MB of weights, memory gave {first:.1f} GB/s before and {last:.1f} "
        f"after ({floor['threads']} threads)"
    )
    cache = floor["cache_bytes"]
    if cache is not None and step_bytes < cache:
        yield f"  these weights fit the processor's cache ({cache / 1e6:.0f} MB): a step may well be below that floor"
    peak = report["peak_bytes"]
    yield f"peak memory {'not available: the system does not tell' if peak is None else f'{peak / 1e6:.0f} MB'}"
    energy = report["energy"]
    if "missing" in energy:
        yield f"energy not available: {energy['missing']}"
    else:
        joules = energy["joules_per_decision"]
        yield f"energy {joules:.3g} J a decision ({energy['source']}, the machine's idling and other work included)"
    if "servo" in report:
        yield from _servo_lines(report["servo"])


def _servo_lines(servo: dict[str, Any]) -> Iterator[str]:
    for name in ("alone", "deciding"):
        found = servo[name]
        if not found["cycles"]:
            yield f"servo loop, {name}: no cycle"
            continue
        period, bus = found["period_ms"], found["bus_ms"]
        errors = ", ".join(f"{n} {kind}" for kind, n in found["errors"].items()) or "no errors"
        yield (
            f"servo loop, {name}: {found['cycles']} cycles, {period['p50']:.2f} ms from one to the next in the median, "
            f"{period['p99']:.2f} at the 99th percentile, {period['max']:.2f} at most; {bus['p50']:.2f} ms on the bus, "
            f"{bus['p99']:.2f} at the 99th percentile; {errors}"
        )
    yield from servo["messages"]


def change_table(changes: list[Change], against: Path) -> Table:
    """Medians before and now, and what the test says."""
    title = f"against {against}: medians in ms, rank test at {ALPHA:.0%} for all together"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 0, 0, 1))
    table.add_column("stage")
    for column in ("before", "now", "change", "p"):
        table.add_column(column, justify="right")
    table.add_column("")
    for change in changes:
        said = "[red]slower[/red]" if change.slower else "[green]faster[/green]" if change.faster else ""
        by = change.now_ms / change.before_ms - 1.0 if change.before_ms else 0.0
        values = (f"{change.before_ms:.2f}", f"{change.now_ms:.2f}", f"{by:+.1%}", f"{change.p_value:.2g}")
        table.add_row(change.stage, *values, said)
    return table


def _write_json(path: Path, report: Report) -> None:
    try:
        write_report(path, report)
    except OSError as error:
        raise UserError(
            f"--json {path}: cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from None
