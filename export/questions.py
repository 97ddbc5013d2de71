"""What a bundle and its checkpoint are both asked: images of a folder, or of simulated tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render, visible_corners
from drivers.sim.scene import Task, draw_scene, draw_task
from drivers.sim.world import build_model, item_of_geom, set_arm
from edge import contract

INSTRUCTIONS = ("pick up the red cube", "put the green ball in the blue bowl")
N_CASES = 8
PATH_POINTS = 5
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Question:
    """One image, (h, w, 3) uint8 RGB, and what to say of it; the right output where that is known."""

    image: NDArray[np.uint8]
    task: contract.Task
    instruction: str
    label: contract.Output | None = None


def ask(i: int, image: NDArray[np.uint8]) -> Question:
    """The `i`-th question, about an image of which nothing is known: tasks and instructions in turn."""
    return Question(image, contract.TASKS[i % 2], INSTRUCTIONS[i // 2 % 2])


def of_folder(folder: Path) -> list[Question]:
    """One question about each of up to `N_CASES` images of a folder, spread over it.

    Raises:
        UserError: there is no folder, or none in it, or one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"--images {folder}: holds no {', '.join(_IMAGE_SUFFIXES)} file")
    questions = []
    for i, path in enumerate(paths[:: max(1, len(paths) // N_CASES)][:N_CASES]):
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise UserError(f"--images {path}: is not a readable image")
        questions.append(ask(i, np.ascontiguousarray(bgr[:, :, ::-1], dtype=np.uint8)))
    return questions


def made_up(count: int, progress: Callable[[], None] = lambda: None) -> list[Question]:
    """`count` views of simulated tables, as their camera gives them: (480, 640, 3) RGB, the same every time.

    What is named is on the table, so that a model which says ``null`` otherwise answers in full, and the right output
    is known where it is in view; not so in each fourth pair, which asks for what most tables lack. `progress` is called
    after each.
    """
    robot = load_robot()
    questions = []
    for seed in range(count):
        rng = np.random.default_rng([seed, 0xE4])
        scene = draw_scene(rng)
        model = build_model(scene)
        data = mujoco.MjData(model)
        set_arm(model, data, robot.ready_rad)
        mujoco.mj_kinematics(model, data)
        picture = render(model, data, scene.look, camera_pose(scene.look), CAMERA, rng)
        question = ask(seed, picture.rgb)
        if seed // 2 % 4 != 3:
            task = draw_task(rng, scene, "pick" if question.task == "affordance" else "place")
            items = item_of_geom(model)[picture.geom]
            question = replace(question, instruction=task.instruction, label=_label(items, task))
        questions.append(question)
        progress()
    return questions


def _label(items: NDArray[np.int64], task: Task) -> contract.Output | None:
    """The visible box of what is to be picked, or the straight path from there to the container, in so many points as
    the shipped model is trained on; None where one is out of view. `items`: (h, w) index of what is seen."""
    named = [item for item in (task.target, task.container) if item is not None]
    corners = [corners for item in named if (corners := visible_corners(items == item)) is not None]
    if len(corners) < len(named):
        return None
    boxes = [contract.box_from_corners(each) for each in corners]
    if task.container is None:
        return boxes[0]
    start, end = (np.array([box.x, box.y]) for box in boxes)
    points = [start + (end - start) * k / (PATH_POINTS - 1) for k in range(PATH_POINTS)]
    return contract.Trajectory(tuple((float(x), float(y)) for x, y in points))
