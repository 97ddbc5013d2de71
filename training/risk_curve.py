"""A picture of a calibration: the share of wrong answers against the share acted on, with the threshold marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edge.contract import Task
from training.confidence import Judged, Threshold, by_confidence, write_whole


def draw(
    path: Path, judged: Mapping[Task, Sequence[Judged]], thresholds: Mapping[Task, Threshold], error_rate: float
) -> None:
    """Write the PNG file, whole or not at all: one panel a task."""
    figure = Figure(figsize=(4.5 * len(thresholds), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (task, fit) in enumerate(thresholds.items()):
        _, wrong = by_confidence(judged[task])
        size = np.arange(1, len(wrong) + 1)
        share, seen = fit.kept / fit.answers, fit.kept_wrong / fit.kept
        axes = figure.add_subplot(1, len(thresholds), k + 1)
        axes.plot(size / len(wrong), np.cumsum(wrong) / size, linewidth=1.2, label="seen")
        axes.axhline(error_rate, color="tab:red", linewidth=1, label="promised at most")
        sure = f"confidence {fit.threshold:.3g}: seen, bound"
        axes.plot([share, share], [seen, fit.risk_bound], "o-", markersize=3, color="black", label=sure)
        axes.set(title=f"{task}, {fit.answers} answers", xlabel="share acted on", ylabel="share of them wrong")
        axes.set(xlim=(0, 1), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())
