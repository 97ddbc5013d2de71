"""From frame to answer: ours against what one would pick instead, on one workload, in one run.

``python -m benchmarks.runtimes [--layers 6] [--vision-blocks 4] [--rounds 5] [--peers-python PYTHON] [--work DIR]
[--quick] [--json FILE]``. The model is a random checkpoint of the 3B layer shapes with the depths asked for. Each
contender is a process of its own (`benchmarks.peers`), with two threads; who goes first rotates from round to round;
the machine's memory bandwidth is measured before and after each process, and medians are taken over the runs at one
level of it. Models are converted on first use and stay in the work folder. The peers' environment is made with
``benchmarks/requirements-peers.txt``; one that is not installed is named in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from drivers.errors import UserError
from edge.memory_speed import read_bandwidth

ROOT = Path(__file__).resolve().parent.parent
SAME_LEVEL = 0.12  # bandwidths this close to the usual one are one level


@dataclass(frozen=True)
class Runtime:
    """One row.

    Attributes:
        name: in the table.
        module: of `benchmarks.peers`.
        needs: the package that must be importable, beside what the module itself imports.
        variant: for its ``prepare``; None runs the checkpoint itself.
        ours: runs in this environment, not in the peers'.
    """

    name: str
    module: str
    needs: str
    variant: str | None
    ours: bool = False

    @property
    def slug(self) -> str:
        return self.module if not self.variant else f"{self.module}-{Path(self.variant).name}"


OURS = Runtime("vlar1 int4", "vlar1", "onnxruntime", "int4", ours=True)
PEERS = (
    Runtime("Transformers bf16", "transformers_bf16", "transformers", None),
    Runtime("OpenVINO GenAI int8", "openvino_genai_vlm", "openvino_genai", "int8"),
    Runtime("OpenVINO GenAI int4", "openvino_genai_vlm", "openvino_genai", "int4"),
    Runtime("onnxruntime-genai int4, our vision", "ort_genai_composite", "onnxruntime_genai", OURS.slug),
    Runtime("llama.cpp Q4_0, f16 vision", "llama_cpp_q4", "llama_cpp", ""),
)


@dataclass
class Work:
    """Where the models of one size are, and with what they are made and run."""

    folder: Path
    layers: int
    vision_blocks: int
    peers_python: str
    threads: int

    def python(self, runtime: Runtime) -> str:
        return sys.executable if runtime.ours else self.peers_python

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def model(self, runtime: Runtime) -> Path:
        return self.checkpoint if runtime.variant is None else self.folder / runtime.slug

    def call(self, runtime: Runtime, *arguments: str) -> tuple[int, str, float, int]:
        """Run a contender's module: exit code, output, seconds, most bytes resident. Its errors go to a log file."""
        command = (self.python(runtime), "-m", f"benchmarks.peers.{runtime.module}", *arguments)
        fixed = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        start_s = time.perf_counter()
        with (self.folder / f"{runtime.slug}.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | fixed, stdout=subprocess.PIPE, stderr=log, text=True
            )
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, output, time.perf_counter() - start_s, usage.ru_maxrss * 1024

    def why_it_ended(self, runtime: Runtime, code: int) -> str:
        """What a contender's process said last, and the signal that ended it, if one did: then the line is innocent."""
        log = self.folder / f"{runtime.slug}.log"
        lines = log.read_text().strip().splitlines()
        by = f"ended by {signal.Signals(-code).name} after: " if code < 0 else ""
        return f"{by}{lines[-1] if lines else 'no message'} ({log})"


