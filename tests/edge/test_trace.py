import io
import threading

import pytest
from rich.console import Console

from edge.trace import STAGES, Tracer, latency_table


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
