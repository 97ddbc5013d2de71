"""How a benchmark speaks and ends, and which machine its figures are of."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console

from drivers.errors import UserError
from edge.this_machine import machine

__all__ = ["console", "exit_code", "machine"]


def console() -> Console:
    """As wide as the terminal; in a file or a pipe wide enough that no name in a table is cut."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a benchmark: 2 after one line on stderr where its user can mend what stopped it, else its own or 0."""
    try:
        return main() or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
