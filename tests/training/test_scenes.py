"""Scenes on disk: what each split promises, an interrupted run that goes on, answers that hold to the labels."""

import fcntl
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import UserError
from drivers.sim.scene import COLOURS, CONTAINERS, OBJECTS
from edge.contract import Affordance, Trajectory
from training.data import scenes
from training.data.answers import POINTS, affordance_answer, draw_question
from training.data.labels import NOTHING, Seen, seen_from_json
from training.data.scenes import make_scenes
from training.data.sharegpt import load_image, read_items
from training.data.splits import HELD_OUT_PAIRS, SPLITS, draw_view
from training.data.words import NEW_PICK, NEW_PLACE, NO_COLOURS, NO_SHAPES, PICK, PLACE
from training.small.images import load_dataset, tokens_of

seeds = st.integers(0, 2**31)


@st.composite
def images(draw) -> tuple[Seen, ...]:
    """What a picture may show: names unique, at least one object and one container."""
    part = st.floats(0.1, 0.9)
    boxes = st.tuples(part, part, st.floats(0.05, 0.3), st.floats(0.05, 0.3))
    objects = st.tuples(st.sampled_from(list(COLOURS)), st.sampled_from(OBJECTS))
    containers = st.tuples(st.sampled_from(list(COLOURS)), st.sampled_from(CONTAINERS))
    pairs = draw(st.lists(objects, min_size=1, max_size=5, unique=True))
    pairs += draw(st.lists(containers, min_size=1, max_size=2, unique=True))
    return tuple(Seen(c, s, draw(boxes)) for c, s in pairs)


@pytest.mark.parametrize("name", SPLITS)
def test_each_split_holds_what_it_promises(name: str) -> None:
    split = SPLITS[name]
    for seed in range(12):
        scene, camera = draw_view(np.random.default_rng(seed), split)
        held_out = [i for i in scene.items if (i.colour, i.shape) in HELD_OUT_PAIRS]
        assert bool(held_out) == split.new_pairs
        objects = [i for i in scene.items if not i.is_container]
        assert (8 <= len(objects) <= 12) if split.clutter else (2 <= len(objects) <= 4)
        away = np.hypot(scene.look.camera_m[0] - 0.50, scene.look.camera_m[1])
        assert (away > 0.05) == split.new_camera
        assert split.new_camera or camera.fx == 800.0