def missing(work: Work, runtime: Runtime) -> str | None:
    """Why a contender cannot run here; None when it can."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({runtime.needs!r}) is None)"
    if subprocess.run([work.python(runtime), "-c", code], cwd=ROOT).returncode:
        return f"missing: {runtime.needs} (benchmarks/requirements-peers.txt)"
    return None


def prepare(work: Work, runtime: Runtime, console: Console) -> tuple[str | None, dict[str, float]]:
    """Convert the checkpoint for one contender, unless that is done; why it failed, and what it took."""
    model = work.model(runtime)
    record = work.folder / f"{runtime.slug}.prepared.json"
    if runtime.variant is None:
        return None, {}
    if not model.is_dir() or not record.is_file():
        console.print(f"converting for {runtime.name} …")
        subprocess.run(["rm", "-rf", str(model)], check=True)
        variant = str(work.folder / runtime.variant) if runtime.module == "ort_genai_composite" else runtime.variant
        options = ("--variant", variant) if variant else ()
        code, _, seconds, peak = work.call(runtime, "prepare", str(work.checkpoint), str(model), *options)
        if code:
            return f"conversion failed: {work.why_it_ended(runtime, code)}", {}
        record.write_text(json.dumps({"prepare_s": seconds, "prepare_peak_bytes": peak}))
    taken: dict[str, float] = json.loads(record.read_text())
    return None, taken


def measure(
    work: Work, runtimes: Sequence[Runtime], rounds: int, runs: int, tokens: int, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """Reports of every process, by contender; one that fails has an entry with its error."""
    reports: dict[str, list[dict[str, Any]]] = {runtime.name: [] for runtime in runtimes}
    bandwidth = read_bandwidth(work.threads)
    for turn in range(rounds):
        for i in range(len(runtimes)):
            runtime = runtimes[(i + turn) % len(runtimes)]
            # Frames are new in every round.
            options = {"threads": work.threads, "runs": runs, "first": turn * (runs + 1), "tokens": tokens}
            arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
            code, output, _, _ = work.call(runtime, "run", str(work.model(runtime)), *arguments)
            before, bandwidth = bandwidth, read_bandwidth(work.threads)
            if code:
                why = work.why_it_ended(runtime, code)
                reports[runtime.name].append({"error": why})
                console.print(f"round {turn + 1}: {runtime.name} failed: {why}")
                continue
            report = json.loads(output.strip().splitlines()[-1])
            reports[runtime.name].append(report | {"bandwidth": (before, bandwidth), "load_1min": os.getloadavg()[0]})
            total_s = np.median([_total_s(run) for run in report["runs"]])
            console.print(
                f"round {turn + 1}: {runtime.name} {total_s:.2f} s, {before / 1e9:.0f} to {bandwidth / 1e9:.0f} GB/s"
            )
    return reports


def _total_s(run: dict[str, Any]) -> float:
    return (run["vision_s"] or 0.0) + run["prefill_s"] + run["decode_s"]


def figures(reports: Sequence[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """Medians over the runs whose process began and ended at the bandwidth `level` (bytes/s); None without any."""
    good = [report for report in reports if "error" not in report and _at_level(report, level)]
    runs = [run | {"report": report} for report in good for run in report["runs"]]
    if not runs:
        return None

    def median(values: Sequence[float]) -> float:
        return float(np.median(values))

    steps_s = [run["decode_s"] / (run["answer_tokens"] - 1) for run in runs]
    floors_s = [run["report"]["step_bytes"] / np.mean(run["report"]["bandwidth"]) for run in runs]
    together = any(run["vision_s"] is None for run in runs)
    return {
        "runs": len(runs),
        "vision_s": None if together else median([run["vision_s"] for run in runs]),
        "prefill_s": median([run["prefill_s"] for run in runs]),
        "decode_tokens_per_s": 1 / median(steps_s),
        "total_s": median([_total_s(run) for run in runs]),
        "times_floor": median([step / floor for step, floor in zip(steps_s, floors_s, strict=True)]),
        "peak_bytes": max(report["decision_peak_bytes"] for report in good),
        "load_peak_bytes": max(report["load_peak_bytes"] for report in good),
        "load_s": median([report["load_s"] for report in good]),
        "step_bytes": good[0]["step_bytes"],
        **{name: runs[0][name] for name in ("prompt_tokens", "image_tokens", "answer_tokens")},
    }


def _at_level(report: dict[str, Any], level: float) -> bool:
    return all(abs(value / level - 1) <= SAME_LEVEL for value in report["bandwidth"])


def robot_figures(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ours alone: cold and warm decisions under the grammar, first waypoint; medians over all processes."""
    extras = [report["extra"] for report in reports if "error" not in report]
    if not extras:
        return {}
    result = {name: float(np.median([extra[name] for extra in extras])) for name in extras[0]}
    for name, part, whole in (
        ("warm_to_cold", "warm_s", "cold_s"),
        ("waypoint_to_whole", "first_waypoint_s", "cold_s"),
    ):
        result[name] = float(np.median([extra[part] / extra[whole] for extra in extras]))
    return result | {"drafted_is_plain": float(np.mean([extra["drafted_is_plain"] for extra in extras]))}


