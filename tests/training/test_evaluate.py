"""What answers are worth, what is not asked, bundle against checkpoint, report, contact sheet, bad input."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import UserError
from edge import cli
from edge.contract import Affordance, Answer, Output, Trajectory, format_answer, parse_answer
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from training import answering
from training.answering import BundleAnswerer, CheckpointAnswerer
from training.contact_sheet import CASES, badness, draw_sheet, worst
from training.data.sharegpt import Item, write_items
from training.evaluate import Question, Result, evaluate, figures, judge, read_questions, report

BOX, PATH = Affordance(0.5, 0.5, 0.2, 0.2), Trajectory(((0.2, 0.5), (0.4, 0.5)))
SHIFTED_BOX, SHIFTED_PATH = Affordance(0.6, 0.5, 0.2, 0.2), Trajectory(((0.2, 0.6), (0.4, 0.6)))


def said(output: Output | None) -> str:
    return format_answer(Answer("I see it.", output))


def item(
    wanted: Output | None, task: str = "", image: str = "a.png", instruction: str = "pick up the red cube"
) -> Item:
    return Item(
        image, task or ("affordance" if isinstance(wanted, Affordance) else "trajectory"), instruction, said(wanted)
    )


def judged(wanted: Output | None, answer: str, task: str = "") -> Result:
    return judge(Question("s", 0, Path(), item(wanted, task)), answer)


class Scripted:
    """Answers with the label of what it is asked, and refuses some instructions."""

    def __init__(self, batch: int, refuses: str = "") -> None:
        self.batch, self.refuses, self.asked = batch, refuses, 0

    def __call__(self, images: Sequence[np.ndarray], items: Sequence[Item]) -> list[str]:
        assert len(images) == len(items) <= self.batch
        if any(i.instruction == self.refuses for i in items):
            raise UserError("prompt: too long")
        self.asked += len(items)
        return [i.answer for i in items]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of six items on three images of the tiny bundle's size, with a bad entry and a missing image."""
    rng = np.random.default_rng(3)
    for name in "abc":
        small = rng.integers(0, 255, (6, 8, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.png"), cv2.resize(small, (224, 168), interpolation=cv2.INTER_NEAREST))
    outputs = [BOX, PATH, SHIFTED_BOX, SHIFTED_PATH]
    items = [item(o, image=f"{'abc'[k % 3]}.png", instruction=f"pick up the {k}") for k, o in enumerate(outputs)]
    absent = [item(None, task, "c.png") for task in ("affordance", "trajectory")]
    write_items(tmp_path / "seen.json", items + absent)
    write_items(tmp_path / "unseen.json", [item(BOX), item(PATH), item(BOX, image="gone.png")])
    entries = json.loads((tmp_path / "unseen.json").read_text())
    (tmp_path / "unseen.json").write_text(json.dumps([{"image": 7}, *entries]))
    return tmp_path


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_THINK_TOKENS", 20)
    monkeypatch.setattr(answering, "MAX_TOKENS", 120)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    size = {"min_pixels": 224 * 168, "max_pixels": 224 * 168}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", **size})
    )
    return folder


def test_figures_are_those_worked_out_by_hand() -> None:
    got = figures(
        [
            judged(BOX, said(BOX)),
            judged(BOX, said(SHIFTED_BOX)),  # overlap 1, union 3, hull 3 of its cells of 0.1 x 0.2
            judged(BOX, said(None)),
            judged(BOX, "free words"),
            judged(None, said(None), "affordance"),
            judged(None, said(BOX), "affordance"),
            judged(None, "free words", "affordance"),
        ]
    )
    assert (got["mean_iou"].value, got["mean_iou"].n) == (pytest.approx((1 + 1 / 3 + 0 + 0) / 4), 4)
    assert got["mean_giou"].value == pytest.approx((1 + 1 / 3 - 1 - 1) / 4)
    assert got["share_iou_50"].value == 0.25
    assert got["wrongly_null"].value == 0.25
    assert (got["absent_found"].value, got["absent_found"].n) == (pytest.approx(1 / 3), 3)
    assert (got["format_rate"].value, got["format_rate"].n) == (pytest.approx(5 / 7), 7)
    assert all(f.low <= f.value <= f.high for f in got.values())
    assert "mean_frechet" not in got


def test_distances_are_over_answered_trajectories_and_the_missed_are_counted() -> None:
    answers = [said(PATH), said(SHIFTED_PATH), said(None), said(BOX)]  # a box is no answer to a trajectory
    got = figures([judged(PATH, answer) for answer in answers])
    for name in ("mean_frechet", "mean_hausdorff", "mean_rmse", "mean_end_point_error"):
        assert (got[name].value, got[name].n) == (pytest.approx(0.05), 2)
    assert got["missed"].value == 0.5 and got["wrongly_null"].value == 0.25 and got["format_rate"].value == 0.75


@pytest.mark.parametrize("batch", [1, 4])
def test_what_cannot_be_asked_is_listed_and_the_rest_goes_on(folder: Path, batch: int) -> None:
    questions, faulty = read_questions([folder / "seen.json", folder / "unseen.json"])
    (folder / "b.png").write_bytes(b"no image")
    results, skipped = evaluate(Scripted(batch, refuses="pick up the 2"), questions)
    assert [(entry.split, entry.index) for entry in faulty] == [("unseen", 0)]
    assert {(e.split, e.index): e.reason.partition(":")[0] for e in skipped} == {
        ("seen", 1): str(folder / "b.png"),
        ("seen", 2): "prompt",
        ("unseen", 3): str(folder / "gone.png"),
    }
    left = [("seen", 0), ("seen", 3), ("seen", 4), ("seen", 5), ("unseen", 1), ("unseen", 2)]
    assert [(r.split, r.index) for r in results] == left
    assert {r.iou for r in results} <= {None, 1.0} and {r.frechet for r in results} <= {None, 0.0}


def test_count_takes_the_first_of_each_split(folder: Path) -> None:
    questions, faulty = read_questions([folder / "seen.json", folder / "unseen.json"], 2)
    assert [(q.split, q.index) for q in questions] == [("seen", 0), ("seen", 1), ("unseen", 1), ("unseen", 2)]
    assert len(faulty) == 1


def test_no_usable_item_is_the_users_to_mend(folder: Path) -> None:
    write_items(folder / "empty.json", [])
    write_items(folder / "lost.json", [item(BOX, image="gone.png")])
    with pytest.raises(UserError, match="no usable item"):
        read_questions([folder / "empty.json"])
    with pytest.raises(UserError, match=r"no usable item.*gone\.png"):
        evaluate(Scripted(4), read_questions([folder / "lost.json"])[0])


@pytest.mark.parametrize("grammar", [True, False])
@pytest.mark.usefixtures("short_answers")
def test_checkpoint_and_bundle_give_the_same_answers(
    checkpoint: Path, tiny_bundle: Path, folder: Path, grammar: bool
) -> None:
    questions, _ = read_questions([folder / "seen.json"])
    by_bundle, _ = evaluate(BundleAnswerer(OnnxEngine(load_bundle(tiny_bundle)), grammar), questions)
    by_checkpoint, _ = evaluate(CheckpointAnswerer(checkpoint, grammar), questions)
    assert [r.answer for r in by_checkpoint] == [r.answer for r in by_bundle]
    assert len({r.answer for r in by_bundle}) > 1
    assert all((r.fault is None) == grammar for r in by_bundle)  # a random model keeps to no format by itself


@pytest.mark.usefixtures("short_answers")
def test_the_command_writes_figures_that_its_items_give_again_and_a_sheet(
    tiny_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [str(folder / "seen.json"), str(folder / "unseen.json")]
    out = ["--json", str(tmp_path / "out.json"), "--sheet", str(tmp_path / "sheet.png")]
    assert cli.main(["eval", "--bundle", str(tiny_bundle), "--data", *data, *out]) == 0
    printed = capsys.readouterr().out
    assert "gone.png: cannot be read" in printed and "absent_found" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    results = [Result(**entry) for entry in written["items"]]
    assert report(results, [])["splits"] == written["splits"]
    assert [(e["split"], e["index"]) for e in written["skipped"]] == [("unseen", 0), ("unseen", 3)]
    assert written["grammar"] and written["quantization"] == "fp32"
    assert written["splits"]["seen"]["affordance"]["format_rate"]["value"] == 1.0
    assert len(results) == 8 and all(parse_answer(r.answer, r.task) for r in results)
    assert cv2.imread(str(tmp_path / "sheet.png")).any()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.usefixtures("short_answers")
def test_figures_are_shown_before_a_file_fails(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out.json.partial").mkdir()
    data = ["--data", str(folder / "seen.json"), "--count", "1", "--json", str(folder / "out.json")]
    assert cli.main(["eval", "--bundle", str(tiny_bundle), *data]) == 2
    shown = capsys.readouterr()
    assert "mean_iou" in shown.out and "out.json.partial" in shown.err


some_results = st.sampled_from(
    [
        judged(BOX, said(BOX)),
        judged(BOX, said(SHIFTED_BOX)),
        judged(BOX, "free words"),
        judged(PATH, said(None)),
        judged(PATH, said(SHIFTED_PATH)),
        judged(None, said(BOX), "affordance"),
        judged(None, said(None), "trajectory"),
    ]
)


@given(st.lists(some_results, max_size=30))
def test_the_worst_are_no_better_than_those_left_out_of_their_task(results: list[Result]) -> None:
    chosen = worst(results)
    wrong = [r for r in results if badness(r) > 0]
    assert len(chosen) == min(CASES, len(wrong))
    for task in ("affordance", "trajectory"):
        order = [badness(r) for r in chosen if r.task == task]
        assert order == sorted((badness(r) for r in wrong if r.task == task), reverse=True)[: len(order)]


def test_a_sheet_shows_truth_and_answer_of_every_kind_of_case() -> None:
    plain = np.full((90, 120, 3), 128, np.uint8)
    tall, long = np.full((500, 7, 3), 128, np.uint8), "pick up the \0 größte 方块 " * 30
    odd = judge(Question("another split", 3, Path(), item(BOX, instruction=long)), said(None))
    cases = [(judged(BOX, said(SHIFTED_BOX)), plain), (judged(PATH, said(SHIFTED_PATH)), plain), (odd, tall),
             (judged(None, said(PATH), "trajectory"), plain), (judged(BOX, "free words"), plain)]  # fmt: skip
    sheet = draw_sheet(cases, "a bundle")
    blank = draw_sheet([], "a bundle")
    assert sheet.shape[1] == blank.shape[1] and sheet.shape[0] > blank.shape[0]
    green, orange = (np.all(np.abs(sheet.astype(int) - c) < 8, axis=-1).sum() for c in ((70, 225, 120), (255, 150, 40)))
    assert green > 200 and orange > 200


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--bundle", "{bundle}", "--data", "{tmp}/none.json"), "none.json: cannot be read"),
        (("--bundle", "{bundle}", "--data", "{tmp}"), "cannot be read"),
        (("--bundle", "{bundle}", "--data", "{tmp}/a.png"), "is not JSON"),
        (("--bundle", "{bundle}", "--data", "{tmp}/seen.json", "{tmp}/seen.json"), "two files are named seen"),
        (("--bundle", "{bundle}", "--data", "{tmp}/seen.json", "--count", "-1"), "--count -1"),
        (("--bundle", "{bundle}", "--data", "{tmp}/seen.json", "--json", "{tmp}/no/f.json"), "--json"),
        (("--bundle", "{bundle}", "--data", "{tmp}/seen.json", "--sheet", "{tmp}"), "--sheet"),
        (("--bundle", "{tmp}/none", "--data", "{tmp}/seen.json"), "no such folder"),
        (("--checkpoint", "{tmp}", "--data", "{tmp}/seen.json"), "lacks config.json"),
    ],
)
def test_bad_input_of_eval_is_one_line_and_exit_code_2(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str
) -> None:
    assert cli.main(["eval", *(part.format(tmp=folder, bundle=tiny_bundle) for part in argv)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_damaged_checkpoint_is_one_line(checkpoint: Path) -> None:
    (checkpoint / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="Transformers cannot load it"):
        CheckpointAnswerer(checkpoint)
