"""The servo loop is watched and the arm left alone, not one register written; a controller's cycles are traced."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

import edge.profile.servo
from drivers.arm import tables
from drivers.arm.packets import FEETECH
from drivers.robot import load_robot
from drivers.sim.following_arm import FollowingBank, WireTap
from drivers.sim.servo_bus import ServoBus
from edge.control import Controller
from edge.profile.servo import ServoWatch
from edge.profile.show import _servo_lines
from edge.trace import Tracer

ROBOT = load_robot()


def test_the_loop_is_watched_and_the_arm_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.profile.servo, "_ALONE_S", 0.2)
    bank, tracer = FollowingBank(ROBOT, ROBOT.rest_rad), Tracer()
    tap = WireTap(FEETECH, tables.GOAL_POSITION)
    bus = ServoBus(bank, tap=tap)
    registers = (tables.TORQUE_ENABLE, tables.GOAL_POSITION, tables.PRESENT_POSITION)
    before = [bank.values(register).tolist() for register in registers]
    try:
        with ServoWatch(ROBOT, tracer, bus.port) as watch:
            alone = watch.alone()
            watch.begin()
            while not (deciding := watch.figures())["cycles"]:
                watch.collect()
            assert watch.figures()["cycles"] == 0  # each is counted once
    finally:
        bus.close()
    assert [bank.values(register).tolist() for register in registers] == before
    assert len(tap.t_s) == 0  # no setpoint went over the wire
    assert alone["cycles"] > 5 and alone["period_ms"]["max"] >= alone["period_ms"]["p50"] > 0.0
    spans = [span for span in tracer.spans() if span.name == "servo cycle"]
    assert len(spans) >= alone["cycles"] + deciding["cycles"]
    assert np.percentile([span.duration_s * 1e3 for span in spans[: alone["cycles"]]], 50) == pytest.approx(
        alone["bus_ms"]["p50"], abs=1e-3
    )
    said = list(_servo_lines({"alone": alone, "deciding": deciding, "messages": ["no real time"]}))
    assert said[0].startswith(f"servo loop, alone: {alone['cycles']} cycles") and said[-1] == "no real time"


def test_a_controllers_requests_and_cycles_are_spans() -> None:
    tracer, began_s = Tracer(), time.monotonic()
    robot = replace(ROBOT, rest_rad=ROBOT.ready_rad)
    with ServoBus(FollowingBank(robot, robot.ready_rad)) as bus, Controller(robot, bus.port, tracer) as controller:
        controller.move_to(robot.ready_rad + [0.1, 0, 0, 0, 0, 0])
    requests = [span for span in tracer.spans() if span.name == "bus"]
    assert requests and all(span.attributes["answers"] <= span.attributes["servos"] for span in requests)
    assert any(span.attributes["bytes"] > 0 for span in requests)
    cycles = [span for span in tracer.spans() if span.name == "actuate"]
    assert len(cycles) > 5 and {span.track for span in cycles} == {"servo loop"}
    begins_ns = [span.began_ns for span in cycles]
    assert begins_ns == sorted(begins_ns)
    assert began_s * 1e9 < begins_ns[0] <= cycles[-1].ended_ns < time.monotonic_ns()
    assert all(span.attributes == {"setpoints": 1} for span in cycles)
