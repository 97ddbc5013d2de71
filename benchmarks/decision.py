"""How long does one decision take, and what do export and quantization buy?

``python -m benchmarks.decision [--quick] [--json FILE] [--bundle DIR …] [--checkpoint DIR] [--images DIR]``. The same
frames and instruction go to every bundle (through `edge.decode`, greedily) and, where Transformers is installed and a
checkpoint is given, to ``generate`` without a grammar; in turns, in one process, one thread each. Figures are medians
over the runs. Answers differ in length between contenders, so the time per answer token stands beside the total.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from drivers.errors import UserError
from edge import contract
from edge.ask import read_image
from edge.decode import decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.preprocess import preprocess
from edge.shipped import SHIPPED_BUNDLE
from edge.trace import Tracer

INSTRUCTION = "pick up the red cube"
Image = NDArray[np.uint8]
Run = Callable[[Image], tuple[int, dict[str, float]]]  # answer tokens, milliseconds by stage
STAGES = ("preprocess", "vision", "prefill", "decode", "parse")


def of_bundle(path: Path) -> Run:
    engine = OnnxEngine(load_bundle(path), threads=1)

    def run(rgb: Image) -> tuple[int, dict[str, float]]:
        tracer = Tracer()
        decision = decide(engine, rgb, "affordance", INSTRUCTION, tracer=tracer)
        return decision.n_tokens, {name: row["max_ms"] for name, row in tracer.summary().items()}

    return run


def of_checkpoint(path: Path, width: int, height: int) -> Run:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(1)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    grid = torch.tensor([[1, height // 14, width // 14]])
    prompt = contract.render_chat(contract.prompt_text("affordance", INSTRUCTION), width * height // 28**2)
    ids = torch.tensor([tokenizer.encode(prompt)])

    def run(rgb: Image) -> tuple[int, dict[str, float]]:
        start_s = time.perf_counter()
        pixels = torch.from_numpy(preprocess(rgb, width, height))
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, pixel_values=pixels, image_grid_thw=grid, max_new_tokens=256, do_sample=False
            )
        return int(out.shape[1] - ids.shape[1]), {"all": (time.perf_counter() - start_s) * 1e3}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 runs of each instead of 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--bundle", type=Path, action="append", help="may be repeated (default: the shipped one)")
    parser.add_argument("--checkpoint", type=Path, help="also time Transformers' generate on this folder")
    parser.add_argument("--images", type=Path, required=True, help="frames, for example runs/demo/frames")
    args = parser.parse_args()
    if args.checkpoint and not (args.checkpoint / "config.json").is_file():
        raise UserError(f"--checkpoint {args.checkpoint}: has no config.json; expected a folder of Transformers")
    cv2.setNumThreads(1)
    images = [read_image(path) for path in sorted(args.images.glob("*.png"))]
    if not images:
        raise UserError(f"--images {args.images}: holds no .png; expected a folder of frames")
    bundles = args.bundle or [SHIPPED_BUNDLE]
    contenders = {f"{path} ({load_bundle(path).quantization})": of_bundle(path) for path in bundles}
    if args.checkpoint:
        first = load_bundle(bundles[0])
        contenders["Transformers generate (fp32)"] = of_checkpoint(args.checkpoint, first.width_px, first.height_px)
    runs = 3 if args.quick else 15
    seen: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, run in contenders.items():
            result = run(images[turn % len(images)])
            if turn:  # the first turn warms up
                seen[name].append(result)
    screen = console()
    screen.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread, median of {runs}")
    table = Table(title="one affordance decision, ms")
    for heading in ("", *STAGES, "all", "tokens", "all / token"):
        table.add_column(heading, justify="right" if heading else "left")
    results = []
    for name, rows in seen.items():
        all_ms = np.array([sum(stages.values()) for _, stages in rows])
        tokens = np.array([count for count, _ in rows])
        medians = {
            stage: float(np.median([stages[stage] for _, stages in rows])) for stage in STAGES if stage in rows[0][1]
        }
        figures = {"all_ms": float(np.median(all_ms)), "ms_per_token": float(np.median(all_ms / tokens))}
        shown = [f"{medians[stage]:.2f}" if stage in medians else "" for stage in STAGES]
        row = (f"{figures['all_ms']:.1f}", f"{np.median(tokens):.0f}", f"{figures['ms_per_token']:.2f}")
        table.add_row(name, *shown, *row)
        results.append({"name": name, "runs": runs, "tokens": float(np.median(tokens)), "stages": medians, **figures})
    screen.print(table)
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "decision", "machine": machine(), "results": results}, indent=2))


if __name__ == "__main__":
    sys.exit(exit_code(main))
