"""The ShareGPT layout: what is written is read again, what is no item is refused with its reason."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import UserError
from edge.contract import TASKS, Affordance, Answer, Trajectory, format_answer, prompt_text
from training.data.sharegpt import Item, from_json, load_image, read_items, to_json, write_items

OUTPUTS = {"affordance": Affordance(0.5, 0.4, 0.1, 0.2), "trajectory": Trajectory(((0.1, 0.2), (0.3, 0.4)))}
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)


@st.composite
def items(draw) -> Item:
    task = draw(st.sampled_from(TASKS))
    output = draw(st.sampled_from([OUTPUTS[task], None]))
    instruction = draw(words.filter(lambda w: "<" not in w)).strip()
    return Item("a.png", task, instruction, format_answer(Answer("why", output)), {"id": draw(st.integers())})


@given(items())
def test_an_item_comes_back_and_is_what_the_released_client_sends(item: Item) -> None:
    written = to_json(item)
    assert from_json(json.loads(json.dumps(written))) == item
    assert written["conversations"][0]["value"] == prompt_text(item.task, item.instruction) + "<image>"


GOOD = to_json(Item("a.png", "affordance", "take it", format_answer(Answer("x", OUTPUTS["affordance"]))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": None}, "image"),
        ({"image": ["a.png", "b.png"]}, "image"),
        ({"conversations": "hello"}, "conversations"),
        ({"conversations": GOOD["conversations"][:1]}, "a human and a gpt turn"),
        ({"conversations": [{"from": "human", "value": "take it"}, GOOD["conversations"][1]]}, "format suffix"),
        ({"conversations": [GOOD["conversations"][0], {"from": "gpt", "value": "no"}]}, "no <output> block"),
        ({"id": "half \ud800"}, "half a character"),
    ],
)
def test_what_is_no_item_is_refused_with_its_reason(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_json(GOOD | change)
    (tmp_path / "d.json").write_text(json.dumps([GOOD, GOOD | change]))
    good, bad = read_items(tmp_path / "d.json")
    assert len(good) == 1 and bad[0].index == 1 and reason in bad[0].reason


def test_a_file_is_written_whole_and_its_images_are_read_beside_it(tmp_path: Path) -> None:
    image = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, ::-1])
    item = from_json(GOOD)
    for count in (0, 1, 3):
        write_items(tmp_path / "d.json", [item] * count)
        assert read_items(tmp_path / "d.json") == ([item] * count, [])
    assert (load_image(tmp_path, item) == image).all()
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="a.png: is not an image"):
        load_image(tmp_path, item)
    (tmp_path / "a.png").write_bytes(b"P6 100000 100000 255\n")  # more pixels than OpenCV takes
    with pytest.raises(UserError, match="a.png: is not an image"):
        load_image(tmp_path, item)
    with pytest.raises(UserError, match="null byte"):
        load_image(tmp_path, replace(item, image="a\0.png"))
    with pytest.raises(UserError, match="is not JSON"):
        read_items(tmp_path / "a.png")
