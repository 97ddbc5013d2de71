"""Chain-of-thought answers for labelled scenes: list what is seen, name the target, then the box or the path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivers.sim.scene import PICK_WORDS, PLACE_WORDS
from edge.contract import Affordance, Answer, Task, Trajectory
from training.scenes import Seen

POINTS = 5


@dataclass(frozen=True)
class Item:
    """One training item: what is asked of an image and the answer wanted."""

    task: Task
    instruction: str
    answer: Answer


def _place_name(box: tuple[float, float, float, float]) -> str:
    x, y = box[0], box[1]
    side = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
    depth = "back" if y < 0.42 else "front" if y > 0.62 else "centre"
    return f"{side} {depth}"


def _listing(seen: tuple[Seen, ...]) -> str:
    ordered = sorted(seen, key=lambda s: s.box[0])
    return "; ".join(_with_box(s) for s in ordered)


def _with_box(seen: Seen) -> str:
    """Said again where it matters: naming an item and giving its box is one habit, and the output then repeats what
    stands just before it. Without this, boxes of the wrong item came out with the right item named."""
    return f"{seen.name} [" + ", ".join(f"{v:.2f}" for v in seen.box) + "]"


def _nearest(seen: tuple[Seen, ...], target: Seen) -> Seen | None:
    others = [s for s in seen if s is not target]
    if not others:
        return None
    return min(others, key=lambda s: np.hypot(s.box[0] - target.box[0], s.box[1] - target.box[1]))


def affordance_answer(seen: tuple[Seen, ...], target: Seen) -> Answer:
    """Where to grasp ``target``."""
    near = _nearest(seen, target)
    beside = f" near the {near.name}" if near else ""
    reasoning = (
        f"I see {_listing(seen)}. The target is the {_with_box(target)}, {_place_name(target.box)}{beside}. "
        "I grasp it from above, across its narrow side."
    )
    return Answer(reasoning, Affordance(*(round(v, 2) for v in target.box)))


def trajectory_answer(seen: tuple[Seen, ...], target: Seen, container: Seen) -> Answer:
    """From ``target`` to ``container``, evenly spaced."""
    reasoning = (
        f"I see {_listing(seen)}. The {_with_box(target)}, {_place_name(target.box)}, goes to the "
        f"{_with_box(container)}, {_place_name(container.box)}. I carry it straight across, above everything else."
    )
    start, end = np.array(target.box[:2]), np.array(container.box[:2])
    points = [start + (end - start) * k / (POINTS - 1) for k in range(POINTS)]
    return Answer(reasoning, Trajectory(tuple((round(float(p[0]), 2), round(float(p[1]), 2)) for p in points)))


def draw_item(rng: np.random.Generator, seen: tuple[Seen, ...]) -> Item:
    """A task that the image allows: a pick, or a place asked for its grasp or its path."""
    targets = [s for s in seen if not s.is_container]
    containers = [s for s in seen if s.is_container]
    target = targets[int(rng.integers(len(targets)))]
    if rng.random() < 0.3:
        words = str(rng.choice(PICK_WORDS)).format(t=target.name)
        return Item("affordance", words, affordance_answer(seen, target))
    container = containers[int(rng.integers(len(containers)))]
    words = str(rng.choice(PLACE_WORDS)).format(t=target.name, c=container.name)
    if rng.random() < 0.45:
        return Item("affordance", words, affordance_answer(seen, target))
    return Item("trajectory", words, trajectory_answer(seen, target, container))
