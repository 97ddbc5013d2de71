"""The one job every contender does, and how its process reports. Imports nothing that a peer's environment may lack.

A contender is a module of this folder, run as a process of its own so that memory and threads are its own::

    python -m benchmarks.peers.NAME prepare CHECKPOINT OUT [--variant V]   convert the checkpoint once
    python -m benchmarks.peers.NAME run MODEL [--threads N] [--runs N] …   one JSON line: figures of every run

A decision is cold: a frame and a prompt not seen before, so that no cache of an earlier one helps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge import contract

WIDTH_PX, HEIGHT_PX = 640, 480
# What Qwen2.5-VL's rule makes of 640x480: side lengths rounded to multiples of 28, ties to even.
MODEL_WIDTH_PX, MODEL_HEIGHT_PX = 644, 476
ANSWER_TOKENS = 128
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Timing:
    """One decision; the parts follow one another.

    Attributes:
        vision_s: from the camera's pixels to image embeddings, preprocessing included; None where a contender cannot
            tell it from prefill.
        prefill_s: from there (or from the pixels) to the answer's first token.
        decode_s: from there to its last.
        prompt_tokens, image_tokens, answer_tokens: as the contender counts them; the image is part of the prompt.
    """

    vision_s: float | None
    prefill_s: float
    decode_s: float
    prompt_tokens: int
    image_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Contender:
    """A loaded model.

    Attributes:
        decide: frame, prompt with one placeholder for the image, answer length -> timing.
        step_bytes: of weights that every decoding step reads.
        versions: of the packages that do the work.
        extra: further figures of this contender alone, taken after the decisions.
    """

    decide: Callable[[Image, str, int], Timing]
    step_bytes: int
    versions: dict[str, str]
    extra: Callable[[], dict[str, object]] = dict


def frame(number: int) -> Image:
    """Shading, edges, sensor noise: (480, 640, 3), slightly different for each number, the same on every machine."""
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float64)
    image = np.stack([120 + 100 * np.sin(x / 37), 90 + 80 * np.cos(y / 23), 255 * x / WIDTH_PX], axis=-1)
    left = 200 + 2 * (number % 50)
    image[120:240, left : left + 120] = (255, 0, 0)
    image[(x - 450) ** 2 + (y - 290) ** 2 < 70**2] = (0, 0, 255)
    return np.clip(image + np.random.default_rng(number).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def prompt(number: int) -> str:
    """About sixty tokens of text before the image; the number comes early, so that little of it was seen before."""
    return contract.render_chat(contract.prompt_text("trajectory", f"{number}: move the red cube to the blue bowl."))


def peak_bytes() -> int:
    """The most memory that this process had resident since its start or the last `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def forget_peak() -> None:
    """Let `peak_bytes` count from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(
    load: Callable[[Path, int], Contender],
    prepare: Callable[[Path, Path, str], None] | None = None,
    variants: tuple[str, ...] = (),
) -> None:
    """The command line of a contender's module."""
    parser = argparse.ArgumentParser()
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run")
    run.add_argument("model", type=Path)
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--runs", type=int, default=2)
    run.add_argument("--first", type=int, default=0, help="number of the first frame")
    run.add_argument("--tokens", type=int, default=ANSWER_TOKENS)
    if prepare is not None:
        convert = actions.add_parser("prepare")
        convert.add_argument("checkpoint", type=Path)
        convert.add_argument("out", type=Path)
        convert.add_argument("--variant", choices=variants or None, default=variants[0] if variants else "")
    args = parser.parse_args()
    if args.action == "prepare":
        assert prepare is not None
        prepare(args.checkpoint, args.out, args.variant)
        return
    start_s = time.perf_counter()
    contender = load(args.model, args.threads)
    load_s = time.perf_counter() - start_s
    load_peak = peak_bytes()
    forget_peak()
    # The first decision warms allocators and caches of code; its figures are reported apart.
    numbers = range(args.first, args.first + args.runs + 1)
    timings = [contender.decide(frame(number), prompt(number), args.tokens) for number in numbers]
    report = {
        "load_s": load_s,
        "load_peak_bytes": load_peak,
        "decision_peak_bytes": peak_bytes(),
        "step_bytes": contender.step_bytes,
        "first": asdict(timings[0]),
        "runs": [asdict(timing) for timing in timings[1:]],
        "extra": contender.extra(),
        "versions": {"python": sys.version.split()[0], **contender.versions},
        "pid": os.getpid(),
    }
    print(json.dumps(report))
