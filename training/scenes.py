"""Labelled scenes for training: the simulator's camera renders them, its geom ids give every box for free."""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from drivers.robot import Robot, load_robot
from drivers.sim.render import CAMERA, camera_pose, render, scaled
from drivers.sim.scene import Scene, draw_scene
from drivers.sim.world import build_model, item_of_geom, set_arm

WIDTH_PX, HEIGHT_PX = 224, 168  # what the small model sees
TOKEN_PX = 28  # one image token of Qwen2.5-VL: 14 px patches merged 2x2
SHARD = 500
MIN_VISIBLE_PX = 30


@dataclass(frozen=True)
class Seen:
    """What an image shows of one item: its name and visible box, centre and size normalized to [0, 1]."""

    colour: str
    shape: str
    is_container: bool
    box: tuple[float, float, float, float]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class LabelledScene:
    """``rgb`` (168, 224, 3) uint8; ``seen`` per item; ``tokens`` (6, 8) int8: the item in each image token, -1 none."""

    rgb: NDArray[np.uint8]
    seen: tuple[Seen, ...]
    tokens: NDArray[np.int8]


@cache
def _robot() -> Robot:
    return load_robot()


def label_scene(scene: Scene, rng: np.random.Generator) -> LabelledScene | None:
    """Render one scene at the model's size; None where an item is (nearly) hidden or out of the picture."""
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, _robot().ready_rad + np.array(scene.ready_jitter_rad))
    mujoco.mj_kinematics(model, data)
    picture = render(model, data, scene.look, camera_pose(scene.look), scaled(CAMERA, WIDTH_PX, HEIGHT_PX), rng)
    item = item_of_geom(model)[picture.geom]
    seen = []
    for i, it in enumerate(scene.items):
        v, u = np.nonzero(item == i)
        if len(u) < MIN_VISIBLE_PX:
            return None
        x0, x1, y0, y1 = u.min() / WIDTH_PX, (u.max() + 1) / WIDTH_PX, v.min() / HEIGHT_PX, (v.max() + 1) / HEIGHT_PX
        seen.append(Seen(it.colour, it.shape, it.is_container, ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)))
    rows, cols = HEIGHT_PX // TOKEN_PX, WIDTH_PX // TOKEN_PX
    cells = item.reshape(rows, TOKEN_PX, cols, TOKEN_PX).transpose(0, 2, 1, 3).reshape(rows, cols, -1)
    counts = np.stack([(cells == i).sum(-1) for i in range(len(scene.items))], -1)
    tokens = np.where(counts.max(-1) >= MIN_VISIBLE_PX, counts.argmax(-1), -1).astype(np.int8)
    return LabelledScene(picture.rgb, tuple(seen), tokens)


def _make_shard(job: tuple[Path, int, int]) -> int:
    folder, seed, count = job
    path = folder / f"scenes-{seed:08d}.npz"
    if path.exists() and len(load_shard(path)[2]) >= count:
        return count
    rng = np.random.default_rng([seed, 0x5CE4E])
    made: list[LabelledScene] = []
    while len(made) < count:
        labelled = label_scene(draw_scene(rng), rng)
        if labelled is not None:
            made.append(labelled)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as f:
        np.savez(
            f,
            rgb=np.stack([m.rgb for m in made]),
            tokens=np.stack([m.tokens for m in made]),
            seen=np.array(json.dumps([[asdict(s) for s in m.seen] for m in made])),
        )
    partial.rename(path)
    return count


def make_scenes(folder: Path, count: int, seed: int, workers: int = 2) -> Iterator[int]:
    """Render ``count`` scenes into shards under ``folder``; yields how many are done. Shards already there are kept,
    so an interrupted run goes on where it stopped. Scene k of a seed is always the same scene."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, seed * 1_000_000 + k, min(SHARD, count - k)) for k in range(0, count, SHARD)]
    done = 0
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for n in pool.imap_unordered(_make_shard, jobs):
            done += n
            yield done


def load_shard(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int8], list[tuple[Seen, ...]]]:
    """(n, 168, 224, 3) images, (n, 6, 8) token labels and what each image shows.

    Raises UserError for a damaged file.
    """
    try:
        with np.load(path) as z:
            raw: list[list[dict[str, Any]]] = json.loads(str(z["seen"]))
            seen = [
                tuple(Seen(s["colour"], s["shape"], s["is_container"], tuple(s["box"])) for s in items) for items in raw
            ]
            return z["rgb"], z["tokens"], seen
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: is damaged or holds no scenes; delete it and run vlar1 data sim again") from None
