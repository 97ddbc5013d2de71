"""The promise of a calibration, on answers whose true error rate is known; what is written, and bad input."""

import errno
import json
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from drivers.errors import UserError
from edge import calibrate, cli
from edge.abstention import Abstention
from edge.contract import Affordance, Answer, Output, Trajectory, format_answer
from edge.decode import Decision
from edge.engine.bundle import MANIFEST, load_bundle
from training import answering, confidence
from training.confidence import FAILURE_RATE, Judged, acted_on, fit, fit_threshold, is_wrong, least_answers
from training.data.sharegpt import Item, write_items
from training.evaluate import Question, judge

BOX, PATH = Affordance(0.5, 0.5, 0.2, 0.2), Trajectory(((0.2, 0.5), (0.4, 0.5)))
ERROR_RATE = 0.1
GRID = (np.arange(20_000) + 0.5) / 20_000

# What share of the answers is wrong, by confidence, where confidences are uniform in [0, 1].
RISKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "falls with confidence": lambda s: 0.5 * (1 - s) ** 2,
    "steep": lambda s: (s < 0.6) * 0.9,
    "confidence says nothing, just too many wrong": lambda s: np.full_like(s, ERROR_RATE + 1e-6),
    "wrong where it is surest": lambda s: 0.2 * s**2 + 0.05,
    "good, bad, good, bad": lambda s: 0.02 + 0.3 * ((s * 5).astype(int) % 2),
    "just too many, then worse": lambda s: np.where(s > 0.8, ERROR_RATE + 1e-6, 0.4),
    "begins safe, then too many at once": lambda s: np.where(s > 0.75, 0.09, 0.13),
}


def drawn(
    risk: Callable[[np.ndarray], np.ndarray], n: int, levels: int, generator: np.random.Generator
) -> list[Judged]:
    """Answers with `levels` different confidences."""
    s = (np.floor(generator.random(n) * levels) + 0.5) / levels
    return [Judged(float(c), bool(w)) for c, w in zip(s, generator.random(n) < risk(s), strict=True)]


def true_risk(risk: Callable[[np.ndarray], np.ndarray], threshold: float, levels: int) -> float:
    s = GRID if levels > 1000 else (np.arange(levels) + 0.5) / levels
    return float(risk(s[s >= threshold - 1e-12]).mean())


@pytest.mark.parametrize("levels", [10**9, 10], ids=["all different", "ten levels"])
@pytest.mark.parametrize("name", RISKS)
def test_the_promise_holds_in_all_calibrations_but_the_stated_share(name: str, levels: int) -> None:
    """Each of many calibrations gives a threshold; how many of those let more than the error rate of wrong ones by."""
    generator, n_trials, risk = np.random.default_rng(5), 300, RISKS[name]
    n_broken = 0
    for _ in range(n_trials):
        threshold = fit_threshold(drawn(risk, 250, levels, generator), ERROR_RATE)
        if threshold is not None:
            n_broken += true_risk(risk, threshold.threshold, levels) > ERROR_RATE
    # So many or fewer in 99.9 % of such tests, were the share exactly the stated one.
    assert n_broken <= binom.ppf(0.999, n_trials, FAILURE_RATE)


def test_a_good_model_keeps_most_of_the_answers_that_it_may_keep() -> None:
    generator = np.random.default_rng(6)
    # The risk of the surest share q is 0.5 q^2 / 3: it may keep 77 %.
    fits = [fit_threshold(drawn(RISKS["falls with confidence"], 1000, 10**9, generator), ERROR_RATE) for _ in range(20)]
    assert 0.5 < np.mean([0 if threshold is None else threshold.kept / 1000 for threshold in fits]) < 0.78


JUDGED = st.lists(st.builds(Judged, st.integers(0, 40).map(lambda c: c / 40), st.booleans()), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), more=JUDGED, error_rate=st.floats(0.02, 0.6), levels=st.sampled_from([7, 10**9]))
def test_a_threshold_is_what_it_says(seed: int, more: list[Judged], error_rate: float, levels: int) -> None:
    generator = np.random.default_rng(seed)
    judged = more + drawn(lambda s: 0.3 * (1 - s), int(generator.integers(10, 300)), levels, generator)
    threshold = fit_threshold(judged, error_rate)
    if threshold is None:
        return
    kept = [answer for answer in judged if answer.confidence >= threshold.threshold]
    assert (threshold.answers, threshold.kept) == (len(judged), len(kept))
    assert threshold.kept_wrong == sum(answer.wrong for answer in kept)
    assert threshold.wrong == sum(answer.wrong for answer in judged)
    exact = binomtest(threshold.kept_wrong, threshold.kept, alternative="less").proportion_ci(1 - FAILURE_RATE)
    assert threshold.risk_bound == pytest.approx(exact.high, abs=1e-9)
    assert threshold.risk_bound <= error_rate + 1e-9
    assert threshold.kept > least_answers(error_rate)


