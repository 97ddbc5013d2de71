"""What ``vlar1 doctor`` is made of: findings, the checks that make them, and what becomes of a check that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["fine", "warning", "absent", "missing"]
LIMIT_S = 12.0
"""How long all checks together may take that do not say otherwise; each one's own limits are shorter."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: ``fine``; ``warning``: works less well, or something plugged in is of no use; ``absent``: not here, and
            nothing needs it; ``missing``: `vlar1 demo`, `vlar1 ask` or a file that was named does not work without.
        told: what was found, one line.
        to_type: the command that mends it, or "".
    """

    name: str
    state: State
    told: str
    to_type: str = ""


@dataclass(frozen=True)
class Check:
    """One look at the machine: under which heading, what it is called should it fail, and the look itself."""

    group: str
    name: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float = LIMIT_S


def examine(checks: Sequence[Check]) -> dict[str, list[Finding]]:
    """All findings by heading, in the checks' order. The checks run at once; one that raises or hangs is a finding."""
    found: dict[int, list[Finding]] = {}

    def look(i: int) -> None:
        try:
            found[i] = list(checks[i].look())
        except Exception as error:  # whatever a strange machine does to one, the others are told
            told = f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())}"
            found[i] = [Finding(checks[i].name, "warning", told)]

    began_s = time.monotonic()
    # Daemons: a thread that waits for a dead disk must not keep the command from ending.
    threads = [threading.Thread(target=look, args=(i,), daemon=True) for i in range(len(checks))]
    for thread in threads:
        thread.start()
    report: dict[str, list[Finding]] = {}
    for i, (check, thread) in enumerate(zip(checks, threads, strict=True)):
        thread.join(max(0.0, began_s + check.limit_s - time.monotonic()))
        hung = [Finding(check.name, "warning", f"could not be checked: no answer within {check.limit_s:g} s")]
        report.setdefault(check.group, []).extend(found.get(i, hung))
    return report


def works(report: dict[str, list[Finding]]) -> bool:
    """Whether `vlar1 demo`, `vlar1 ask` and what was named would work: nothing is ``missing``."""
    return all(finding.state != "missing" for findings in report.values() for finding in findings)


def read_text(path: Path) -> str:
    """A file of /proc, /sys or /etc, stripped; "" where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
