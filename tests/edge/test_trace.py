"""Spans nest, count and cost a fixed amount of memory; what was counted stays when they go."""

import io
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from edge.trace import OFF, STAGES, WINDOW, Tracer, latency_table


def test_summary_counts_and_percentiles() -> None:
    tracer = Tracer()
    for milliseconds in range(1, 12):
        tracer.add("plan", milliseconds / 1e3)
    row = tracer.summary()["plan"]
    assert row["count"] == 11
    assert row["p50_ms"] == pytest.approx(6)
    assert row["p90_ms"] == pytest.approx(10)
    assert row["max_ms"] == pytest.approx(11)


def test_stages_come_in_their_order_and_unknown_ones_last() -> None:
    tracer = Tracer()
    for name in ("home", *reversed(STAGES)):
        with tracer.stage(name):
            pass
    assert list(tracer.summary()) == [*STAGES, "home"]


def test_nothing_recorded_gives_an_empty_summary() -> None:
    assert Tracer().summary() == {}
    assert Tracer().durations_s("plan") == []


def test_a_stage_that_raises_is_counted_and_the_error_passes() -> None:
    tracer = Tracer()
    with pytest.raises(ZeroDivisionError), tracer.stage("lift"):
        raise ZeroDivisionError
    assert tracer.summary()["lift"]["count"] == 1


def test_threads_lose_nothing() -> None:
    tracer = Tracer()

    def work() -> None:
        for _ in range(500):
            with tracer.stage("actuate"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracer.summary()["actuate"]["count"] == 4000


def test_the_table_shows_every_stage_that_ran() -> None:
    tracer = Tracer()
    tracer.add("vision", 0.0123)
    out = io.StringIO()
    Console(file=out, width=100).print(latency_table(tracer.summary()))
    assert "vision" in out.getvalue() and "12.30" in out.getvalue()


def test_spans_nest_by_thread_and_keep_their_attributes() -> None:
    tracer = Tracer()
    begun = threading.Event()

    def other() -> None:
        with tracer.span("other"):
            begun.set()

    with tracer.span("decision"), tracer.stage("decode", tokens=3) as decode:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        for n in (1, 2):
            with tracer.span("pass", tokens=n):
                pass
        decode.set(passes=2)
    assert begun.is_set()
    spans = {f"{span.name}{span.attributes.get('tokens', 0):g}": span for span in tracer.spans()}
    assert list(spans) == ["other0", "pass1", "pass2", "decode3", "decision0"]  # as they ended
    decision, decode_span = spans["decision0"], spans["decode3"]
    assert decision.parent == 0 and decode_span.parent == decision.number
    assert spans["pass1"].parent == spans["pass2"].parent == decode_span.number
    assert spans["other0"].parent == 0 and spans["other0"].track != decision.track
    assert decode_span.attributes == {"tokens": 3, "passes": 2}
    assert decision.began_ns <= decode_span.began_ns <= spans["pass1"].began_ns <= spans["pass1"].ended_ns
    assert spans["pass1"].ended_ns <= spans["pass2"].began_ns <= decode_span.ended_ns <= decision.ended_ns
    assert list(tracer.summary()) == ["decode"]  # the others are around and within


def test_what_was_timed_by_hand_lies_within_the_span_that_runs() -> None:
    tracer = Tracer()
    with tracer.stage("decode") as decode:
        began_ns = time.monotonic_ns()
        decode.within("pass", began_ns, began_ns + 1000, tokens=5)
        decode.set(passes=1)
    one, whole = tracer.spans()
    assert (one.name, one.parent, one.track, one.elsewhere) == ("pass", whole.number, whole.track, False)
    assert (one.began_ns, one.ended_ns, one.attributes) == (began_ns, began_ns + 1000, {"tokens": 5})
    assert list(tracer.summary()) == ["decode"]
    with OFF.stage("decode") as decode:
        decode.within("pass", 0, 1)
    assert OFF.written == 0


def test_after_a_body_that_raises_the_next_span_is_not_inside_it() -> None:
    tracer = Tracer()
    with pytest.raises(ZeroDivisionError), tracer.span("decision"), tracer.stage("decode"):
        raise ZeroDivisionError
    with tracer.stage("capture"):
        pass
    assert tracer.spans()[-1].parent == 0


def test_all_times_are_those_of_frames_and_servo_cycles() -> None:
    tracer = Tracer()
    before_s = time.monotonic()
    with tracer.stage("capture"):
        pass
    tracer.record("frame age", before_s - 0.05, before_s, "camera", width_px=640)
    tracer.add("actuate", 0.002, before_s - 1.0, "servo loop")
    capture, age, actuate = tracer.spans()
    assert before_s * 1e9 - 1 <= capture.began_ns <= capture.ended_ns <= time.monotonic_ns()
    assert (age.track, age.elsewhere, age.duration_s) == ("camera", True, pytest.approx(0.05))
    assert actuate.began_ns == pytest.approx((before_s - 1.0) * 1e9, abs=1e3) and actuate.track == "servo loop"
    assert list(tracer.summary()) == ["capture", "actuate"]


def test_when_the_ring_is_full_the_oldest_spans_go_and_the_figures_stay() -> None:
    tracer = Tracer(capacity=4096)
    for n in range(10_001):
        tracer.add("plan", n * 1e-6, float(n), tokens=n)
    assert (tracer.written, tracer.dropped) == (10_001, 10_001 - 4096)
    kept = tracer.spans()
    assert [span.attributes["tokens"] for span in kept] == list(range(10_001 - 4096, 10_001))
    assert [span.attributes["tokens"] for span in tracer.spans(9_999)] == [9_999, 10_000]
    assert tracer.spans(10_001) == []
    (figures,) = tracer.figures()
    assert figures.count == 10_001 and figures.max_s == pytest.approx(0.010)
    assert figures.total_s == pytest.approx(10_000 * 10_001 / 2 * 1e-6)
    assert figures.amounts == {"tokens": 10_000 * 10_001 / 2}
    assert tracer.summary()["plan"]["p50_ms"] == pytest.approx(5.0)


@settings(max_examples=15, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(0, 9000), st.sampled_from(["plan", "lift"])), max_size=4),
    seed=st.integers(0, 99),
)
def test_figures_are_those_of_all_that_was_added(batches: list[tuple[int, str]], seed: int) -> None:
    rng, tracer = np.random.default_rng(seed), Tracer(capacity=4096)
    added: dict[str, list[float]] = {}
    for n, name in batches:
        for duration_s in rng.exponential(0.01, n):
            tracer.add(name, duration_s, 1.0, tokens=2)
            added.setdefault(name, []).append(duration_s)
        tracer.figures()  # looking in between changes nothing
    found = {figures.name: figures for figures in tracer.figures()}
    assert set(found) == set(added)
    for name, durations_s in added.items():
        figures = found[name]
        assert figures.count == len(durations_s) and figures.amounts == {"tokens": 2 * len(durations_s)}
        assert figures.total_s == pytest.approx(sum(durations_s), abs=1e-9 * len(durations_s))
        assert figures.max_s == pytest.approx(max(durations_s), abs=1e-9)
        np.testing.assert_allclose(figures.latest_s, durations_s[-WINDOW:], atol=1e-9)


