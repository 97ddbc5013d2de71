"""One of several answers: the one the others agree with, of one image and one prompt, within the time there is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyBundle, ToyEngine, babbles, toy_bundle

from drivers.errors import UserError
from edge import contract
from edge.agreement import discrete_frechet, distance, iou, medoid
from edge.contract import Affordance, Answer, Trajectory, format_answer
from edge.decode import Sampling, decide, decide_consistent

FRAME = np.zeros((56, 56, 3), np.uint8)
BUDGET = {"max_think_tokens": 20, "max_tokens": 200}
NUMBERS = st.integers(1, 100).map(lambda n: n / 100)
BOXES = st.builds(Affordance, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path) -> ToyBundle:
    return toy_bundle((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


@given(a=BOXES, b=BOXES)
def test_iou_is_what_counting_cells_gives(a: Affordance, b: Affordance) -> None:
    centres = (np.arange(200) + 0.5) / 200  # boxes of whole hundredths end between cells of half a hundredth
    x, y = np.meshgrid(centres, centres)
    in_a, in_b = ((np.abs(x - box.x) < box.width / 2) & (np.abs(y - box.y) < box.height / 2) for box in (a, b))
    assert iou(a, b) == pytest.approx((in_a & in_b).sum() / (in_a | in_b).sum(), abs=1e-9)
    assert iou(a, b) == iou(b, a) and iou(a, a) == pytest.approx(1.0)


@given(a=POINTS, b=POINTS)
def test_the_leash_is_the_shortest_over_all_ways_to_walk(a, b) -> None:
    def leash(i: int, j: int) -> float:
        here = math.dist(a[i], b[j])
        before = [(i - 1, j)] * (i > 0) + [(i, j - 1)] * (j > 0) + [(i - 1, j - 1)] * (i > 0 and j > 0)
        return max(here, min(leash(*pair) for pair in before)) if before else here

    if len(a) + len(b) <= 9:  # the recursion is exponential
        assert discrete_frechet(a, b) == pytest.approx(leash(len(a) - 1, len(b) - 1), abs=1e-12)
    assert discrete_frechet(a, b) == pytest.approx(discrete_frechet(b, a), abs=1e-12)
    assert discrete_frechet(a, a) == 0.0


def test_the_medoid_is_the_middle_one_and_the_first_of_equals() -> None:
    boxes = [Affordance(x, 0.5, 0.2, 0.2) for x in (0.2, 0.5, 0.52, 0.51)]
    best, spread = medoid(boxes)
    assert best == 3 and spread == pytest.approx(np.mean([distance(boxes[3], other) for other in boxes[:3]]))
    assert medoid([boxes[0], boxes[1], boxes[1]]) == (1, 0.5)
    assert medoid([None, boxes[0], None]) == (0, 0.5)
    assert medoid([boxes[0]]) == (0, 0.0)
    assert distance(boxes[0], Trajectory(((0.1, 0.1),))) == 1.0


@settings(max_examples=25, deadline=None)
@given(task=st.sampled_from(contract.TASKS), seed=st.integers(0, 99), draws=st.integers(1, 5))
def test_draws_are_those_of_single_decisions_on_one_prefill(bundle, task, seed: int, draws: int) -> None:
    path = Trajectory(((0.1, 0.2), (0.3, 0.4)))
    script = format_answer(Answer("I see it.", path if task == "trajectory" else Affordance(0.5, 0.5, 0.1, 0.2)))
    wants = babbles(bundle, seed, script, 6.0)
    engine = ToyEngine(bundle, wants)
    sampling = Sampling(seed=seed)
    result = decide_consistent(engine, FRAME, task, "go", draws=draws, sampling=sampling, **BUDGET)
    assert (engine.n_images, engine.n_prefills, len(result.draws)) == (1, 1, draws)
    for i, draw in enumerate(result.draws):
        how = None if i == 0 else Sampling(seed=seed + i - 1)
        assert draw.text == decide(ToyEngine(bundle, wants), FRAME, task, "go", sampling=how, **BUDGET).text
    outputs = [draw.answer.output for draw in result.draws]
    best, spread = medoid(outputs)
    assert result.decision is result.draws[best] and result.spread == spread


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0.5, 8.0))
def test_draws_end_with_the_time(bundle, seed: int, share: float) -> None:
    wants = babbles(bundle, seed, format_answer(Answer("I see it.", Affordance(0.5, 0.5, 0.1, 0.2))), 6.0)
    engine = ToyEngine(bundle, wants, pass_s=0.01)
    one_s = decide(engine, FRAME, "affordance", "go", clock=engine.clock, **BUDGET).took_s + 40 * 0.01 * 1.25
    engine = ToyEngine(bundle, wants, pass_s=0.01)
    result = decide_consistent(
        engine, FRAME, "affordance", "go", draws=6, deadline_s=share * one_s, clock=engine.clock, **BUDGET
    )
    if share >= 1.0:
        assert engine.clock.now_s - 100.0 <= share * one_s
        assert result.decision.thinking_cut != "deadline"
    if share >= 7.0:
        assert len(result.draws) == 6
    if share < 1.2:
        assert len(result.draws) < 6


def test_no_draw_at_all_is_refused(bundle: ToyBundle) -> None:
    with pytest.raises(UserError, match="draws: is 0; expected 1 or more"):
        decide_consistent(ToyEngine(bundle, babbles(bundle, 0)), FRAME, "affordance", "go", draws=0)
