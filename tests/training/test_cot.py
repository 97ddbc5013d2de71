"""The chain-of-thought engine against a teacher that misbehaves: nothing lost, nothing doubled, nothing unverified."""

from __future__ import annotations

import argparse
import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from teacher_server import (
    REASONING,
    Asked,
    Reply,
    TeacherServer,
    bad,
    dataset,
    journal,
    labels,
    number,
    patient,
    right,
    wrong,
)

from drivers.errors import UserError
from edge.contract import Answer
from training.data import cot
from training.data.sharegpt import read_items
from training.data.teacher import Endpoint


def test_each_item_is_answered_once_whatever_the_server_does(tmp_path: Path) -> None:
    items, out = labels(27), tmp_path / "out.json"
    first: list[Callable[[Asked], Reply]] = [
        lambda a: Reply(right(a).body, delay_s=0.3),
        lambda a: Reply("slow down", 429, {"Retry-After": "0.2"}),
        lambda a: Reply("oops", 500),
        lambda a: Reply('{"choices": [{"mess'),
        lambda a: Reply('{"choices": []}'),
        lambda a: Reply('{"choices": [{"message": {"content": null}}]}'),
        lambda a: Reply("<html>busy</html>", headers={"Content-Type": "text/html"}),
        wrong,
        lambda a: Reply(drop=True),
    ]
    with TeacherServer(lambda a: first[number(a) // 3](a) if a.time == 1 else right(a)) as server:
        assert cot.write_reasoning(dataset(tmp_path, items), out, patient(server), concurrency=4) == 0
    written, unusable = read_items(out)
    assert not unusable and not bad(out)
    assert [item.more["id"] for item in written] == list(range(27))
    assert [item.wanted for item in written] == [Answer(REASONING, item.wanted.output) for item in items]
    assert len(journal(out)) == len(set(journal(out))) == 27
    assert Counter(number(a) for a in server.asked) == {k: 1 if k < 3 else 2 for k in range(27)}
    assert 1 < server.most_at_once <= 4
    # Nobody asks before the time that the busy server (items 3 to 5) had named.
    asked_s = {(number(a), a.time): a.at_s for a in server.asked}
    assert all(asked_s[k, 2] >= asked_s[k, 1] + 0.2 for k in (3, 4, 5))
    # An answer that cannot be used is asked for more warmly; a server that failed is asked the same again.
    warmth = {number(a): a.body["temperature"] for a in server.asked if a.time == 2}
    refused = {k for k in range(27) if k // 3 in (3, 4, 5, 6, 7)}
    assert {k for k, value in warmth.items() if value > cot.COOL} == refused


def test_the_request_is_what_a_server_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    source = dataset(tmp_path, labels(1))
    with TeacherServer(right) as server:
        cot.write_reasoning(source, tmp_path / "far" / "out.json", patient(server))
    (asked,) = server.asked
    assert asked.key == "Bearer sesame" and asked.body["model"] == "teacher"
    url = asked.body["messages"][0]["content"][0]["image_url"]["url"]
    import base64

    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == (tmp_path / "images/a.png").read_bytes()
    assert "84 x 56" in asked.text and "0.30" not in asked.text
    (item,), _ = read_items(tmp_path / "far" / "out.json")
    assert (tmp_path / "far" / item.image).resolve() == (tmp_path / "images/a.png").resolve()


def test_a_key_that_cannot_be_sent_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dataset(tmp_path, labels(1))
    for key in ("käy", "key\n"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with TeacherServer(right) as server, pytest.raises(UserError, match="OPENAI_API_KEY"):
            cot.write_reasoning(source, tmp_path / "out.json", patient(server))


def test_a_wait_of_nothing_is_a_wait_like_any_other(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(1)), tmp_path / "out.json"
    busy = Reply("slow down", 429, {"Retry-After": "0"})
    with TeacherServer(lambda a: busy if a.time == 1 else right(a)) as server:
        cot.write_reasoning(source, out, patient(server, backoff_s=0.4))
    assert server.asked[1].at_s - server.asked[0].at_s >= 0.2  # half of it is jitter


def test_a_slow_answer_is_given_up_and_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with TeacherServer(lambda a: Reply(right(a).body, delay_s=3.0 if a.time == 1 else 0.0)) as server:
        cot.write_reasoning(dataset(tmp_path, labels(2)), out, patient(server, timeout_s=1.0))
    assert len(journal(out)) == 2 and Counter(number(a) for a in server.asked) == {0: 2, 1: 2}


def test_a_body_that_ends_too_early_is_asked_for_again(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with TeacherServer(lambda a: Reply(right(a).body, cut=a.time == 1)) as server:
        cot.write_reasoning(dataset(tmp_path, labels(2)), out, patient(server))
    assert len(journal(out)) == 2 and len(server.asked) == 4


def test_the_label_is_shown_in_the_last_attempt_only(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with TeacherServer(lambda a: right(a) if a.label_shown else wrong(a)) as server:
        cot.write_reasoning(dataset(tmp_path, labels(3)), out, patient(server), attempts=3)
    assert [a.label_shown for a in sorted(server.asked, key=lambda a: (number(a), a.time))] == [False, False, True] * 3
    items, _ = read_items(out)
    assert [item.more["cot"] for item in items] == [{"model": "teacher", "attempt": 3, "label_shown": True}] * 3


def test_no_item_accepted_is_an_error(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(2)), tmp_path / "out.json"
    with TeacherServer(wrong) as server, pytest.raises(UserError, match="no item got a reasoning"):
        cot.write_reasoning(source, out, patient(server), attempts=1)
    assert sorted(bad(out)) == [0, 1] and not out.exists()


@pytest.mark.parametrize(("status", "says_what"), [(401, "OPENAI_API_KEY"), (404, "--model")])
def test_a_hopeless_endpoint_stops_the_run_at_once(tmp_path: Path, status: int, says_what: str) -> None:
    source = dataset(tmp_path, labels(20))
    with TeacherServer(lambda a: Reply('{"error": "no"}', status)) as server, pytest.raises(UserError, match=says_what):
        cot.write_reasoning(source, tmp_path / "out.json", patient(server), concurrency=3)
    assert len(server.asked) <= 3


def test_a_dead_endpoint_stops_the_run(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    endpoint = Endpoint(url, "m", tries=2, backoff_s=0.01)
    with pytest.raises(UserError, match="no answer"):
        cot.write_reasoning(dataset(tmp_path, labels(20)), tmp_path / "out.json", endpoint, concurrency=2)
    assert 0 < len(bad(tmp_path / "out.json")) < 20


def test_an_endpoint_that_talks_nonsense_stops_the_run(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(20)), tmp_path / "out.json"
    with TeacherServer(lambda a: Reply("<html>log in</html>")) as server, pytest.raises(UserError, match="not JSON"):
        cot.write_reasoning(source, out, patient(server), concurrency=1, attempts=2)
    assert len(server.asked) == 6 and sorted(bad(out)) == [0, 1, 2]


def test_a_question_the_server_refuses_costs_one_item(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    plan = lambda a: Reply('{"error": {"message": "image too large"}}', 400) if number(a) == 1 else right(a)  # noqa: E731
    with TeacherServer(plan) as server:
        cot.write_reasoning(dataset(tmp_path, labels(4)), out, patient(server))
    assert list(bad(out)) == [1] and "too large" in bad(out)[1] and len(server.asked) == 4


def test_bad_entries_and_images_are_listed_before_anything_is_asked(tmp_path: Path) -> None:
    items, out = labels(3), tmp_path / "out.json"
    source = dataset(tmp_path, items)
    entries = json.loads(source.read_text())
    entries[0]["conversations"] = []
    entries[1]["image"] = "images/none.png"
    source.write_text(json.dumps(entries))
    with TeacherServer(right) as server:
        cot.write_reasoning(source, out, patient(server))
    assert sorted(bad(out)) == [0, 1] and "none.png" in bad(out)[1]
    assert [number(a) for a in server.asked] == [2]


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cot.add_parser(parser.add_subparsers())
    args = parser.parse_args(["cot", *words])
    return int(args.func(args))


def test_the_estimate_comes_first_and_wants_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(dataset(tmp_path, labels(3))), "--out", str(tmp_path / "out.json"), "--model", "m"]
    with TeacherServer(right) as server:
        words += ["--endpoint", server.url, "--attempts", "2", "--price-in", "1000", "--price-out", "1000"]
        with pytest.raises(UserError, match="--yes"):
            command(*words)
        assert not server.asked
        said = capsys.readouterr().out
        assert "at least 3 requests" in said and "at most 6 requests" in said and "$" in said
        assert command(*words, "--yes") == 0
        assert len(server.asked) == 3
        assert command(*words) == 0  # nothing is left to ask, so nothing to confirm
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    "extra",
    [
        ["--concurrency", "0"],
        ["--attempts", "0"],
        ["--requests-per-minute", "nan"],
        ["--price-in", "1"],
        ["--price-in", "-1", "--price-out", "1"],
        ["--endpoint", "localhost:8000"],
        ["--endpoint", "http://host:port/v1"],
        ["--endpoint", "http://[::1/v1"],
        ["--endpoint", "http://a host/v1"],
        ["--out", "o.jsonl"],
        ["--out", "."],
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path, extra: list[str]) -> None:
    words = ["in.json", "--out", str(tmp_path / "o.json"), "--model", "m", "--endpoint", "http://x/v1", "--yes", *extra]
    with pytest.raises(UserError, match=extra[0]):
        command(*words)
