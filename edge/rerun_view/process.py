"""The process that has the Rerun SDK: reads pickled messages of `edge.rerun_view.messages` from its input, draws them.

``python -m edge.rerun_view.process [FILE|URL]``. It says in a line on its output why it ends before its input does.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from typing import IO, Any

from edge.rerun_view.destination import HERE, is_file, open_stream
from edge.rerun_view.drawing import Drawing
from edge.rerun_view.layout import blueprint
from edge.rerun_view.messages import Batch, Begin

_CHECK_S = 5.0
_ANSWER_TIMEOUT_S = 10.0
_LAST_TIMEOUT_S = 1.0
_NICE = 10  # the model and the camera go first
_kept: list[Any] = []  # streams: to let go of one waits for its viewer, without a limit


class _NoAnswerError(Exception):
    """The viewer does not take what it is sent."""


def show(source: IO[bytes], where: str | None) -> None:
    """Draw what comes, until the source ends. Raises _NoAnswerError where nobody takes it."""
    begin: Begin = pickle.load(source)
    stream = open_stream(where, blueprint(begin.robot, begin.mount))
    _kept.append(stream)
    drawing = Drawing(stream, begin)
    live = not is_file(where)
    check_s = 0.0
    while True:
        try:
            batch: Batch = pickle.load(source)
        except EOFError:
            break
        drawing.draw(batch)
        if live and time.monotonic() >= check_s:
            _flush(stream, _ANSWER_TIMEOUT_S)
            check_s = time.monotonic() + _CHECK_S
    if live:
        _flush(stream, _LAST_TIMEOUT_S)
    else:
        stream.disconnect()


def _flush(stream: Any, timeout_s: float) -> None:
    try:
        stream.flush(timeout_sec=timeout_s)
    except RuntimeError as error:
        raise _NoAnswerError from error


def main(where: str | None) -> int:
    """1, after a line that says why, where it cannot go on."""
    os.nice(_NICE)
    try:
        show(sys.stdin.buffer, where)
        return 0
    except _NoAnswerError:
        print(f"no viewer answers at {where or HERE}; start one there with `rerun`")
    except Exception as error:
        print(" ".join(f"{type(error).__name__}: {error}".split()))
    return 1


if __name__ == "__main__":
    code = main(sys.argv[1] if len(sys.argv) > 1 else None)
    sys.stdout.flush()
    os._exit(code)  # the SDK's own way out waits for a viewer without a limit
