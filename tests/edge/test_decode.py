"""Whatever the model prefers, the answer closes in time and parses."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_engine import ToyBundle, ToyEngine, toy_bundle, writes
from transformers_engine import TransformersEngine

from drivers.errors import UserError
from edge import contract
from edge.contract import Affordance, Trajectory, parse_answer
from edge.decode import AnswerWriter, OutputEvent, Sampling, TextEvent, compile_grammars, decide
from edge.preprocess import preprocess
from edge.trace import Tracer


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path) -> ToyBundle:
    return toy_bundle((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(tiny_checkpoint)


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@lru_cache(maxsize=1)
def all_texts(bundle: ToyBundle) -> list[str]:
    return [bundle.tokenizer.decode([token]) for token in range(bundle.tokenizer.get_vocab_size())]


def scripted(bundle: ToyBundle, text: str) -> ToyEngine:
    return ToyEngine(bundle, writes(bundle, text))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=st.sampled_from(contract.TASKS),
    seed=st.integers(0, 2**32 - 1),
    max_think_tokens=st.integers(0, 120),
    spare=st.integers(0, 300),
    likes=st.sampled_from(["anything", "digits", "brackets", "high bytes", "null"]),
)
def test_any_choice_under_the_mask_ends_in_an_answer(
    bundle: ToyBundle, task: contract.Task, seed: int, max_think_tokens: int, spare: int, likes: str
) -> None:
    generator = np.random.default_rng(seed)
    texts = all_texts(bundle)
    liked = {
        "anything": lambda text: True,
        "digits": lambda text: any(c in "0123456789." for c in text),
        "brackets": lambda text: any(c in "[],<>/" for c in text),
        "high bytes": lambda text: "�" in text,
        "null": lambda text: text in ("n", "u", "l", "nu", "null"),
    }[likes]
    bonus = np.zeros(bundle.vocab, np.float32)
    bonus[: len(texts)] = [6.0 * liked(text) for text in texts]
    least = len("<think>") + contract.longest_output(task) + 3
    pieces: list[str] = []
    writer = AnswerWriter(bundle, task, max_think_tokens, least + spare, pieces.append)
    writer.forced()
    while not writer.done:
        logits = generator.normal(0, 3, bundle.vocab).astype(np.float32) + bonus
        writer.take(int(writer.allowed(logits).argmax()))
        writer.forced()
    assert len(writer.tokens) <= least + spare
    assert "".join(pieces) == writer.text
    assert bundle.tokenizer.decode(writer.tokens, skip_special_tokens=False) == writer.text
    answer = parse_answer(writer.text, task)
    if isinstance(answer.output, Trajectory):
        assert contract.MIN_POINTS <= len(answer.output.points) <= contract.MAX_POINTS


@pytest.mark.parametrize("task", contract.TASKS)
def test_a_grammar_accepts_every_answer_in_the_training_format(bundle: ToyBundle, task: contract.Task) -> None:
    outputs = {
        "affordance": [Affordance(0.0, 1.0, 0.01, 1.0), Affordance(0.5, 0.25, 0.99, 0.1)],
        "trajectory": [Trajectory(((0.0, 1.0),) * n) for n in (2, 16)],
    }
    for output in (None, *outputs[task]):
        text = contract.format_answer(contract.Answer("A cup, 3 > 2 < 5; é 中 \n </ think>.", output))
        writer = AnswerWriter(bundle, task, 200, 800)
        for token in bundle.tokenizer.encode(text).ids:
            if len(writer.tokens) and writer.done:
                break
            assert np.isfinite(writer.allowed(np.zeros(bundle.vocab, np.float32))[token])
            writer.take(token)
        assert writer.done and writer.text == text


@pytest.mark.parametrize(
    ("task", "output"),
    [
        ("affordance", Affordance(0.41, 0.52, 0.1, 0.13)),
        ("trajectory", Trajectory(((0.1, 0.2), (0.3, 0.4), (0.5, 0.6)))),
        ("affordance", None),
        ("trajectory", None),
    ],
)
def test_what_the_model_wants_is_what_comes(
    bundle: ToyBundle, frame: np.ndarray, task: contract.Task, output: Affordance | Trajectory | None
) -> None:
    text = contract.format_answer(contract.Answer("I see the red cube.", output))
    heard: list[object] = []
    tracer = Tracer()
    decision = decide(scripted(bundle, text), frame, task, "pick it", on_event=heard.append, tracer=tracer)
    assert decision.text == text == "".join(event.text for event in heard if isinstance(event, TextEvent))
    assert [event for event in heard if isinstance(event, OutputEvent)] == [OutputEvent(output)]
    assert decision.answer == contract.Answer("I see the red cube.", output)
    assert decision.n_forced_tokens > 0 and not decision.thinking_cut
    assert list(tracer.summary()) == ["preprocess", "vision", "prefill", "decode", "parse"]


@pytest.mark.parametrize("rambling", ["on and on ", "中文", "</thin", "<"])
def test_the_thinking_budget_ends_the_reasoning(bundle: ToyBundle, frame: np.ndarray, rambling: str) -> None:
    decision = decide(scripted(bundle, "<think>" + rambling * 400), frame, "affordance", "pick it", max_think_tokens=20)
    assert decision.thinking_cut == "tokens"
    assert decision.text.count("</think>") == 1
    assert len(bundle.tokenizer.encode(decision.text.partition("</think>")[0]).ids) <= 20 + 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(task=st.sampled_from(contract.TASKS), thought=st.text(max_size=30), cut=st.booleans())
def test_after_the_reasoning_the_model_chooses_between_an_output_and_null(
    bundle: ToyBundle, task: contract.Task, thought: str, cut: bool
) -> None:
    """Whoever ends the reasoning: exactly the tokens that begin (or make) one of the two outputs may come next."""
    thought = thought.replace("<", "")
    tokens = bundle.tokenizer.encode(f"<think>{thought}", add_special_tokens=False).ids
    if not cut:
        tokens += bundle.tokenizer.encode("</think>", add_special_tokens=False).ids
    writer = AnswerWriter(bundle, task, len(tokens) if cut else 200, 600)
    for token in tokens:
        writer.take(token)
    writer.forced()
    assert writer.thinking_cut == ("tokens" if cut else None)
    rest = writer.text.rpartition("</think>")[2]
    opening = '{"x": ' if task == "affordance" else "[["
    wanted = [f"<output>{body}"[len(rest) :] for body in (opening, "null</output>")]
    texts = all_texts(bundle)
    mask = np.isfinite(writer.allowed(np.zeros(bundle.vocab, np.float32)))
    assert {texts[i] for i in np.flatnonzero(mask)} == {
        text for text in texts if text and any(body.startswith(text) for body in wanted)
    }
    assert not writer.done


@pytest.mark.parametrize("task", contract.TASKS)
@pytest.mark.parametrize("wants", ["null", "an output"])
def test_a_cut_thought_ends_in_what_the_model_wants(bundle: ToyBundle, task: contract.Task, wants: str) -> None:
    bonus = np.zeros(bundle.vocab, np.float32)
    for text in ("n",) if wants == "null" else (">{", '>{"', ">[", ">[[", "{", "["):
        if (token := bundle.tokenizer.token_to_id(text)) is not None:
            bonus[token] = 9.0
    writer = AnswerWriter(bundle, task, 0, 300)
    writer.forced()
    while not writer.done:
        writer.take(int(writer.allowed(bonus).argmax()))
        writer.forced()
    assert writer.thinking_cut and writer.text.startswith("<think></think><output>")
    assert (parse_answer(writer.text, task).output is None) == (wants == "null")


@pytest.mark.parametrize(("task", "n_points"), [("affordance", 0), ("trajectory", 2), ("trajectory", 16)])
def test_the_longest_output_is_as_long_as_said(bundle: ToyBundle, task: contract.Task, n_points: int) -> None:
    fields = ", ".join(f'"{name}": 0.1234' for name in ("x", "y", "width", "height"))
    body = f"{{{fields}}}" if task == "affordance" else "[" + ", ".join(["[0.1234, 0.5678]"] * n_points) + "]"
    text = f"</think><output>{body}</output>"
    writer = AnswerWriter(bundle, task, 200, 800)
    for token in bundle.tokenizer.encode(f"<think>{text}", add_special_tokens=False).ids:
        writer.take(token)
    assert writer.done
    assert len(text) == contract.longest_output(task, n_points or contract.MIN_POINTS)
    assert len("</think><output>null</output>") < len(text)


def test_a_text_longer_than_the_model_takes_and_too_few_tokens_are_refused(
    bundle: ToyBundle, frame: np.ndarray
) -> None:
    with pytest.raises(UserError, match="instruction: its prompt has"):
        decide(scripted(bundle, ""), frame, "affordance", "pick " * 2000)
    with pytest.raises(UserError, match="max_tokens: is 20"):
        decide(scripted(bundle, ""), frame, "affordance", "pick", max_tokens=20)


def test_with_compiled_grammars_the_first_answer_wraps_nothing(
    tiny_checkpoint: Path, frame: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = toy_bundle((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8") + " ")  # no other test's
    compile_grammars(fresh)
    monkeypatch.setattr("edge.decode.writer.LLTokenizer", None)
    for task in contract.TASKS:
        decision = decide(scripted(fresh, "<think>on and on "), frame, task, "pick it", deadline_s=60.0)
        assert decision.thinking_cut


def test_forced_tokens_in_one_pass_change_nothing(
    engine: TransformersEngine, bundle: ToyBundle, frame: np.ndarray
) -> None:
    """The greedy answer under the grammar, recomputed one token a pass, is the same text."""
    decision = decide(engine, frame, "trajectory", "pick up the red cube", max_think_tokens=30, max_tokens=200)
    assert 0 < decision.n_passes < decision.n_tokens
    writer = AnswerWriter(bundle, "trajectory", 30, 200)
    prompt = contract.render_chat(contract.prompt_text("trajectory", "pick up the red cube"), 48)
    engine.prefill(bundle.tokenizer.encode(prompt).ids, engine.encode_image(preprocess(frame, 224, 168)))
    while True:
        for token in writer.forced():
            engine.extend([token])
        if writer.done:
            break
        token = int(writer.allowed(engine.logits()[0]).argmax())
        writer.take(token)
        engine.extend([token])
    assert writer.text == decision.text


def test_sampling_repeats_with_its_seed_and_varies_without(engine: TransformersEngine, frame: np.ndarray) -> None:
    def text(seed: int) -> str:
        sampling = Sampling(temperature=1.5, top_p=0.95, seed=seed)
        budget = {"max_think_tokens": 20, "max_tokens": 160}
        return decide(engine, frame, "affordance", "pick it", sampling=sampling, **budget).text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_sampling_at_a_vanishing_temperature_is_greedy(engine: TransformersEngine, frame: np.ndarray) -> None:
    kwargs = {"max_think_tokens": 20, "max_tokens": 160}
    greedy = decide(engine, frame, "affordance", "pick it", **kwargs)
    cold = decide(
        engine, frame, "affordance", "pick it", sampling=Sampling(1e-6, 1.0, repetition_penalty=1.0), **kwargs
    )
    assert cold.text == greedy.text
