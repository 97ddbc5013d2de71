"""Chain-of-thought answers for labelled scenes: what is seen, the target, what is near it, why this grasp or path."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from drivers.sim.scene import COLOURS, CONTAINERS, OBJECTS
from edge.contract import Affordance, Answer, Task, Trajectory
from training.data.labels import Box, Seen
from training.data.splits import HELD_OUT_PAIRS, Split
from training.data.words import ask, unknown_name

POINTS = 5
IN_THE_WAY = 0.07  # image widths: an item whose centre is nearer to a path than this lies under it


@dataclass(frozen=True)
class Question:
    """What is asked of an image and the answer wanted."""

    task: Task
    instruction: str
    answer: Answer


def with_box(seen: Seen) -> str:
    """An item's name and its box, as base training has them."""
    return f"{seen.name} {box_text(seen.box)}"


def without_box(name: str) -> str:
    """A thing that is not there, named like one that is, with nothing where its box would be."""
    return f"{name} [none]"


def listing(seen: tuple[Seen, ...], named: Collection[str] = ()) -> str:
    """Everything in the image with its box, from left to right, each word with a star that the instruction names things
    by: where it names a red ball, "ball*, blue [0.41, 0.52, 0.10, 0.13]; cube, red* [0.62, 0.31, 0.11, 0.16]".

    The shape is said before the colour. Shapes are harder to tell apart, and a model that has just said "red" leans on
    which shapes were red in training: of 35 red cylinders, never shown to it before, it listed 32 as red cubes.

    The stars help a small model notice that a thing is not there: nothing has two. Without them, one trained from
    nothing still went on, after 880 steps, from a name to a box with the same probability whatever the image showed.
    """
    words = {word for name in named for word in name.split()}

    def starred(word: str) -> str:
        return f"{word}*" if word in words else word

    in_order = sorted(seen, key=lambda s: s.box[0])
    return "; ".join(f"{starred(s.shape)}, {starred(s.colour)} {box_text(s.box)}" for s in in_order)


def _pointed_at(seen: Seen) -> str:
    """An item the instruction named, its box first.

    The stars show which one it is, so the box hangs on no name. Where the name came first, a small model that had never
    written "red cylinder" had listed it rightly and named another thing in four of ten answers.
    """
    return f"{box_text(seen.box)}, the {seen.name}, {_place_name(seen.box)}"


def box_text(box: Box) -> str:
    """A box as reasoning has it."""
    return "[" + ", ".join(f"{v:.2f}" for v in box) + "]"


def affordance_answer(seen: tuple[Seen, ...], target: Seen, named: Collection[str]) -> Answer:
    """Where to grasp ``target``, where the instruction has these names."""
    near = _nearest(seen, target)
    beside = f" near the {near.name}" if near else ""
    reasoning = (
        f"I see {listing(seen, named)}. The target is {_pointed_at(target)}{beside}. "
        "I grasp it from above, across its narrow side."
    )
    x, y, width, height = (round(v, 2) for v in target.box)
    return Answer(reasoning, Affordance(x, y, max(width, 0.01), max(height, 0.01)))  # of a sliver: an empty box is none


def trajectory_answer(seen: tuple[Seen, ...], target: Seen, container: Seen) -> Answer:
    """From ``target`` to ``container``, evenly spaced."""
    under = _in_the_way(seen, target, container)
    why = f"straight, high above the {under.name} between them" if under else "straight, for nothing lies between them"
    reasoning = (
        f"I see {listing(seen, (target.name, container.name))}. "
        f"It goes from {_pointed_at(target)}, to {_pointed_at(container)}. I carry it {why}."
    )
    start, end = np.array(target.box[:2]), np.array(container.box[:2])
    points = [start + (end - start) * k / (POINTS - 1) for k in range(POINTS)]
    return Answer(reasoning, Trajectory(tuple((round(float(p[0]), 2), round(float(p[1]), 2)) for p in points)))