def show(rows: Sequence[dict[str, Any]], title: str, console: Console) -> None:
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for heading in ("vision s", "prefill s", "tok/s", "total s", "× floor", "peak GB", "load s", "runs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found = row["figures"]
        if not found:
            table.add_row(row["name"], *("-" * 8))
            continue
        table.add_row(
            row["name"],
            "" if found["vision_s"] is None else f"{found['vision_s']:.2f}",
            f"{found['prefill_s']:.2f}",
            f"{found['decode_tokens_per_s']:.1f}",
            f"{found['total_s']:.2f}",
            f"{found['times_floor']:.2f}",
            f"{found['peak_bytes'] / 1e9:.2f}",
            f"{found['load_s']:.1f}",
            str(found["runs"]),
        )
    console.print(table)
    for row in rows:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}", markup=False)
    if any(row["figures"] and row["figures"]["vision_s"] is None for row in rows):
        console.print("no figure for vision: it is timed with prefill")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6, help="language layers (default: 6; the 3B model has 36)")
    parser.add_argument("--vision-blocks", type=int, default=4, help="vision blocks (default: 4; the 3B model has 32)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="processes of each contender (default: 5; 0 only converts the models)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON", help="interpreter with the peers")
    parser.add_argument("--work", type=Path, default=Path("runs/runtimes"), metavar="DIR", help="keeps the models")
    parser.add_argument("--quick", action="store_true", help="2 layers, 1 round, 32 tokens: does it all work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    for name, least in (("layers", 1), ("vision_blocks", 1), ("rounds", 0), ("threads", 1)):
        if (given := getattr(args, name)) < least:
            raise UserError(f"--{name.replace('_', '-')} {given}: expected {least} or more")
    if shutil.which(args.peers_python) is None:
        raise UserError(f"--peers-python {args.peers_python}: is no program; see benchmarks/requirements-peers.txt")
    # llama.cpp's converter takes the vision tower's merger for blocks 0 and 2, so it needs three blocks or more.
    layers, vision_blocks = (2, 4) if args.quick else (args.layers, args.vision_blocks)
    rounds, runs, tokens = (1, 1, 32) if args.quick else (args.rounds, 2, 128)
    screen = console()
    work = Work(
        args.work.resolve() / f"{layers}+{vision_blocks}", layers, vision_blocks, args.peers_python, args.threads
    )
    work.folder.mkdir(parents=True, exist_ok=True)
    if not work.checkpoint.is_dir():
        # Qwen's vocabulary is among the peers' requirements.
        maker = (args.peers_python, "-m", "benchmarks.make_random_checkpoint", str(work.checkpoint))
        depths = ("--layers", str(layers), "--vision-blocks", str(vision_blocks))
        code = subprocess.run((*maker, *depths), cwd=ROOT).returncode
        if code:
            return code
    notes: dict[str, str] = {}
    taken: dict[str, dict[str, float]] = {}
    for runtime in (OURS, *PEERS):
        note = missing(work, runtime)
        if note is None:
            note, taken[runtime.name] = prepare(work, runtime, screen)
        if note is not None:
            notes[runtime.name] = note
    if not rounds:
        for name, note in notes.items():
            screen.print(f"{name}: {note}")
        return 0
    able = [runtime for runtime in (OURS, *PEERS) if runtime.name not in notes]
    reports = measure(work, able, rounds, runs, tokens, screen)
    bandwidths = [value for some in reports.values() for report in some for value in report.get("bandwidth", ())]
    level = float(np.median(bandwidths)) if bandwidths else 0.0
    rows: list[dict[str, Any]] = []
    for runtime in (OURS, *PEERS):
        found = figures(reports.get(runtime.name, ()), level)
        errors = [report["error"] for report in reports.get(runtime.name, ()) if "error" in report]
        why = notes.get(runtime.name) or (f"failed: {errors[0]}" if errors else "no run at this level of bandwidth")
        rows.append(
            {"name": runtime.name, "figures": found, "note": "" if found else why, **taken.get(runtime.name, {})}
        )
    size = f"{layers} language layers, {vision_blocks} vision blocks, {tokens} tokens, {args.threads} threads"
    show(rows, f"{size}; {level / 1e9:.0f} GB/s", screen)
    robot = robot_figures(reports.get(OURS.name, ()))
    if robot:
        screen.print(
            f"under the grammar, {robot['tokens']:.0f} tokens: cold {robot['cold_s']:.2f} s, first waypoint at "
            f"{robot['waypoint_to_whole']:.0%} of it; warm {robot['warm_s']:.2f} s, {robot['warm_to_cold']:.0%} of cold"
        )
    if args.json:
        workload = {"layers": layers, "vision_blocks": vision_blocks, "tokens": tokens, "threads": args.threads}
        content = {"benchmark": "runtimes", "machine": machine(), "workload": workload, "bandwidth": level}
        args.json.write_text(
            json.dumps(content | {"results": rows, "robot": robot, "reports": reports}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
