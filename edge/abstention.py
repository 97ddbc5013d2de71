"""When an answer is too unsure to act on: the thresholds that `vlar1 calibrate confidence` leaves in a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drivers.errors import UserError
from edge.contract import TASKS, Task

FIELD = "confidence"  # of a bundle's manifest
# What `edge.decode.confidence` computes, by name: a threshold fitted to another definition means nothing.
SCORE = "product over the answer's tokens without a digit"


@dataclass(frozen=True)
class Abstention:
    """The least confidence an answer is acted on with.

    Attributes:
        least: by task; every answer to a task that is not in it is acted on.
        error_rate: at most this share of the answers acted on is wrong, as `training.confidence` says it.
    """

    least: Mapping[Task, float] = field(default_factory=dict)
    error_rate: float = 0.0

    def unsure(self, task: Task, confidence: float) -> str | None:
        """Why an answer to `task` is too unsure to act on, in words; None where it is not."""
        least = self.least.get(task, 0.0)
        if confidence >= least:
            return None
        return (
            f"not sure: the answer's confidence is {confidence:.2g}; at {least:.2g} and above, "
            f"at most {self.error_rate:.2g} of the answers are wrong"
        )


def read_abstention(manifest: Mapping[str, Any], where: str) -> Abstention:
    """What a manifest says; of a bundle that was not calibrated, that nothing is unsure.

    Raises:
        UserError: the field is damaged, or for a confidence that this version computes in another way; it begins with
            `where`.
    """
    section = manifest.get(FIELD)
    if section is None:
        return Abstention()
    mend = "calibrate again with: vlar1 calibrate confidence"
    if not isinstance(section, dict) or not isinstance(section.get("tasks"), dict):
        raise UserError(f"{where}: field {FIELD} is not an object with tasks; {mend}")
    if section.get("score") != SCORE:
        raise UserError(
            f"{where}: field {FIELD}.score is {section.get('score')!r}, this version computes {SCORE!r}; {mend}"
        )
    rate, least = section.get("error_rate"), {}
    if not _is_share(rate):
        raise UserError(f"{where}: field {FIELD}.error_rate is {rate!r}, expected a number in [0, 1]; {mend}")
    for task, entry in section["tasks"].items():
        threshold = entry.get("threshold") if isinstance(entry, dict) else None
        if task not in TASKS or not _is_share(threshold):
            raise UserError(
                f"{where}: field {FIELD}.tasks.{task} must be of {' or '.join(TASKS)}, its threshold in [0, 1]; {mend}"
            )
        least[task] = float(threshold)  # type: ignore[arg-type]
    return Abstention(least, float(rate))  # type: ignore[arg-type]


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= 1.0
