"""``vlar1 replay``: what is in a recording, its film and curves, and the shipped model asked again on its frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import cv2
import mujoco
import numpy as np
import pytest

from drivers.protocols import Frame
from drivers.recording import DROPPED, Recorder, Recording
from drivers.recording_messages import DECISION
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import Item, Scene, draw_look
from drivers.sim.world import build_model, set_arm
from edge import cli
from edge.contract import Affordance, Answer, Task, Trajectory, format_answer, parse_answer, parse_output
from edge.decode import Decision, decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.film import FPS
from edge.joint_plot import plot_joints
from edge.recorded import decision_record
from edge.replay_film import Shown, clock
from edge.shipped import SHIPPED_BUNDLE

INSTRUCTION = "put the red cube in the blue bowl"
ASKED: tuple[Task, ...] = ("affordance", "trajectory")
NAMES = ("pan", "lift")


@pytest.fixture(scope="module")
def frame() -> Frame:
    cube = Item("cube", "red", 0.22, 0.05, 0.3, (0.015, 0.015, 0.015))
    bowl = Item("bowl", "blue", 0.19, -0.11, 0.0, (0.044, 0.028))
    scene = Scene((cube, bowl), draw_look(np.random.default_rng(0)))
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, load_robot().ready_rad)
    mujoco.mj_kinematics(model, data)
    camera = scaled(CAMERA, 320, 240)
    picture = render(model, data, scene.look, camera_pose(scene.look), camera, np.random.default_rng(1))
    return Frame(picture.rgb, picture.depth_m, 50.0, camera, "SIM")


@pytest.fixture(scope="module")
def engine() -> OnnxEngine:
    return OnnxEngine(load_bundle(SHIPPED_BUNDLE))


@pytest.fixture(scope="module")
def run(frame: Frame, engine: OnnxEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second and a half: three frames, the second decided on twice, the arm moving throughout."""
    path = tmp_path_factory.mktemp("run") / "run.mcap"
    with Recorder(path, joint_names=NAMES) as recorder:
        recorder.event(50.0, "start", "the run begins")
        for k in range(3):
            recorder.frame(replace(frame, rgb=np.roll(frame.rgb, k, 0), t_s=50.0 + k / 2))
        decided = replace(frame, rgb=np.roll(frame.rgb, 1, 0), t_s=50.5)
        draft = None
        for k, task in enumerate(ASKED):
            decision = decide(engine, decided.rgb, task, INSTRUCTION, draft=draft)
            recorder.decision(
                51.1 + k / 10, decision_record(decision, decided, task, INSTRUCTION, engine.bundle, draft=draft)
            )
            draft = decision.tokens
        for k in range(150):
            recorder.setpoint(50.0 + k / 100, [k / 100, 0.0])
            recorder.joints(50.0 + k / 100, [k / 100 - 0.02, 0.0])
        recorder.event(51.5, "end", "[red]done[/red]")
    return path


def test_a_record_holds_what_was_asked_and_answered(run: Path, engine: OnnxEngine) -> None:
    box, path = (m.data for m in Recording(run).messages(DECISION))
    assert (box["task"], path["task"], box["instruction"]) == (*ASKED, INSTRUCTION)
    for record in (box, path):
        assert parse_output(record["answer"]) == parse_answer(record["text"], record["task"]).output
    assert (box["bundle"], box["quantization"]) == ("tabletop", engine.bundle.quantization)
    assert box["frame_t_s"] == 50.5 and box["serial"] == "SIM" and 0.0 < box["took_s"] < 60.0
    assert 0.0 < box["confidence"] <= 1.0
    assert box["draft"] is None and len(path["draft"]) == box["n_tokens"]


def test_what_is_in_a_recording_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(run)]) == 0
    said = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in said.splitlines()]
    assert "00:01.500" in said and "/arm/joints 150 100.0" in lines and "/camera/rgb 3 2.0" in lines
    assert "00:00.000 start the run begins" in lines and "00:01.500 end [red]done[/red]" in lines
    assert any(line.startswith("00:01.100 decision: affordance") for line in lines)
    assert "no end" not in said and "dropped" not in said


def test_the_same_frames_get_the_same_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(run), "--decide"]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 answers have the same text" in said and said.count("the same") >= 3


