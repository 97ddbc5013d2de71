"""However a run of the chain-of-thought engine ends, the next one asks for what is missing and nothing else."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from teacher_server import (
    BOX,
    PATH,
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
    says,
    wrong,
)

from drivers.errors import UserError
from edge.contract import Affordance, Answer, Trajectory, format_answer
from training.data import cot
from training.data.sharegpt import read_items, write_items
from training.data.teacher import Endpoint


def test_refused_items_are_listed_and_tried_again(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(6)), tmp_path / "out.json"
    with TeacherServer(lambda a: wrong(a) if number(a) < 3 else right(a)) as server:
        assert cot.write_reasoning(source, out, patient(server), attempts=2) == 0
    assert len(server.asked) == 3 * 2 + 3
    assert sorted(bad(out)) == [0, 1, 2]
    assert "IoU" in bad(out)[0] and "Fréchet" in bad(out)[1] and "absent" in bad(out)[2]
    assert [item.more["id"] for item in read_items(out)[0]] == [3, 4, 5]
    with TeacherServer(right) as server:
        assert cot.write_reasoning(source, out, patient(server)) == 0
    assert sorted(number(a) for a in server.asked) == [0, 1, 2] and not bad(out)
    assert [item.more["id"] for item in read_items(out)[0]] == list(range(6))


def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(20)), tmp_path / "out.json"

    def interrupt(asked: Asked) -> Reply:
        if len(server.asked) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return right(asked)

    with TeacherServer(interrupt) as server, pytest.raises(KeyboardInterrupt):
        cot.write_reasoning(source, out, patient(server), concurrency=3)
    before = len(journal(out))
    assert 0 < before < 20 and not out.exists()
    with TeacherServer(right) as server:
        cot.write_reasoning(source, out, patient(server), concurrency=3)
    assert len(server.asked) == 20 - before
    assert len(set(journal(out))) == len(journal(out)) == len(read_items(out)[0]) == 20


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(20)), tmp_path / "out.json"
    code = (
        "import sys; from pathlib import Path; from training.data import cot; "
        "from training.data.teacher import Endpoint; "
        "cot.write_reasoning(Path(sys.argv[1]), Path(sys.argv[2]), Endpoint(sys.argv[3], 'm'), concurrency=2)"
    )
    with TeacherServer(lambda a: Reply(right(a).body, delay_s=0.05)) as server:
        run = subprocess.Popen(
            [sys.executable, "-c", code, str(source), str(out), server.url], stdout=subprocess.DEVNULL
        )
        while len(server.asked) < 8 and run.poll() is None:
            time.sleep(0.01)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    before = len(journal(out))
    assert 0 < before < 20
    with out.with_suffix(".journal.jsonl").open("a") as f:
        f.write('{"key": "cut sho')  # what a kill in the middle of a write leaves
    with TeacherServer(right) as server:
        cot.write_reasoning(source, out, patient(server))
    assert len(server.asked) == 20 - before
    assert len(set(journal(out))) == len(journal(out)) == len(read_items(out)[0]) == 20


def test_equal_items_and_a_grown_input_keep_their_answers(tmp_path: Path) -> None:
    twins, out = labels(1) * 3, tmp_path / "out.json"
    source = dataset(tmp_path, twins)
    with TeacherServer(right) as server:
        cot.write_reasoning(source, out, patient(server))
        write_items(source, [labels(2)[1], *twins])
        cot.write_reasoning(source, out, patient(server))
    assert Counter(number(a) for a in server.asked) == {0: 3, 1: 1}
    assert [item.more["id"] for item in read_items(out)[0]] == [1, 0, 0, 0]


def test_a_full_disk_is_one_line_and_keeps_what_is_written(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(9)), tmp_path / "out.json"
    long = "The cube is on the left. " * 60
    plan = lambda a: says(right(a).body and format_answer(Answer(long, right_output(a))))  # noqa: E731
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TeacherServer(plan) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # a write beyond fails as on a full disk
        try:
            with pytest.raises(UserError, match="cannot be written") as caught:
                cot.write_reasoning(source, out, patient(server), concurrency=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "3 items are safe" in str(caught.value)
        asked = len(server.asked)
        cot.write_reasoning(source, out, patient(server), concurrency=1)
        assert len(server.asked) == asked + 6 and len(read_items(out)[0]) == 9


def right_output(asked: Asked) -> Affordance | Trajectory | None:
    return (BOX, PATH, None)[number(asked) % 3]


def test_an_unwritable_folder_and_a_second_run_are_said(tmp_path: Path) -> None:
    source, out = dataset(tmp_path, labels(1)), tmp_path / "out.json"
    (tmp_path / "file").write_text("")
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m")
    with pytest.raises(UserError, match="cannot be written"):
        cot.write_reasoning(source, tmp_path / "file" / "out.json", endpoint)
    with cot.Journal(out), pytest.raises(UserError, match="another run"):
        cot.write_reasoning(source, out, endpoint)
