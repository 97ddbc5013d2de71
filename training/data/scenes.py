"""Rendered scenes on disk: a split's images, masks and ShareGPT file; an interrupted run goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.sim.process import deaf_to_interrupts
from edge.contract import format_answer
from training.data.answers import draw_question
from training.data.labels import label_scene
from training.data.sharegpt import Item, from_json, to_json, write_items
from training.data.splits import SPLITS, Split, draw_view

PART = 250  # scenes a worker renders at a time

_Job = tuple[Path, str, int, int]  # folder, split, the first scene and the one after the last


def make_scenes(folder: Path, split: Split, count: int, workers: int = 2) -> Iterator[int]:
    """Render the first ``count`` scenes of ``split``; yields how many are there.

    Writes ``<split>.json`` (ShareGPT; items have ``id``, ``mask`` and ``seen`` besides), ``images/<split>/`` and
    ``masks/<split>/`` (PNG; a mask's pixel is an index into ``seen``, 255 nothing). Scene k of a split is always the
    same scene. Every finished item is noted at once in ``parts/``; what is noted is not rendered again.

    Raises:
        UserError: the disk is full, the folder cannot be written or is being written by another run, or a worker was
            killed.
    """
    jobs = [(folder, split.name, k, min(k + PART, count)) for k in range(0, count, PART)]
    done = 0
    try:
        for kind in ("images", "masks", "parts"):
            (folder / kind / split.name).mkdir(parents=True, exist_ok=True)
        with _locked(folder / "parts" / split.name):
            for finished in _in_parallel(jobs, workers):
                done += finished
                yield done
            items = [item for _, _, first, end in jobs for item in _noted(folder, split.name, first)[: end - first]]
            write_items(folder / f"{split.name}.json", items)
    except BrokenProcessPool:
        raise UserError(
            f"{folder}: a process that rendered was killed (out of memory?); what is finished is kept: the same "
            "command goes on from there, with fewer --workers if need be"
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); make room or give another --out. "
            "What is finished is kept: the same command goes on from there"
        ) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two runs would add to the same parts. The lock is on the folder itself and ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is writing it; wait for it, or give another --out") from None
        yield
    finally:
        os.close(handle)


def _in_parallel(jobs: Sequence[_Job], workers: int) -> Iterator[int]:
    """Make the parts in processes; however this ends, none of them is left behind."""
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        try:
            with deaf_to_interrupts():
                parts = [pool.submit(_make_part, job) for job in jobs]
            for part in as_completed(parts):
                yield part.result()
        except BaseException:  # Ctrl-C among them: nobody waits until every part in work is whole
            for child in multiprocessing.active_children():
                if child not in others:
                    child.terminate()
            raise


def _make_part(job: _Job) -> int:
    folder, name, first, end = job
    split = SPLITS[name]
    done = min(len(_noted(folder, name, first)), end - first)
    with _part(folder, name, first).open("a", encoding="utf-8") as part:
        for k in range(first + done, end):
            item = _make_item(folder, split, k)
            part.write(json.dumps(to_json(item), ensure_ascii=False) + "\n")
            part.flush()
    return end - first


def _make_item(folder: Path, split: Split, k: int) -> Item:
    rng = np.random.default_rng([split.number, k])
    while True:
        scene, camera = draw_view(rng, split)
        labelled = label_scene(scene, rng, camera)
        if labelled is not None:
            break
    # A generator of its own: what is asked does not hang on how many numbers the picture took.
    question = draw_question(np.random.default_rng([split.number, k, 1]), labelled.seen, split)
    image, mask = f"images/{split.name}/{k:06d}.png", f"masks/{split.name}/{k:06d}.png"
    write_png(folder / image, labelled.rgb[:, :, ::-1])
    write_png(folder / mask, labelled.mask)
    more = {"id": f"{split.name}-{k:06d}", "mask": mask, "seen": [s.to_json() for s in labelled.seen]}
    return Item(image, question.task, question.instruction, format_answer(question.answer), more)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """``image``: (h, w, 3) uint8, BGR, or (h, w). Raises OSError where it cannot be written."""
    _, coded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 2])
    path.write_bytes(coded.tobytes())


def _part(folder: Path, name: str, first: int) -> Path:
    return folder / "parts" / name / f"{first:06d}.jsonl"


def _noted(folder: Path, name: str, first: int) -> list[Item]:
    """The finished items of a part; a line that was cut short is taken away."""
    path = _part(folder, name, first)
    if not path.exists():
        return []
    items, kept = [], 0
    with path.open("rb") as f:
        for line in f:
            if not line.endswith(b"\n"):  # whole as it may read, the next item would go on in the same line
                break
            try:
                items.append(from_json(json.loads(line)))
            except ValueError:
                break
            kept += len(line)
    if kept < path.stat().st_size:
        with path.open("r+b") as f:
            f.truncate(kept)
    return items
