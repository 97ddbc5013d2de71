"""Measures a bundle: its decisions in a process of their own, the memory's speed before and after; one report."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from drivers.errors import UserError
from edge.contract import Task
from edge.memory_speed import cache_bytes, cores, read_bandwidth
from edge.this_machine import machine

SCHEMA = 1
TASK: Task = "affordance"
_POLL_S = 5.0  # the servo loop keeps its cycles for 40 s

Report = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What the measured process does.

    Attributes:
        bundle: its folder.
        instruction: what every decision is asked.
        runs: decisions after the first.
        trace: whether its spans are wanted.
        spawned_ns: ``time.monotonic_ns()`` as it was started.
    """

    bundle: str
    instruction: str
    runs: int
    trace: bool
    task: Task = TASK
    spawned_ns: int = 0


class Watch(Protocol):
    """Watches something while the measured process runs."""

    def begin(self) -> None:
        """It is about to start."""

    def collect(self) -> None:
        """Called every few seconds from then on, and once when it has ended."""


def profile(job: Job, rgb: NDArray[np.uint8], watch: Watch | None = None) -> Report:
    """Measure, and report: what `edge.profile.worker.measure` found, the machine, speeds and the floor.

    ``events`` in it are for a trace file and ``dropped`` how many spans these lack; the other fields are the report's.

    Args:
        job: its `spawned_ns` is filled in here.
        rgb: (h, w, 3) uint8, what every decision looks at.
        watch: told while decisions are made.

    Raises:
        UserError: the bundle cannot be used, or the measured process ended otherwise.
    """
    threads = cores()
    before = read_bandwidth(threads)
    found = _measured(job, rgb, watch)
    bytes_per_s = [before, read_bandwidth(threads)]
    stage_bytes = found.pop("stage_bytes")
    speed, p50 = float(np.mean(bytes_per_s)), {name: float(np.median(ms)) for name, ms in found["runs_ms"].items()}
    floor_ms = {name: n / speed * 1e3 for name, n in stage_bytes.items()}
    tokens = found["tokens"]
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "task": job.task,
        "instruction": job.instruction,
        "image_px": [rgb.shape[1], rgb.shape[0]],
        "runs": job.runs,
        **found,
        "tokens_per_s": {
            "prefill": tokens["prefilled"] / p50["prefill"] * 1e3,
            "decode": tokens["answer"] / p50["decode"] * 1e3,
        },
        "floor": {
            "bytes_per_s": bytes_per_s,
            "threads": threads,
            "cache_bytes": cache_bytes(),
            "bytes": stage_bytes,
            "ms": floor_ms,
            "times": {name: p50[name] / floor_ms[name] for name in floor_ms if floor_ms[name] > 0.0},
        },
    }


def _measured(job: Job, rgb: NDArray[np.uint8], watch: Watch | None) -> Report:
    with tempfile.TemporaryDirectory(prefix="vlar1-profile-") as name:
        folder = Path(name)
        np.save(folder / "image.npy", rgb)
        if watch is not None:
            watch.begin()
        spawned_ns = time.monotonic_ns()
        (folder / "job.json").write_text(json.dumps({**asdict(job), "spawned_ns": spawned_ns}))
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "edge.profile.worker", str(folder)], stdin=subprocess.DEVNULL, stderr=stderr
            )
            try:
                while True:
                    try:
                        code = process.wait(_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        pass
                    finally:
                        if watch is not None:
                            watch.collect()
            finally:
                process.kill()  # nothing where it has ended
                process.wait()
        if code:
            raise UserError(_why(code, (folder / "stderr").read_text(errors="replace")))
        report: Report = json.loads((folder / "result.json").read_text())
        return report


def _why(code: int, said: str) -> str:
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    if code == 2:
        return last
    how = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"profile: the measured process ended by {how}: {last}"
