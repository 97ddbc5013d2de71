"""What do the pieces of a decision cost: products, a step, a block of draft tokens, the head; and under which settings?

``python -m benchmarks.steps [--bundle DIR] [--threads N] [--quick] [--json FILE]``. First one product of the 3B model's
width, 2048 x 11008, in each representation of the weights and for each number of rows: the choice of quantization.
Then, for a bundle, passes of the engine after 480 cached tokens under each setting of ONNX Runtime's threads, beside
the time in which memory gives the bytes that a step reads (measured in the same run): the choice of settings. All
contenders take turns in one process, so that a change of the machine's mood meets all of them; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from drivers.errors import UserError
from edge.engine import sessions
from edge.engine.bundle import Bundle, load_bundle
from edge.engine.onnx import OnnxEngine
from edge.memory_speed import read_bandwidth
from edge.profile.floor import step_bytes

K, N, BLOCK = 2048, 11008, 128
PRODUCT_ROWS = (1, 2, 8, 16, 470)
BLOCK_ROWS = (1, 2, 4, 8, 16)
N_CACHED = 480
SPIN, SPIN_US = "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us"
SETTINGS: dict[str, dict[str, str]] = {
    "shipped": dict(sessions.SETTINGS),
    "default": {},
    "no spin": {SPIN: "0"},
    "spin 1 ms": {SPIN_US: "1000"},
}
Calls = Mapping[str, Callable[[], object]]


def medians_ms(calls: Calls, runs: int) -> dict[str, float]:
    """Of each call, taking turns; the first turn warms up."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, call in calls.items():
            start_s = time.perf_counter()
            call()
            if turn:
                seen[name].append(time.perf_counter() - start_s)
    return {name: float(np.median(times)) * 1e3 for name, times in seen.items()}


def products(threads: int) -> dict[str, ort.InferenceSession]:
    """x (n, K) -> (n, N) by random weights in each representation."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.001, 0.002, N).astype(np.float32)
    made = {"fp32": _session("MatMul", "", {}, [rng.normal(0, 0.02, (K, N)).astype(np.float32)], threads)}
    int8: list[NDArray[Any]] = [rng.integers(-63, 64, (K, N)).astype(np.int8), scales, np.zeros(N, np.int8)]
    made["int8 dynamic"] = _session("DynamicQuantizeMatMul", "com.microsoft", {}, int8, threads)
    for bits in (8, 4):
        weights = rng.integers(0, 256, (N, K // BLOCK, BLOCK * bits // 8), dtype=np.uint8)
        sizes = {"K": K, "N": N, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
        blocks = rng.uniform(0.001, 0.002, N * K // BLOCK).astype(np.float32)
        made[f"int{bits} blocks"] = _session("MatMulNBits", "com.microsoft", sizes, [weights, blocks], threads)
    return made


def _session(
    op: str, domain: str, attributes: dict[str, Any], weights: list[NDArray[Any]], threads: int
) -> ort.InferenceSession:
    names = [f"w{i}" for i in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], domain=domain, **attributes)],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", N])],
        [numpy_helper.from_array(weight, name) for name, weight in zip(names, weights, strict=True)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def product_figures(threads: int, runs: int) -> list[dict[str, object]]:
    made = products(threads)
    figures: list[dict[str, object]] = []
    for n in PRODUCT_ROWS:
        feed = {"x": np.random.default_rng(n).normal(0, 1, (n, K)).astype(np.float32)}
        calls = {name: partial(product.run, None, feed) for name, product in made.items()}
        figures.append({"rows": n, "ms": medians_ms(calls, runs if n < 100 else max(3, runs // 5))})
    return figures


def passes(engine: OnnxEngine) -> dict[str, Callable[[], object]]:
    """Passes of each number of rows after `N_CACHED` tokens, with and without heads."""
    text = np.random.default_rng(0).integers(0, engine.bundle.vocab, N_CACHED + max(BLOCK_ROWS)).tolist()
    text = [token if token != engine.bundle.image_token else 0 for token in text]
    engine.prefill(text[:N_CACHED], np.zeros((0, engine.bundle.hidden), np.float32))

    def block(n: int) -> None:
        engine.truncate(N_CACHED)
        engine.extend(text[N_CACHED : N_CACHED + n])

    def step() -> None:
        block(1)
        engine.logits()

    calls: dict[str, Callable[[], object]] = {f"{n} rows": partial(block, n) for n in BLOCK_ROWS}
    return calls | {"head": engine.logits, "number head": engine.number_logits, "step": step}


def pass_figures(bundle: Bundle, threads: int, runs: int) -> list[dict[str, object]]:
    calls: dict[str, Callable[[], object]] = {}
    for name, settings in SETTINGS.items():
        with patch.dict(sessions.SETTINGS, settings, clear=True):
            engine = OnnxEngine(bundle, threads, room=N_CACHED + max(BLOCK_ROWS))
        calls |= {f"{name}|{what}": call for what, call in passes(engine).items()}
    found = medians_ms(calls, runs)
    return [
        {"setting": name, "ms": {key.partition("|")[2]: ms for key, ms in found.items() if key.startswith(f"{name}|")}}
        for name in SETTINGS
    ]


def show(screen: Console, title: str, figures: list[dict[str, object]], first: str) -> None:
    columns = list(figures[0]["ms"])  # type: ignore[call-overload]
    table = Table(title=title)
    for heading in (first, *columns):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for row in figures:
        table.add_row(str(row[first]), *(f"{row['ms'][column]:.2f}" for column in columns))  # type: ignore[index]
    screen.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 runs of each instead of 50")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="whose passes to time (default: products alone)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}: expected one or more")
    bundle = load_bundle(args.bundle) if args.bundle else None
    screen, runs = console(), 5 if args.quick else 50
    screen.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.threads} threads, median of {runs}, ms")
    report: dict[str, object] = {"benchmark": "steps", "machine": machine(), "threads": args.threads, "runs": runs}
    report["products"] = rows = product_figures(args.threads, runs)
    show(screen, f"product {K} x {N}", rows, "rows")
    if bundle:
        bandwidth = read_bandwidth(args.threads)
        floor_ms = step_bytes(bundle) / bandwidth * 1e3
        report |= {"bundle": str(args.bundle), "bytes_per_s": bandwidth, "floor_ms": floor_ms}
        report["passes"] = rows = pass_figures(bundle, args.threads, runs)
        show(screen, f"{args.bundle} ({bundle.quantization}) after {N_CACHED} tokens", rows, "setting")
        screen.print(f"memory gives {bandwidth / 1e9:.0f} GB/s: a step's bytes in {floor_ms:.2f} ms")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(exit_code(main))
