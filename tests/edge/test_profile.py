"""`vlar1 profile` on the shipped bundle: what it measures adds up, and its exit code says what a caller has to know."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge.profile.run
import edge.profile.show
from drivers.errors import UserError
from edge.profile import command
from edge.profile.compare import compare, differences, read_report
from edge.profile.picture import draw_profile
from edge.profile.run import Report
from edge.shipped import SHIPPED_BUNDLE
from edge.trace_export import Event

STAGES = ["preprocess", "vision", "prefill", "decode", "parse", "rest"]
RUNS = 8
BYTES_PER_S = 1e9


def profile(*argv: object) -> int:
    """The command's exit code."""
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["profile", *map(str, argv)])
    return int(args.func(args))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, list[Event], np.ndarray, str]:
    """Report, trace, picture and what was printed, of one run of the command."""
    folder = tmp_path_factory.mktemp("profile")
    files = [folder / name for name in ("report.json", "trace.json", "bars.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge.profile.run, "read_bandwidth", lambda threads: BYTES_PER_S)
        patch.setenv("COLUMNS", "120")
        with (folder / "out").open("w") as out:
            patch.setattr(sys, "stdout", out)
            code = profile("--runs", RUNS, "--json", files[0], "--trace", files[1], "--picture", files[2])
    assert code == 0
    report, trace = (json.loads(file.read_text()) for file in files[:2])
    return report, trace["traceEvents"], cv2.imread(str(files[2])), (folder / "out").read_text()


@pytest.fixture
def report(measured: tuple[Report, list[Event], np.ndarray, str]) -> Report:
    return copy.deepcopy(measured[0])


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch, report: Report) -> Report:
    """What the command "measures" from now on; to be changed."""
    monkeypatch.setattr(edge.profile.show, "profile", lambda *_: {**copy.deepcopy(report), "events": [], "dropped": 0})
    return report


def test_stages_add_up_to_the_decisions(report: Report) -> None:
    assert list(report["runs_ms"]) == [*STAGES, "decision"]
    rows = np.array([report["runs_ms"][stage] for stage in STAGES])
    assert rows.shape == (len(STAGES), RUNS) and (rows >= 0.0).all()
    np.testing.assert_allclose(rows.sum(axis=0), report["runs_ms"]["decision"])
    first = report["first_decision_ms"]
    assert sum(first[stage] for stage in STAGES) == pytest.approx(first["decision"])


def test_the_cold_start_is_of_a_fresh_process_and_in_its_order(report: Report) -> None:
    cold = report["cold_start_ms"]
    assert list(cold) == ["interpreter", "import", "bundle", "graphs", "grammars", "first decision"]
    assert all(ms > 0.0 for ms in cold.values())
    assert cold["first decision"] >= report["first_decision_ms"]["decision"]


def test_the_floor_is_the_weights_over_the_memorys_speed(report: Report) -> None:
    size = {path.name: path.stat().st_size for path in SHIPPED_BUNDLE.iterdir()}
    step, passes = size["language.onnx"] + size["head.onnx"], report["tokens"]["passes"]
    assert report["step_bytes"] == step and passes > 1
    expected = {"vision": size["vision-224x168.onnx"], "prefill": step, "decode": passes * step}
    assert report["floor"]["bytes"] == expected
    assert report["floor"]["ms"] == pytest.approx({name: n / BYTES_PER_S * 1e3 for name, n in expected.items()})
    for stage, times in report["floor"]["times"].items():
        assert times * report["floor"]["ms"][stage] == pytest.approx(np.median(report["runs_ms"][stage]))


def test_an_answer_that_finds_nothing_is_said(again: Report, capsys: pytest.CaptureFixture[str]) -> None:
    assert again["found"]  # what is asked for lies on the simulated table
    again["found"] = False
    assert profile() == 0
    assert '" is "not found", shorter than others' in capsys.readouterr().out


def test_tokens_and_memory_are_those_of_the_bundle(report: Report) -> None:
    tokens = report["tokens"]
    assert tokens["image"] == 48 < tokens["prefilled"] < tokens["prompt"]
    assert tokens["answer"] > tokens["thinking"] > 0 and tokens["answer"] > tokens["forced"] > 0
    assert report["tokens_per_s"]["decode"] == pytest.approx(
        tokens["answer"] / np.median(report["runs_ms"]["decode"]) * 1e3
    )
    assert report["peak_bytes"] > 8e6  # its graphs alone
    energy = report["energy"]
    assert energy.get("missing") or energy["joules_per_decision"] > 0.0  # never a zero


def test_the_trace_holds_the_cold_start_and_every_decision(
    measured: tuple[Report, list[Event], np.ndarray, str],
) -> None:
    report, events = measured[:2]
    decisions = [event for event in events if event["name"] == "decision"]
    assert len(decisions) == RUNS + 1
    assert [event["dur"] / 1e3 for event in decisions[1:]] == pytest.approx(report["runs_ms"]["decision"])
    assert sum(event["name"] == "pass" for event in events) == pytest.approx(
        (RUNS + 1) * report["tokens"]["passes"], abs=RUNS
    )
    begins = [event["name"] for event in events if event["ph"] == "b"]
    assert begins == list(report["cold_start_ms"])


def test_what_is_printed_and_drawn(measured: tuple[Report, list[Event], np.ndarray, str]) -> None:
    report, _, picture, said = measured
    for stage in (*STAGES, "decision"):
        row = next(line.split() for line in said.splitlines() if line.split()[:1] == [stage])
        assert row[1] == str(RUNS) and float(row[2]) == pytest.approx(np.median(report["runs_ms"][stage]), abs=0.005)
    for word in ("cold start", "prefill", "decode", "floor", "GB/s", "peak memory", "energy"):
        assert word in said
    assert "these weights fit the processor's cache" in said or report["floor"]["cache_bytes"] is None
    assert picture.shape[1] == 1200
    decode_px = (picture[:, :, ::-1] == (214, 84, 56)).all(axis=2)
    assert decode_px.any()
    slow = copy.deepcopy(report)
    slow["runs_ms"]["decode"] = [10 * ms for ms in report["runs_ms"]["decode"]]
    longer = (draw_profile(slow, report, budget_ms=1.0) == (214, 84, 56)).all(axis=2)
    assert longer.sum() > decode_px.sum()


def test_against_itself_is_no_regression_and_a_slower_stage_is_one(
    again: Report, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(report))
    assert profile("--runs", RUNS, "--against", old) == 0
    assert "slower" not in capsys.readouterr().out
    slowed(again, "decode", 2.0)
    assert profile("--runs", RUNS, "--against", old, "--json", tmp_path / "new.json") == 1
    said = capsys.readouterr().out
    assert {line.split()[0] for line in said.splitlines() if line.endswith("slower ") or "slower" in line.split()} == {
        "decode",
        "decision",
    }
    assert json.loads((tmp_path / "new.json").read_text())["against"]["slower"] == ["decode", "decision"]
    old.write_text(json.dumps(again))
    slowed(again, "decode", 0.5)
    assert profile("--runs", RUNS, "--against", old) == 0
    assert "faster" in capsys.readouterr().out


def slowed(report: Report, stage: str, times: float) -> None:
    runs_ms = report["runs_ms"]
    for run, ms in enumerate(runs_ms[stage]):
        runs_ms["decision"][run] += (times - 1.0) * ms
        runs_ms[stage][run] = times * ms


def synthetic(seed: int, decode: float = 1.0, spread: float = 0.15, runs: int = 20) -> Report:
    """A report of runs that vary, now and then by a lot."""
    rng = np.random.default_rng(seed)
    means = {"preprocess": 3.0, "vision": 20.0, "prefill": 15.0, "decode": 60.0 * decode, "parse": 0.1, "rest": 1.0}
    runs_ms = {
        name: mean * rng.lognormal(0.0, spread, runs) * (1.0 + (rng.random(runs) < 0.05))
        for name, mean in means.items()
    }
    runs_ms["decision"] = np.sum(list(runs_ms.values()), axis=0)
    return {"schema": 1, "runs_ms": {name: values.tolist() for name, values in runs_ms.items()}}


def test_noise_is_hardly_ever_a_regression_and_half_slower_nearly_always_is() -> None:
    pairs = range(60)
    alarms = [any(c.slower for c in compare(synthetic(n), synthetic(1000 + n))) for n in pairs]
    assert sum(alarms) <= 2  # 1 % was asked for
    found = [{c.stage for c in compare(synthetic(n), synthetic(1000 + n, decode=1.5)) if c.slower} for n in pairs]
    assert sum("decode" in slower for slower in found) >= 57
    assert sum(bool(slower - {"decode", "decision"}) for slower in found) <= 2


def test_a_sure_but_small_change_is_no_regression() -> None:
    before, now = synthetic(1, spread=0.001, runs=200), synthetic(1, spread=0.001, runs=200)
    slowed(now, "decode", 1.04)
    slowed(now, "parse", 3.0)  # of a tenth of a millisecond
    changes = {change.stage: change for change in compare(before, now)}
    assert changes["parse"].p_value < 1e-9 and changes["decode"].p_value < 1e-3
    assert not any(change.slower for change in changes.values())
    slowed(now, "decode", 1.10)
    assert {c.stage for c in compare(before, now) if c.slower} == {"decode", "decision"}


def test_what_else_differs_is_said(report: Report) -> None:
    assert differences(report, report) == []
    other = copy.deepcopy(report)
    other["machine"]["cpu"], other["bundle"]["quantization"], other["image_px"] = "Z80", "int4", [1, 2]
    other["floor"]["bytes_per_s"] = [5e8, 5e8]
    assert [line.split(":")[0] for line in differences(report, other)] == [
        "another machine",
        "another bundle",
        "another image_px",
        "the machine's memory gave 1.0 GB/s then and 0.5 GB/s now",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "no report of this version"),
        ('{"schema": 1, "runs_ms": {}}', "field runs_ms lacks decision"),
        ('{"schema": 1, "runs_ms": {"decision": [1, "2"]}}', "runs_ms.decision is not a list of milliseconds"),
        ('{"schema": 1, "runs_ms": {"decision": [1, 2]}}', "has 2 runs, too few"),
    ],
)
def test_a_report_that_cannot_be_compared_with_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_report(tmp_path / "old.json")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--runs", "0"), "--runs 0: expected 1 or more"),
        (("--runs", "5", "--against", "x"), "--runs 5: too few"),
        (("--budget", "soon"), "--budget soon: expected a time such as 500ms"),
        (("--budget", "0ms"), "--budget 0ms"),
        (("--against", "none.json"), "--against none.json: no such file"),
        (("--json", "none/x.json"), "--json none/x.json: cannot be written"),
        (("--image", "none.png"), "--image none.png: no such file"),
        (("--robot", "none.yaml"), "none.yaml"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_measured(
    argv: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(edge.profile.show, "profile", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError) as caught:
        profile(*argv)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_bundle_that_cannot_be_used_is_the_measured_processs_own_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(edge.profile.run, "read_bandwidth", lambda threads: BYTES_PER_S)
    with pytest.raises(UserError) as caught:
        profile("--bundle", tmp_path)
    assert str(caught.value) == (
        f"bundle {tmp_path}/manifest.json: is missing; this folder is no bundle, or its export did not finish"
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [("kill -ILL $$", "ended by SIGILL: it said nothing"), ("echo no >&2; exit 3", "ended by code 3: no")],
)
def test_a_measured_process_that_dies_is_said(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(edge.profile.run, "read_bandwidth", lambda threads: BYTES_PER_S)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=said):
        profile()


def test_the_parser_is_light() -> None:
    code = "import sys, edge.profile.command; print(*[n for n in ('numpy', 'onnxruntime', 'cv2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_default_picture_is_the_same_every_time() -> None:
    (one, asked), (two, same) = edge.profile.show.table_picture(), edge.profile.show.table_picture()
    assert one.shape == (480, 640, 3) and (one == two).all() and np.ptp(one) > 100
    assert asked == same and asked


def test_budgets(again: Report, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    again["runs_ms"] = {"vision": [20.0] * 8, "prefill": [30.0] * 8, "decode": [49.0] * 7 + [80.0], "rest": [1.0] * 8}
    again["runs_ms"]["decision"] = [100.0] * 7 + [131.0]
    again["tokens"] |= {"answer": 40.0, "thinking": 30, "image": 48, "prefilled": 60}
    assert profile("--budget", "0.131s") == 0
    assert "budget of 131 ms kept" in capsys.readouterr().out
    assert profile("--budget", "121ms", "--json", tmp_path / "b.json") == 1
    assert json.loads((tmp_path / "b.json").read_text())["budget"] == {"ms": 121.0, "kept": False}
    said = capsys.readouterr().out
    assert "99 of 100 decisions take at most 131.0 ms, 10.0 too many" in said
    assert "it runs out in decode, which takes 80.0 ms (61%)" in said
    assert "30 of 40 tokens are reasoning, 2.00 ms each; --max-think-tokens 25 would do" in said
    # Vision's 20 ms and 48 of 60 tokens of prefill's 30: 44 ms for 224x168; 196x140 have 73 % of its pixels.
    assert "224x168 px cost about 44.0 ms" in said and "--image-size 196x140` would take about 11.9 ms less" in said
    assert "quantization: a step reads 4 MB of int8" in said
    assert profile("--budget", "15ms") == 1
    said = capsys.readouterr().out
    assert "it runs out in vision" in said and "most of it goes into decode: 80.0 ms" in said
    assert "--max-think-tokens 0) it would take about 60.0 ms less, not enough alone" in said
    assert "--image-size 112x84` would take about 33.0 ms less, which is not enough alone" in said


def test_what_would_not_help_is_not_advised(again: Report, capsys: pytest.CaptureFixture[str]) -> None:
    again["bundle"]["quantization"] = "int4"
    again["runs_ms"] = {"preprocess": [90.0] * 8, "vision": [1.0] * 8, "prefill": [1.0] * 8, "decode": [1.0] * 8}
    again["runs_ms"] |= {"rest": [0.0] * 8, "decision": [93.0] * 8}
    assert profile("--budget", "50ms") == 1
    said = capsys.readouterr().out
    assert "it runs out in preprocess" in said and "faster machine" in said
    for word in ("thinking budget", "image size", "quantization"):
        assert word not in said


def test_large_weights_are_not_said_to_fit_a_cache(again: Report, capsys: pytest.CaptureFixture[str]) -> None:
    again["step_bytes"], again["floor"]["cache_bytes"] = 3_200_000_000, 32_000_000
    again["bundle"]["quantization"] = "fp16"
    assert profile("--budget", "1ms") == 1
    said = capsys.readouterr().out
    assert "these weights fit" not in said
    assert "a step reads 3200 MB of fp16; `vlar1 export --quant int4` makes it about 800 MB" in said


def test_missing_figures_are_not_zero(again: Report, capsys: pytest.CaptureFixture[str]) -> None:
    again["peak_bytes"], again["energy"] = None, {"missing": "no meter"}
    assert profile() == 0
    said = capsys.readouterr().out
    assert "peak memory not available" in said and "energy not available: no meter" in said
    again["energy"] = {"joules_per_decision": 1.2345, "source": "RAPL package-0"}
    assert profile() == 0
    assert "energy 1.23 J a decision (RAPL package-0" in capsys.readouterr().out
