"""A trace for other programs: Chrome's and Perfetto's trace events, a JSON summary, Prometheus' text format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from drivers.errors import UserError
from edge.trace import Figures, Recorded, Tracer

QUANTILES = (0.5, 0.9, 0.99)

Event = dict[str, Any]


def trace_events(spans: Iterable[Recorded], process: str, pid: int | None = None) -> list[Event]:
    """Trace events in the JSON format of Chrome's about:tracing, which ui.perfetto.dev opens as well.

    Spans of a thread become complete events ("X") on a row of their own, which nest by their times. Those timed
    elsewhere may overlap: they become pairs of asynchronous events ("b", "e"), a row for each track.

    Args:
        process: its name; events of several processes may be in one file, since the clock is the machine's.
        pid: of the process; this one's if left out.
    """
    pid = os.getpid() if pid is None else pid
    rows: dict[str, int] = {}
    events: list[Event] = []
    for span in sorted(spans, key=lambda span: (span.began_ns, -span.ended_ns, span.number)):
        tid = rows.setdefault(span.track, len(rows) + 1)
        common = {"name": span.name, "pid": pid, "tid": tid, "cat": span.track if span.elsewhere else "vlar1"}
        began_us, took_us = span.began_ns / 1e3, (span.ended_ns - span.began_ns) / 1e3
        if span.elsewhere:
            paired = {**common, "id": str(span.number)}
            events.append({**paired, "ph": "b", "ts": began_us, "args": dict(span.attributes)})
            events.append({**paired, "ph": "e", "ts": span.ended_ns / 1e3})
        else:
            events.append({**common, "ph": "X", "ts": began_us, "dur": took_us, "args": dict(span.attributes)})
    names = [_named("thread_name", track.partition("/")[0], pid, tid) for track, tid in rows.items()]
    return [_named("process_name", process, pid, 0), *names, *events]


def _named(what: str, name: str, pid: int, tid: int) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def write_trace(path: Path, events: list[Event]) -> None:
    """A file for ui.perfetto.dev or chrome://tracing. Raises UserError where it cannot be written."""
    try:
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists") from None


def summary_json(tracer: Tracer) -> dict[str, Any]:
    """``{"stages": {name: figures}, "spans": {name: figures}, "recorded", "dropped"}``.

    Figures are ``count``, ``total_ms``, ``p50_ms``, ``p90_ms``, ``p99_ms``, ``max_ms`` and the amounts that were
    counted, such as ``tokens``. Percentiles are of the latest passes (`edge.trace.WINDOW`), the others of all.
    """
    found = tracer.figures()
    return {
        "stages": {figures.name: _row(figures) for figures in found if figures.stage},
        "spans": {figures.name: _row(figures) for figures in found if not figures.stage},
        "recorded": tracer.written,
        "dropped": tracer.dropped,
    }


def _row(figures: Figures) -> dict[str, float]:
    p50_ms, p90_ms, p99_ms = np.quantile(figures.latest_s * 1e3, QUANTILES)
    return {
        "count": figures.count,
        "total_ms": figures.total_s * 1e3,
        "p50_ms": float(p50_ms),
        "p90_ms": float(p90_ms),
        "p99_ms": float(p99_ms),
        "max_ms": figures.max_s * 1e3,
        **figures.amounts,
    }


def prometheus_text(tracer: Tracer) -> str:
    """What a Prometheus server scrapes: text exposition format 0.0.4, for ``text/plain; version=0.0.4``.

    Seconds by stage and by other span as summaries (quantiles of the latest passes, sum and count of all), the longest
    of each, and the amounts counted, such as tokens.
    """
    found = tracer.figures()
    lines: list[str] = []
    for stage, what in ((True, "stage"), (False, "span")):
        of_kind = [(f'{what}="{_escaped(figures.name)}"', figures) for figures in found if figures.stage == stage]
        name = f"vlar1_{what}_seconds"
        _head(lines, name, "summary", f"Duration of each {what}.")
        for label, figures in of_kind:
            for q, value in zip(QUANTILES, np.quantile(figures.latest_s, QUANTILES), strict=True):
                lines.append(f'{name}{{{label},quantile="{q:g}"}} {value:.9g}')
            lines.append(f"{name}_sum{{{label}}} {figures.total_s:.9g}")
            lines.append(f"{name}_count{{{label}}} {figures.count}")
        _head(lines, f"vlar1_{what}_longest_seconds", "gauge", f"Longest duration of each {what}.")
        lines += [f"vlar1_{what}_longest_seconds{{{label}}} {figures.max_s:.9g}" for label, figures in of_kind]
        for amount in sorted({amount for _, figures in of_kind for amount in figures.amounts}):
            _head(lines, f"vlar1_{what}_{amount}_total", "counter", f"{amount.capitalize()} by {what}.")
            for label, figures in of_kind:
                if amount in figures.amounts:
                    lines.append(f"vlar1_{what}_{amount}_total{{{label}}} {figures.amounts[amount]:.17g}")
    _head(lines, "vlar1_trace_spans_total", "counter", "Spans recorded.")
    lines.append(f"vlar1_trace_spans_total {tracer.written}")
    _head(lines, "vlar1_trace_dropped_total", "counter", "Spans no longer kept; their figures stay.")
    lines.append(f"vlar1_trace_dropped_total {tracer.dropped}")
    return "\n".join(lines) + "\n"


def _head(lines: list[str], name: str, kind: str, what: str) -> None:
    lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
