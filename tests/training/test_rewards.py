"""The three rewards against their definition in DESIGN §3, told again slowly, and against texts of every kind."""

import json
import math
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.contract import Affordance, Answer, Trajectory, format_answer
from training.metrics import giou
from training.rewards import (
    WORST,
    compute_score,
    format_reward,
    plain_frechet_consistency,
    region_alignment,
    trajectory_consistency,
)

KEYS = {"score", "task", "format", "iou", "giou", "frechet"}
coarse = st.sampled_from(
    [-0.4, 0.0, 0.1, 0.2, 0.5, 0.9, 1.0, 1.7]
)  # so that points meet, turn back and leave the image
number = coarse | st.floats(0, 1)
paths = st.lists(st.tuples(number, number), min_size=1, max_size=7)
boxes = st.builds(Affordance, number, number, number, number)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("x y width height z".split()), inner),
    max_leaves=12,
)


def text(payload: object, think: str = "there") -> str:
    return f"<think>{think}</think><output>{json.dumps(payload)}</output>"


def box_json(box: Affordance) -> dict[str, float]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}


def slow_distance(got: list, want: list, angle_weight: float, length_weight: float) -> float:
    """The distance of DESIGN §3 by recursion, one pair of points at a time."""

    def clip(points: list) -> list:
        return [tuple(min(1.0, max(0.0, v)) for v in point) for point in points]

    def step(p: list, i: int) -> tuple[float, float]:
        return p[i + 1][0] - p[i][0], p[i + 1][1] - p[i][1]

    def unit(v: tuple[float, float]) -> tuple[float, float]:
        return (v[0] / math.hypot(*v), v[1] / math.hypot(*v)) if math.hypot(*v) > 1e-12 else (0.0, 0.0)

    def direction(p: list, i: int) -> tuple[float, float]:
        if len(p) == 1:
            return 0.0, 0.0
        if i in (0, len(p) - 1):
            return unit(step(p, min(i, len(p) - 2)))
        (a, b), (c, d) = unit(step(p, i - 1)), unit(step(p, i))
        return unit((a + c, b + d)) if math.hypot(a + c, b + d) > 1e-12 else (a, b)

    def length(p: list, i: int) -> float:
        return math.hypot(*step(p, min(i, len(p) - 2))) if len(p) > 1 else 0.0

    def cost(i: int, j: int) -> float:
        (a, b), (c, d) = direction(p, i), direction(q, j)
        angle = 0.0 if (a, b) == (0, 0) or (c, d) == (0, 0) else math.acos(max(-1.0, min(1.0, a * c + b * d)))
        k, m = length(p, i), length(q, j)
        if k <= 1e-12 or m <= 1e-12:
            k, m = k + 1e-12, m + 1e-12
        return math.dist(p[i], q[j]) + angle_weight * angle + length_weight * abs(math.log(k / m))

    @cache
    def reach(i: int, j: int) -> float:
        before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
        least = min((reach(k, m) for k, m in before if k >= 0 and m >= 0), default=0.0)
        return max(cost(i, j), least)

    p, q = clip(got), clip(want)
    return reach(len(p) - 1, len(q) - 1)


@given(paths, paths)
@settings(deadline=None, max_examples=300)
@example([(0.1, 0.1), (0.5, 0.1), (0.1, 0.1)], [(0.1, 0.1), (0.5, 0.1)])  # steps cancel
@example([(0.5, 0.5)], [(0.5, 0.5), (0.5, 0.5)])  # no direction, no length
@example([(0.2, 0.2), (0.2, 0.2), (0.4, 0.2)], [(0.4, 0.2), (0.2, 0.2)])
def test_trajectory_consistency_is_what_the_definition_gives(got: list, want: list) -> None:
    slow = slow_distance(got, want, 0.25, 0.10)
    norm = math.sqrt(2) + 0.25 * math.pi + 0.10 * math.log(10)
    assert pytest.approx(norm) == WORST
    assert trajectory_consistency(got, want) == pytest.approx(1 - min(1, slow / norm), abs=1e-6)
    plain = slow_distance(got, want, 0.0, 0.0)
    assert plain_frechet_consistency(got, want) == pytest.approx(1 - min(1, plain / math.sqrt(2)), abs=1e-9)


@given(paths)
def test_the_same_path_is_worth_one_and_another_way_or_pace_less(path: list) -> None:
    assert trajectory_consistency(path, path) == 1.0
    line = [(0.1, 0.5), (0.3, 0.5), (0.5, 0.5), (0.7, 0.5)]
    uneven = [(0.1, 0.5), (0.11, 0.5), (0.5, 0.5), (0.7, 0.5)]
    assert trajectory_consistency(line[::-1], line) < trajectory_consistency(uneven, line) < 1.0