def test_no_two_splits_draw_the_same_scenes_and_every_part_of_a_held_out_name_is_trained_on() -> None:
    assert len({split.number for split in SPLITS.values()}) == len(SPLITS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(OBJECTS)
    assert len({colour for colour, _ in HELD_OUT_PAIRS}) == len(HELD_OUT_PAIRS)
    assert not {*NEW_PICK, *NEW_PLACE} & {*PICK, *PLACE}


@given(seeds, images())
@settings(max_examples=80, deadline=None)
def test_answers_say_what_the_image_shows(seed: int, seen: tuple[Seen, ...]) -> None:
    question = draw_question(np.random.default_rng(seed), seen, SPLITS["in-domain"])
    output = question.answer.output
    named = [s for s in seen if s.name in question.instruction]
    for s in seen:
        shape, colour = (f"{w}*" if re.search(rf"\b{w}\b", question.instruction) else w for w in (s.shape, s.colour))
        assert f"{shape}, {colour} [" in question.answer.reasoning
    if isinstance(output, Affordance):
        assert question.task == "affordance"
        (target,) = [s for s in named if not s.is_container]
        np.testing.assert_allclose((output.x, output.y, output.width, output.height), target.box, atol=0.005)
    else:
        assert isinstance(output, Trajectory) and question.task == "trajectory" and len(output.points) == POINTS
        start, end = sorted(named, key=lambda s: s.is_container)
        np.testing.assert_allclose(output.points[0], start.box[:2], atol=0.0051)
        np.testing.assert_allclose(output.points[-1], end.box[:2], atol=0.0051)


@given(seeds, images(), st.booleans())
@settings(max_examples=160, deadline=None)
def test_what_is_absent_is_named_in_the_question_and_nowhere_in_the_image(
    seed: int, seen: tuple[Seen, ...], unknown: bool
) -> None:
    split = replace(SPLITS["absent"], unknown=float(unknown))
    question = draw_question(np.random.default_rng(seed), seen, split)
    (name,) = re.findall(r"\[none\], the (\w+ \w+)", question.answer.reasoning)
    assert question.answer.output is None and name in question.instruction
    assert name not in {s.name for s in seen} and tuple(name.split()) not in HELD_OUT_PAIRS
    colour, shape = name.split()
    assert unknown == (colour in NO_COLOURS or shape in NO_SHAPES)


def test_an_interrupted_run_keeps_what_it_has_and_ends_the_same(tmp_path: Path) -> None:
    split = SPLITS["new-pairs"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert list(make_scenes(whole, split, 4, workers=1)) == [4]
    assert list(make_scenes(cut, split, 2, workers=1)) == [2]
    (part,) = (cut / "parts").rglob("*.jsonl")
    part.write_bytes(part.read_bytes()[:-1])  # a process killed while it wrote
    before = {p: p.stat().st_mtime_ns for p in (cut / "images").rglob("*000000.png")}
    assert list(make_scenes(cut, split, 4, workers=1)) == [4]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    for path in [p for p in whole.rglob("*") if p.is_file()]:
        assert (cut / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
    items, bad = read_items(cut / "new-pairs.json")
    assert len(items) == 4 and not bad
    for item in items:
        seen = seen_from_json(item.more["seen"])
        assert any(" ".join(pair) in item.instruction for pair in HELD_OUT_PAIRS)
        mask = cv2.imread(str(cut / item.more["mask"]), cv2.IMREAD_GRAYSCALE)
        assert load_image(cut, item).shape == (168, 224, 3) and set(np.unique(mask)) <= {*range(len(seen)), NOTHING}
        for k, s in enumerate(seen):  # the box is that of the mask
            v, u = np.nonzero(mask == k)
            assert (u.min() / 224, (u.max() + 1) / 224) == pytest.approx(
                (s.box[0] - s.box[2] / 2, s.box[0] + s.box[2] / 2), abs=2e-4
            )


def test_a_part_cut_at_any_byte_keeps_its_whole_lines_and_can_go_on(tmp_path: Path) -> None:
    list(make_scenes(tmp_path, SPLITS["train"], 2, workers=1))
    (part,) = (tmp_path / "parts").rglob("*.jsonl")
    whole = part.read_bytes()
    ends = [n for n, byte in enumerate(whole) if byte == ord("\n")]
    for n in {*range(0, len(whole), 41), *ends, *(n + 1 for n in ends)}:
        part.write_bytes(whole[:n])
        kept = whole[:n].count(b"\n")
        assert len(scenes._noted(tmp_path, "train", 0)) == kept
        assert part.read_bytes() == b"".join(whole.splitlines(keepends=True)[:kept])


def _rendering(folder: Path) -> bool:
    return any(part.stat().st_size for part in folder.rglob("*.jsonl"))


def test_ctrl_c_leaves_no_traceback_and_no_process(tmp_path: Path) -> None:
    code = "import sys; from edge.cli import main; sys.exit(main())"
    words = ["data", "sim", "--out", str(tmp_path), "--split", "train", "--count", "100000"]
    run = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not _rendering(tmp_path) and run.poll() is None:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    printed, _ = run.communicate(timeout=60)  # their end closes the pipe
    assert run.returncode == 130 and "Traceback" not in printed and "KeyboardInterrupt" not in printed


def test_a_worker_that_is_killed_ends_the_run_in_one_line(tmp_path: Path) -> None:
    def kill() -> None:
        while not _rendering(tmp_path):
            time.sleep(0.05)
        os.kill(int(multiprocessing.active_children()[0].pid or 0), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="was killed"):
        list(make_scenes(tmp_path, SPLITS["train"], 100_000, workers=2))
    killer.join()
    assert not multiprocessing.active_children()


def test_two_runs_do_not_write_the_same_parts(tmp_path: Path) -> None:
    folder = tmp_path / "parts" / "train"
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another run"):
        list(make_scenes(tmp_path, SPLITS["train"], 1, workers=1))
    os.close(handle)


def test_the_box_of_a_sliver_is_still_a_box() -> None:
    sliver = Seen("red", "tray", (0.5, 0.5, 1 / 224, 0.2))
    output = affordance_answer((sliver,), sliver, ()).output
    assert isinstance(output, Affordance) and output.width == 0.01 and output.height == 0.2


def test_a_token_belongs_to_what_covers_most_of_it() -> None:
    mask = np.full((168, 224), NOTHING, np.uint8)
    mask[:28, :28], mask[:28, 28:40], mask[140:, 200:205] = 1, 0, 0
    tokens = tokens_of(mask, 2)
    assert tokens[0, 0] == 1 and tokens[0, 1] == 0 and tokens[5, 7] == 0
    assert (tokens >= 0).sum() == 3


def test_what_cannot_be_written_or_read_is_said_in_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        list(make_scenes(blocked, SPLITS["train"], 1, workers=1))
    with pytest.raises(UserError, match="cannot be read"):
        load_dataset(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(UserError, match="vlar1 data sim"):
        load_dataset(tmp_path / "empty.json")
    list(make_scenes(tmp_path / "d", SPLITS["in-domain"], 1, workers=1))
    file = tmp_path / "d" / "in-domain.json"
    entries = json.loads(file.read_text())
    del entries[0]["seen"]
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="item 0 lacks mask or seen"):
        load_dataset(file)
    (tmp_path / "d" / entries[0]["image"]).write_bytes(b"no image")
    with pytest.raises(UserError, match="is not an image"):
        load_dataset(file)