def absent_answer(
    task: Task, seen: tuple[Seen, ...], name: str, named: Collection[str], target: Seen | None = None
) -> Answer:
    """``name`` is not there: what was to be grasped or moved, or where ``target`` was to go."""
    missing = f"[none], the {name}"
    if task == "affordance":
        said = f"The target is {missing}."
    elif target is None:
        said = f"It goes from {missing}."
    else:
        said = f"It goes from {_pointed_at(target)}, to {missing}."
    return Answer(f"I see {listing(seen, named)}. {said}", None)


def draw_question(rng: np.random.Generator, seen: tuple[Seen, ...], split: Split) -> Question:
    """A pick, or a place asked for its grasp or its path, as ``split`` asks; some about things that are not there."""
    targets = [s.name for s in seen if not s.is_container and (not split.new_pairs or s.pair in HELD_OUT_PAIRS)]
    containers = [s.name for s in seen if s.is_container]
    target, container = str(rng.choice(targets)), str(rng.choice(containers))
    place = rng.random() >= 0.3
    task: Task = "trajectory" if place and rng.random() >= 0.45 else "affordance"
    by_name = {s.name: s for s in seen}
    missing = rng.random() < split.absent
    nowhere = missing and task == "trajectory" and rng.random() < 0.5
    present = by_name[target]
    if nowhere:
        container = _missing_name(rng, seen, CONTAINERS, split)
    elif missing:
        target = _missing_name(rng, seen, OBJECTS, split)
    named = (target, container) if place else (target,)
    instruction = ask(rng, target, container if place else None, split.new_words)
    if nowhere:
        answer = absent_answer(task, seen, container, named, present)
    elif missing:
        answer = absent_answer(task, seen, target, named)
    elif task == "affordance":
        answer = affordance_answer(seen, present, named)
    else:
        answer = trajectory_answer(seen, present, by_name[container])
    return Question(task, instruction, answer)


def _missing_name(rng: np.random.Generator, seen: tuple[Seen, ...], shapes: tuple[str, ...], split: Split) -> str:
    if split.unknown and rng.random() < split.unknown:
        return unknown_name(rng, tuple(COLOURS), shapes)
    return absent_name(rng, seen, shapes)


def absent_name(rng: np.random.Generator, seen: tuple[Seen, ...], shapes: tuple[str, ...]) -> str:
    """A name that nothing in the image has, half of the time one that shares colour or shape with something there.

    Never one of the held-out pairs: a model that only ever heard of them as missing would learn that they do not exist.
    """
    there = {s.pair for s in seen}
    free = [(c, s) for c in COLOURS for s in shapes if (c, s) not in there and (c, s) not in HELD_OUT_PAIRS]
    near = [p for p in free if any(p[0] == c or p[1] == s for c, s in there)]
    choice = near if near and rng.random() < 0.5 else free
    return " ".join(choice[int(rng.integers(len(choice)))])


def _place_name(box: Box) -> str:
    x, y = box[0], box[1]
    side = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
    depth = "back" if y < 0.42 else "front" if y > 0.62 else "centre"
    return f"{side} {depth}"


def _nearest(seen: tuple[Seen, ...], target: Seen) -> Seen | None:
    others = [s for s in seen if s is not target]
    if not others:
        return None
    return min(others, key=lambda s: np.hypot(s.box[0] - target.box[0], s.box[1] - target.box[1]))


def _in_the_way(seen: tuple[Seen, ...], target: Seen, container: Seen) -> Seen | None:
    """The item nearest to the way from target to container, where one lies under it."""
    start, end = np.array(target.box[:2]), np.array(container.box[:2])
    way = end - start
    best, nearest = IN_THE_WAY, None
    for s in seen:
        if s is target or s is container:
            continue
        along = float(np.clip((np.array(s.box[:2]) - start) @ way / max(way @ way, 1e-9), 0, 1))
        off = float(np.linalg.norm(start + along * way - s.box[:2]))
        if off < best:
            best, nearest = off, s
    return nearest
