"""Keys as they are pressed, for the commands that a person sits in front of."""

from __future__ import annotations

import os
import re
import select
import sys

from drivers.errors import UserError
from edge.stop_input import KeyboardStop

CLOSED = "closed"
_SEQUENCE_S = 0.05  # the rest of an arrow key's bytes comes at once
_NAMES = {"\n": "enter", "\r": "enter", "\x1b": "esc", " ": "space"}
_SEQUENCE = re.compile(r"\x1b[\[O]([0-9;?]*[@-~]?)")
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}


class Keys:
    """A terminal that gives each key at once and shows none, until ``close``; a context manager.

    Args:
        what: is asked for, for the message where there is no terminal.
        fd: of the terminal; standard input by default.

    Raises:
        UserError: it is no terminal, or one that this process does not own (it runs in the background).
    """

    def __init__(self, what: str, fd: int | None = None) -> None:
        try:
            self._fd = sys.stdin.fileno() if fd is None else fd
            is_terminal = os.isatty(self._fd)
        except (AttributeError, ValueError, OSError):  # no standard input at all
            is_terminal = False
        if not is_terminal:
            raise UserError(f"{what}: needs a keyboard, and standard input is no terminal; run it in one")
        self._mode = KeyboardStop(self._fd)
        self._typed, self._ahead, self._closed = "", "", False

    def key(self, timeout_s: float) -> str:
        """The next key: a character, or "enter", "space", "esc", "up", "down", "left", "right"; "" when none comes.

        The space bar comes before whatever was typed ahead of it, which is dropped. `CLOSED` when the terminal is gone.
        """
        if self._ahead:
            ahead, self._ahead = self._ahead, ""
            return ahead
        if not self._typed and not self._fill(timeout_s):
            return CLOSED if self._closed else ""
        if " " in self._typed:  # whoever hits it wants it now, not after what was typed ahead
            self._typed = self._typed[self._typed.index(" ") :]
        if self._typed == "\x1b":
            self._fill(_SEQUENCE_S)
        if sequence := _SEQUENCE.match(self._typed):
            self._typed = self._typed[sequence.end() :]
            return _ARROWS.get(sequence[1]) or self.key(0.0)
        first, self._typed = self._typed[0], self._typed[1:]
        return _NAMES.get(first, first)

    def drop_repeats(self, key: str) -> None:
        """Forget the presses of ``key`` that wait already, as those of a key held down."""
        while (following := self.key(0.0)) == key:
            pass
        self._ahead = following

    def wait(self, *wanted: str) -> str:
        """The first of ``wanted`` that is pressed. Raises UserError when the terminal is gone."""
        while (key := self.key(1.0)) not in wanted:
            if key == CLOSED:
                raise UserError("the terminal was closed")
        return key

    def _fill(self, timeout_s: float) -> bool:
        """Wait for more bytes; whether any came."""
        if self._closed or not select.select([self._fd], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._fd, 256)
        except OSError:
            data = b""
        self._closed = not data
        self._typed += data.decode("utf-8", "replace")
        return bool(data)

    def close(self) -> None:
        """Put the terminal back as it was. May be called twice."""
        self._mode.close()

    def __enter__(self) -> Keys:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
