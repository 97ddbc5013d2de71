"""What a bundle is verified on is the same every time, and asks for what is there and for what is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from drivers.errors import UserError
from drivers.sim.scene import draw_scene
from edge import contract
from export import questions


def test_what_is_made_up_to_verify_on_names_what_is_there_and_what_is_not() -> None:
    asked = questions.made_up(8)
    assert len(asked) == 8
    assert {q.task for q in asked[:-2]} == {q.task for q in asked[-2:]} == set(contract.TASKS)
    for seed, question in enumerate(asked):
        items = draw_scene(np.random.default_rng([seed, 0xE4])).items
        named = [item.is_container for item in items if f"the {item.name}" in question.instruction]
        there = [False] if question.task == "affordance" else [False, True]
        assert (sorted(named) == there) == (seed < 6)
    for one, again in zip(asked, questions.made_up(8), strict=True):
        assert (one.image == again.image).all() and one.instruction == again.instruction


def test_images_of_a_folder_are_spread_over_it(tmp_path: Path) -> None:
    for i in range(20):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((4, 6, 3), (0, 0, 10 * i), np.uint8))
    asked = questions.of_folder(tmp_path)
    assert [int(q.image[0, 0, 0]) for q in asked] == [20 * i for i in range(8)]  # red first
    assert asked[0].image.shape == (4, 6, 3) and {q.task for q in asked} == set(contract.TASKS)


def test_a_folder_without_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no .png"):
        questions.of_folder(tmp_path)
