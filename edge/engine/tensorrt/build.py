"""Building engines from a bundle's ``tensorrt`` graphs, by ``tensorrt`` on the board or ``tensorrt_rtx`` anywhere."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from drivers.errors import UserError
from edge.engine.bundle import Bundle
from edge.engine.tensorrt import plan as plans
from edge.engine.tensorrt.layout import HEAD, HEAD_NUMBERS, HEAD_ROWS, LANGUAGE, PREFILL_BLOCK, STEP_BLOCK
from edge.engine.tensorrt.module import RTX, Log, capabilities, installed
from edge.engine.tensorrt.plan import Plan, Target

# Kernels and bookkeeping beside the weights, in an engine file.
_SPARE_BYTES = 64_000_000

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def profiles(bundle: Bundle, graph: str, room: int) -> list[Shapes]:
    """Smallest, usual and largest input shapes: prefill then step for the language model.

    The step's profile reaches from one token to a block of drafts. One of exactly one token was tried: TensorRT then
    lays a second copy of all float16 weights beside the first.
    """
    if graph in (HEAD, HEAD_NUMBERS):
        return [{"hidden": ((1, bundle.hidden), (1, bundle.hidden), (HEAD_ROWS, bundle.hidden))}]
    if graph != LANGUAGE:
        return []
    widths = {"inputs_embeds": bundle.hidden, "cos": bundle.head_dim // 2, "sin": bundle.head_dim // 2}
    largest = min(PREFILL_BLOCK, room)
    usual = min(largest, bundle.n_image_tokens + STEP_BLOCK)
    return [
        {name: ((low, width), (opt, width), (high, width)) for name, width in widths.items()}
        for low, opt, high in ((min(STEP_BLOCK + 1, largest), usual, largest), (1, 1, STEP_BLOCK))
    ]


def build_engines(
    bundle: Bundle, target: Target, progress: Progress, say: Callable[[Plan], None] = lambda plan: None
) -> list[Path]:
    """Build every engine that is not there yet for `target`; those built before are kept, so it resumes.

    Args:
        bundle: with graphs for TensorRT.
        target: this machine's GPU, or of `ahead_of_time`.
        progress: shows a bar for the graphs and one for what TensorRT is at.
        say: called with each newly built engine's description.

    Raises:
        UserError: no graphs, too little disk, or TensorRT refuses a graph.
    """
    room, _ = plans.settings(bundle)
    trt = installed((target.module,))[0]
    jobs = []
    for graph in plans.graphs(bundle):
        plan = plans.planned(bundle, graph, target)
        jobs.append((plan, plans.engine_path(bundle, plan)))
    missing = [(plan, path) for plan, path in jobs if not plans.is_current(path, plan)]
    _check_disk(bundle, [plan for plan, _ in missing])
    for _, path in missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):  # before minutes of work
            raise UserError(f"bundle {bundle.path}: its {path.parent.name} cannot be written; build in a copy that can")
    task = progress.add_task(f"engines for {target.gpu or ' '.join(target.sm)}", total=len(jobs))
    progress.advance(task, len(jobs) - len(missing))
    for plan, path in missing:
        started = time.monotonic()
        shapes = profiles(bundle, plan.graph, room)
        engine = build_one(trt, plans.graph_path(bundle, plan.graph), shapes, target, progress, path.parent)
        say(plans.store(path, plan, engine, time.monotonic() - started))
        del engine  # gigabytes, before the next one is built
        progress.advance(task)
    return [path for _, path in jobs]


def build_one(trt: Any, graph: Path, shapes: list[Shapes], target: Target, progress: Progress, cache: Path) -> Any:
    """Parse one graph and build its engine: a buffer of its bytes.

    Args:
        trt: the module.
        graph: the ONNX file, its weights beside it.
        shapes: one optimization profile each.
        target: what to build for.
        progress: takes a task while TensorRT is at work.
        cache: folder of the timing cache, which spares a rebuild most of its measurements.

    Raises:
        UserError: TensorRT refuses the graph, with its first reason, or has nothing for the target.
    """
    if trt.__name__ == RTX and not set(target.sm) <= set(capabilities(trt)):
        raise UserError(
            f"{RTX} {trt.__version__} builds for {', '.join(capabilities(trt))}, not for {' '.join(target.sm)} "
            f"({target.gpu}); install NVIDIA's tensorrt"
        )
    logger = Log(trt)
    builder = trt.Builder(logger.log)
    # TensorRT 10 asks for strong typing; where nothing else is left, the flag may be gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger.log)
    if not parser.parse_from_file(str(graph)):
        reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        logger.errors[:0] = reasons
        raise _refused(trt, graph, logger)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 where the graph says so
    if trt.__name__ == RTX:  # left to itself it builds for every GPU that it knows, but not for Turing's
        config.num_compute_capabilities = len(target.sm)
        for i, name in enumerate(target.sm):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    for shape in shapes:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in shape.items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
    timings = cache / "timing.cache"
    measures = trt.__name__ != RTX  # which builds by rule and ignores such a cache
    if measures:
        known = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        config.set_timing_cache(known, False)
    monitor = _monitor(trt, progress, graph.stem)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    monitor.close()
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise _refused(trt, graph, logger)
    if measures:
        cache.mkdir(parents=True, exist_ok=True)
        timings.write_bytes(config.get_timing_cache().serialize())
    return engine


def _check_disk(bundle: Bundle, missing: list[Plan]) -> None:
    needed = sum(plans.graph_bytes(bundle, plan.graph) + _SPARE_BYTES for plan in missing)
    free = shutil.disk_usage(bundle.path).free
    if free < needed:
        raise UserError(
            f"bundle {bundle.path}: its engines take about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB "
            "free; make room"
        )


def _refused(trt: Any, graph: Path, log: Log) -> UserError:
    return UserError(f"graph {graph}: {trt.__name__} {trt.__version__} cannot build it: {log.reason}")


def _monitor(trt: Any, progress: Progress, graph: str) -> Any:
    """TensorRT's progress as a bar: its outermost phase's steps, named by what it is at inside."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self.task: TaskID = progress.add_task(graph, total=None)
            self.outer: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.outer = phase_name
                progress.update(self.task, total=num_steps, completed=0)
            progress.update(self.task, description=f"{graph}: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            # An exception must not pass through TensorRT's own frames.
            try:
                if phase_name == self.outer:
                    progress.update(self.task, completed=step + 1)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            pass

        def close(self) -> None:
            progress.remove_task(self.task)

    return Monitor()