def test_a_different_answer_is_told_from_the_same_and_from_none(
    run: Path, frame: Frame, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    box, path = (m.data for m in Recording(run).messages(DECISION))
    other = format_answer(Answer("I looked.", Affordance(0.5, 0.25, 0.1, 0.1)))
    reworded = "<think>Hm.</think>" + path["text"].partition("</think>")[2]
    with Recorder(tmp_path / "run.mcap", image="jpeg") as recorder:
        recorder.frame(frame)
        recorder.frame(replace(frame, rgb=np.roll(frame.rgb, 1, 0), t_s=50.5))
        recorder.decision(51.0, {**box, "text": other, "bundle": "another", "thinking_cut": "deadline"})
        recorder.decision(52.0, {**path, "text": reworded})
        recorder.decision(53.0, {**box, "frame_t_s": 7.0})
        recorder.decision(54.0, {"task": "dance", "frame_t_s": 50.5})
    assert cli.main(["replay", str(tmp_path / "run.mcap"), "--decide"]) == 1
    said = capsys.readouterr().out
    assert "0 of 4 answers have the same text" in said
    assert "other words, same output" in said or "[[" in said  # as the JPEG may move the path a little
    assert said.count("its frame was not recorded") == 2
    for why in ("another bundle", "cut short by their deadline", "recorded as JPEG"):
        assert why in said


def test_the_film_shows_every_frame_and_then_the_decision(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert cli.main(["replay", str(run), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["joints.png", "replay.mp4"]
    with av.open(str(out / "replay.mp4")) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(container.streams.video[0])]
    assert pictures[0].shape == (480, 960, 3)
    # From the first frame at 50.0 s to a second past the last decision, at 51.2 s.
    assert len(pictures) == pytest.approx((1.2 + 1.0) * FPS, abs=2)
    panel = [p[:, 640:].astype(int) for p in pictures]
    assert np.abs(panel[5] - panel[0]).mean() < 1.0 < np.abs(panel[-1] - panel[0]).mean()
    curves = cv2.imread(str(out / "joints.png"))
    assert curves.shape[1] == 1200 and len(np.unique(curves.reshape(-1, 3), axis=0)) > 4


def test_a_cut_recording_and_one_that_dropped_frames_say_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = run.read_bytes()
    (tmp_path / "cut.mcap").write_bytes(content[: len(content) - 100])
    assert cli.main(["replay", str(tmp_path / "cut.mcap")]) == 0
    assert "The recording has no end" in capsys.readouterr().out
    (tmp_path / "short.mcap").write_bytes(content[:300])
    assert cli.main(["replay", str(tmp_path / "short.mcap"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "nothing was recorded" in said and "no film" in said
    with Recorder(tmp_path / "dropped.mcap") as recorder:
        recorder.event(1.0, DROPPED, "3 frames", count=3)
    assert cli.main(["replay", str(tmp_path / "dropped.mcap")]) == 0
    assert "3 frames were dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{tmp}/none.mcap"], "none.mcap: cannot be read"),
        (["{tmp}/text.mcap"], "text.mcap: is no recording"),
        (["{tmp}/events.mcap", "--decide"], "holds no decisions"),
        (["{run}", "--decide", "--bundle", "{tmp}/none"], "no such folder"),
        (["{run}", "--out", "{tmp}/text.mcap"], "--out {tmp}/text.mcap: cannot be made"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    (tmp_path / "text.mcap").write_text("no recording")
    with Recorder(tmp_path / "events.mcap") as recorder:
        recorder.event(1.0, "alone")
    assert cli.main(["replay", *(word.format(tmp=tmp_path, run=run) for word in argv)]) == 2
    error = capsys.readouterr().err
    assert says.format(tmp=tmp_path) in error and error.count("\n") == 1


def test_two_answers_to_one_order_are_shown_together() -> None:
    box, path = Affordance(0.5, 0.5, 0.1, 0.1), Trajectory(((0.1, 0.2), (0.3, 0.4)))

    def told(output: Affordance | Trajectory | None, **asked: object) -> dict[str, object]:
        answer = Answer("I looked.", output)
        return {"instruction": "go", "frame_t_s": 1.0, "text": format_answer(answer), **asked}

    both = Shown().after(told(box)).after(told(path))
    assert (both.box, both.path, both.not_found) == (box, path, False)
    later = both.after(told(None, frame_t_s=2.0))
    assert (later.box, later.path, later.not_found, later.reasoning) == (None, None, True, "I looked.")
    assert both.after({"text": "gibberish"}).reasoning.startswith("not an answer: ")


@pytest.mark.parametrize(
    ("t_s", "shown"), [(0.0, "00:00.000"), (61.2345, "01:01.234"), (3600.0, "60:00.000"), (-0.5, "-00:00.500")]
)
def test_the_clock(t_s: float, shown: str) -> None:
    assert clock(t_s) == shown


def test_curves_of_one_sample_of_none_and_of_what_is_no_number_are_drawn() -> None:
    none = (np.zeros(0), np.zeros((0, 2)))
    one = (np.array([3.0]), np.array([[0.1, np.nan]]))
    for measured, setpoints in ((one, none), (none, one), (one, one)):
        assert plot_joints(NAMES, measured, setpoints).shape == (294, 1200, 3)


def test_a_record_of_nothing_found(frame: Frame, engine: OnnxEngine) -> None:
    answer = Answer("No such thing.", None)
    record = decision_record(
        Decision(answer, format_answer(answer), 100, 12, 4), frame, "affordance", "pick it", engine.bundle
    )
    assert record["answer"] is None and json.loads(json.dumps(record)) == record
    assert record["bundle"] == "tabletop"
