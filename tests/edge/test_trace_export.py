"""What other programs read: trace events nest and pair up, Prometheus' text parses, the summary adds up."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.errors import UserError
from edge.decode import Sampling, decide, decide_consistent
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import Tracer
from edge.trace_export import prometheus_text, summary_json, trace_events, write_trace

STAGES = ["preprocess", "vision", "prefill", "decode", "parse"]


@pytest.fixture(scope="module")
def traced() -> Tracer:
    """Of two decisions, one of them with two draws, and of what was timed elsewhere."""
    engine, tracer = OnnxEngine(load_bundle(SHIPPED_BUNDLE)), Tracer()
    rgb = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    decide(engine, rgb, "affordance", "pick up the red cube", max_think_tokens=4, tracer=tracer)
    options: dict[str, Any] = {"max_think_tokens": 4, "sampling": Sampling(seed=1), "tracer": tracer}
    decide_consistent(engine, rgb, "affordance", "pick up the red cube", draws=2, **options)
    for n in range(3):  # frames that are looked at one after the other overlap
        tracer.record("frame age", 100.0 + 0.03 * n, 100.1 + 0.03 * n, "camera", width_px=640)
        tracer.add("actuate", 0.002, 200.0 + 0.005 * n, "servo loop", setpoints=1)
    return tracer


def check_nesting(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[list[str]]]:
    """Complete events of each row lie within or after one another; the path of names down to each."""
    rows: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append(event)
    paths: dict[tuple[int, int], list[list[str]]] = defaultdict(list)
    for row, found in rows.items():
        inside: list[dict[str, Any]] = []
        assert [event["ts"] for event in found] == sorted(event["ts"] for event in found)
        for event in found:
            assert event["dur"] >= 0.0
            while inside and inside[-1]["ts"] + inside[-1]["dur"] <= event["ts"]:
                inside.pop()
            if inside:
                assert event["ts"] + event["dur"] <= inside[-1]["ts"] + inside[-1]["dur"] + 1e-3
            inside.append(event)
            paths[row].append([outer["name"] for outer in inside])
    return paths


def test_trace_events_nest_and_pair_up(traced: Tracer, tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", trace_events(traced.spans(), "robot", pid=7))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "b", "e"}
    (paths,) = check_nesting(events).values()  # one thread
    assert [path[1] for path in paths if len(path) == 2] == [*STAGES, *STAGES, "decode", "parse"]
    assert {tuple(path[:-1]) for path in paths if path[-1] == "pass"} == {("decision", "decode")}
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "be":
            pairs[event["cat"], event["id"]].append(event)
    assert len(pairs) == 6
    for begin, end in pairs.values():
        assert (begin["ph"], end["ph"]) == ("b", "e") and begin["name"] == end["name"] and begin["ts"] <= end["ts"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert sorted(names.values()) == ["MainThread", "camera", "servo loop"]
    assert {event["tid"] for event in events if event["ph"] != "M"} == set(names)
    preprocess = next(event for event in events if event["name"] == "preprocess")
    assert preprocess["args"] == {"width_px": 64, "height_px": 48, "bytes": 64 * 48 * 3}
    vision = next(event for event in events if event["name"] == "vision")
    assert vision["args"] == {"tokens": 48, "width_px": 224, "height_px": 168}


def test_a_trace_that_cannot_be_written_is_one_line(traced: Tracer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_trace(tmp_path / "none" / "trace.json", [])


UNESCAPED = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"')


def parse(text: str) -> tuple[dict[str, str], dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    """Prometheus' text format by its description: families by type, and samples; each family in one piece."""
    types: dict[str, str] = {}
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    family = ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in types
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family and kind in ("counter", "gauge", "summary")
            types[name] = kind
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            name = found[1]
            allowed = {family, f"{family}_sum", f"{family}_count"} if types[family] == "summary" else {family}
            assert name in allowed
            labels = frozenset(
                (label, re.sub(r'\\[n"\\]', lambda escape: UNESCAPED[escape[0]], value))
                for label, value in LABEL.findall(found[2] or "")
            )
            assert (name, labels) not in samples
            samples[name, labels] = float(found[3])
    return types, samples


def test_prometheus_text_parses_and_agrees_with_the_spans(traced: Tracer) -> None:
    types, samples = parse(prometheus_text(traced))
    assert types["vlar1_stage_seconds"] == types["vlar1_span_seconds"] == "summary"
    assert types["vlar1_stage_tokens_total"] == "counter"
    spans = traced.spans()
    for stage in (*STAGES, "actuate"):
        label, those = ("stage", stage), [span for span in spans if span.name == stage]
        durations_s = [span.duration_s for span in those]
        assert samples["vlar1_stage_seconds_count", frozenset([label])] == len(those)
        assert samples["vlar1_stage_seconds_sum", frozenset([label])] == pytest.approx(sum(durations_s))
        assert samples["vlar1_stage_longest_seconds", frozenset([label])] == pytest.approx(max(durations_s))
        quantiles = [
            samples["vlar1_stage_seconds", frozenset([label, ("quantile", q)])] for q in ("0.5", "0.9", "0.99")
        ]
        assert quantiles == pytest.approx(np.quantile(durations_s, (0.5, 0.9, 0.99)))
    tokens = sum(span.attributes["tokens"] for span in spans if span.name == "decode")
    assert samples["vlar1_stage_tokens_total", frozenset([("stage", "decode")])] == tokens > 0
    assert samples["vlar1_span_seconds_count", frozenset([("span", "frame age")])] == 3
    assert samples["vlar1_trace_spans_total", frozenset()] == len(spans)


def test_prometheus_labels_are_escaped_and_nothing_recorded_is_valid_too() -> None:
    tracer, name = Tracer(), 'back\\slash "quote"\nline'
    tracer.add(name, 0.5)
    assert parse(prometheus_text(tracer))[1]["vlar1_stage_seconds_sum", frozenset([("stage", name)])] == 0.5
    assert set(parse(prometheus_text(Tracer()))[1].values()) == {0.0}


def test_the_summary_has_every_stage_and_span(traced: Tracer) -> None:
    summary = json.loads(json.dumps(summary_json(traced)))
    assert list(summary["stages"]) == [*STAGES, "actuate"]
    assert set(summary["spans"]) == {"decision", "pass", "frame age"}
    assert summary["recorded"] == len(traced.spans()) and summary["dropped"] == 0
    decode = summary["stages"]["decode"]
    assert decode["count"] == 3 and decode["p50_ms"] <= decode["p90_ms"] <= decode["p99_ms"] <= decode["max_ms"]
    assert decode["tokens"] == sum(span.attributes["tokens"] for span in traced.spans() if span.name == "decode")
    of_decisions_ms = sum(summary["stages"][stage]["total_ms"] for stage in STAGES)
    assert 0.0 < of_decisions_ms <= summary["spans"]["decision"]["total_ms"]
