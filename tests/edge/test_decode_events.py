"""What is told while an answer is written, how sure the model was, and that sampling keeps to its seed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import ToyBundle, ToyEngine, babbles, digit_tokenizer, toy_bundle, writes
from transformers_engine import TransformersEngine

from edge import contract
from edge.abstention import Abstention
from edge.contract import Affordance, Answer, Trajectory, format_answer, parse_answer
from edge.decode import AnswerWriter, OutputEvent, Sampling, TextEvent, WaypointEvent, decide
from edge.decode.events import Events
from edge.decode.mask import Mask, pack
from edge.decode.sampling import Sampler, greedy
from edge.decode.scores import Logits
from edge.preprocess import preprocess

FRAME = np.zeros((56, 56, 3), np.uint8)
BUDGET = {"max_think_tokens": 40, "max_tokens": 200}
PATH = Trajectory(((0.12, 0.34), (0.56, 0.78), (0.9, 0.05)))
BOX = Affordance(0.41, 0.52, 0.1, 0.13)
NUMBERS = st.integers(1, 100).map(lambda n: n / 100)
OUTPUTS = (
    st.none()
    | st.builds(Affordance, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    | st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=16).map(lambda points: Trajectory(tuple(points)))
)


@pytest.fixture(scope="module", params=["numbers whole", "digit by digit"])
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> ToyBundle:
    if request.param == "digit by digit":
        return toy_bundle(digit_tokenizer())
    return toy_bundle((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


@settings(max_examples=200, deadline=None)
@given(
    thought=st.text(max_size=20).filter(lambda text: "</think>" not in text),
    output=OUTPUTS,
    cuts=st.lists(st.integers(0, 400), max_size=30),
    null_task=st.sampled_from(contract.TASKS),
)
def test_events_are_those_of_the_text_however_it_comes(thought: str, output, cuts: list[int], null_task) -> None:
    task = {Affordance: "affordance", Trajectory: "trajectory"}.get(type(output), null_task)
    text = format_answer(Answer(thought, output))
    heard: list[object] = []
    said = [0]  # characters
    times: list[int] = []
    events = Events(task, lambda: float(said[0]), lambda event: (heard.append(event), times.append(said[0])))
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in zip(places, places[1:], strict=False):
        said[0] = end
        events.write(text[begin:end])
    pieces = [event for event in heard if isinstance(event, TextEvent)]
    assert "".join(event.text for event in pieces) == text
    assert "".join(event.text for event in pieces if event.reasoning) == text.partition("</think>")[0] + "</think>"
    points = [event for event in heard if isinstance(event, WaypointEvent)]
    assert [event.index for event in points] == list(range(len(points)))
    wanted = output.points if isinstance(output, Trajectory) else ()
    assert tuple(event.point for event in points) == wanted
    assert [event.output for event in heard if isinstance(event, OutputEvent)] == [output]
    for event, at in zip(heard, times, strict=True):  # at the first write that completes it, no later
        earlier = text[: max(place for place in places if place < at)]
        if isinstance(event, WaypointEvent):
            begin = text.index("<output>")
            assert len(re.findall(r"\d\]", text[begin:at])) > event.index
            assert len(re.findall(r"\d\]", earlier[begin:])) <= event.index
    first = next(
        (at for event, at in zip(heard, times, strict=True) if isinstance(event, (WaypointEvent, OutputEvent))), 0
    )
    assert events.first_action_s == (None if output is None else first)


@settings(max_examples=40, deadline=None)
@given(task=st.sampled_from(contract.TASKS), seed=st.integers(0, 999), faith=st.sampled_from([0.0, 12.0]))
def test_events_of_a_decision_are_its_text_and_its_output(bundle, task, seed: int, faith: float) -> None:
    script = format_answer(Answer("I see it.", PATH if task == "trajectory" else BOX))
    engine = ToyEngine(bundle, babbles(bundle, seed, script, faith), pass_s=1.0)
    heard: list[object] = []
    decision = decide(engine, FRAME, task, "go", on_event=heard.append, clock=engine.clock, **BUDGET)
    assert "".join(event.text for event in heard if isinstance(event, TextEvent)) == decision.text
    output = parse_answer(decision.text, task).output
    points = tuple(event.point for event in heard if isinstance(event, WaypointEvent))
    assert points == (output.points if isinstance(output, Trajectory) else ())
    assert [event.output for event in heard if isinstance(event, OutputEvent)] == [output]
    if output is None:
        assert decision.first_action_s is None
    elif task == "trajectory":
        assert 0.0 < decision.first_action_s < decision.took_s


def test_number_rows_of_the_head_are_enough_for_numbers(bundle: ToyBundle) -> None:
    engine = ToyEngine(bundle, writes(bundle, format_answer(Answer("I see it.", PATH))))
    decision = decide(engine, FRAME, "trajectory", "go")
    n_output = len(bundle.tokenizer.encode(contract.format_output(PATH)).ids)
    assert decision.answer.output == PATH
    assert n_output / 3 < engine.number_rows <= n_output
    assert engine.all_rows + engine.number_rows == decision.n_passes + 1


@pytest.mark.parametrize("task", contract.TASKS)
@pytest.mark.parametrize("draft", [False, True])
def test_probabilities_are_the_models_own_over_the_legal_tokens(tiny_checkpoint: Path, task, draft: bool) -> None:
    """Against one token a pass, every row of the head, and the softmax written out."""
    engine = TransformersEngine(tiny_checkpoint)
    frame = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    limits = {"max_think_tokens": 20, "max_tokens": 200}
    decision = decide(engine, frame, task, "pick it", **limits)
    if draft:
        decision = decide(engine, frame, task, "pick it", draft=decision.tokens, **limits)
        assert decision.n_draft_accepted > 0
    ids = engine.bundle.tokenizer.encode(contract.render_chat(contract.prompt_text(task, "pick it"), 48)).ids
    engine.prefill(ids, engine.encode_image(preprocess(frame, 224, 168)))
    writer = AnswerWriter(engine.bundle, task, *limits.values())
    expected: list[float] = []
    forced = writer.forced()
    for token in decision.tokens:
        if forced:
            assert token == forced.pop(0)
            expected.append(0.0)
        else:
            legal = writer.allowed(engine.logits()[0]).astype(np.float64)
            expected.append(legal[token] - np.log(np.exp(legal - legal.max()).sum()) - legal.max())
            writer.take(token)
            forced = writer.forced()
        engine.extend([token])
    np.testing.assert_allclose(decision.log_probabilities, expected, atol=1e-4)
    assert decision.n_forced_tokens <= expected.count(0.0)
    output = decision.answer.output
    n_numbers = 0 if output is None else 4 if task == "affordance" else 2 * len(output.points)
    assert len(decision.number_confidences) == n_numbers
    assert 0.0 < decision.confidence <= 1.0


def test_confidences_are_products_over_the_tokens_of_a_number_and_over_those_without_a_digit(
    bundle: ToyBundle,
) -> None:
    script = format_answer(Answer("é 中 I see it at [0.41, 0.52].", BOX))
    decision = decide(ToyEngine(bundle, babbles(bundle, 1, script, 9.0)), FRAME, "affordance", "go", **BUDGET)
    box = decision.answer.output
    assert isinstance(box, Affordance)
    spelled = [bundle.tokenizer.decode([token]) for token in decision.tokens]
    begin = next(i for i in reversed(range(len(spelled))) if "{" in spelled[i])
    products = []
    for match in re.finditer(r"[0-9.]+", "".join(spelled[begin:])):
        total, place = 0.0, 0
        for text_of, log_probability in zip(spelled[begin:], decision.log_probabilities[begin:], strict=True):
            if place < match.end() and place + len(text_of) > match.start():
                total += log_probability
            place += len(text_of)
        products.append(math.exp(total))
    assert decision.number_confidences == pytest.approx(products) and min(products) < 1.0
    pairs = zip(spelled, decision.log_probabilities, strict=True)
    words = sum(log_probability for text, log_probability in pairs if not any(char.isdigit() for char in text))
    assert decision.confidence == pytest.approx(math.exp(words)) and decision.confidence < 1.0


def test_an_answer_below_the_bundles_threshold_is_unsure_unless_it_is_null(bundle: ToyBundle) -> None:
    wants = babbles(bundle, 1, format_answer(Answer("I see it.", BOX)), 9.0)
    plain = decide(ToyEngine(bundle, wants), FRAME, "affordance", "go", **BUDGET)
    assert plain.answer.output is not None and plain.unsure is None and 0.0 < plain.confidence < 1.0
    for task, least, unsure in [
        ("affordance", plain.confidence, False),
        ("affordance", plain.confidence * 1.01, True),
        ("trajectory", 1.0, False),
    ]:
        calibrated = replace(bundle, abstention=Abstention({task: least}, 0.05))
        decision = decide(ToyEngine(calibrated, wants), FRAME, "affordance", "go", **BUDGET)
        assert decision.answer == plain.answer
        assert (decision.unsure is not None) == unsure
        assert not unsure or decision.unsure.startswith("not sure: ")
    calibrated = replace(bundle, abstention=Abstention({"affordance": 1.0}, 0.05))
    nothing = decide(
        ToyEngine(calibrated, writes(bundle, format_answer(Answer("no.", None)))), FRAME, "affordance", "go"
    )
    assert nothing.answer.output is None and nothing.confidence < 1.0 and nothing.unsure is None


def test_a_surer_model_has_more_confidence(bundle: ToyBundle) -> None:
    script = format_answer(Answer("I see it.", BOX))
    seen = []
    for faith in (16.0, 20.0, 40.0):
        decision = decide(ToyEngine(bundle, babbles(bundle, 1, script, faith)), FRAME, "affordance", "go")
        assert decision.text == script
        seen.append(decision.confidence)
    assert seen == sorted(seen) and seen[0] < seen[-1] and seen[-1] == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(task=st.sampled_from(contract.TASKS), seed=st.integers(0, 999), data=st.data())
def test_a_seed_draws_the_same_with_and_without_everything_else(bundle, task, seed: int, data) -> None:
    wants = babbles(bundle, seed)
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed)
    plain = decide(ToyEngine(bundle, wants), FRAME, task, "go", sampling=sampling, **BUDGET)
    engine = ToyEngine(bundle, wants, pass_s=1e-3)
    draft = data.draw(st.none() | st.just(plain.tokens) | st.lists(st.integers(0, 399), max_size=60))
    more = decide(
        engine,
        FRAME,
        task,
        "go",
        sampling=sampling,
        draft=draft,
        on_event=lambda event: None,
        deadline_s=60.0,
        clock=engine.clock,
        **BUDGET,
    )
    assert (more.text, more.tokens) == (plain.text, plain.tokens)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300), share=st.floats(0.01, 1.0), top_p=st.floats(0.05, 1.0))
def test_choices_are_those_of_the_plain_definitions(seed: int, n: int, share: float, top_p: float) -> None:
    """Greedy and nucleus, on all tokens or on a part of the head, against a sort of everything."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, n).astype(np.float32).round(1)
    flags = generator.random(n) < share
    flags[generator.integers(n)] = True
    mask = Mask(pack(flags), n)
    assert (mask.flags == flags).all()
    assert mask.only == (int(np.flatnonzero(flags)[0]) if flags.sum() == 1 else None)
    assert [mask.allows(i) for i in range(n)] == mask.among(np.arange(n)).tolist() == flags.tolist()
    others = flags | (generator.random(n) < 0.5)
    assert mask.within(pack(others))
    others[generator.choice(np.flatnonzero(flags))] = False
    assert not mask.within(pack(others))
    legal = np.where(flags, logits.astype(np.float64), -np.inf)
    probability = np.exp(legal - legal.max()) / np.exp(legal - legal.max()).sum()
    part = np.flatnonzero(flags | (generator.random(n) < 0.3))
    both = [Logits(logits), Logits(logits[part], part)]
    for given_logits in both:
        choice = greedy(given_logits, mask, [])
        assert choice.token == int(legal.argmax())
        assert choice.log_probability == pytest.approx(np.log(probability[choice.token]), abs=1e-5)
    sampling = Sampling(1.0, top_p, 1.0, seed % 1000)
    order = np.argsort(-probability, kind="stable")
    nucleus = set(order[np.cumsum(probability[order]) - probability[order] < top_p + 1e-12].tolist())
    drawn = [Sampler(sampling, [])(given_logits, mask, []) for given_logits in both]
    assert drawn[0] == drawn[1] and drawn[0].token in nucleus and flags[drawn[0].token]
    assert drawn[0].log_probability == pytest.approx(np.log(probability[drawn[0].token]), abs=1e-6)
