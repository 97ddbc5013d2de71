"""What a run leaves: a report with the promised keys, and pictures."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from drivers.protocols import Frame
from drivers.sim.render import CAMERA
from edge.contract import Affordance, Answer
from edge.decode import Decision
from edge.loop import Order, Outcome
from edge.report import Episode, decision_picture, outcome_table, report, write_report
from edge.trace import Tracer

FRAME = Frame(np.zeros((480, 640, 3), np.uint8), None, 0.0, CAMERA)


def episode(success: bool) -> Episode:
    decision = Decision(Answer("I see it.", Affordance(0.5, 0.5, 0.1, 0.1)), "<think>I see it.", 10, 20, 5, False)
    outcome = Outcome(success, "done", 1, FRAME, decision, None, 0.2, 5.0)
    return Episode(Order("pick up the red cube", place=False), outcome, success, "holds it")


def test_the_report_has_what_its_readers_count_on(tmp_path: Path) -> None:
    tracer = Tracer()
    tracer.add("vision", 0.005)
    write_report(tmp_path / "report.json", report([episode(True), episode(False)], tracer, {"seed": 3}))
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["episodes"], content["successes"], content["success_rate"]) == (2, 1, 0.5)
    assert content["stages"]["vision"]["count"] == 1
    assert set(content["stages"]["vision"]) == {"count", "p50_ms", "p90_ms", "max_ms"}
    assert [e["success"] for e in content["episodes_detail"]] == [True, False]
    assert content["episodes_detail"][0]["answer_affordance"] == "<think>I see it."
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_picture_can_be_made_even_where_nothing_was_decided() -> None:
    failed = episode(False)
    bare = Outcome(False, "no answer", 1, failed.outcome.frame, None, None, 0.0, 0.0)
    picture = decision_picture(Episode(failed.order, bare, False, "not held"))
    assert picture.shape[0] == 480 and picture.dtype == np.uint8


def test_what_was_not_found_is_in_the_report_the_picture_and_the_table(tmp_path: Path) -> None:
    text = "<think>No duck.</think><output>null</output>"
    decision = Decision(Answer("No duck.", None), text, 10, 20, 5, False)
    outcome = Outcome(False, 'not found: no "[red]duck[/red]"', 1, FRAME, decision, None, 0.2, 0.0)
    absent = Episode(Order("pick up the duck", place=False), outcome, False, "not held")
    detail = report([absent], Tracer(), {})["episodes_detail"][0]
    assert detail["answer_affordance"] == text and detail["answer_trajectory"] is None
    assert detail["robot_says"] == outcome.reason and detail["motion_s"] == 0.0
    picture = decision_picture(absent)
    found = decision_picture(Episode(absent.order, replace(outcome, grasp=None), False, "not held"))
    assert picture.shape == (480, 960, 3)
    assert (picture[:, :640] > 0).any() and not (found[:, :640] > 0).any()
    console = Console(file=io.StringIO(), width=200)
    console.print(outcome_table([absent]))
    assert f"✗ not held ({outcome.reason})" in console.file.getvalue()


def test_the_table_shows_every_episode() -> None:
    table = outcome_table([episode(True), episode(False)])
    assert table.row_count == 2 and "1 of 2" in str(table.title)
