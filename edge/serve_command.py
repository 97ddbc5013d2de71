"""``vlar1 serve``: one model behind HTTP, for this machine or, with a token, for others."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from drivers.errors import UserError
from edge.serve.listen import address_of, bound, require_packages, url_of
from edge.shipped import SHIPPED_BUNDLE

if TYPE_CHECKING:
    import uvicorn

TOKEN_VARIABLE = "VLAR1_TOKEN"
_TOKEN = re.compile(r"[!-~]{16,}")  # visible ASCII: what a header can carry


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="answer over HTTP, as the released VLA-R1 server and OpenAI's API do",
        description="Serve one model over HTTP: /generate_multipart, /generate and /health as the released VLA-R1 "
        "server has them, /v1/decide with typed results or server-sent events, OpenAI's /v1/chat/completions with one "
        "image, /metrics for Prometheus. Ctrl-C answers what has come, then ends.",
    )
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="P", help="TCP port (default: 8000; 0: a free one)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="F",
        help="file with the token that requests must bear; needed, or the variable "
        f"{TOKEN_VARIABLE}, for an address that other machines reach",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="let /generate read images of this folder (default: of none)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; 0. A service manager that started it hears how it is."""
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: expected 0 to 65535")
    if args.images is not None and not args.images.is_dir():
        raise UserError(f"--images {args.images}: no such folder")
    token = read_token(args.token_file)
    address = address_of(args.host, f"--host {args.host}")
    if token is None and not ipaddress.ip_address(address).is_loopback:
        raise UserError(
            f"--host {args.host}: other machines reach it, so a token is needed; write one with `openssl rand -hex 32 "
            f"> token` and give --token-file token, or set {TOKEN_VARIABLE}"
        )
    require_packages("vlar1 serve", "fastapi", "python_multipart")
    from rich.console import Console

    from edge.decode import compile_grammars
    from edge.engine.bundle import load_bundle
    from edge.engine.onnx import OnnxEngine
    from edge.serve.app import build_app, make_server
    from edge.serve.line import Line
    from edge.serve.notify import NotifyingServer, take_manager

    manager = take_manager()
    console = Console(soft_wrap=True, highlight=False)
    with bound(address, args.port, f"--host {args.host} --port {args.port}") as listener:
        engine = OnnxEngine(load_bundle(args.bundle))
        compile_grammars(engine.bundle)
        line = Line(engine)
        server = make_server(build_app(line, token, args.images))
        if manager is not None:
            server = NotifyingServer(server.config, manager, line)
        try:
            with _ending(server):
                listener.listen()  # who connects before the server runs is kept waiting by the system
                console.print(
                    f"{engine.bundle.path.resolve().name} on {url_of(listener)}"
                    f"{'' if token is None else ', with a token'}; Ctrl-C ends it",
                    markup=False,
                )
                server.run(sockets=[listener])
        finally:
            line.close()
    console.print("stopped")
    return 0


def read_token(path: Path | None) -> str | None:
    """The token of a file, else of the environment, else None; raises UserError for one that is no secret."""
    if path is not None:
        try:
            token, where = path.read_text("utf-8").strip(), f"--token-file {path}"
        except UnicodeDecodeError:
            token, where = "", f"--token-file {path}"
    elif TOKEN_VARIABLE in os.environ:
        token, where = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if not _TOKEN.fullmatch(token):
        raise UserError(f"{where}: expected a token of 16 or more letters and digits; `openssl rand -hex 32` makes one")
    return token


@contextmanager
def _ending(server: uvicorn.Server) -> Iterator[None]:
    """SIGINT and SIGTERM end the server, before, while and after it listens to them itself; nothing else ends."""

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
