"""Does `vlar1 serve` hold under many clients, and bad ones: are answers lost or mixed up, does its memory grow?

``python -m benchmarks.server_load [--seconds N] [--clients N] [--bundle DIR] [--json FILE]``. The command runs in a
process of its own. Against it, at once, until the time is up:

- honest clients (50), each with an image and an instruction of its own, asking again as soon as they are answered: a
  quarter each over ``/generate_multipart``, ``/v1/decide`` as JSON and as events, ``/v1/chat/completions``;
- 4 that upload junk: random bytes, damaged pictures, headers of pictures with billions of pixels, bodies too large;
- 4 that are slow: a request's head or body a byte at a time, or an answer never read;
- 4 that leave: they ask and close the connection after 0.01 to 16 s, in the line, at the model or midway in a stream.

Beside it an emulated arm swings, commanded from here: its servo loop's cycles are timed alone for `ALONE_S`, then all
the while. Nothing asks for real-time priority.

Before, the same images are decided on in this process: an honest answer is right if it is that text, mixed if it is
another one, lost if it is none. Memory is the server's resident set, every half second; its slope is a line through the
second half. At the end the server is told to stop, and must end with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import httpx
import mujoco
import numpy as np
from rich.table import Table

from benchmarks.machine import console, exit_code, machine
from benchmarks.servo_jitter import PERIOD_S, SPARE_S, InOwnProcess, NativeLoop, WireArm, period_figures
from drivers.errors import UserError
from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render
from drivers.sim.scene import draw_scene
from drivers.sim.world import build_model, set_arm
from edge import contract
from edge.control import ServoLoop
from edge.decode import decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.serve.image import decode_image
from edge.shipped import SHIPPED_BUNDLE

CLIENTS, BAD = 50, 4
SCENES = 12
SAMPLE_S = 0.5
ALONE_S = 30.0
# The command itself, whether or not its entry point is installed.
SERVER = """
import argparse, sys
from edge import serve_command
parser = argparse.ArgumentParser()
serve_command.register(parser.add_subparsers())
args = parser.parse_args(["serve", *sys.argv[1:]])
sys.exit(args.func(args))
"""


@dataclass(frozen=True)
class Case:
    """An image, what is asked of it, and what the model answers."""

    image: bytes
    task: contract.Task
    instruction: str
    text: str


@dataclass
class Seen:
    """What came of it all."""

    answered: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    statuses: dict[str, Counter[str]] = field(default_factory=dict)

    def status(self, kind: str, status: object) -> None:
        self.statuses.setdefault(kind, Counter())[str(status)] += 1


def cases(bundle: Path, most: int) -> list[Case]:
    """Rendered scenes with both tasks and every thing on them, so far as the answers differ."""
    engine = OnnxEngine(load_bundle(bundle))
    found: dict[str, Case] = {}
    for seed in range(SCENES):
        rng = np.random.default_rng([seed, 0x5EA])
        scene = draw_scene(rng)
        model = build_model(scene)
        data = mujoco.MjData(model)
        set_arm(model, data, load_robot().ready_rad)
        mujoco.mj_kinematics(model, data)
        rgb = render(model, data, scene.look, camera_pose(scene.look), CAMERA, rng).rgb
        image = cv2.imencode(".jpg", rgb[:, :, ::-1])[1].tobytes()
        for item in scene.items:
            for task in contract.TASKS:
                instruction = f"pick up the {item.name}"
                text = decide(engine, decode_image(image), task, instruction).text
                found.setdefault(text, Case(image, task, instruction, text))
                if len(found) == most:
                    return list(found.values())
    return list(found.values())


async def honest(http: httpx.AsyncClient, case: Case, way: int, names: dict[str, str], seen: Seen) -> None:
    """One question, and whether its answer is right."""
    began_s = time.perf_counter()
    files = {"image": ("frame.jpg", case.image, "image/jpeg")}
    form = {"task": case.task, "instruction": case.instruction}
    text = None
    try:
        if way == 0:
            prompt = f"{case.instruction}{contract.SUFFIX[case.task]}<image>"
            reply = await http.post("/generate_multipart", data={"prompt": prompt}, files=files)
            text = reply.json().get("result")
        elif way == 1:
            reply = await http.post("/v1/decide", data=form, files=files)
            text = reply.json().get("text")
        elif way == 2:
            reply = await http.post("/v1/decide", data={**form, "stream": "true"}, files=files)
            text = json.loads(reply.text.rstrip("\n").rpartition("data: ")[2]).get("text")
        else:
            url = "data:image/jpeg;base64," + base64.b64encode(case.image).decode()
            content = [{"type": "text", "text": case.instruction}, {"type": "image_url", "image_url": {"url": url}}]
            body = {"model": names[case.task], "messages": [{"role": "user", "content": content}]}
            reply = await http.post("/v1/chat/completions", json=body)
            text = reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else None
    except (httpx.HTTPError, ValueError) as error:
        seen.answered["lost"] += 1
        seen.status("honest", type(error).__name__)
        return
    seen.status("honest", reply.status_code)
    if reply.status_code == 503:
        seen.answered["refused"] += 1
        await asyncio.sleep(float(reply.headers["retry-after"]))
    elif text is None:
        seen.answered["lost"] += 1
    else:
        seen.answered["right" if text == case.text else "mixed"] += 1
        seen.took_s.append(time.perf_counter() - began_s)


async def junk(http: httpx.AsyncClient, case: Case, rng: np.random.Generator, seen: Seen) -> None:
    """One upload that is not to be answered with a decision, or is by luck."""
    content = bytearray(case.image)
    kind = int(rng.integers(4))
    if kind == 0:
        content = bytearray(rng.bytes(int(rng.integers(1, 200_000))))
    elif kind == 1:
        for place in rng.integers(0, len(content), 20):
            content[place] = rng.integers(256)
        del content[int(rng.integers(len(content))) :]
    elif kind == 2:  # a picture of 65500 x 65500 by its header
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    else:
        content = bytearray(rng.bytes(1_000_000) * 20)
    prompt = f"{case.instruction}{contract.SUFFIX[case.task]}"
    try:
        reply = await http.post("/generate_multipart", data={"prompt": prompt}, files={"image": ("f", bytes(content))})
        seen.status("junk", reply.status_code)
    except httpx.HTTPError as error:  # cut off in the middle of a body that is too large
        seen.status("junk", type(error).__name__)
    await asyncio.sleep(float(rng.uniform(0.0, 0.1)))


async def slow(port: int, rng: np.random.Generator, seen: Seen) -> None:
    """A connection that is held for nothing, until the server ends it."""
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\n"
    kind = int(rng.integers(3))
    if kind == 1:
        head += b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    elif kind == 2:
        head = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    try:
        writer.write(head)
        while True:
            await asyncio.sleep(0.2)
            writer.write(b"X" if kind < 2 else b"")
            await writer.drain()
            if kind < 2 and (await _read_now(reader)) is not None:
                seen.status("slow", "ended")
                return
    except ConnectionError:
        seen.status("slow", "ended")
    finally:
        writer.transport.abort()


async def _read_now(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await asyncio.wait_for(reader.read(1000), 0.01)
    except asyncio.TimeoutError:
        return None


async def leave(http: httpx.AsyncClient, case: Case, rng: np.random.Generator, seen: Seen) -> None:
    """A question whose client is gone before the answer."""
    form = {"task": case.task, "instruction": case.instruction, "stream": str(rng.random() < 0.5).lower()}
    asking = http.post("/v1/decide", data=form, files={"image": ("f", case.image)}, headers={"Connection": "close"})
    try:
        reply = await asyncio.wait_for(asking, float(10 ** rng.uniform(-2.0, 1.2)))
        seen.status("leaving", reply.status_code)
    except asyncio.TimeoutError:
        seen.status("leaving", "left")
    except httpx.HTTPError as error:
        seen.status("leaving", type(error).__name__)


async def load(port: int, pid: int, all_cases: list[Case], clients: int, seconds: float) -> tuple[Seen, list[Sample]]:
    """All clients at once for so long; what came of it, and the server's memory meanwhile."""
    seen, samples = Seen(), []
    limits = httpx.Limits(max_connections=None)
    began_s = time.monotonic()

    async def again(step: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() - began_s < seconds:
            await step()

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=300, verify=False) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        names: dict[str, str] = {task: model["id"] for task, model in zip(contract.TASKS, listed, strict=True)}

        steps: list[Callable[[], Awaitable[None]]] = []
        for i in range(clients):
            steps.append(partial(honest, http, all_cases[i % len(all_cases)], i % 4, names, seen))
        for i in range(BAD):
            case, rng = all_cases[i % len(all_cases)], np.random.default_rng([i, 0xBAD])
            steps += [partial(junk, http, case, rng, seen), partial(leave, http, case, rng, seen)]
        tasks = [asyncio.create_task(again(step)) for step in steps]
        drips = [
            asyncio.create_task(again(partial(slow, port, np.random.default_rng([i, 0x510]), seen))) for i in range(BAD)
        ]
        while not all(task.done() for task in tasks):
            samples.append(sample(pid, time.monotonic() - began_s))
            await asyncio.wait(tasks, timeout=SAMPLE_S)
        for drip in drips:
            drip.cancel()
        for task in tasks:
            task.result()
    return seen, samples


