"""A decision as a recording keeps it: what was asked of which frame, what came of it, and all it takes to ask again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from drivers.protocols import Frame
from edge.contract import Affordance, Task
from edge.decode import Decision
from edge.engine.bundle import Bundle


def decision_record(
    decision: Decision,
    frame: Frame,
    task: Task,
    instruction: str,
    bundle: Bundle,
    *,
    deadline_s: float | None = None,
    draft: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The record of one decision, plain enough for JSON.

    Args:
        decision: of ``frame.rgb``, ``task`` and ``instruction``.
        bundle: the engine's.
        deadline_s, draft: as `edge.decode.decide` had them.
    """
    output = decision.answer.output
    value: Any = None
    if output is not None:
        value = asdict(output) if isinstance(output, Affordance) else [list(point) for point in output.points]
    return {
        "task": task,
        "instruction": instruction,
        "text": decision.text,
        "answer": value,
        "confidence": decision.confidence,
        "number_confidences": list(decision.number_confidences),
        "unsure": decision.unsure,
        "thinking_cut": decision.thinking_cut,
        "points_cut": decision.points_cut,
        "n_prompt_tokens": decision.n_prompt_tokens,
        "n_tokens": decision.n_tokens,
        "n_forced_tokens": decision.n_forced_tokens,
        "n_passes": decision.n_passes,
        "first_action_s": decision.first_action_s,
        "took_s": decision.took_s,
        "frame_t_s": frame.t_s,
        "serial": frame.serial,
        "bundle": bundle.path.resolve().name,
        "quantization": bundle.quantization,
        "deadline_s": deadline_s,
        "draft": None if draft is None else list(draft),
    }


def hurried(record: Mapping[str, Any]) -> bool:
    """Whether the clock had a say in the answer, which may then be another one the next time."""
    return "deadline" in (record.get("thinking_cut"), record.get("points_cut"))
