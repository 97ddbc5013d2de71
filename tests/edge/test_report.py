"""What a run leaves: a report with the promised keys, and a video that a decoder reads back."""

import json
from pathlib import Path

import av
import numpy as np

from drivers.protocols import Frame
from drivers.sim.render import CAMERA
from edge.contract import Affordance, Answer
from edge.decode import Decision
from edge.loop import Order, Outcome
from edge.report import Episode, decision_picture, outcome_table, report, write_report, write_video
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


def test_a_video_comes_back_as_h264_with_every_frame(tmp_path: Path) -> None:
    frames = [np.full((64, 96, 3), 20 * k, np.uint8) for k in range(12)]
    write_video(tmp_path / "run.mp4", iter(frames), 10)
    with av.open(str(tmp_path / "run.mp4")) as container:
        stream = container.streams.video[0]
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(decoded) == len(frames)
    assert all(abs(float(d.mean()) - float(f.mean())) < 4 for d, f in zip(decoded, frames, strict=True))
