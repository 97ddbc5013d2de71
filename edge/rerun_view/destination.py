"""Where a run is shown: a viewer on this machine, one elsewhere, or a file for later."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drivers.errors import UserError

PORT = 9876
"""Rerun's own default."""
HERE = f"rerun+http://127.0.0.1:{PORT}/proxy"
_URL = re.compile(r"rerun(\+https?)?://[^/\s]+/proxy")
_CONNECT_TIMEOUT_S = 0.5


def is_file(where: str | None) -> bool:
    """Whether ``where`` names a file rather than a viewer."""
    return where is not None and "://" not in where


def check(where: str | None) -> None:
    """Refuse what cannot work before anything starts; a file is made, so that nobody else's is written over.

    Raises:
        UserError: the package is missing, there is no display, the file exists already, or it is no such address.
    """
    if find_spec("rerun") is None:
        raise UserError("--rerun: needs the package rerun-sdk; pip install 'vlar1-edge[rerun]'")
    if where is None:
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError(
                "--rerun: there is no display here for the viewer; name a file, `--rerun FILE.rrd`, or a viewer on "
                f"another machine, `--rerun rerun+http://HOST:{PORT}/proxy`"
            )
    elif is_file(where):
        _make(where)
    elif not _URL.fullmatch(where):
        raise UserError(f"--rerun {where}: no viewer's address; expected one like rerun+http://HOST:{PORT}/proxy")


def open_stream(where: str | None, blueprint: Any) -> Any:
    """A `rerun.RecordingStream` to there. Blocks for seconds where nobody listens, and raises nothing then."""
    import rerun as rr

    stream = rr.RecordingStream("vlar1")
    if where is not None and is_file(where):
        stream.save(where, default_blueprint=blueprint)
        return stream
    if where is None and not _somebody_listens():
        _start_viewer()
    stream.connect_grpc(where or HERE, default_blueprint=blueprint)
    return stream


def _make(where: str) -> None:
    if Path(where).suffix != ".rrd":
        raise UserError(f"--rerun {where}: expected a file FILE.rrd, or an address rerun+http://HOST:{PORT}/proxy")
    try:
        open(where, "xb").close()
    except FileExistsError:
        raise UserError(f"--rerun {where}: exists already, and nothing is overwritten; name another file") from None
    except OSError as error:
        raise UserError(
            f"--rerun {where}: cannot be made ({error.strerror}); name a file in a folder of yours"
        ) from None


def _somebody_listens() -> bool:
    with socket.socket() as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def _start_viewer() -> None:
    """A viewer that stays when the run has ended.

    Not by Rerun's own ``spawn``: that viewer listens on every network interface, may take three quarters of the memory
    beside a model, and reports its use to its makers. It does not where ``CI`` is set
    (``crates/utils/re_analytics/src/native/pipeline.rs`` of Rerun).
    """
    subprocess.Popen(
        [
            *(sys.executable, "-m", "rerun_cli", "--expect-data-soon"),
            *("--bind", "127.0.0.1", "--port", str(PORT)),
            *("--memory-limit", "25%", "--server-memory-limit", "5%"),
        ],
        env={**os.environ, "CI": "1", "RERUN_APP_ONLY": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
