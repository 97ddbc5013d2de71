"""An answer is there by its deadline wherever that can be: with simulated time, never with real time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyBundle, ToyEngine, babbles, digit_tokenizer, toy_bundle, writes

from drivers.errors import UserError
from edge import contract
from edge.contract import Affordance, Answer, Trajectory, format_answer, longest_output, parse_answer
from edge.decode import AnswerWriter, OutputEvent, decide
from edge.decode.budget import MARGIN, output_passes

FRAME = np.zeros((56, 56, 3), np.uint8)
PATH = Trajectory(tuple((round(0.05 * i, 2), round(0.9 - 0.05 * i, 2)) for i in range(1, 17)))


@pytest.fixture(scope="module", params=["numbers whole", "digit by digit"])
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> ToyBundle:
    if request.param == "digit by digit":
        return toy_bundle(digit_tokenizer())
    return toy_bundle((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


def least_s(engine: ToyEngine, task: contract.Task) -> float:
    """Enough for the image, the prompt, a first pass to know the pace by, and the longest way from there to the end."""
    n_prompt, n_closing = 130, longest_output(task)
    passes = 2 + 2 + 1 + 3 + output_passes(task)
    uneven = 1.0 + engine.uneven
    return MARGIN * uneven * (passes * engine.pass_s + (n_prompt + n_closing) * engine.token_s)


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    task=st.sampled_from(contract.TASKS),
    seed=st.integers(0, 999),
    pass_s=st.floats(1e-4, 2.0),
    token_share=st.floats(0.0, 0.3),
    uneven=st.floats(0.0, 0.2),
    generous=st.floats(0.0, 12.0),
    faith=st.sampled_from([0.0, 4.0, 12.0]),
)
def test_whatever_the_pace_the_answer_is_in_time(
    bundle, data, task, seed: int, pass_s: float, token_share: float, uneven: float, generous: float, faith: float
) -> None:
    script = format_answer(Answer("I see it. " * 30, PATH if task == "trajectory" else Affordance(0.5, 0.5, 0.1, 0.2)))
    wants = babbles(bundle, seed, script, faith)
    engine = ToyEngine(bundle, wants, pass_s, token_share * pass_s, uneven)
    deadline_s = (0.05 + generous) * least_s(engine, task)
    draft = data.draw(st.none() | st.just(bundle.tokenizer.encode(script).ids) | st.lists(st.integers(0, 399)))
    decision = decide(
        engine, FRAME, task, "pick it", max_tokens=400, deadline_s=deadline_s, draft=draft, clock=engine.clock
    )
    assert parse_answer(decision.text, task) == decision.answer
    assert decision.took_s == pytest.approx(engine.clock.now_s - 100.0)
    if deadline_s >= least_s(engine, task):
        assert decision.took_s <= deadline_s
    if "deadline" not in (decision.thinking_cut, decision.points_cut):
        without = decide(ToyEngine(bundle, wants), FRAME, task, "pick it", max_tokens=400)
        assert (decision.text, decision.thinking_cut) == (without.text, without.thinking_cut)


@settings(max_examples=30, deadline=None)
@given(task=st.sampled_from(contract.TASKS), pass_s=st.floats(1e-3, 1.0))
def test_time_is_used_for_reasoning_and_no_more_than_that(bundle, task, pass_s: float) -> None:
    """A model that reasons for ever does so until no more than the longest answer fits into what is left."""
    engine = ToyEngine(bundle, writes(bundle, "<think>" + "on and on " * 200), pass_s)
    deadline_s = 200 * pass_s
    decision = decide(engine, FRAME, task, "pick it", deadline_s=deadline_s, clock=engine.clock)
    assert decision.thinking_cut == "deadline"
    assert decision.took_s <= deadline_s
    thought = len(bundle.tokenizer.encode(decision.text.partition("</think>")[0]).ids)
    assert thought >= 200 - MARGIN * (output_passes(task) + 6) - 6


def test_a_deadline_that_nothing_can_keep_gives_the_shortest_answer_at_once(bundle: ToyBundle) -> None:
    engine = ToyEngine(bundle, writes(bundle, format_answer(Answer("on and on " * 20, PATH))), 1.0)
    decision = decide(engine, FRAME, "trajectory", "pick it", deadline_s=0.5, clock=engine.clock)
    assert decision.thinking_cut == "deadline" and decision.answer.reasoning == ""
    output = decision.answer.output
    assert output is None or len(output.points) == contract.MIN_POINTS
    assert decision.n_passes <= output_passes("trajectory")


def test_a_path_has_the_points_that_time_allows(bundle: ToyBundle) -> None:
    thought, seen = "I see it.", []
    text = format_answer(Answer(thought, PATH))
    whole = ToyEngine(bundle, writes(bundle, text), 1.0)
    all_s = decide(whole, FRAME, "trajectory", "pick it", clock=whole.clock).took_s
    for share in (0.4, 0.6, 0.8, 2.0):
        engine = ToyEngine(bundle, writes(bundle, text), 1.0)
        heard: list[object] = []
        decision = decide(
            engine, FRAME, "trajectory", "go", deadline_s=share * all_s, clock=engine.clock, on_event=heard.append
        )
        points = decision.answer.output.points
        assert decision.took_s <= share * all_s and not decision.thinking_cut
        assert points == PATH.points[: len(points)]
        assert decision.points_cut == ("deadline" if len(points) < 16 else None)
        assert [event.output.points for event in heard if isinstance(event, OutputEvent)] == [points]
        seen.append(len(points))
    assert seen == sorted(seen) and seen[0] < seen[2] < seen[3] == 16


def test_a_path_cut_by_the_tokens_says_so(bundle: ToyBundle) -> None:
    text = format_answer(Answer("I see it.", PATH))
    n_all = len(bundle.tokenizer.encode(text).ids)
    whole = decide(ToyEngine(bundle, writes(bundle, text)), FRAME, "trajectory", "go")
    assert whole.points_cut is None and len(whole.answer.output.points) == 16
    for max_tokens in (120, n_all - 5, n_all + 60):
        decision = decide(ToyEngine(bundle, writes(bundle, text)), FRAME, "trajectory", "go", max_tokens=max_tokens)
        n = len(decision.answer.output.points)
        assert decision.n_tokens <= max_tokens and decision.answer.output.points == PATH.points[:n]
        assert decision.points_cut == ("tokens" if n < 16 else None)
        assert (n < 16) == (max_tokens < n_all)


def test_a_short_path_is_not_called_cut(bundle: ToyBundle) -> None:
    text = format_answer(Answer("I see it.", Trajectory(PATH.points[:3])))
    decision = decide(ToyEngine(bundle, writes(bundle, text)), FRAME, "trajectory", "go", max_tokens=130)
    assert decision.text == text and decision.points_cut is None and decision.thinking_cut is None


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
def test_a_deadline_before_the_call_is_refused(bundle: ToyBundle, deadline_s: float) -> None:
    with pytest.raises(UserError, match="deadline: is .* expected more than 0"):
        decide(ToyEngine(bundle, writes(bundle, "")), FRAME, "affordance", "go", deadline_s=deadline_s)


def test_passes_from_the_opening_to_the_end_are_bounded(bundle: ToyBundle) -> None:
    """Even when every choice is a single character."""
    single = np.array([len(bundle.tokenizer.decode([i])) == 1 for i in range(bundle.tokenizer.get_vocab_size())])
    for task in contract.TASKS:
        for seed in range(6):
            generator = np.random.default_rng(seed)
            writer = AnswerWriter(bundle, task, 0, 700)
            writer.forced()
            choices = 0
            while not writer.done:
                liked = np.zeros(bundle.vocab, np.float32)
                liked[: len(single)] = 9.0 * single * generator.random(len(single))
                liked[bundle.tokenizer.token_to_id("n")] = -1.0
                writer.take(int(writer.allowed(liked).argmax()))
                choices += 1
                writer.forced()
            output = parse_answer(writer.text, task).output
            n_points = len(output.points) if isinstance(output, Trajectory) else 2
            assert choices <= output_passes(task, n_points)
