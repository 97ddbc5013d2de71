"""What a training run shows while it goes on, and the curves it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN = ("loss", "mean_token_accuracy", "reward", "kl", "entropy", "grad_norm", "learning_rate")


class Report(TrainerCallback):
    """A progress bar on a terminal, and everywhere one line whenever the trainer logs."""

    def __init__(self, console: Console):
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        live = console.is_terminal and not console.quiet
        self.progress = Progress(*columns, console=console, transient=True, disable=not live)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        elapsed = time.monotonic() - self.began
        shown = {name: logs[name] for name in SHOWN if name in logs}
        shown["s_per_step"] = elapsed / max(1, state.global_step - self.first)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.console.print(
            f"{elapsed / 60:7.1f} min  step {state.global_step}/{state.max_steps}  {figures}", soft_wrap=True
        )

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()


def plot_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Training curves from a Trainer's log history, one panel for each of `SHOWN` that it holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {name: [(h["step"], h[name]) for h in history if name in h and "step" in h] for name in SHOWN}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return
    figure = Figure(figsize=(5 * min(3, len(curves)), 3.2 * -(-len(curves) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (name, points) in enumerate(curves.items()):
        axes = figure.add_subplot(-(-len(curves) // 3), min(3, len(curves)), k + 1)
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.grid(alpha=0.3)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)
