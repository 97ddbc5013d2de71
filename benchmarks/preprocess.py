"""Does the native preprocessing earn its place? Ours against OpenCV + NumPy and against Transformers' own.

``python -m benchmarks.preprocess [--quick] [--json FILE]``. All contenders take the same 640x480 RGB frame to the same
patches, one thread each, interleaved run by run in this process; the figures are medians, of the clock and of the
thread's own CPU time (which a busy machine disturbs less). The last columns say how far
a contender's pixels are from Transformers' (slow, Pillow) result in steps of one byte: speed that changes what the
model sees is not the same job (OpenCV's cubic does not antialias). Where ours differs, Pillow 13 took the passes in the
other order; see tests/edge/test_preprocess.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from edge.preprocess import IMAGE_MEAN, IMAGE_STD, MERGE, PATCH_PX, PATCH_VALUES, SIDE_PX, TEMPORAL, preprocess

FRAME_WIDTH, FRAME_HEIGHT = 640, 480
TARGETS = ((224, 168), (644, 476))
Contender = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

SCALE = (1 / 255 / np.array(IMAGE_STD)).astype(np.float32)
OFFSET = (-np.array(IMAGE_MEAN) / np.array(IMAGE_STD)).astype(np.float32)


def frame() -> NDArray[np.uint8]:
    """Shading, edges and sensor noise; the same on every machine."""
    y, x = np.mgrid[0:FRAME_HEIGHT, 0:FRAME_WIDTH].astype(np.float64)
    image = np.stack([120 + 100 * np.sin(x / 37), 90 + 80 * np.cos(y / 23), 255 * x / FRAME_WIDTH], axis=-1)
    image[120:240, 200:320] = (255, 0, 0)
    image[(x - 450) ** 2 + (y - 290) ** 2 < 70**2] = (0, 0, 255)
    return np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def opencv(width: int, height: int, interpolation: int) -> Contender:
    """What one writes by hand: cv2.resize, one multiply-add, one transpose."""

    def run(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = cv2.resize(rgb, (width, height), interpolation=interpolation) * SCALE + OFFSET
        cells = pixels.reshape(height // SIDE_PX, MERGE, PATCH_PX, width // SIDE_PX, MERGE, PATCH_PX, 3)
        patches = cells.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :]
        return np.repeat(patches, TEMPORAL, axis=5).reshape(-1, PATCH_VALUES)

    return run


def transformers_processor(width: int, height: int) -> Contender | None:
    try:
        from PIL import Image
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    except ImportError:
        return None
    processor = Qwen2VLImageProcessor(min_pixels=width * height, max_pixels=width * height)

    def run(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"])

    return run


def measure(contenders: dict[str, Contender], rgb: NDArray[np.uint8], runs: int) -> dict[str, NDArray[np.float64]]:
    """Every run's (clock, CPU) time in ms, (runs, 2); in turns, so that a slow moment of the machine hits all alike.

    The order is drawn anew every turn: on a busy machine, whoever follows the slowest one is always the one preempted.
    """
    times_ms: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    order = random.Random(0)
    for turn in range(runs + 3):
        for name in order.sample(list(contenders), len(contenders)):
            start_s, start_cpu_s = time.perf_counter(), time.thread_time()
            contenders[name](rgb)
            cpu_s, clock_s = time.thread_time() - start_cpu_s, time.perf_counter() - start_s
            if turn >= 3:  # the first turns warm caches and allocators
                times_ms[name].append((clock_s * 1e3, cpu_s * 1e3))
    return {name: np.array(times) for name, times in times_ms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 runs of each instead of 200")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    runs = 20 if args.quick else 200
    rgb = frame()
    console = Console()
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; errors in steps of one byte")
    results: list[dict[str, object]] = []
    for width, height in TARGETS:
        contenders: dict[str, Contender] = {
            "edge.native": lambda image, w=width, h=height: preprocess(image, w, h),  # type: ignore[misc]
            "OpenCV cubic + NumPy": opencv(width, height, cv2.INTER_CUBIC),
            "OpenCV area + NumPy": opencv(width, height, cv2.INTER_AREA),
        }
        processor = transformers_processor(width, height)
        if processor:
            contenders["Transformers (Pillow)"] = processor
        times_ms = measure(contenders, rgb, runs)
        table = Table(title=f"{FRAME_WIDTH}x{FRAME_HEIGHT} -> {width}x{height}, median of {runs}")
        for heading in ("", "median ms", "p90 ms", "CPU ms", "mean error", "max error"):
            table.add_column(heading, justify="right" if heading else "left")
        expected = processor(rgb) if processor else None
        for name, contender in contenders.items():
            figures = {
                "p50_ms": float(np.median(times_ms[name][:, 0])),
                "p90_ms": float(np.percentile(times_ms[name][:, 0], 90)),
                "cpu_p50_ms": float(np.median(times_ms[name][:, 1])),
            }
            entry: dict[str, object] = {"width": width, "height": height, "name": name, "runs": runs, **figures}
            errors = ["-", "-"]
            if expected is not None:
                std = np.repeat(np.array(IMAGE_STD), TEMPORAL * PATCH_PX**2)
                steps = np.abs(contender(rgb) - expected) * std * 255
                entry |= {"mean_error_steps": float(steps.mean()), "max_error_steps": float(steps.max())}
                errors = [f"{steps.mean():.3f}", f"{steps.max():.1f}"]
            table.add_row(name, *(f"{value:.2f}" for value in figures.values()), *errors)
            results.append(entry)
        console.print(table)
    if args.json:
        report = {"benchmark": "preprocess", "machine": machine(), "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