@dataclass(frozen=True)
class Sample:
    """Of the server: megabytes resident, and open files, so long after the start."""

    t_s: float
    rss_mb: float
    files: int


def sample(pid: int, t_s: float) -> Sample:
    """Now, of Linux's /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = int(status.partition("VmRSS:")[2].split()[0])
    return Sample(t_s, kilobytes / 1024, len(os.listdir(f"/proc/{pid}/fd")))


def slope_mb_per_min(samples: list[Sample]) -> float | None:
    """Of a line through the second half; None where that is too short to tell."""
    half = samples[len(samples) // 2 :]
    if len(half) < 10:
        return None
    return float(np.polyfit([s.t_s for s in half], [s.rss_mb for s in half], 1)[0]) * 60


class Swinging:
    """An emulated arm that swings for some seconds, each cycle of its servo loop timed; a context manager."""

    def __init__(self, seconds: float) -> None:
        robot = load_robot()
        self._held = ExitStack()
        with ExitStack() as held:
            arm = held.enter_context(InOwnProcess(WireArm, robot, robot.ready_rad))
            self._loop = held.enter_context(ServoLoop(robot, arm.call("port"), realtime=False))
            while not (self._loop.state().position_s > 0).all():
                time.sleep(PERIOD_S)
            self._loop.arm(self._loop.state().position_rad)
            self._native = NativeLoop(self._loop, seconds + SPARE_S)
            self._native.start()
            held.callback(self._native.finish)
            self._held = held.pop_all()

    def cycles(self, meanwhile: Callable[[], object]) -> dict[str, float]:
        """Figures of the cycles while something else goes on; ``interrupted``: times that the arm held on its way."""
        start_s, interrupted = time.monotonic(), self._native.interrupted
        meanwhile()
        found = period_figures(self._native.began_s, self._native.busy_s, start_s, time.monotonic())
        names = ("p50_ms", "p999_abs_error_ms", "max_abs_error_ms", "missed", "cycles")
        return {**{name: found[name] for name in names}, "interrupted": self._native.interrupted - interrupted}

    def __enter__(self) -> Swinging:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_load", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="for so long (default: 300)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"honest ones (default: {CLIENTS})")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE, help="model bundle (default: the shipped one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    if not args.seconds > 0 or args.clients < 1:
        raise UserError(f"--seconds {args.seconds:g} --clients {args.clients}: expected more than 0")
    all_cases = cases(args.bundle, args.clients)
    command = [sys.executable, "-c", SERVER, "--port", "0", "--bundle", str(args.bundle)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2].partition(";")[0])
        before = sample(server.pid, 0.0)
        with Swinging(ALONE_S + args.seconds) as arm:
            alone = arm.cycles(lambda: time.sleep(ALONE_S))
            loads: list[tuple[Seen, list[Sample]]] = []
            beside = arm.cycles(
                lambda: loads.append(asyncio.run(load(port, server.pid, all_cases, args.clients, args.seconds)))
            )
        seen, samples = loads[0]
        after = sample(server.pid, args.seconds)
        server.send_signal(signal.SIGTERM)
        ended = server.wait(150)
    finally:
        server.kill()
        server.wait()
    report = {**figures(all_cases, seen, samples, before, after, ended), "servo alone": alone, "servo beside": beside}
    show(report)
    if args.json:
        results = {"seconds": args.seconds, "clients": args.clients, **report}
        memory = [[round(s.t_s, 1), round(s.rss_mb, 1), s.files] for s in samples]
        whole = {"benchmark": "server_load", "machine": machine(), **results, "memory": memory}
        args.json.write_text(json.dumps(whole, indent=2))
    return int(bool(seen.answered["mixed"] or seen.answered["lost"] or ended))


def figures(
    all_cases: list[Case], seen: Seen, samples: list[Sample], before: Sample, after: Sample, ended: int
) -> dict[str, object]:
    """Everything that was measured."""
    took_ms = np.array(seen.took_s) * 1e3
    rss_mb = [s.rss_mb for s in samples]
    slope = slope_mb_per_min(samples)
    return {
        "distinct_answers": len(all_cases),
        "answers": {kind: seen.answered[kind] for kind in ("right", "mixed", "lost", "refused")},
        "latency_ms": {f"p{q}": round(float(np.percentile(took_ms, q)), 1) for q in (50, 90, 99, 100)}
        if len(took_ms)
        else {},
        "statuses": {kind: dict(counts) for kind, counts in seen.statuses.items()},
        "rss_mb": {"idle": before.rss_mb, "first": rss_mb[0], "largest": max(rss_mb), "last": after.rss_mb},
        "rss_slope_mb_per_min": slope,
        "open_files": {"idle": before.files, "largest": max(s.files for s in samples), "last": after.files},
        "exit_code": ended,
    }


def show(report: dict[str, object]) -> None:
    table = Table(title="vlar1 serve under load")
    table.add_column("")
    table.add_column("")
    for name, value in report.items():
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(
                f"{key} {part:.1f}" if isinstance(part, float) else f"{key} {part}" for key, part in value.items()
            )
        elif isinstance(value, float):
            shown = f"{value:.2f}"
        table.add_row(name, str(shown))
    console().print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
