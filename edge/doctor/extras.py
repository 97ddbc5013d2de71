"""The optional parts of the package, for ``vlar1 doctor``: what each needs, and whether it is installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from edge.doctor.findings import Finding

DISTRIBUTION = "vlar1-edge"
# What each extra is for, and what comes before it: torch asked for loosely brings gigabytes of GPU libraries.
TORCH = "pip install torch==2.13.0 && "
EXTRAS = {
    "export": ("vlar1 export", TORCH),
    "training": ("vlar1 train, data, eval", TORCH),
    "tensorrt": ("vlar1 build, the TensorRT engine", ""),
    "realsense": ("depth cameras", ""),
    "serve": ("vlar1 serve", ""),
    "gpio": ("a stop button on a GPIO line", ""),
}


def extras(
    needs: Sequence[str] | None = None, installed: Callable[[str], str] = version, distribution: str = DISTRIBUTION
) -> list[Finding]:
    """One an extra that the installed package knows; packages are looked up by name, not imported.

    Args:
        needs: the distribution's requirements (Requires-Dist), those of the installed one if left out.
    """
    lines = (requires(distribution) or []) if needs is None else needs
    found = []
    for extra, (use, before) in EXTRAS.items():
        wanted = [line for line in lines if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", line)]
        if not wanted:
            continue
        missing = [problem for line in wanted if (problem := _problem(line, installed))]
        if missing:
            told = f"for {use}; lacks {', '.join(missing)}"
            found.append(Finding(extra, "absent", told, f"{before}pip install '{distribution}[{extra}]'"))
        else:
            found.append(Finding(extra, "fine", f"for {use}"))
    return found


def _problem(line: str, installed: Callable[[str], str]) -> str:
    """What lacks of one requirement, "" for nothing. Of versions only an exact one is looked at."""
    wanted = re.match(r"([A-Za-z0-9._-]+)(?:\s*==\s*([\w.]+))?", line)
    assert wanted is not None, line
    name, exact = wanted[1], wanted[2]
    try:
        here = installed(name)
    except PackageNotFoundError:
        return name
    return f"{name} {exact} (here: {here})" if exact and here.partition("+")[0] != exact else ""