@pytest.mark.parametrize("error_rate", [0.01, 0.05, 0.3])
def test_so_many_right_answers_are_just_enough(error_rate: float) -> None:
    n = least_answers(error_rate)
    assert (1 - error_rate) ** n <= FAILURE_RATE < (1 - error_rate) ** (n - 1)
    right = [Judged(k / 10_000, False) for k in range(n + 1)]
    threshold = fit_threshold(right, error_rate)
    assert threshold is not None and threshold.kept == n + 1 and threshold.threshold == 0.0
    assert fit_threshold(right[1:], error_rate) is None
    with pytest.raises(UserError, match=f"fewer than {n + 1}"):
        fit({"affordance": right[1:]}, error_rate)
    with pytest.raises(UserError, match="1000 of 1000 answers to trajectory are wrong.*nothing is written"):
        fit({"affordance": right, "trajectory": [Judged(k / 1000, True) for k in range(1000)]}, error_rate)


def said(output: Output | None) -> str:
    return format_answer(Answer("I see it.", output))


@pytest.mark.parametrize(
    ("task", "wanted", "answer", "wrong"),
    [
        ("affordance", BOX, BOX, False),
        ("affordance", BOX, Affordance(0.56, 0.5, 0.2, 0.2), False),  # overlap 0.14, union 0.26 of its heights
        ("affordance", BOX, Affordance(0.57, 0.5, 0.2, 0.2), True),  # 0.13, 0.27
        ("affordance", None, BOX, True),
        ("trajectory", PATH, PATH, False),
        ("trajectory", PATH, Trajectory(((0.2, 0.59), (0.4, 0.5))), False),
        ("trajectory", PATH, Trajectory(((0.2, 0.61), (0.4, 0.5))), True),
        ("trajectory", None, PATH, True),
    ],
)
def test_what_is_wrong(task, wanted: Output | None, answer: Output, wrong: bool) -> None:
    question = Question("s", 0, Path(), Item("a.png", task, "pick it", said(wanted)))
    result = judge(question, said(answer))
    assert is_wrong(result) == wrong
    answered = Answer("I see it.", answer)
    sure = Decision(answered, said(answer), 0, 0, 0, confidence=0.7)
    decisions = [
        sure,
        Decision(answered, said(answer), 0, 0, 0, thinking_cut="tokens"),
        Decision(answered, said(answer), 0, 0, 0, points_cut="tokens"),
    ]
    assert acted_on([result] * 3, decisions) == {task: [Judged(0.7, wrong)]}
    nothing = Decision(Answer("no", None), said(None), 0, 0, 0)
    assert acted_on([judge(question, said(None))], [nothing]) == {task: []}


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two hundred questions, told apart by their number."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((168, 224, 3), np.uint8))
    outputs = [(PATH if k % 2 else BOX) if k % 10 else None for k in range(200)]
    tasks = ["trajectory" if k % 2 else "affordance" for k in range(200)]
    items = [Item("a.png", tasks[k], f"pick up {k}", said(outputs[k])) for k in range(200)]  # type: ignore[arg-type]
    write_items(tmp_path / "scenes.json", items)
    return tmp_path / "scenes.json"