@given(boxes, boxes)
def test_region_alignment_is_giou_between_zero_and_one(got: Affordance, want: Affordance) -> None:
    assert region_alignment(got, want) == (giou(got, want) + 1) / 2
    assert 0.0 <= region_alignment(got, want) <= 1.0
    scored = compute_score("any", text(box_json(got)), text(box_json(want)))
    assert scored["task"] == region_alignment(got, want)
    assert scored["giou"] == giou(got, want) and math.isnan(scored["frechet"])


def test_a_label_written_back_scores_one() -> None:
    for output in (Affordance(0.4, 0.5, 0.1, 0.2), Trajectory(((0.1, 0.2), (0.3, 0.4))), None):
        label = format_answer(Answer("I see it.", output))
        assert compute_score("any", label, label)["score"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("said", "worth"),
    [
        ("<think>a</think><output>null</output>", 1),
        ("<think></think><output> [1] </output>", 1),
        ("<THINK>a\nb</Think> words <Output>\n{}\n</OUTPUT>", 1),
        ("<output>{}</output><think>after</think>", 1),
        ("<output>{}</output>", 0),
        ("<think>a</think><output>{</output>", 0),
        ("<think>a</think><output></output>", 0),
        ("<think>a<output>{}</output>", 0),
        ("</think><think><output>{}</output>", 0),
        ("<think>a</think>{}", 0),
        ("", 0),
    ],
)
def test_format_asks_for_a_think_block_and_json(said: str, worth: float) -> None:
    assert format_reward(said) == worth
    assert compute_score("any", said, "<output>{}</output>")["format"] == worth


@pytest.mark.parametrize(
    ("got", "want", "task"),
    [
        (None, None, 1.0),
        (None, [[0.1, 0.2]], 0.0),
        ([[0.1, 0.2]], None, 0.0),
        ([], [[0.1, 0.2]], 0.0),
        ([[0.1, 0.2]], [], 0.0),
        ([[0.1, 0.2, 0.3]], [[0.1, 0.2]], 0.0),
        ([[0.1, "no"]], [[0.1, 0.2]], 0.0),
        ([[0.1, math.nan]], [[0.1, 0.2]], 0.0),
        ([[0.1, "0.2"]], [[0.1, 0.2]], 1.0),
        ([[-3, 7]], [[0, 1]], 1.0),
        ({"x": 0.5, "y": 0.5, "width": 0.2, "height": 0.2}, [[0.5, 0.5]], 0.0),
        ({"x": 0.5, "y": 0.5, "width": 0.2}, {"x": 0.5, "y": 0.5, "width": 0.2, "height": 0.2}, 0.0),
        ({"x": 0.5, "y": 0.5, "width": -2, "height": 9}, {"x": 0.5, "y": 0.5, "width": 1, "height": 1}, 1.0),
        ({"x": math.nan, "y": 0, "width": 1, "height": 1}, {"x": 0.5, "y": 0.5, "width": 1, "height": 1}, 0.0),
        (10**400, None, 0.0),
    ],
)
def test_what_clips_what_reads_and_what_is_worth_nothing(got: object, want: object, task: float) -> None:
    scored = compute_score("any", text(got), text(want))
    assert scored["task"] == pytest.approx(task)
    assert scored["score"] == pytest.approx(0.9 * task + 0.1)


def test_the_ablation_asks_for_plain_frechet() -> None:
    line = [[0.1, 0.5], [0.3, 0.5], [0.5, 0.5]]
    said, wanted = text([line[0], line[0], line[2]]), text(line)
    aware = compute_score("any", said, wanted)["task"]
    plain = compute_score("any", said, wanted, {"frechet": "plain"})["task"]
    assert plain == pytest.approx(1 - 0.2 / math.sqrt(2))
    assert aware < plain


tags = st.sampled_from(["<think>", "</think>", "<output>", "</output>", "<OUTPUT>", "null", "[[0.1,0.2]]", "[[", "{"])
anything = st.text(max_size=30) | st.lists(tags | st.text(max_size=3), max_size=9).map("".join) | json_values.map(text)


@given(anything, anything, st.none() | st.just({"frechet": "plain"}) | st.just({"other": 1}))
@settings(max_examples=400, deadline=None)
@example("<think></think><output>" + "[" * 100_000 + "</output>", text([[0.1, 0.2]]), None)
@example("<think>" * 50_000, "<output>" * 50_000, None)
@example(text({"x": 10**400, "y": 0, "width": 1, "height": 1}), text({"x": 1, "y": 0, "width": 1, "height": 1}), None)
def test_no_text_raises_and_the_keys_are_always_there(said: str, wanted: str, extra: dict | None) -> None:
    scored = compute_score("any", said, wanted, extra)
    assert scored.keys() == KEYS
    assert all(isinstance(value, float) for value in scored.values())
    assert 0.0 <= scored["task"] <= 1.0
    assert scored["score"] == pytest.approx(0.9 * scored["task"] + 0.1 * scored["format"])
