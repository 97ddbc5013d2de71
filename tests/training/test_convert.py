"""Conversions: what goes in comes out, pixels end where they were, and nothing bad is dropped unsaid."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from edge.contract import MAX_POINTS, Affordance, Answer, Trajectory, format_answer
from training.data.annotations import from_annotation
from training.data.convert import add_parser, convert
from training.data.sharegpt import Item, read_items, to_json, write_items

WIDTH, HEIGHT = 640, 480


def affordance(**changes: Any) -> dict[str, Any]:
    """An object of ShareRobot's affordance file (layout and numbers of the README's example)."""
    box = {"x": 352.87425387858815, "y": 186.47871614766484, "width": 19.296008229513156, "height": 14.472006172134865}
    entry = {
        "id": 2486,
        "image_path": "rtx_1/49_bridge#episode_9/frame_0.png",
        "meta_data": {"original_dataset": "bridge", "original_width": WIDTH, "original_height": HEIGHT},
        "instruction": "place the red fork to the left of the left burner",
        "affordance": box,
    }
    return {**entry, **changes}


def trajectory(key: str = "trajectory", points: Any = None, **changes: Any) -> dict[str, Any]:
    entry = affordance(instruction="reach for the carrot", **changes)
    del entry["affordance"]
    return {**entry, key: [[265.4, 120.0], [275.2, 162.4], [280.0, 259.4]] if points is None else points}


def bench(question: str, answer: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\n" + question}, {"from": "gpt", "value": answer}]
    return {"id": 3, "image": ["a.png"], "conversations": turns, **changes}


def written(path: Path, entries: list[Any]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def reasons(out: Path) -> dict[int, str]:
    path = out.with_suffix(".bad.json")
    return {entry["index"]: entry["reason"] for entry in json.loads(path.read_text())} if path.exists() else {}


unit = st.floats(0, 1).map(lambda v: round(v, 2))
size = st.floats(0.01, 1).map(lambda v: round(v, 2))
boxes = st.builds(Affordance, unit, unit, size, size)
paths = st.lists(st.tuples(unit, unit), min_size=2, max_size=16).map(lambda p: Trajectory(tuple(p)))
plain = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="<>|"), min_size=1)
words = plain.map(str.strip).filter(bool)
more = st.dictionaries(
    st.sampled_from(["id", "seen", "meta_data", "data_source"]), st.text(st.characters(blacklist_categories=("Cs",)))
)


@st.composite
def items(draw: st.DrawFn) -> Item:
    task, outputs = draw(st.sampled_from([("affordance", boxes), ("trajectory", paths)]))
    answer = format_answer(Answer(draw(words), draw(st.none() | outputs)))
    return Item(draw(words).replace("/", "_") + ".png", task, draw(words), answer, draw(more))  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.lists(items(), min_size=1, max_size=5))
def test_json_to_parquet_and_back_is_equal(tmp_path_factory: pytest.TempPathFactory, dataset: list[Item]) -> None:
    folder = tmp_path_factory.mktemp("trip")
    write_items(folder / "a.json", dataset)
    convert(folder / "a.json", folder / "b.parquet")
    convert(folder / "b.parquet", folder / "c.json")
    assert (folder / "c.json").read_text() == (folder / "a.json").read_text()
    assert read_items(folder / "c.json")[0] == dataset


def test_the_rows_are_what_the_released_trainer_reads(tmp_path: Path) -> None:
    import datasets

    answer = format_answer(Answer("There it is.", Affordance(0.5, 0.5, 0.1, 0.1)))
    write_items(tmp_path / "a.json", [Item("i/a.png", "affordance", "pick it up", answer)])
    convert(tmp_path / "a.json", tmp_path / "a.parquet")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache")).to_list()
    human = json.loads((tmp_path / "a.json").read_text())[0]["conversations"][0]["value"]
    assert human.endswith("<image>")
    assert rows == [
        {
            "data_source": "custom/vla_r1",
            "prompt": [{"role": "user", "content": human}],
            "images": [{"image": "i/a.png"}],
            "reward_model": {"style": "rule", "ground_truth": answer},
        }
    ]


def test_a_file_of_the_released_converter_is_read(tmp_path: Path) -> None:
    import datasets

    text = "move Please output the optimal trajectory of the end-effector to the target object in the format \
<output>[[x1, y1], [x2, y2], ...]</output>.\n<image>"
    answer = "<think>Go.</think><output>[[0.1, 0.2], [0.3, 0.45]]</output>"
    row = {
        "data_source": "custom/vla_r1",
        "prompt": [{"role": "user", "content": " " + text}],
        "images": [{"image": "/data/a.png"}],
        "reward_model": {"style": "rule", "ground_truth": answer},
    }
    row["extra_info"] = "what verl users put here is theirs"
    bad = {**row, "reward_model": {"style": "rule", "ground_truth": "<output>[]</output>"}}
    datasets.Dataset.from_list([bad, row]).to_parquet(str(tmp_path / "a.parquet"))
    convert(tmp_path / "a.parquet", tmp_path / "sub" / "a.json")
    assert read_items(tmp_path / "sub" / "a.json")[0] == [Item("/data/a.png", "trajectory", "move", answer)]
    assert reasons(tmp_path / "sub" / "a.json") == {0: "trajectory has no points"}


def test_share_robot_boxes_and_paths_become_this_contracts(tmp_path: Path) -> None:
    source = written(tmp_path / "s.json", [affordance(), trajectory(), trajectory("points")])
    assert convert(source, tmp_path / "o.json") == 0
    box, path, same = read_items(tmp_path / "o.json")[0]
    assert box.image == affordance()["image_path"] and box.more == {"id": 2486, "meta_data": affordance()["meta_data"]}
    assert box.wanted.reasoning == "" and box.instruction == affordance()["instruction"]
    assert isinstance(box.wanted.output, Affordance)
    left, top, right, bottom = box.wanted.output.corners  # back in pixels: the corners that the README's script draws
    drawn = (352.874, 186.479, 352.874 + 19.296, 186.479 + 14.472)
    assert (left * WIDTH, top * HEIGHT, right * WIDTH, bottom * HEIGHT) == pytest.approx(drawn, abs=0.65)
    assert path.wanted == same.wanted
    assert path.answer == "<think></think><output>[[0.415, 0.250], [0.430, 0.338], [0.438, 0.540]]</output>"


@settings(deadline=None)
@given(st.data())
def test_any_box_inside_its_image_lands_where_it_was(data: st.DataObject) -> None:
    w, h = data.draw(st.integers(100, 4000)), data.draw(st.integers(100, 4000))
    x, y = data.draw(st.floats(0, w * 0.9)), data.draw(st.floats(0, h * 0.9))
    bw, bh = data.draw(st.floats(w * 0.01, w - x)), data.draw(st.floats(h * 0.01, h - y))
    meta = {"original_width": w, "original_height": h}
    entry = affordance(meta_data=meta, affordance={"x": x, "y": y, "width": bw, "height": bh})
    output = from_annotation(entry, lambda _: None).wanted.output
    assert isinstance(output, Affordance)
    back = [v * s for v, s in zip(output.corners, (w, h, w, h), strict=True)]
    assert all(
        abs(got - was) <= 0.00101 * side
        for got, was, side in zip(back, (x, y, x + bw, y + bh), (w, h, w, h), strict=True)
    )


def test_bench_questions_normalized_or_in_pixels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 100, 3), np.uint8))
    grasp = 'You are a robot. The task is "hold the cup". Please predict a possible affordance area.'
    reach = 'You are a robot. The task is "reach for the banana". Please predict up to 10 key trajectory points.'
    entries = [
        bench(grasp, "[0.2, 0.4, 0.4, 0.8]"),
        bench(grasp, "[20, 20, 40, 40]"),
        bench(reach, "[[0.1, 0.2], [0.3, 0.4]]"),
        bench(reach, "[[10, 10], [30, 20]]"),
        bench(reach, "the banana"),
        bench("Where is the cup?", "[0.2, 0.4, 0.4, 0.8]"),
    ]
    out = tmp_path / "o.json"
    convert(written(tmp_path / "s.json", entries), out, tmp_path)
    a, b, c, d = read_items(out)[0]
    assert a.instruction == "hold the cup" and c.instruction == "reach for the banana"
    assert a.answer == b.answer and c.answer == d.answer
    assert a.wanted.output == Affordance(0.3, 0.6, 0.2, 0.4)
    assert sorted(reasons(out)) == [4, 5]


BAD: list[tuple[Any, str]] = [
    ("a string", "expected an object"),
    ({"instruction": "x", "image_path": "a.png"}, "unknown layout"),
    (affordance(points=[[1, 2], [3, 4]]), "unknown layout"),
    ({k: v for k, v in affordance().items() if k != "image_path"}, "image_path"),
    (affordance(instruction="  "), "instruction"),
    (affordance(instruction=None), "instruction"),
    (affordance(meta_data={}), "original_width"),
    (affordance(meta_data={"original_width": 0, "original_height": 480}), "image size"),
    (affordance(affordance={"x": 1, "y": 1, "width": 5}), "lacks height"),
    (affordance(affordance={"x": 1, "y": 1, "width": 0, "height": 5}), "empty"),
    (affordance(affordance={"x": 1, "y": 1, "width": 0.1, "height": 5}), "empty"),
    (affordance(affordance={"x": 630, "y": 1, "width": 20, "height": 5}), "outside"),
    (affordance(affordance={"x": 1, "y": -2, "width": 20, "height": 5}), "outside"),
    (affordance(affordance={"x": math.nan, "y": 1, "width": 20, "height": 5}), "finite"),
    (affordance(affordance={"x": 10**400, "y": 1, "width": 20, "height": 5}), "finite"),
    (affordance(affordance={"x": "1", "y": 1, "width": 20, "height": 5}), "finite"),
    (affordance(affordance=[1, 2, 3, 4]), "object"),
    (affordance(id="half \ud83d"), "surrogates"),
    (trajectory(points=[]), "no points"),
    (trajectory(points=[[1, 2]]), "at least 2"),
    (trajectory(points=[[1, 2], [1, 2, 3]]), "pair"),
    (trajectory(points=[[1, 2], [math.inf, 3]]), "finite"),
    (trajectory(points=[[1, 2], [1, 482]]), "outside"),
    ({"image": "a.png", "conversations": []}, "human and a gpt"),
]


def test_every_bad_item_is_listed_with_index_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "s.json", [entry for entry, _ in BAD] + [affordance()])
    out = tmp_path / "o.json"
    assert convert(source, out) == 0
    said = capsys.readouterr().out
    found = reasons(out)
    assert list(found) == list(range(len(BAD))) and len(read_items(out)[0]) == 1
    for index, (_, why) in enumerate(BAD):
        assert why in found[index]
        assert f"item {index}: {found[index]}" in said
    written(source, [affordance()])
    convert(source, out)
    assert not reasons(out)  # the list of an earlier run does not stay


def test_up_to_a_pixel_outside_is_on_the_edge() -> None:
    box = {"x": -0.4, "y": 470, "width": 100.4, "height": 10.9}
    output = from_annotation(affordance(affordance=box), lambda _: None).wanted.output
    assert isinstance(output, Affordance) and output.corners == pytest.approx((0, 470 / 480, 100 / 640, 1), abs=1e-3)


def test_a_long_path_is_thinned_to_what_can_be_answered_with_both_ends() -> None:
    points = [[float(k), 2.0 * k] for k in range(100)]
    output = from_annotation(trajectory(points=points), lambda _: None).wanted.output
    assert isinstance(output, Trajectory) and len(output.points) == MAX_POINTS
    assert output.points[0] == (0, 0) and output.points[-1] == pytest.approx((99 / 640, 198 / 480), abs=1e-3)


def test_images_are_checked_and_their_paths_follow(tmp_path: Path) -> None:
    images = tmp_path / "affordance" / "images"
    images.mkdir(parents=True)
    for name, shape in (("whole", (480, 640)), ("half", (240, 320)), ("other", (480, 480))):
        cv2.imwrite(str(images / f"{name}.png"), np.zeros((*shape, 3), np.uint8))
    (images / "broken.png").write_bytes((images / "whole.png").read_bytes()[:40])
    entries = [affordance(image_path=f"{n}.png") for n in ("whole", "half", "other", "broken", "gone")]
    source = written(tmp_path / "affordance" / "affordance.json", entries)
    out = tmp_path / "set" / "o.json"
    convert(source, out, images)
    good = read_items(out)[0]
    assert [item.image for item in good] == ["../affordance/images/whole.png", "../affordance/images/half.png"]
    assert all((out.parent / item.image).is_file() for item in good)
    assert {i: w for i, w in ((2, "480x480"), (3, "not an image"), (4, "gone.png")) if w in reasons(out)[i]}.keys() == {
        2, 3, 4,
    }  # fmt: skip
    masked = written(tmp_path / "set" / "m.json", [to_json(replace(good[0], more={"mask": "m.png"}))])
    convert(masked, tmp_path / "m.json")
    (there,) = read_items(tmp_path / "m.json")[0]
    assert (there.image, there.more["mask"]) == ("affordance/images/whole.png", "set/m.png")
    no_size = written(tmp_path / "n.json", [affordance(image_path="whole.png", meta_data=None)])
    convert(no_size, tmp_path / "n.parquet", images)
    assert (tmp_path / "n.parquet").is_file()


def test_the_command_and_its_errors(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())

    def command(*words: object) -> int:
        args = parser.parse_args(["convert", *map(str, words)])
        return int(args.func(args))

    source = written(tmp_path / "s.json", [affordance()])
    assert command(source, "--out", tmp_path / "o.parquet") == 0
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "object.json").write_text("{}")
    out = tmp_path / "o.json"
    for words, why in (
        ((tmp_path / "none.json", "--out", out), "cannot be read"),
        ((tmp_path / "none.parquet", "--out", out), "cannot be read"),
        ((tmp_path / "broken.json", "--out", out), "not JSON"),
        ((tmp_path / "broken.parquet", "--out", out), "Parquet"),
        ((tmp_path / "object.json", "--out", out), "expected a list"),
        ((source, "--out", tmp_path / "o.csv"), "ends in"),
        ((source, "--out", source), "INPUT itself"),
        ((source, "--out", out, "--images", tmp_path / "none"), "no folder"),
        ((source, "--out", source / "o.json"), "cannot be written"),
        ((written(tmp_path / "bad.json", [1, 2]), "--out", out), "none of its 2 items"),
        ((written(tmp_path / "empty.json", []), "--out", out), "empty.json: holds no items"),
    ):
        with pytest.raises(UserError, match=why):
            command(*words)
    assert not out.exists()
