"""``vlar1 ask``: one decision on an image file, or one line and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edge.ask
from edge import cli, contract
from edge.abstention import SCORE
from edge.contract import Affordance, Answer, Output, Trajectory, format_answer, parse_answer, parse_output
from edge.decode import Decision
from edge.overlay import draw_decision


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "Bild ü.png"
    content = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".png", content)[1].tobytes())
    return path


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Output | None], None]:
    """Makes the model answer so."""

    def set_answer(output: Output | None) -> None:
        answer = Answer("I looked.", output)

        def decide(*args: Any, **kwargs: Any) -> Decision:
            return Decision(answer, format_answer(answer), 100, 12, 4)

        monkeypatch.setattr(edge.ask, "decide", decide)

    return set_answer


@pytest.mark.parametrize(
    ("task", "output", "value"),
    [
        ("affordance", Affordance(0.5, 0.25, 0.125, 1.0), {"x": 0.5, "y": 0.25, "width": 0.125, "height": 1.0}),
        ("trajectory", Trajectory(((0.125, 0.5), (1.0, 0.0))), [[0.125, 0.5], [1.0, 0.0]]),
        ("affordance", None, None),
        ("trajectory", None, None),
    ],
)
def test_every_kind_of_answer_is_told(
    tiny_bundle: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answers: Callable[[Output | None], None],
    task: str,
    output: Output | None,
    value: object,
) -> None:
    answers(output)
    overlay = tmp_path / "overlay.png"
    argv = ["ask", "--bundle", str(tiny_bundle), "--image", str(image), "--task", task, "--overlay", str(overlay)]
    assert cli.main([*argv, "--json", "pick up the [red]cup[/red]"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == value
    assert cli.main([*argv, "pick up the [red]cup[/red]"]) == 0
    said = capsys.readouterr().out
    assert ("not found: the model sees no " in said) == (output is None)
    assert (' for "pick up the [red]cup[/red]"\n' in said) == (output is None)
    rgb = edge.ask.read_image(image)
    plain = draw_decision(rgb, None, None, "pick up the [red]cup[/red]", "I looked.")
    picture = cv2.imread(str(overlay))[:, :, ::-1]
    marked = np.argwhere((picture != plain).any(axis=-1)[:, :640])
    assert len(marked) > 0
    # A caption in the corner, nothing on the scene.
    assert (marked.max(axis=0) < (40, 110)).all() == (output is None)


@pytest.mark.parametrize("task", ["affordance", "trajectory"])
def test_json_holds_the_decision(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: contract.Task
) -> None:
    overlay = tmp_path / "overlay.png"
    argv = ["ask", "--bundle", str(tiny_bundle), "--image", str(image), "--task", task, "--json"]
    assert cli.main([*argv, "--overlay", str(overlay), "pick up the red cube"]) == 0
    said = json.loads(capsys.readouterr().out)
    output = parse_output(said["output"])
    assert parse_answer(said["text"], task).output == output
    assert list(said["stages_ms"]) == ["preprocess", "vision", "prefill", "decode", "parse"]
    assert said["tokens"]["answer"] > said["tokens"]["forced"] > 0
    assert cv2.imread(str(overlay)).shape == (480, 960, 3)


def test_the_terminal_sees_the_reasoning_then_the_answer(
    tiny_bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ask", "--bundle", str(tiny_bundle), "--image", str(image), "--task", "trajectory", "[red]pick[/red]"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    thought, _, rest = said.partition("</think>\n")
    lines = rest.splitlines()
    shown = [line for line in lines if line.startswith("waypoint ")]
    assert thought.startswith("<think>") and "\nwaypoint" not in thought
    assert lines[: len(shown)] == shown and lines[len(shown)].startswith(("trajectory [", "trajectory not found"))
    told = lines[len(shown)].removeprefix("trajectory ")
    points = json.loads(told) if told.startswith("[") else []
    assert [line.partition(" after ")[0] for line in shown] == [
        f"waypoint {i}: {x:g}, {y:g}" for i, (x, y) in enumerate(points, 1)
    ]
    assert "\nconfidence " in rest and "not sure" not in rest and "prefill" in rest


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--image": "{tmp}/none.png"}, "no such file"),
        ({"--image": "{tmp}/text.png"}, "not an image"),
        ({"--image": "{tmp}/empty.png"}, "not an image"),
        ({"--image": "{tmp}/huge.ppm"}, "not an image"),
        ({"--image": "{tmp}"}, "no such file"),
        ({"--bundle": "{tmp}/none"}, "no such folder"),
        ({"--bundle": "{tmp}"}, "manifest.json: is missing"),
        ({"--overlay": "{tmp}/none/overlay.png"}, "cannot be written"),
        ({"--overlay": "{tmp}/overlay"}, "cannot be written"),
        ({"instruction": " "}, "instruction: is empty"),
        ({"instruction": "pick \udcff"}, "not UTF-8"),
        ({"--seed": "-1"}, "--seed -1: expected 0 or more"),
        ({"--max-think-tokens": "-1"}, "--max-think-tokens -1: expected 0 or more"),
        ({"--max-think-tokens": "400", "--deadline": "0"}, "--deadline 0: expected milliseconds, more than 0"),
        ({"--deadline": "nan"}, "--deadline nan: expected milliseconds"),
        ({"--deadline": "inf"}, "--deadline inf: expected milliseconds"),
        ({"--draws": "0"}, "--draws 0: expected 1 or more"),
        ({"--image": "a" * 5000}, "File name too long"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tiny_bundle: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    says: str,
) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "huge.ppm").write_bytes(b"P6 100000 100000 255\n")  # more pixels than OpenCV takes
    options = {"--bundle": str(tiny_bundle), "--image": str(image), "--task": "affordance", "instruction": "pick it"}
    options |= {name: value.format(tmp=tmp_path) for name, value in changes.items()}
    instruction = options.pop("instruction")
    argv = ["ask", "--json", *(part for option in options.items() for part in option), instruction]
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err and captured.err.count("\n") == 1


def test_flags_reach_the_decision_and_what_was_cut_is_said(
    tiny_bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ask", "--bundle", str(tiny_bundle), "--image", str(image), "--task", "trajectory"]
    argv += ["--max-think-tokens", "3", "--draws", "3", "--seed", "7", "pick it"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "reasoning cut short: it had used its tokens" in said and "the one of 3 draws" in said
    assert cli.main([*argv, "--json"]) == 0
    decision = json.loads(capsys.readouterr().out)
    assert (decision["draws"], decision["thinking_cut"]) == (3, "tokens")
    assert 0.0 <= decision["spread"] <= 1.0 and 0.0 < decision["confidence"] <= 1.0
    assert cli.main([*argv[:7], "--deadline", "0.001", "--json", "pick it"]) == 0
    hurried = json.loads(capsys.readouterr().out)  # cannot be kept: the shortest answer at once
    assert hurried["thinking_cut"] == "deadline" and hurried["reasoning"] == ""
    assert hurried["output"] is None or len(hurried["output"]) == contract.MIN_POINTS


def test_an_unsure_answer_is_shown_and_said_to_be_unsure(
    tiny_bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["confidence"] = {"score": SCORE, "error_rate": 0.05, "tasks": {"affordance": {"threshold": 1.0}}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    asks = ["ask", "--image", str(image), "--max-think-tokens", "3", "--json", "pick it"]
    answers = {}
    for folder, task in [(tiny_bundle, "affordance"), (bundle, "affordance"), (bundle, "trajectory")]:
        assert cli.main([*asks, "--bundle", str(folder), "--task", task]) == 0
        answers[folder, task] = json.loads(capsys.readouterr().out)
    plain, unsure = answers[tiny_bundle, "affordance"], answers[bundle, "affordance"]
    assert plain["output"] == unsure["output"] is not None and plain["confidence"] == unsure["confidence"] < 1.0
    assert plain["unsure"] is None and answers[bundle, "trajectory"]["unsure"] is None
    assert unsure["unsure"].startswith("not sure: ")
    asks.remove("--json")
    assert cli.main([*asks, "--bundle", str(bundle), "--task", "affordance"]) == 0
    said = capsys.readouterr().out
    assert contract.format_output(contract.Affordance(**plain["output"])) in said and unsure["unsure"] in said


@pytest.mark.parametrize("shape", [(480, 640), (1080, 1920), (33, 20), (5000, 1)])
def test_a_picture_has_room_for_any_decision(shape: tuple[int, int]) -> None:
    rgb = np.full((*shape, 3), 128, np.uint8)
    width = max(1, round(shape[1] * 480 / shape[0]))
    whole = draw_decision(
        rgb, Affordance(1.0, 1.0, 0.0001, 1.0), Trajectory(((1.0, 0.0), (0.0, 1.0))), "ä" * 500, "wörd 中 " * 900
    )
    assert whole.shape == (480, width + 320, 3) and whole.dtype == np.uint8
    bare = draw_decision(rgb, None, None, "", "")
    assert (bare[:, :width] == 128).all()
    none = draw_decision(rgb, None, None, "", "wörd 中 " * 900, not_found=True)
    assert none.shape == whole.shape and (none[-60:, width:] != bare[-60:, width:]).any()
    odd = draw_decision(rgb, None, None, "go", "one\0two\x1b three")
    assert (odd == draw_decision(rgb, None, None, "go", "one two three")).all()
    one = draw_decision(rgb, None, Trajectory(((0.5, 0.5),)), "go", "")
    assert (one[:, :width] != 128).any()
    assert (rgb == 128).all()
