"""Where the time went: durations of every stage of the way from a camera frame to joint setpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.table import Table

STAGES = ("capture", "preprocess", "vision", "prefill", "decode", "parse", "track", "lift", "plan", "actuate")

Summary = dict[str, dict[str, float]]


class Tracer:
    """Collects stage durations from any thread.

    Stages outside ``STAGES`` are kept too and are listed after them.
    """

    def __init__(self) -> None:
        self._durations_s: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the body as one pass of stage ``name``; a body that raises is counted as well."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start_s)

    def add(self, name: str, duration_s: float) -> None:
        """Records one pass of stage ``name``, timed elsewhere."""
        with self._lock:
            self._durations_s.setdefault(name, []).append(duration_s)

    def durations_s(self, name: str) -> list[float]:
        """A copy of the durations of ``name``, oldest first; empty for a stage that never ran."""
        with self._lock:
            return list(self._durations_s.get(name, ()))

    def summary(self) -> Summary:
        """``{stage: {"count", "p50_ms", "p90_ms", "max_ms"}}`` for the stages that ran, in the order of ``STAGES``."""
        with self._lock:
            durations_s = {name: list(values) for name, values in self._durations_s.items()}
        order = [name for name in STAGES if name in durations_s]
        order += [name for name in durations_s if name not in STAGES]
        result: Summary = {}
        for name in order:
            p50_ms, p90_ms, max_ms = np.percentile(np.array(durations_s[name]) * 1e3, (50, 90, 100))
            result[name] = {
                "count": len(durations_s[name]),
                "p50_ms": float(p50_ms),
                "p90_ms": float(p90_ms),
                "max_ms": float(max_ms),
            }
        return result


def latency_table(summary: Summary, title: str = "Latency") -> Table:
    """A table of ``Tracer.summary()`` to print with rich."""
    table = Table(title=title)
    table.add_column("stage")
    for column in ("count", "p50 ms", "p90 ms", "max ms"):
        table.add_column(column, justify="right")
    for name, row in summary.items():
        table.add_row(name, f"{row['count']:.0f}", *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "max_ms")))
    return table
