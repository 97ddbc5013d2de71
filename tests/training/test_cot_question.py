"""Which answers of a teacher are taken, and when it may be asked again: the rules, without a server."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract import Affordance, Answer, Trajectory, format_answer, parse_answer
from training.data.cot_question import Rejected, accepted, with_reasoning
from training.data.sharegpt import Item
from training.data.teacher import Pace, retry_after_s

REASONING = "The red cube stands left of the middle, the blue bowl is behind it, and its top is free to be gripped."
BOX = Affordance(0.3, 0.4, 0.2, 0.2)
PATH = Trajectory(((0.1, 0.1), (0.5, 0.4), (0.8, 0.8)))
ITEM = Item("a.png", "affordance", "pick it up", format_answer(Answer("", BOX)))
CELLS = 20
spans = st.tuples(st.integers(0, CELLS - 1), st.integers(1, CELLS)).map(lambda s: (s[0], min(s[0] + s[1], CELLS)))


@settings(deadline=None)
@given(spans, spans, spans, spans)
def test_boxes_agree_as_counted_cells_say(ax: tuple, ay: tuple, bx: tuple, by: tuple) -> None:
    def box(x: tuple[int, int], y: tuple[int, int]) -> Affordance:
        numbers = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, x[1] - x[0], y[1] - y[0])
        return Affordance(*(value / CELLS for value in numbers))

    def cells(x: tuple[int, int], y: tuple[int, int]) -> set[tuple[int, int]]:
        return {(i, j) for i in range(*x) for j in range(*y)}

    def text(of: Affordance) -> str:
        numbers = {name: getattr(of, name) for name in ("x", "y", "width", "height")}
        return f"<think>{REASONING}</think><output>{json.dumps(numbers)}</output>"

    item = Item("a.png", "affordance", "pick it up", text(box(ax, ay)))
    a, b = cells(ax, ay), cells(bx, by)
    if 2 * len(a & b) > len(a | b):
        assert accepted(text(box(bx, by)), item, label_shown=False) == REASONING
    elif 2 * len(a & b) < len(a | b):
        with pytest.raises(Rejected, match="IoU"):
            accepted(text(box(bx, by)), item, label_shown=False)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I see a cube.", "format"),
        (format_answer(Answer(REASONING, PATH)), "format"),
        (format_answer(Answer(REASONING, None)), "wrong answer"),
        (f'<think>{REASONING}</think><output>{{"x": 30, "y": 40, "width": 20, "height": 20}}</output>', "format"),
        (format_answer(Answer("The cube.", BOX)), "reasoning"),
        (format_answer(Answer(REASONING + "<output>[]", BOX)), "reasoning"),
        (format_answer(Answer(REASONING + "<|im_end|>", BOX)), "reasoning"),
        (format_answer(Answer(REASONING + "\ud83d", BOX)), "reasoning"),
        (format_answer(Answer(REASONING + " This is the ground truth.", BOX)), "reasoning"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(text: str, kind: str) -> None:
    with pytest.raises(Rejected) as caught:
        accepted(text, ITEM, label_shown=True)
    assert caught.value.kind == kind


def test_the_label_keeps_its_spelling() -> None:
    answer = '<think></think><output>{"x": 0.3125, "y": 0.4, "width": 0.035, "height": 0.2}</output>'
    item = Item("a.png", "affordance", "pick it up", answer)
    text = with_reasoning(item, REASONING)
    assert text == answer.replace("<think>", "<think>" + REASONING) and parse_answer(text).reasoning == REASONING


def test_requests_keep_their_distance_and_a_told_pause_holds_everybody() -> None:
    async def starts(pace: Pace, n: int) -> list[float]:
        async def start() -> float:
            await pace.turn()
            return time.monotonic()

        return sorted(await asyncio.gather(*(start() for _ in range(n))))

    begin = time.monotonic()
    times = asyncio.run(starts(Pace(1200), 5))
    assert all(at >= begin + k * 0.05 - 1e-3 for k, at in enumerate(times))
    held = Pace(None)
    held.hold(0.2)
    begin = time.monotonic()
    assert min(asyncio.run(starts(held, 3))) >= begin + 0.19


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [(None, None), ("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("nan", None), ("soon", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 60.0), ("Wed, 21 Oct 2015 07:26:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(header: str | None, wait_s: float | None) -> None:
    assert retry_after_s(header, now_s=1445412420.0) == wait_s
