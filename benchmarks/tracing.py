"""What does tracing cost: a span, a decision, the servo loop's commander; and does its memory stay the same?

``python -m benchmarks.tracing [--quick] [--json FILE] [--bundle DIR]``. Spans are timed in stretches of a thousand with
the loop around them taken off, each kind in turns, and the median stretch counts. Decisions on one frame are made with
tracing on and off in pairs, the order of each pair drawn; what counts is the median difference within a pair, with its
95 % interval by resampling pairs. For the servo loop an emulated arm swings with tracing on and off, in turns of eight
seconds: each of its cycles is a span that the commander writes. Memory is what the process has resident before and
after a million spans in a ring that is full, and what Python itself holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from benchmarks.servo_jitter import InOwnProcess, WireArm, period_figures, swing
from drivers.robot import load_robot
from edge.control import Controller
from edge.decode import compile_grammars, decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.memory_speed import memory_bytes
from edge.motion import JointTrajectory
from edge.profile.show import table_picture
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import OFF, Tracer
from edge.trace_export import prometheus_text, trace_events

STRETCH = 1000
SWING_S, SWING_STEP_S = 8.0, 0.05
AIM_NS = 2000.0


def spans_ns(turns: int) -> dict[str, float]:
    """Nanoseconds a span of each kind: the median over the stretches."""
    tracer = Tracer()

    def loop() -> None:
        for _ in range(STRETCH):
            pass

    def plain() -> None:
        for _ in range(STRETCH):
            with tracer.stage("plan"):
                pass

    def attributes() -> None:
        for n in range(STRETCH):
            with tracer.stage("decode", tokens=n, passes=3):
                pass

    def added() -> None:
        for _ in range(STRETCH):
            tracer.add("actuate", 0.002, 1.0, "servo loop", setpoints=1)

    def off() -> None:
        for _ in range(STRETCH):
            with OFF.stage("plan"):
                pass

    calls: dict[str, Callable[[], None]] = {
        "the loop alone": loop,
        "span": plain,
        "span, two attributes": attributes,
        "servo cycle, timed elsewhere": added,
        "off": off,
    }
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            start_ns = time.perf_counter_ns()
            call()
            seen[name].append((time.perf_counter_ns() - start_ns) / STRETCH)
    found = {name: float(np.median(values)) for name, values in seen.items()}
    alone_ns = found.pop("the loop alone")
    return {name: value - alone_ns for name, value in found.items()}


def decisions(bundle: Path, pairs: int) -> dict[str, float]:
    """Milliseconds of a decision with tracing off, and what tracing adds."""
    engine = OnnxEngine(load_bundle(bundle))
    compile_grammars(engine.bundle)
    rgb, instruction = table_picture()
    rng, tracer = np.random.default_rng(0), Tracer()
    took_s = np.zeros((pairs + 1, 2))
    for pair in range(pairs + 1):
        for on in rng.permutation(2):
            start_s = time.perf_counter()
            decide(engine, rgb, "affordance", instruction, tracer=tracer if on else OFF)
            took_s[pair, on] = time.perf_counter() - start_s
    took_ms = took_s[1:] * 1e3  # the first pair warms up
    added_ms = took_ms[:, 1] - took_ms[:, 0]
    resampled = np.median(rng.choice(added_ms, (2000, pairs)), axis=1)
    low_ms, high_ms = np.percentile(resampled, (2.5, 97.5))
    return {
        "pairs": pairs,
        "off_ms": float(np.median(took_ms[:, 0])),
        "added_ms": float(np.median(added_ms)),
        "added_low_ms": float(low_ms),
        "added_high_ms": float(high_ms),
        "spans": tracer.written / (pairs + 1),
    }


def servo_loop(turns: int) -> dict[str, dict[str, float]]:
    """The servo loop and its commander while an emulated arm swings, with tracing on and off in turns.

    {"on" or "off": figures of `benchmarks.servo_jitter.period_figures`, and ``commander_cores``: the commander's
    processor time, of a second}. Medians over the turns.
    """
    robot, rng = load_robot(), np.random.default_rng(1)
    seen: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    times_s, away_rad = swing(SWING_S, SWING_STEP_S)
    way = np.repeat(robot.ready_rad[None], len(times_s), axis=0)
    way[:, 0] += away_rad
    with (
        InOwnProcess(WireArm, robot, robot.ready_rad) as arm,
        Controller(robot, arm.call("port"), stop_inputs=(), realtime=False) as controller,
    ):
        for _ in range(turns):
            for name in rng.permutation(list(seen)):
                controller.tracer = Tracer() if name == "on" else OFF
                controller.move_to(robot.ready_rad)
                since, _ = controller.loop.cycles()
                start_s, cpu_s = time.monotonic(), time.process_time()
                controller.execute(JointTrajectory(times_s, way))
                cpu_s, end_s = time.process_time() - cpu_s, time.monotonic()
                _, cycles = controller.loop.cycles(since)
                figures = period_figures(cycles.t_s, cycles.busy_s, start_s, end_s)
                seen[str(name)].append({**figures, "commander_cores": cpu_s / (end_s - start_s)})
    return {
        name: {figure: float(np.median([row[figure] for row in rows])) for figure in rows[0]}
        for name, rows in seen.items()
    }


def memory(spans: int) -> dict[str, float]:
    """Bytes that ``spans`` more spans take, once the ring is full."""
    tracer = Tracer()

    def write(n: int) -> None:
        for i in range(n):
            with tracer.stage("plan", tokens=i):
                pass

    def resident() -> int:
        return memory_bytes("VmRSS", Path("/proc/self/status")) or 0

    write(200_000)
    before = resident()
    write(spans)
    grown = resident() - before
    tracemalloc.start()
    write(1000)
    held = tracemalloc.get_traced_memory()[0]
    write(spans // 10)
    held = tracemalloc.get_traced_memory()[0] - held
    tracemalloc.stop()
    return {"spans": spans, "resident_grown_bytes": grown, "python_grown_bytes": held, "dropped": tracer.dropped}


def exports_ms() -> dict[str, float]:
    """Milliseconds to write out a full ring."""
    tracer = Tracer()
    for n in range(70_000):
        with tracer.stage("decode", tokens=n):
            pass
    took = {}
    for name, export in (
        ("Prometheus text", lambda: prometheus_text(tracer)),
        ("trace events", lambda: trace_events(tracer.spans(), "robot")),
    ):
        start_s = time.perf_counter()
        export()
        took[name] = (time.perf_counter() - start_s) * 1e3
    return took


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, metavar="DIR", help="(default: the shipped one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    part = 20 if args.quick else 1
    screen = console()
    report: dict[str, object] = {"benchmark": "tracing", "machine": machine()}
    report["span_ns"] = costs = spans_ns(400 // part)
    table = Table(title="nanoseconds a span")
    table.add_column("")
    table.add_column("ns", justify="right")
    for name, ns in costs.items():
        table.add_row(name, f"{ns:.0f}")
    screen.print(table)
    report["decision"] = found = decisions(args.bundle, max(4, 100 // part))
    screen.print(
        f"a decision of {found['off_ms']:.1f} ms with {found['spans']:.0f} spans: tracing adds "
        f"{found['added_ms']:+.3f} ms ({found['added_low_ms']:+.3f} to {found['added_high_ms']:+.3f}), "
        f"by the spans' own cost {found['spans'] * costs['span'] * 1e-6:.3f}"
    )
    report["servo_loop"] = loop = servo_loop(max(1, 12 // part))
    for name, row in loop.items():
        screen.print(
            f"servo loop, tracing {name}: cycles off by {row['p999_abs_error_ms']:.3f} ms at most in 99.9 %, busy "
            f"{row['busy_p99_ms']:.2f} ms in 99 %; its commander takes {row['commander_cores']:.4f} cores"
        )
    report["memory"] = kept = memory(1_000_000 // part)
    screen.print(
        f"{kept['spans']:,} spans in a full ring: {kept['resident_grown_bytes'] / 1e3:.0f} kB more resident, "
        f"{kept['python_grown_bytes'] / 1e3:.1f} kB more held by Python after a tenth as many"
    )
    report["export_ms"] = took = exports_ms()
    screen.print(f"a full ring: {', '.join(f'{name} {ms:.0f} ms' for name, ms in took.items())}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))
    return int(max(costs["span"], costs["servo cycle, timed elsewhere"]) > AIM_NS)


if __name__ == "__main__":
    sys.exit(exit_code(main))
