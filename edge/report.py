"""What a run leaves behind: report.json, a picture of every decision, and the tables on the terminal."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from edge.contract import Affordance, Trajectory
from edge.loop import Order, Outcome
from edge.overlay import draw_decision
from edge.trace import Tracer

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Episode:
    """One order, what the robot says of it, and what physics says."""

    order: Order
    outcome: Outcome
    success: bool
    verdict: str


def decision_picture(episode: Episode) -> Image:
    """The frame with the box and the path on it, the reasoning beside it: (480, w, 3) RGB."""
    decisions = [d for d in (episode.outcome.grasp, episode.outcome.path) if d]
    box = episode.outcome.grasp.answer.output if episode.outcome.grasp else None
    path = episode.outcome.path.answer.output if episode.outcome.path else None
    thoughts = [d.answer.reasoning for d in decisions]
    return draw_decision(
        episode.outcome.frame.rgb,
        box if isinstance(box, Affordance) else None,
        path if isinstance(path, Trajectory) else None,
        episode.order.instruction,
        "\n".join(thoughts) or episode.outcome.reason,
        not_found=any(d.answer.output is None for d in decisions),
    )


def report(episodes: list[Episode], tracer: Tracer, extra: dict[str, Any]) -> dict[str, Any]:
    """The content of report.json."""
    successes = sum(e.success for e in episodes)
    return {
        "episodes": len(episodes),
        "successes": successes,
        "success_rate": successes / len(episodes) if episodes else 0.0,
        "stages": tracer.summary(),
        "episodes_detail": [_detail(e) for e in episodes],
        **extra,
    }


def _detail(episode: Episode) -> dict[str, Any]:
    o = episode.outcome

    def text(decision: Any) -> str | None:
        return decision.text if decision else None

    return {
        "instruction": episode.order.instruction,
        "kind": "place" if episode.order.place else "pick",
        "success": episode.success,
        "verdict": episode.verdict,
        "robot_says": o.reason,
        "attempts": o.attempts,
        "decision_s": round(o.decision_s, 3),
        "motion_s": round(o.motion_s, 3),
        "answer_affordance": text(o.grasp),
        "answer_trajectory": text(o.path),
    }


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Written whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def outcome_table(episodes: list[Episode]) -> Table:
    done = sum(e.success for e in episodes)
    table = Table(title=f"{done} of {len(episodes)} succeeded, judged by physics")
    table.add_column("instruction")
    table.add_column("outcome")
    table.add_column("decision s", justify="right")
    table.add_column("motion s", justify="right")
    for e in episodes:
        mark = "[green]✓[/green]" if e.success else "[red]✗[/red]"
        table.add_row(
            e.order.instruction, f"{mark} {told(e)}", f"{e.outcome.decision_s:.2f}", f"{e.outcome.motion_s:.1f}"
        )
    return table


def told(episode: Episode) -> str:
    """What physics says and, where the robot gave up, why; rich markup."""
    if episode.success or episode.outcome.done:
        return escape(episode.verdict)
    return escape(f"{episode.verdict} ({episode.outcome.reason})")
