"""What the server does not do: let strangers in, decode bombs, wait for the slow, work for those who left."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from drivers.errors import UserError
from edge import serve_command
from edge.serve import connection, guard, image
from edge.serve.asked import events_of
from edge.serve.line import Busy, Line, Question
from tests.edge.serving import PATIENCE_S, Running, png, seeing_engine, serving, text_of

FORM = {"task": "affordance", "instruction": "pick it up"}


def ask(server: Running, grey: int, **more: Any) -> httpx.Response:
    files = {"image": ("f.png", png(grey))}
    return httpx.post(server.url + "/v1/decide", data=FORM, files=files, timeout=PATIENCE_S, verify=False, **more)


def until(true: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends_s
        time.sleep(0.002)


def raw_request(port: int, grey: int, headers: str = "") -> socket.socket:
    """A whole request on a socket that the test can close when it likes."""
    request = httpx.Request("POST", f"http://127.0.0.1:{port}/v1/decide", data=FORM, files={"image": ("f", png(grey))})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    client.sendall(f"POST /v1/decide HTTP/1.1\r\n{head}{headers}\r\n".encode() + request.read())
    return client


def test_a_token_is_asked_for() -> None:
    token = "0123456789abcdef"
    with serving(seeing_engine(), token=token) as server:
        for header in (None, f"Bearer {token}x", "Bearer", f"Basic {token}", f"Bearer {token[:-1]}", "Bearer \xff\xfe"):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            reply = ask(server, 5, headers=headers)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert "Bearer TOKEN" in reply.json()["detail"]
            assert httpx.get(server.url + "/metrics", headers=headers).status_code == 401
            assert httpx.get(server.url + "/health", headers=headers).json() == {"ok": True}
        right = {"Authorization": f"Bearer {token}", "Host": "robot.example", "Origin": "https://robot.example"}
        assert ask(server, 5, headers=right).json()["text"] == text_of(5)


def test_without_a_token_pages_of_other_sites_are_refused() -> None:
    with serving(seeing_engine()) as server:
        for headers in ({"Host": "evil.example"}, {"Host": "evil.example:8000"}, {"Origin": "https://evil.example"}):
            assert ask(server, 5, headers=headers).status_code == 403
        for headers in ({"Origin": "null"}, {"Host": "["}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://["}):
            assert ask(server, 5, headers=headers).status_code == 403
        for headers in ({"Host": "localhost:8000"}, {"Host": "[::1]:8000"}, {"Origin": "http://localhost:3000"}):
            assert ask(server, 5, headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_need_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve_command.TOKEN_VARIABLE, raising=False)
    with pytest.raises(UserError, match="a token is needed"):
        serve_command.run(arguments("--host", host))


def test_a_token_that_is_no_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve_command.TOKEN_VARIABLE, "0123456789abcdef")
    assert serve_command.read_token(None) == "0123456789abcdef"
    file = tmp_path / "token"
    file.write_text("fedcba9876543210\n")
    assert serve_command.read_token(file) == "fedcba9876543210"
    for content in (b"", b"\n", b"short", b"0123456789 abcdef", b"\xff\xfe" * 10):
        file.write_bytes(content)
        with pytest.raises(UserError, match="expected a token of 16 or more"):
            serve_command.read_token(file)
    monkeypatch.setenv(serve_command.TOKEN_VARIABLE, "")
    with pytest.raises(UserError, match=serve_command.TOKEN_VARIABLE):
        serve_command.read_token(None)


def arguments(*argv: str) -> Any:
    parser = argparse.ArgumentParser()
    serve_command.register(parser.add_subparsers())
    return parser.parse_args(["serve", *argv])


def test_wrong_arguments_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--port 70000"):
        serve_command.run(arguments("--port", "70000"))
    with pytest.raises(UserError, match="no such folder"):
        serve_command.run(arguments("--images", str(tmp_path / "none")))
    with pytest.raises(UserError, match="no such address"):
        serve_command.run(arguments("--host", "no such host"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="give another port"):
        serve_command.run(arguments("--port", str(taken.getsockname()[1])))
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UserError, match=r"fastapi, which is not installed: pip install 'vlar1-edge\[serve\]'"):
        serve_command.run(arguments())


def test_the_parser_imports_none_of_it() -> None:
    code = (
        "import sys, edge.serve_command; print([m for m in ('fastapi', 'uvicorn', 'cv2', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def png_header(width: int, height: int) -> bytes:
    """A PNG file whose few bytes decode to so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A JPEG file of one size that says another."""
    content = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def test_bombs_are_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def imdecode(*args: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    for content in (png_header(60_000, 60_000), png_header(2**31 - 1, 1), jpeg(65_500, 65_500), jpeg(65_000, 300)):
        with pytest.raises(UserError, match="make it smaller"):
            image.decode_image(content)
    for content in (png_header(0, 5), jpeg(5, 0), b"", b"GIF89a", png(1)[:20], jpeg(8, 8)[:30], b"\xff\xd8\xff"):
        with pytest.raises(UserError, match="not a PNG or JPEG"):
            image.decode_image(content)
    with pytest.raises(UserError, match="scans"):
        image.decode_image(jpeg(4000, 4000) + 200 * b"\xff\xda")


def progressive() -> bytes:
    return cv2.imencode(".jpg", np.zeros((31, 17, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


SOURCES = (png(90, 16), jpeg(8, 8), progressive())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with bytes changed, put in and cut off."""
    content = bytearray(draw(st.sampled_from(SOURCES)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=damaged() | st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"\xff\xd8\xff" + b))
