"""Shows what doctor and profile found on a board as these show it themselves, and keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from edge.doctor.command import show as show_findings
from edge.doctor.findings import Finding
from edge.profile.run import Report
from edge.profile.show import lines, stage_table
from edge.report import write_report


def show_doctor(host: str, found: dict[str, Any], console: Console) -> None:
    """The findings of ``vlar1 doctor --json``."""
    console.print(f"doctor, on {host} (what it says to type, type there):", markup=False)
    groups = found["groups"].items()
    show_findings({group: [Finding(**finding) for finding in findings] for group, findings in groups})


def show_profile(report: Report, console: Console) -> None:
    """The report of ``vlar1 profile --json``."""
    console.print(stage_table(report))
    for line in lines(report):
        console.print(line, markup=False)


def keep(path: Path, found: dict[str, Any]) -> str:
    """Write it, whole or not at all; where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(path, found)
    return str(path)
