"""A draft changes how many passes an answer takes, never the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyBundle, ToyEngine, babbles, digit_tokenizer, toy_bundle, writes
from transformers_engine import TransformersEngine

from edge import contract
from edge.contract import Affordance, Answer, Trajectory, format_answer
from edge.decode import Decision, Sampling, decide
from edge.decode.draft import LONGEST_BLOCK, Draft

FRAME = np.zeros((56, 56, 3), np.uint8)
BUDGET = {"max_think_tokens": 40, "max_tokens": 200}
NUMBERS = st.integers(1, 100).map(lambda n: n / 100)
BOXES = st.builds(Affordance, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
PATHS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8).map(lambda points: Trajectory(tuple(points)))


@pytest.fixture(scope="module", params=["numbers whole", "digit by digit"])
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> ToyBundle:
    if request.param == "digit by digit":
        return toy_bundle(digit_tokenizer())
    return toy_bundle((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


def same(drafted: Decision, plain: Decision) -> None:
    """Everything but the effort is equal, confidences to rounding."""
    effort = {name: getattr(drafted, name) for name in ("n_passes", "n_draft_accepted", "n_draft_rejected")}
    surely = ("log_probabilities", "number_confidences", "confidence", "took_s", "first_action_s")
    alike = {name: getattr(drafted, name) for name in surely}
    assert replace(plain, **effort, **alike) == drafted
    np.testing.assert_allclose(drafted.log_probabilities, plain.log_probabilities, atol=1e-5)
    np.testing.assert_allclose(drafted.number_confidences, plain.number_confidences, rtol=1e-4)
    assert drafted.confidence == pytest.approx(plain.confidence, rel=1e-4)
    assert drafted.n_passes <= plain.n_passes


@st.composite
def drafts(draw: st.DrawFn, vocab: int, like: tuple[int, ...]) -> list[int]:
    """Garbage, or what the answer will be: cut, continued, with tokens replaced, left out and put in."""
    token = st.integers(0, vocab - 1)
    if draw(st.booleans()):
        return draw(st.lists(token, max_size=120))
    tokens = list(like)
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(0, len(tokens) - 1)))
        change = draw(st.sampled_from(["replace", "remove", "insert", "cut", "double"]))
        if change == "cut":
            tokens = tokens[:place]
        elif change == "double":
            tokens[place:place] = tokens[max(0, place - 10) : place]
        else:
            new = [] if change == "remove" else draw(st.lists(token, min_size=1, max_size=3))
            tokens[place : place + (change != "insert") * max(1, len(new))] = new
    return tokens


@settings(max_examples=60, deadline=None)
@given(data=st.data(), task=st.sampled_from(contract.TASKS), seed=st.integers(0, 999), output=BOXES | PATHS)
def test_any_draft_gives_the_answer_without_it(bundle, data, task, seed: int, output) -> None:
    faith = data.draw(st.sampled_from([0.0, 4.0, 12.0]))
    sampling = data.draw(st.none() | st.builds(Sampling, seed=st.integers(0, 9)))
    wants = babbles(bundle, seed, format_answer(Answer("I see it.", output)), faith)
    plain = decide(ToyEngine(bundle, wants), FRAME, task, "pick it", sampling=sampling, **BUDGET)
    draft = data.draw(drafts(bundle.vocab, plain.tokens))
    engine = ToyEngine(bundle, wants)
    drafted = decide(engine, FRAME, task, "pick it", draft=draft, sampling=sampling, **BUDGET)
    same(drafted, plain)
    assert drafted.n_passes == len(engine.passes)
    assert drafted.n_draft_accepted <= len(drafted.tokens)


def test_the_same_answer_again_takes_few_passes(bundle: ToyBundle) -> None:
    text = format_answer(Answer("I see the red cube. " * 8, Trajectory(((0.1, 0.2), (0.3, 0.4), (0.5, 0.6)))))
    first = decide(ToyEngine(bundle, writes(bundle, text)), FRAME, "trajectory", "pick it")
    again = decide(ToyEngine(bundle, writes(bundle, text)), FRAME, "trajectory", "pick it", draft=first.tokens)
    assert first.text == again.text == text
    assert (again.n_draft_rejected, first.n_draft_accepted) == (0, 0)
    assert again.n_passes <= 3 + again.n_tokens // LONGEST_BLOCK + 3 < first.n_passes / 4


@settings(max_examples=20, deadline=None)
@given(before=PATHS, points=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=8, max_size=8))
def test_the_draft_goes_on_behind_a_number_that_is_another(bundle, before: Trajectory, points) -> None:
    """Only numbers are replaced: a few passes for each, on top of those of an answer that stays the same."""
    after = Trajectory(tuple(points[: len(before.points)]))
    thought = "I see the red cube, the blue bowl and the green ball. "
    texts = [format_answer(Answer(thought, path)) for path in (before, after)]
    old, again = (
        decide(ToyEngine(bundle, writes(bundle, texts[0])), FRAME, "trajectory", "pick it", draft=draft)
        for draft in (None, bundle.tokenizer.encode(texts[0]).ids)
    )
    engine = ToyEngine(bundle, writes(bundle, texts[1]))
    new = decide(engine, FRAME, "trajectory", "pick it", draft=old.tokens)
    plain = decide(ToyEngine(bundle, writes(bundle, texts[1])), FRAME, "trajectory", "pick it")
    same(new, plain)
    # A number has two digits that may be others, and blocks are short behind them.
    replaced = [a != b for pair in zip(before.points, after.points, strict=True) for a, b in zip(*pair, strict=True)]
    assert new.n_passes <= again.n_passes + 3 * sum(replaced) + 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("I see the red cube on the table.", "I see the small red cube on the table."),
        ("I see the small red cube on the table.", "I see the red cube on the table."),
        ("I see the red cube on the table.", "There is a red cube on the table."),
    ],
)
def test_the_draft_goes_on_behind_words_put_in_or_left_out(bundle: ToyBundle, old: str, new: str) -> None:
    box = Affordance(0.41, 0.52, 0.1, 0.13)
    draft = bundle.tokenizer.encode(format_answer(Answer(old, box))).ids
    wants = writes(bundle, format_answer(Answer(new, box)))
    plain = decide(ToyEngine(bundle, wants), FRAME, "affordance", "pick it")
    drafted = decide(ToyEngine(bundle, wants), FRAME, "affordance", "pick it", draft=draft)
    same(drafted, plain)
    assert drafted.n_passes < plain.n_passes / 2


def test_a_draft_of_something_else_is_soon_given_up(bundle: ToyBundle) -> None:
    wants = writes(bundle, format_answer(Answer("abcdefghijklmnopqrstuvwxyz " * 4, None)))
    draft = [*range(160, 40, -1)] * 2
    drafted = decide(ToyEngine(bundle, wants), FRAME, "trajectory", "pick it", draft=draft)
    assert drafted.n_draft_rejected < drafted.n_tokens / 2


def test_blocks_grow_on_success_and_shrink_on_failure() -> None:
    draft = Draft(range(1000))
    sizes, written = [], [0]
    for _ in range(6):
        block = draft.propose(written, 500)
        assert block == list(range(written[-1] + 1, written[-1] + 1 + len(block)))
        sizes.append(len(block))
        draft.judge(len(block), len(block))
        written += block + [block[-1] + 1]
    assert sizes == sorted(sizes) and sizes[-1] == LONGEST_BLOCK
    draft.judge(LONGEST_BLOCK, 3)
    assert len(draft.propose(written, 500)) == 3
    assert len(draft.propose(written, 1)) == 1 and draft.propose(written, 0) == []
    assert Draft([]).propose([1, 2], 10) == []


def test_a_real_model_writes_the_same_with_any_draft(tiny_checkpoint: Path) -> None:
    engine = TransformersEngine(tiny_checkpoint)
    generator = np.random.default_rng(3)
    frame = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    limits = {"max_think_tokens": 40, "max_tokens": 260}
    for task in contract.TASKS:
        plain = decide(engine, frame, task, "pick it", **limits)
        other = np.clip(frame.astype(int) + generator.integers(-9, 9, frame.shape), 0, 255).astype(np.uint8)
        near = decide(engine, other, task, "pick it", **limits)
        mutated = [t if generator.random() > 0.1 else int(generator.integers(0, 500)) for t in plain.tokens]
        for draft in (plain.tokens, near.tokens, mutated, plain.tokens[5:], generator.integers(0, 500, 80).tolist()):
            same(decide(engine, frame, task, "pick it", draft=draft, **limits), plain)
