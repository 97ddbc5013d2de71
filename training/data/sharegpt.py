"""The ShareGPT JSON layout of the released dataset: one image, one question and one answer an item."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.contract import IMAGE_LITERAL, SUFFIX, TASKS, Answer, Task, parse_answer, prompt_text

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Item:
    """One training or test item.

    Attributes:
        image: path of the image file; a relative one is relative to the folder of the JSON file.
        task: what kind of output is asked for.
        instruction: in plain words, without the task's suffix.
        answer: ``<think>…</think><output>…</output>`` as the model should write it; valid under the contract.
        more: every other key of the JSON object, kept as it is.
    """

    image: str
    task: Task
    instruction: str
    answer: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> Answer:
        """The answer, parsed."""
        return parse_answer(self.answer, self.task)


@dataclass(frozen=True)
class Bad:
    """An entry that is no item, and why."""

    index: int
    reason: str


def to_json(item: Item) -> dict[str, Any]:
    """The item as the released dataset writes it."""
    human = prompt_text(item.task, item.instruction) + IMAGE_LITERAL
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": item.answer}]
    return {**item.more, "image": item.image, "conversations": turns}


def from_json(value: object) -> Item:
    """The item a JSON object stands for.

    The first human and the last gpt turn count; an ``image`` list must hold one image.

    Raises:
        ValueError: with the reason, for anything else (`edge.contract.ContractError` is one).
    """
    if not isinstance(value, dict):
        raise ValueError(f"is a {type(value).__name__}, expected an object")
    if _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("holds half a character (a lone surrogate), which no file can keep")
    image = value.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image:
        raise ValueError("image: expected the path of one image")
    asked, said = turns_of(value.get("conversations"))
    text = asked[0].replace(IMAGE_LITERAL, "").strip()
    task = next((t for t in TASKS if text.endswith(SUFFIX[t].strip())), None)
    if task is None:
        raise ValueError("human turn: ends with neither task's format suffix")
    instruction = text.removesuffix(SUFFIX[task].strip()).strip()
    try:
        prompt_text(task, instruction)
    except UserError as error:
        raise ValueError(str(error)) from None
    parse_answer(said[-1], task)
    more = {k: v for k, v in value.items() if k not in ("image", "conversations")}
    return Item(image, task, instruction, said[-1].strip(), more)


def turns_of(turns: object) -> tuple[list[str], list[str]]:
    """What the human and what the gpt turns of a conversation say. Raises ValueError where either has none."""
    if not isinstance(turns, list) or not all(isinstance(t, dict) and isinstance(t.get("value"), str) for t in turns):
        raise ValueError("conversations: expected a list of turns with from and value")
    asked = [t["value"] for t in turns if t.get("from") == "human"]
    said = [t["value"] for t in turns if t.get("from") == "gpt"]
    if not asked or not said:
        raise ValueError("conversations: expected a human and a gpt turn")
    return asked, said


def read_entries(path: Path) -> list[Any]:
    """The list in a JSON file. Raises UserError where the file is missing, not JSON or not a list."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}); expected a list of items") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: holds a {type(entries).__name__}, expected a list of items")
    return entries


def read_items(path: Path) -> tuple[list[Item], list[Bad]]:
    """The items of a ShareGPT JSON file, and the entries that are none.

    Raises:
        UserError: the file is missing, not JSON or not a list.
    """
    items, bad = [], []
    for index, entry in enumerate(read_entries(path)):
        try:
            items.append(from_json(entry))
        except ValueError as error:
            bad.append(Bad(index, str(error)))
    return items, bad


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write a ShareGPT JSON file, complete or not at all: one item a line, so that it can be looked at and compared."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as f:
        for k, item in enumerate(items):
            f.write(("[\n" if k == 0 else ",\n") + json.dumps(to_json(item), ensure_ascii=False))
        f.write("\n]\n" if f.tell() else "[]\n")
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def load_image(folder: Path, item: Item) -> NDArray[np.uint8]:
    """The item's image, (h, w, 3) uint8, RGB; ``folder`` is the JSON file's. Raises UserError as `read_image` does."""
    return read_image(folder / item.image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(h, w, 3) uint8, RGB. Raises UserError for a file that is missing or no image."""
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an image") from None
    except ValueError as error:  # a null byte in the path
        raise UserError(f"{str(path)!r}: cannot be read ({error}); expected an image") from None
    try:
        bgr = cv2.imdecode(raw, cv2.IMREAD_COLOR) if len(raw) else None
    except cv2.error:  # more pixels than OpenCV takes
        bgr = None
    if bgr is None:
        raise UserError(f"{path}: is not an image that OpenCV reads; replace it, or take its item out of the JSON file")
    return np.ascontiguousarray(bgr[:, :, ::-1])