@pytest.fixture
def vlar1(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, with the entry points of these rooms alone."""
    group = EntryPoint("calibrate", "edge.calibrate:register", cli.GROUP)
    own = EntryPoint("confidence", "training.confidence_command:register", calibrate.GROUP)
    monkeypatch.setattr(cli, "commands", lambda: {"calibrate": group})
    monkeypatch.setattr(calibrate, "entry_points", lambda group: [own] if group == calibrate.GROUP else [])
    return lambda *argv: cli.main(["calibrate", "confidence", *map(str, argv)])


def scripted(engine: object, rgb: object, task: str, instruction: str, **kwargs: object) -> Decision:
    """Sees a box or a path in everything: right where it is there, and the less sure where it is not."""
    k = int(instruction.split()[-1])
    sure = 0.3 + k / 1000 if k % 10 == 0 else 0.6 + k / 1000
    output = PATH if task == "trajectory" else BOX
    return Decision(Answer("I see it.", output), said(output), 0, 0, 0, confidence=sure)


def test_thresholds_come_back_from_the_bundle_and_nothing_else_changes(
    vlar1, bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answering, "decide", scripted)
    before = json.loads((bundle / MANIFEST).read_text())
    assert load_bundle(bundle).abstention == Abstention()
    for error_rate in ("0.1", "0.05"):
        assert vlar1("--bundle", bundle, "--data", data, "--error-rate", error_rate) == 0
    shown = capsys.readouterr().out
    assert "80 (80.0%)" in shown and "affordance" in shown and "trajectory" in shown
    after = json.loads((bundle / MANIFEST).read_text())
    written = after.pop("confidence")
    assert after == before
    assert written["error_rate"] == 0.05 and written["failure_rate"] == FAILURE_RATE
    assert [entry["name"] for entry in written["data"]] == ["scenes.json"]
    abstention = load_bundle(bundle).abstention
    assert abstention.error_rate == 0.05 and set(abstention.least) == {"affordance", "trajectory"}
    assert written["tasks"]["affordance"]["answers"] == 100
    least = abstention.least["affordance"]
    assert abstention.unsure("affordance", least) is None and "not sure" in str(
        abstention.unsure("affordance", np.nextafter(least, 0))
    )
    assert not list(bundle.glob("*.partial"))
    assert cv2.imread(str(bundle / "confidence.png")) is not None


def test_a_model_that_cannot_keep_the_promise_changes_nothing(
    vlar1, bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answering, "decide", scripted)
    manifest, names = (bundle / MANIFEST).read_bytes(), sorted(path.name for path in bundle.iterdir())
    assert vlar1("--bundle", bundle, "--data", data, "--error-rate", "0.02") == 2
    assert "at least" not in (error := capsys.readouterr().err) and "fewer than 150" in error
    monkeypatch.setattr(confidence, "is_wrong", lambda result: True)
    assert vlar1("--bundle", bundle, "--data", data) == 2
    error = capsys.readouterr().err
    assert "100 of 100 answers to affordance are wrong" in error and error.count("\n") == 1
    assert (bundle / MANIFEST).read_bytes() == manifest
    assert sorted(path.name for path in bundle.iterdir()) == names


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--error-rate": "0"}, "--error-rate 0: expected 0.0001 or more"),
        ({"--error-rate": "1e-320"}, "expected 0.0001 or more"),
        ({"--error-rate": "1"}, "--error-rate 1: expected 0.0001 or more and less than 1"),
        ({"--error-rate": "nan"}, "--error-rate nan: expected"),
        ({"--count": "0"}, "--count 0: expected at least 1"),
        ({"--data": "{tmp}/none.json"}, "none.json"),
        ({"--data": "{tmp}/other.json"}, "no usable item"),
        ({"--data": "{tmp}/unlabelled.json"}, "no usable item"),
        ({"--bundle": "{tmp}/none"}, "no such folder"),
        ({"--count": "30"}, "15 questions about affordance;"),
    ],
)
def test_bad_input_is_one_line(
    vlar1, bundle, data, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str], changes, says: str
) -> None:
    monkeypatch.setattr(answering, "decide", scripted)
    (tmp_path / "other.json").write_text(json.dumps([{"images": [], "annotations": []}]))
    asked = [{"from": "human", "value": "pick it up"}]
    (tmp_path / "unlabelled.json").write_text(json.dumps([{"image": "a.png", "conversations": asked}]))
    manifest = (bundle / MANIFEST).read_bytes()
    options = {"--bundle": str(bundle), "--data": str(data)}
    options |= {name: value.format(tmp=tmp_path) for name, value in changes.items()}
    assert vlar1(*(part for option in options.items() for part in option)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert (bundle / MANIFEST).read_bytes() == manifest


def test_too_few_questions_are_noticed_before_any_is_asked(
    vlar1, bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answering, "decide", lambda *args, **kwargs: pytest.fail("was asked"))
    assert vlar1("--bundle", bundle, "--data", data, "--error-rate", "0.02") == 2
    assert "100 questions about affordance; an error rate of 0.02 is not shown by fewer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["confidence.png", MANIFEST])
def test_a_disk_that_fails_leaves_the_bundle_as_it_was(
    vlar1, bundle, data, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == f"{name}.partial":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(answering, "decide", scripted)
    monkeypatch.setattr(confidence.os, "fsync", fsync)
    manifest = (bundle / MANIFEST).read_bytes()
    assert vlar1("--bundle", bundle, "--data", data) == 2
    assert f"{bundle / name}: cannot be written (Disk quota exceeded)" in capsys.readouterr().err
    assert (bundle / MANIFEST).read_bytes() == manifest and not list(bundle.glob("*.partial"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"score": "another"}, "field confidence.score is 'another'"),
        ({"error_rate": True}, "field confidence.error_rate is True"),
        ({"tasks": []}, "field confidence is not an object with tasks"),
        ({"tasks": {"poem": {"threshold": 0.5}}}, "field confidence.tasks.poem"),
        ({"tasks": {"affordance": {"threshold": 1.5}}}, "field confidence.tasks.affordance"),
        ({"tasks": {"affordance": 0.5}}, "field confidence.tasks.affordance"),
        ("none", "field confidence is not an object with tasks"),
    ],
)
def test_a_damaged_calibration_is_refused(bundle: Path, damage: object, says: str) -> None:
    confidence.write_thresholds(bundle, {}, 0.05, [], None)
    assert load_bundle(bundle).abstention == Abstention({}, 0.05)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["confidence"] = manifest["confidence"] | damage if isinstance(damage, dict) else damage
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=says) as raised:
        load_bundle(bundle)
    assert "vlar1 calibrate confidence" in str(raised.value)