def test_what_is_decoded_has_the_size_its_header_says(content: bytes) -> None:
    """Whatever is refused or not: OpenCV never makes more pixels than were judged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "MAX_PIXELS", 100_000)
        try:
            rgb = image.decode_image(content)
        except UserError as error:
            assert "\n" not in str(error)
            decoded = None
            if "make it smaller" not in str(error) and "scans" not in str(error) and len(content):
                decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            assert decoded is None  # only what OpenCV refuses too is called damaged
        else:
            size = image._png_size(content) or image._jpeg_size(content)
            assert size is not None and sorted(size) == sorted(rgb.shape[:2])


def test_junk_uploads_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = seeing_engine()
    with serving(engine) as server, server.http as client:

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            body=st.binary(max_size=300) | damaged(),
            kind=st.sampled_from(["multipart/form-data; boundary=x", "multipart/form-data", "application/json", "a/b"]),
            path=st.sampled_from(["/generate", "/generate_multipart", "/v1/decide", "/v1/chat/completions"]),
            wrapped=st.booleans(),
        )
        def post(body: bytes, kind: str, path: str, wrapped: bool) -> None:
            if wrapped:
                reply = client.post(path, data={"prompt": "x", **FORM}, files={"image": ("f", body)})
            else:
                reply = client.post(path, content=body, headers={"Content-Type": kind})
            assert reply.status_code in (200, 400, 422)
            assert reply.status_code == 200 or "\n" not in reply.json()["detail"]

        post()
        assert ask(server, 9).json()["text"] == text_of(9)


def test_requests_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 50_000)
    with serving(seeing_engine()) as server:
        url, headers = server.url + "/v1/chat/completions", {"Content-Type": "application/json"}
        assert httpx.post(url, content=b" " * 60_000, headers=headers).status_code == 413
        pieces = (b" " * 10_000 for _ in range(6))  # of a length that is told nowhere
        reply = httpx.post(url, content=pieces, headers=headers)
        assert reply.status_code == 413 and "50000 bytes" in reply.json()["detail"]
        monkeypatch.setattr(guard, "MAX_HELD_BYTES", 30_000)
        reply = httpx.post(url, content=b" " * 40_000, headers=headers)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
        assert ask(server, 9).json()["text"] == text_of(9)  # what was held is free again


def test_the_slow_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_LIMIT_S", 0.3)
    monkeypatch.setattr(guard, "BODY_LIMIT_S", 0.3)
    with serving(seeing_engine()) as server:
        address = ("127.0.0.1", server.port)
        clients = [socket.create_connection(address, timeout=PATIENCE_S) for _ in range(3)]
        for client, begun in zip(
            clients, (b"", b"POST /v1/dec", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-"), strict=True
        ):
            client.sendall(begun)
        body = socket.create_connection(address, timeout=PATIENCE_S)
        body.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{")
        for client in clients:
            assert closed(client)
        assert body.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert closed(body)
        monkeypatch.undo()
        assert ask(server, 9).json()["text"] == text_of(9)


def closed(client: socket.socket) -> bool:
    with client:
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass
    return True  # else recv would have run into its timeout


def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_LIMIT_S", 0.2)
    with serving(seeing_engine()) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", server.port))
        connected = server.server.server_state.connections
        until(lambda: len(connected) == 1)
        try:
            while connected:  # asks on and on, and reads nothing
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        except (ConnectionError, BrokenPipeError):
            pass
        client.close()
        assert ask(server, 9).json()["text"] == text_of(9)


def test_too_many_connections_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    with serving(seeing_engine()) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) for _ in range(3)]
        until(lambda: len(server.server.server_state.connections) == 3)
        assert closed(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
        for client in held:
            client.close()
        until(lambda: not server.server.server_state.connections)
        assert ask(server, 9).status_code == 200


def test_a_full_line_is_told_when_to_come_again() -> None:
    engine = seeing_engine()
    with serving(engine, max_waiting=2) as server, ThreadPoolExecutor(3) as pool:
        assert ask(server, 1).status_code == 200
        engine.free.clear()
        engine.at_model.clear()
        first = pool.submit(ask, server, 10)
        assert engine.at_model.wait(PATIENCE_S)
        others = [pool.submit(ask, server, grey) for grey in (20, 30)]
        until(lambda: server.line.n_waiting == 2)
        for headers in ({}, {"Accept": "text/event-stream"}):
            refused = ask(server, 40, headers=headers)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert "2 questions wait" in refused.json()["detail"]
        engine.free.set()
        assert [reply.result().json()["text"] for reply in (first, *others)] == [text_of(g) for g in (10, 20, 30)]


def test_who_waits_too_long_is_refused() -> None:
    engine = seeing_engine()
    with serving(engine) as server, ThreadPoolExecutor(1) as pool:
        engine.free.clear()
        first = pool.submit(ask, server, 10)
        assert engine.at_model.wait(PATIENCE_S)
        server.line.wait_limit_s = 0.2
        refused = ask(server, 20)
        assert refused.status_code == 503 and "not free within 0.2 s" in refused.json()["detail"]
        assert server.line.n_waiting == 0
        engine.free.set()
        assert first.result().json()["text"] == text_of(10)  # at the model, it was waited for


@pytest.mark.parametrize("headers", ["", "Accept: text/event-stream\r\n"])
def test_who_leaves_frees_their_place(headers: str) -> None:
    engine = seeing_engine()
    with serving(engine) as server:
        whole = len(engine.passes)
        assert ask(server, 10).status_code == 200
        whole = len(engine.passes) - whole
        engine.free.clear()
        engine.at_model.clear()
        at_model = raw_request(server.port, 20, headers)
        assert engine.at_model.wait(PATIENCE_S)
        waiting = raw_request(server.port, 30, headers)
        until(lambda: server.line.n_waiting == 1)
        waiting.close()
        until(lambda: server.line.n_waiting == 0)
        at_model.close()
        until(lambda: server.line.n_left == 2)
        before = len(engine.passes)
        engine.free.set()
        assert ask(server, 40).json()["text"] == text_of(40)
        # The pass that was under way ended, and no other was made but those of the answer.
        assert len(engine.passes) - before == whole + 1
        assert engine.greys[-2:] == [20, 40]  # who left the line was never at the model


def test_a_stream_that_cannot_begin_frees_its_place() -> None:
    """The client goes between the first event and the first byte of the answer."""
    engine = seeing_engine()
    engine.free.clear()
    line = Line(engine)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        raise OSError("gone")

    async def text(items: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
        async for item in items:
            yield str(item)

    async def begin() -> None:
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "headers": []}
        question = Question(png(20), "affordance", "x")
        response = await events_of(Request(scope, receive), line, question, text)
        with pytest.raises(OSError, match="gone"):
            await response(scope, receive, send)
        assert line.n_left == 1  # and not once something collects what is left of it

    asyncio.run(begin())
    engine.free.set()
    line.close()


def test_stopping_answers_what_has_come_and_takes_nothing_new() -> None:
    engine = seeing_engine()
    with serving(engine) as server, ThreadPoolExecutor(2) as pool:
        engine.free.clear()
        first = pool.submit(ask, server, 10)
        assert engine.at_model.wait(PATIENCE_S)
        second = pool.submit(ask, server, 20, headers={"Accept": "text/event-stream"})
        until(lambda: server.line.n_waiting == 1)
        server.server.should_exit = True
        until(lambda: refuses(server.port))
        engine.free.set()
        assert first.result().json()["text"] == text_of(10)
        assert text_of(20).replace('"', '\\"') in second.result().text
        server.stop()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_line_that_is_closed_ends_what_runs_and_who_waits() -> None:
    engine = seeing_engine()
    line = Line(engine)
    engine.free.clear()
    turns = [line.join(Question(png(grey), "affordance", "x")) for grey in (10, 20)]
    assert engine.at_model.wait(PATIENCE_S)
    closing = threading.Thread(target=line.close)
    closing.start()
    assert isinstance(turns[1].reply.exception(PATIENCE_S), Busy)
    engine.free.set()
    assert isinstance(turns[0].reply.exception(PATIENCE_S), Busy)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    with pytest.raises(Busy, match="stopping"):
        line.join(Question(png(1), "affordance", "x"))


SERVE = """
import sys
from importlib.metadata import EntryPoint
from edge import cli
cli.commands = lambda: {"serve": EntryPoint("serve", "edge.serve_command:register", cli.GROUP)}
sys.exit(cli.main(["serve", "--port", "0", *sys.argv[1:]]))
"""


def test_the_command_serves_and_ends_with_0_at_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    replies = []

    def interrupt() -> None:
        try:
            until(lambda: not refuses(port))
            replies.append(httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE_S).json())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    client = threading.Thread(target=interrupt)
    client.start()
    assert serve_command.run(arguments("--port", str(port))) == 0
    client.join(PATIENCE_S)
    assert replies == [{"ok": True}]
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out == f"tabletop on http://127.0.0.1:{port}; Ctrl-C ends it\nstopped\n"


def test_the_command_serves_others_with_a_token_and_ends_with_0_at_sigterm(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "--host", "0.0.0.0", "--token-file", str(token)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    with process:
        said = process.stdout.readline()
        assert said.startswith("tabletop on http://0.0.0.0:") and "with a token" in said
        url = f"http://127.0.0.1:{said.split(':')[2].split(',')[0]}"
        files = {"image": ("f.png", png(128))}
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        assert httpx.post(url + "/v1/decide", data=FORM, files=files, timeout=PATIENCE_S).status_code == 401
        reply = httpx.post(url + "/v1/decide", data=FORM, files=files, headers=headers, timeout=PATIENCE_S)
        assert reply.status_code == 200 and reply.json()["task"] == "affordance"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == "stopped\n" and process.stderr.read() == ""
