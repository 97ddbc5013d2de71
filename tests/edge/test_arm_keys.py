"""Keys as a person presses them."""

import os
import termios

import pytest
from arm_terminal import Terminal, terminal  # noqa: F401

from drivers.errors import UserError
from edge.arm_keys import CLOSED, Keys


@pytest.fixture
def keys(terminal: Terminal) -> Keys:  # noqa: F811
    return Keys("test")


def typed(keys: Keys) -> list[str]:
    found = []
    while key := keys.key(0.05):
        found.append(key)
        if key == CLOSED:
            break
    return found


def test_keys_have_names(terminal: Terminal, keys: Keys) -> None:  # noqa: F811
    terminal.press("a", "\n", "\x1b[A\x1b[B", "\x1bOC", "\x1b[D+")
    assert typed(keys) == ["a", "enter", "up", "down", "right", "left", "+"]
    terminal.press("\x1b")
    assert typed(keys) == ["esc"]
    assert keys.key(0.0) == ""


def test_keys_of_many_bytes_are_no_letters(terminal: Terminal, keys: Keys) -> None:  # noqa: F811
    terminal.press("\x1b[3~x\x1b[1;5qy")
    assert typed(keys) == ["x", "y"]


def test_the_space_bar_overtakes(terminal: Terminal, keys: Keys) -> None:  # noqa: F811
    terminal.press("abc\x1b[A d")
    assert typed(keys) == ["space", "d"]


def test_repeats_of_a_key_held_are_dropped(terminal: Terminal, keys: Keys) -> None:  # noqa: F811
    terminal.press("\x1b[A\x1b[A\x1b[A\x1b[Bx")
    assert keys.key(1.0) == "up"
    keys.drop_repeats("up")
    assert typed(keys) == ["down", "x"]


def test_an_arrow_that_comes_in_pieces_is_one_key(terminal: Terminal, keys: Keys) -> None:  # noqa: F811
    terminal.press("\x1b")
    os.write(terminal.person_fd, b"[A")
    assert typed(keys) == ["up"]


def test_a_terminal_that_is_gone(terminal: Terminal, keys: Keys) -> None:  # noqa: F811
    terminal.hang_up()
    assert typed(keys) == [CLOSED]
    with pytest.raises(UserError, match="the terminal was closed"):
        keys.wait("enter")


def test_the_terminal_is_put_back_whatever_happens(terminal: Terminal) -> None:  # noqa: F811
    with pytest.raises(ZeroDivisionError), Keys("test"):
        assert not termios.tcgetattr(terminal.fd)[3] & termios.ECHO
        raise ZeroDivisionError
    assert terminal.restored


def test_no_terminal_is_one_line() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(UserError, match="test: needs a keyboard, and standard input is no terminal"):
            Keys("test", read)
    finally:
        os.close(read)
        os.close(write)