def test_a_full_ring_takes_no_more_memory() -> None:
    tracer = Tracer(capacity=4096)

    def lap() -> None:
        for n in range(4096):
            with tracer.stage("plan", tokens=n) as span:
                span.set(bytes=n)

    for _ in range(5):  # until figures and ring have all their memory
        lap()
    tracemalloc.start()
    try:
        lap()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            lap()
        assert tracemalloc.get_traced_memory()[0] - before < 2000
    finally:
        tracemalloc.stop()


def test_off_records_nothing() -> None:
    with OFF.stage("plan", tokens=1) as stage, OFF.span("pass") as span:
        stage.set(tokens=2)
        assert stage is span  # nothing is made
    OFF.add("plan", 1.0)
    OFF.record("frame age", 0.0, 1.0, "camera")
    assert (OFF.written, OFF.spans(), OFF.figures(), OFF.summary()) == (0, [], [], {})


def test_more_attributes_than_fit_are_refused() -> None:
    tracer, many = Tracer(), {f"a{n}": n for n in range(5)}
    for record in (
        lambda: tracer.stage("plan", **many),
        lambda: tracer.span("plan", **many),
        lambda: tracer.add("plan", 1.0, **many),
        lambda: tracer.span("plan").set(**many),
    ):
        with pytest.raises(ValueError, match="at most 4 attributes, got a0, a1"):
            record()
    with pytest.raises(ValueError, match="multiple of 4096"):
        Tracer(capacity=1000)
