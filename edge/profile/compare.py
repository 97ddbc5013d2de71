"""Is this report slower than that one? Each stage's runs compared by a rank test, and by how much it matters."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from drivers.errors import UserError
from edge.profile.run import SCHEMA, Report

ALPHA = 0.01
LEAST_OF_STAGE, LEAST_OF_DECISION = 0.05, 0.01
"""A stage is slower where its median grew by so much of itself and by so much of the whole decision."""
LEAST_RUNS = 8
_SAME_SPEED = 0.12  # memory's, between two runs on one machine at one level of it (docs/performance.md)


@dataclass(frozen=True)
class Change:
    """One stage, before and now: medians.

    Attributes:
        p_value: of finding so much longer (or, where the median fell, shorter) runs by chance alone.
        significant: by that, all stages together taken into account (Holm), and large enough to matter.
    """

    stage: str
    before_ms: float
    now_ms: float
    p_value: float
    significant: bool

    @property
    def slower(self) -> bool:
        return self.significant and self.now_ms > self.before_ms

    @property
    def faster(self) -> bool:
        return self.significant and self.now_ms < self.before_ms


def compare(before: Report, now: Report) -> list[Change]:
    """Every stage that both have, and the whole decision.

    Mann and Whitney's U test on the runs of each stage, one-sided in the direction in which the median went, at 1 % for
    all stages together (Holm 1979): it asks nothing of how durations are distributed. It takes runs for independent of
    one another, which those of one process are not quite: hence also the least sizes of a change.
    """
    stages = [name for name in now["runs_ms"] if name in before["runs_ms"]]
    whole_ms = float(np.median(before["runs_ms"]["decision"]))
    found = []
    for name in stages:
        old, new = np.array(before["runs_ms"][name]), np.array(now["runs_ms"][name])
        old_ms, new_ms = float(np.median(old)), float(np.median(new))
        way = "greater" if new_ms >= old_ms else "less"
        p_value = float(mannwhitneyu(new, old, alternative=way).pvalue)
        matters = abs(new_ms - old_ms) >= max(LEAST_OF_STAGE * old_ms, LEAST_OF_DECISION * whole_ms)
        found.append((name, old_ms, new_ms, p_value, matters))
    passed: set[str] = set()
    for rank, (name, _, _, p_value, _) in enumerate(sorted(found, key=lambda row: row[3])):
        if p_value > ALPHA / (len(found) - rank):
            break
        passed.add(name)
    return [Change(name, old, new, p, name in passed and matters) for name, old, new, p, matters in found]


def read_report(path: Path) -> Report:
    """A report of ``vlar1 profile --json``. Raises UserError naming the field that cannot be compared with."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--against {path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"--against {path}: cannot be read as JSON: {error}") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise UserError(f"--against {path}: is no report of this version's `vlar1 profile --json`; make it again")
    runs_ms = report.get("runs_ms")
    if not isinstance(runs_ms, dict) or not isinstance(runs_ms.get("decision"), list):
        raise UserError(f"--against {path}: field runs_ms lacks decision; make it again")
    for name, values in runs_ms.items():
        if not isinstance(values, list) or not all(_is_number(value) for value in values):
            raise UserError(f"--against {path}: field runs_ms.{name} is not a list of milliseconds; make it again")
        if len(values) < LEAST_RUNS:
            raise UserError(
                f"--against {path}: has {len(values)} runs, too few to tell anything by; "
                f"make it again with --runs {LEAST_RUNS} or more"
            )
    return report


def differences(before: Report, now: Report) -> list[str]:
    """What else is different between the two reports, in words: a change of time may come from it."""
    lines = []
    for field, what in (("machine", "cpu"), ("machine", "cores"), ("bundle", "quantization"), ("bundle", "checkpoint")):
        old, new = _at(before, field, what), _at(now, field, what)
        if old is not None and old != new:
            lines.append(f"another {field}: {what} was {old}, now {new}")
    for field in ("image_px", "task", "instruction"):
        if before.get(field) != now.get(field):
            lines.append(f"another {field}: was {before.get(field)}, now {now.get(field)}")
    old, new = _at(before, "tokens", "answer"), _at(now, "tokens", "answer")
    if old is not None and old != new:
        lines.append(f"answers have another length: {old:g} tokens before, {new:g} now")
    speeds = [np.mean(_at(report, "floor", "bytes_per_s") or [math.nan]) for report in (before, now)]
    if abs(math.log(speeds[1] / speeds[0])) > math.log(1 + _SAME_SPEED):
        lines.append(
            f"the machine's memory gave {speeds[0] / 1e9:.1f} GB/s then and {speeds[1] / 1e9:.1f} GB/s now: "
            "other work, or another power mode, may be what differs"
        )
    return lines


def _at(report: Report, field: str, name: str) -> Any:
    section = report.get(field)
    return section.get(name) if isinstance(section, dict) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
