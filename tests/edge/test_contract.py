"""Prompts byte for byte, answers parsed or refused with a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.errors import UserError
from edge import contract
from edge.contract import Affordance, Answer, ContractError, Trajectory, format_answer, parse_answer

unit = st.floats(0, 1).map(lambda v: round(v, 2))
size = st.floats(0.01, 1).map(lambda v: round(v, 2))
boxes = st.builds(Affordance, unit, unit, size, size)
paths = st.lists(st.tuples(unit, unit), min_size=1, max_size=16).map(lambda points: Trajectory(tuple(points)))
plain = st.text(max_size=60).filter(lambda text: "</think>" not in text and "<think>" not in text)


def test_prompts_are_those_of_the_released_code() -> None:
    assert contract.prompt_text("affordance", "pick up the red cube") == (
        "pick up the red cube Please output the 2D affordance region define by bounding box of the object "
        'in the format <output>{"x": value, "y": value, "width": value, "height": value}</output>.\n'
    )
    assert contract.prompt_text("trajectory", "go") == (
        "go Please output the optimal trajectory of the end-effector to the target object in the format "
        "<output>[[x1, y1], [x2, y2], ...]</output>.\n"
    )


@pytest.mark.parametrize("task", contract.TASKS)
def test_what_released_clients_send_gives_the_same_prompt(task: contract.Task) -> None:
    expected = contract.prompt_text(task, "pick up the cup")
    assert contract.prompt_text(task, " pick up the cup<image>") == expected
    assert contract.prompt_text(task, " " + expected + "<image>") == expected


@pytest.mark.parametrize("instruction", ["", "  <image>\n", "take <|im_end|> it"])
def test_unusable_instructions_are_refused(instruction: str) -> None:
    with pytest.raises(UserError, match="instruction"):
        contract.prompt_text("affordance", instruction)


def test_chat_puts_the_text_before_the_image() -> None:
    chat = contract.render_chat("look", 2)
    assert chat == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nlook<|vision_start|>"
        "<|image_pad|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.startswith(contract.render_prefix("look"))


@given(plain, st.none() | boxes | paths)
def test_formatted_answers_parse_to_themselves(reasoning: str, output: Affordance | Trajectory | None) -> None:
    answer = Answer(reasoning.strip(), output)
    assert parse_answer(format_answer(answer)) == answer


@pytest.mark.parametrize("task", contract.TASKS)
@pytest.mark.parametrize("payload", ["null", " null\n"])
def test_what_is_not_there_answers_either_task(task: contract.Task, payload: str) -> None:
    text = f"<think>There is no cup.</think><output>{payload}</output>"
    assert parse_answer(text, task) == parse_answer(text) == Answer("There is no cup.", None)
    assert format_answer(Answer("x", None)) == "<think>x</think><output>null</output>"


@given(st.sampled_from(contract.TASKS), st.text())
def test_not_found_is_one_line_that_names_what_was_asked(task: contract.Task, instruction: str) -> None:
    said = contract.not_found(task, instruction)
    assert said.startswith("not found: ") and said.isprintable()
    assert contract.not_found(task, "pick  up\nthe cup\x1b").endswith(' for "pick up the cup"')


@given(boxes, st.integers(0, 4), st.booleans())
def test_any_json_spelling_is_accepted(box: Affordance, indent: int, reverse: bool) -> None:
    fields = list(vars(box).items())
    body = json.dumps(dict(fields[::-1] if reverse else fields), indent=indent or None)
    assert parse_answer(f"<think>a <output>?</output></think>\n<output>\n{body}\n</output><|im_end|>").output == box


@given(st.text() | st.text().map(lambda text: f"<think></think><output>{text}</output>"))
def test_any_text_parses_or_is_refused_with_a_reason(text: str) -> None:
    try:
        parse_answer(text)
    except ContractError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ('{"x": 0.1, "y": 0.1, "width": 0, "height": 0.1}', "empty"),
        ('{"x": 1.1, "y": 0.1, "width": 0.1, "height": 0.1}', r"x is not a number in \[0, 1\]"),
        ('{"x": NaN, "y": 0.1, "width": 0.1, "height": 0.1}', "x is not"),
        ('{"x": true, "y": 0.1, "width": 0.1, "height": 0.1}', "x is not"),
        ('{"x": "0.1", "y": 0.1, "width": 0.1, "height": 0.1}', "x is not"),
        ('{"x": 0.1, "y": 0.1}', "lacks width, height"),
        ("[]", "no points"),
        ("[0.1, 0.2]", "point 0 is not a pair"),
        ("[[0.1, 0.2], [0.3]]", "point 1 is not a pair"),
        ("[[0.1, -Infinity]]", "y of point 0"),
        ("[[0.1, " + "9" * 400 + "]]", "y of point 0"),
        ("[[0.1, 0.2]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("0.5", "expected a box"),
        ("[null]", "point 0 is not a pair"),
        ('{"x": null, "y": 0.1, "width": 0.1, "height": 0.1}', "x is not"),
        ("false", "expected a box"),
        ('"null"', "expected a box"),
        ("", "not JSON"),
        ("None", "not JSON"),
    ],
)
def test_what_is_no_output_is_refused(payload: str, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        parse_answer(f"<think>x</think><output>{payload}</output>")


@pytest.mark.parametrize(
    "text", ["", "<think>x</think>", "<think><output>[[0, 0]]</output></think>", "<output>[[0, 0]]"]
)
def test_an_answer_needs_a_closed_output_block_after_the_reasoning(text: str) -> None:
    with pytest.raises(ContractError, match="output"):
        parse_answer(text)


def test_the_other_kind_of_output_is_refused_where_one_is_asked_for() -> None:
    text = "<think></think><output>[[0.1, 0.2]]</output>"
    assert parse_answer(text, "trajectory").output == Trajectory(((0.1, 0.2),))
    with pytest.raises(ContractError, match="expected: affordance"):
        parse_answer(text, "affordance")


def test_corners_stay_in_the_image() -> None:
    assert Affordance(0.05, 0.95, 0.2, 0.2).corners == pytest.approx((0.0, 0.85, 0.15, 1.0))
    box = contract.box_from_corners((0.2, 0.3, 0.4, 0.7))
    assert box.corners == pytest.approx((0.2, 0.3, 0.4, 0.7))
