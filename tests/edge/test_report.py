"""What a run leaves: a report with the promised keys, and pictures."""

import json
from pathlib import Path

import numpy as np

from drivers.protocols import Frame
from drivers.sim.render import CAMERA
from edge.contract import Affordance, Answer
from edge.decode import Decision
from edge.loop import Order, Outcome
from edge.report import Episode, decision_picture, outcome_table, report, write_report
from edge.trace import Tracer


def episode(success: bool) -> Episode:
    frame = Frame(np.zeros((480, 640, 3), np.uint8), None, 0.0, CAMERA)
    decision = Decision(Answer("I see it.", Affordance(0.5, 0.5, 0.1, 0.1)), "<think>I see it.", 10, 20, 5, False)
    outcome = Outcome(success, "done", 1, frame, decision, None, 0.2, 5.0)
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


def test_the_table_shows_every_episode() -> None:
    table = outcome_table([episode(True), episode(False)])
    assert table.row_count == 2 and "1 of 2" in str(table.title)
