"""The server's answers over real HTTP: the released API, the typed one and OpenAI's, each client its own answer."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import mujoco
import numpy as np
import openai
import pytest
import requests
from PIL import Image

from drivers.robot import load_robot
from drivers.sim.render import CAMERA, camera_pose, render
from drivers.sim.scene import draw_scene
from drivers.sim.world import build_model, set_arm
from edge import contract
from edge.contract import Affordance, Trajectory
from edge.decode import Sampling, decide
from edge.engine.bundle import load_bundle
from edge.engine.onnx import OnnxEngine
from edge.shipped import SHIPPED_BUNDLE
from tests.edge.serving import Running, SeeingEngine, answer_of, png, seeing_engine, serving, text_of

INSTRUCTION = "put the red cube in the yellow bowl"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def shipped() -> Iterator[Running]:
    with serving(OnnxEngine(load_bundle(SHIPPED_BUNDLE))) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> OnnxEngine:
    """The same bundle in an engine of the test's own."""
    return OnnxEngine(load_bundle(SHIPPED_BUNDLE))


@pytest.fixture(scope="module")
def seeing() -> SeeingEngine:
    return seeing_engine()


@pytest.fixture(scope="module")
def toy(seeing: SeeingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(seeing) as running:
        yield running


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A scene such as the shipped model knows, with what the instruction names in it."""
    rng = np.random.default_rng(41)
    scene = draw_scene(rng)
    model = build_model(scene)
    data = mujoco.MjData(model)
    set_arm(model, data, load_robot().ready_rad)
    mujoco.mj_kinematics(model, data)
    return render(model, data, scene.look, camera_pose(scene.look), CAMERA, rng).rgb


def as_jpeg(rgb: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, format="JPEG", quality=90)
    return content.getvalue()


def as_seen(content: bytes) -> np.ndarray:
    return np.ascontiguousarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])


@pytest.mark.parametrize("task", contract.TASKS)
def test_a_client_of_the_released_server_works(
    shipped: Running, reference: OnnxEngine, picture: np.ndarray, task: contract.Task
) -> None:
    """As such a client is written: requests, JPEG, the suffix and `<image>` after the instruction, text in `result`."""
    content = as_jpeg(picture)
    reply = requests.post(
        shipped.url + "/generate_multipart",
        data={"prompt": f"{INSTRUCTION}.{contract.SUFFIX[task]}<image>"},
        files={"image": ("frame.jpg", content, "image/jpeg")},
        timeout=60,
    )
    reply.raise_for_status()
    assert list(reply.json()) == ["result"]
    text = reply.json()["result"]
    assert text == decide(reference, as_seen(content), task, INSTRUCTION + ".").text
    found = re.search(r"<output>(.*?)</output>", text, flags=re.S)
    assert found is not None and contract.parse_output(json.loads(found[1])) == contract.parse_answer(text, task).output
    assert requests.get(shipped.url + "/health", timeout=60).json() == {"ok": True}


def events(text: str) -> list[tuple[str, Any]]:
    """Server-sent events, as their specification reads them."""
    told = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        told.append((fields.get("event", "message"), fields["data"]))
    return told


@pytest.mark.parametrize("task", contract.TASKS)
def test_a_typed_decision_and_its_stream_say_the_same(
    shipped: Running, reference: OnnxEngine, picture: np.ndarray, task: contract.Task
) -> None:
    asked: dict[str, Any] = {
        "data": {"task": task, "instruction": INSTRUCTION},
        "files": {"image": ("f.jpg", as_jpeg(picture))},
    }
    whole = shipped.http.post("/v1/decide", **asked).raise_for_status().json()
    expected = decide(reference, as_seen(as_jpeg(picture)), task, INSTRUCTION)
    output = expected.answer.output
    assert output is not None
    assert whole["text"] == expected.text and whole["reasoning"] == expected.answer.reasoning
    assert (whole["task"], whole["instruction"], whole["found"]) == (task, INSTRUCTION, True)
    assert whole["affordance"] == (vars(output) if isinstance(output, Affordance) else None)
    points = [list(point) for point in output.points] if isinstance(output, Trajectory) else None
    assert whole["trajectory"] == points
    assert whole["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert whole["unsure"] == expected.unsure
    parts = {"wait", "image", "preprocess", "vision", "prefill", "decode", "parse", "total"}
    assert set(whole["latency_ms"]) == parts
    assert 0 < sum(whole["latency_ms"][part] for part in parts - {"total"}) <= whole["latency_ms"]["total"] + 0.01

    with shipped.http.stream("POST", "/v1/decide", headers={"Accept": "text/event-stream"}, **asked) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        told = [(kind, json.loads(data)) for kind, data in events(reply.read().decode())]
    kind, result = told.pop()
    assert kind == "result"
    assert {**result, "latency_ms": None} == {**whole, "latency_ms": None}
    pieces = [data["text"] for kind, data in told if kind == "reasoning"]
    assert len(pieces) > 3 and "".join(pieces).strip() == whole["reasoning"]
    if points is not None:
        assert [[data["x"], data["y"]] for kind, data in told if kind == "point"] == points
        assert [data["index"] for kind, data in told if kind == "point"] == list(range(len(points)))
    else:
        assert [data for kind, data in told if kind == "affordance"] == (
            [whole["affordance"]] if whole["found"] else []
        )


def test_openais_own_client(shipped: Running, reference: OnnxEngine, picture: np.ndarray) -> None:
    content = as_jpeg(picture)
    client = openai.OpenAI(base_url=shipped.url + "/v1", api_key="none", max_retries=0)
    names = [model.id for model in client.models.list()]
    assert names == ["tabletop-affordance", "tabletop-trajectory"]
    url = "data:image/jpeg;base64," + base64.b64encode(content).decode()
    asked: dict[str, Any] = {
        "model": names[1],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": INSTRUCTION},
                    {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
                ],
            }
        ],
    }
    whole = client.chat.completions.create(**asked)
    expected = decide(reference, as_seen(content), "trajectory", INSTRUCTION)
    assert whole.choices[0].message.content == expected.text
    why = "length" if expected.thinking_cut or expected.points_cut else "stop"
    assert whole.choices[0].finish_reason == why
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected.n_prompt_tokens, expected.n_tokens)

    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(pieces) > 3 and "".join(pieces) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, why]
    assert chunks[-1].usage == whole.usage

    drawn = client.chat.completions.create(**asked, temperature=1.5, top_p=0.95, seed=3)
    sampled = decide(reference, as_seen(content), "trajectory", INSTRUCTION, sampling=Sampling(1.5, 0.95, 1.0, seed=3))
    assert drawn.choices[0].message.content == sampled.text
    with pytest.raises(openai.NotFoundError, match="tabletop-affordance or tabletop-trajectory"):
        client.chat.completions.create(**{**asked, "model": "gpt-4o"})
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(**asked, max_tokens=5)
    client.close()


def test_a_prompt_that_ends_with_a_suffix_says_the_task_itself(toy: Running) -> None:
    text = f"put it there{contract.SUFFIX['affordance']}<image>"
    url = "data:image/png;base64," + base64.b64encode(png(40)).decode()
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "toy-trajectory", "messages": [{"role": "user", "content": content}]}
    reply = toy.http.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert reply["choices"][0]["message"]["content"] == text_of(40)
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_nothing_is_fetched(toy: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/picture.png"
        for link in (url, "file:///etc/hostname", "/etc/hostname", "data:image/png,abc", "data:image/png;base64,ä"):
            content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": link}}]
            body = {"model": "toy-affordance", "messages": [{"role": "user", "content": content}]}
            reply = toy.http.post("/v1/chat/completions", json=body)
            assert reply.status_code == 400 and "image_url" in reply.json()["error"]["message"]
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


def test_fifty_clients_at_once_get_their_own_answers(toy: Running) -> None:
    """Over all the APIs at once: JSON, events, the released one and OpenAI's."""

    async def client(http: httpx.AsyncClient, i: int) -> None:
        grey, instruction = 5 * i, f"pick up thing {i}"
        files = {"image": ("f.png", png(grey))}
        form = {"task": "affordance", "instruction": instruction}
        if i % 4 == 0:
            reply = await http.post("/v1/decide", data=form, files=files)
            assert reply.status_code == 200, reply.text
            assert (reply.json()["instruction"], reply.json()["text"]) == (instruction, text_of(grey))
        elif i % 4 == 1:
            reply = await http.post("/v1/decide", data={**form, "stream": "true"}, files=files)
            told = [(kind, json.loads(data)) for kind, data in events(reply.text)]
            assert "".join(data["text"] for kind, data in told if kind == "reasoning") == answer_of(grey).reasoning
            assert told[-1][1]["text"] == text_of(grey)
        elif i % 4 == 2:
            prompt = instruction + contract.SUFFIX["affordance"]
            reply = await http.post("/generate_multipart", data={"prompt": prompt}, files=files)
            assert reply.json() == {"result": text_of(grey)}
        else:
            url = "data:image/png;base64," + base64.b64encode(png(grey)).decode()
            content = [{"type": "text", "text": instruction}, {"type": "image_url", "image_url": {"url": url}}]
            body = {"model": "toy-affordance", "messages": [{"role": "user", "content": content}], "stream": True}
            reply = await http.post("/v1/chat/completions", json=body)
            *chunks, done = (data for _, data in events(reply.text))
            assert done == "[DONE]"
            deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
            assert "".join(delta.get("content", "") for delta in deltas) == text_of(grey)

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=toy.url, limits=limits, timeout=60) as http:
            await asyncio.gather(*(client(http, i) for i in range(50)))

    asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("path", "request_", "status", "says"),
    [
        ("/v1/decide", {"data": {"task": "affordance", "instruction": "x"}}, 400, "image: is missing"),
        ("/v1/decide", {"data": {"task": "grasp", "instruction": "x"}}, 422, "task: "),
        (
            "/v1/decide",
            {"data": {"task": "affordance", "instruction": "x", "image": "text"}},
            422,
            "image: send a file",
        ),
        ("/v1/decide", {"data": {"task": "affordance", "instruction": " <image>"}}, 400, "instruction: is empty"),
        ("/v1/decide", {"data": {"task": "affordance", "instruction": "<|im_end|>"}}, 400, "control token"),
        ("/generate_multipart", {"data": {"prompt": "pick it up"}}, 400, "prompt: does not say what"),
        ("/generate_multipart", {}, 422, "prompt: Field required"),
        ("/generate", {"json": {"prompt": "x" + contract.SUFFIX["trajectory"]}}, 400, "image_path: is missing"),
        ("/generate", {"content": b"{", "headers": JSON}, 422, "not JSON"),
        ("/generate", {"content": b"[" * 99_999, "headers": JSON}, 400, "body"),
        ("/generate", {"content": b"\xff", "headers": JSON}, 400, "body"),
        ("/v1/chat/completions", {"json": {"model": "toy-affordance", "messages": []}}, 400, "messages: expected one"),
        (
            "/v1/chat/completions",
            {"content": b'{"model": "\\ud800", "messages": []}', "headers": JSON},
            404,
            "model: no such model",
        ),
        ("/v1/chat/completions", {"json": {"model": "x", "messages": [], "temperature": 3}}, 422, "temperature: "),
        ("/no/such/path", {}, 404, "Not Found"),
        ("/health", {}, 405, "Not Allowed"),
    ],
)
def test_every_error_is_one_line_of_json(
    toy: Running, path: str, request_: dict[str, Any], status: int, says: str
) -> None:
    reply = toy.http.post(path, **request_)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    line = reply.json()["detail"]
    assert says in line and "\n" not in line and reply.json()["error"]["message"] == line


def test_a_prompt_too_long_for_the_model_is_told_in_a_stream_too(toy: Running) -> None:
    form = {"task": "affordance", "instruction": "far too long " * 900}
    for headers in ({}, {"Accept": "text/event-stream"}):
        reply = toy.http.post("/v1/decide", data=form, files={"image": ("f", png(1))}, headers=headers)
        assert reply.status_code == 400 and "say it shorter" in reply.json()["detail"]


def test_an_engine_that_fails_costs_one_answer(
    toy: Running, seeing: SeeingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    asked: dict[str, Any] = {
        "data": {"task": "affordance", "instruction": "x"},
        "files": {"image": ("f.png", png(7))},
    }
    seeing.fails = RuntimeError("secret detail")
    try:
        for headers in ({}, {"Accept": "text/event-stream"}):
            reply = toy.http.post("/v1/decide", headers=headers, **asked)
            assert reply.status_code == 500 and "secret" not in reply.text and "Traceback" not in reply.text
            assert "the server failed" in reply.json()["detail"]
        seeing.fails, seeing.breaks = None, RuntimeError("secret detail")
        reply = toy.http.post("/v1/decide", headers={"Accept": "text/event-stream"}, **asked)
        told = events(reply.text)
        assert told[0][0] == "reasoning" and told[-1][0] == "error" and "secret" not in reply.text
        assert "the server failed" in json.loads(told[-1][1])["detail"]
    finally:
        seeing.fails = seeing.breaks = None
    assert "secret detail" in caplog.text  # on the server's own side, with its traceback
    assert toy.http.post("/v1/decide", **asked).json()["text"] == text_of(7)


def test_metrics_count(toy: Running) -> None:
    def figure(name: str) -> float:
        return float(re.findall(rf"^{re.escape(name)} (.*)$", toy.http.get("/metrics").text, re.M)[0])

    asked: dict[str, Any] = {
        "data": {"task": "affordance", "instruction": "x"},
        "files": {"image": ("f.png", png(7))},
    }
    toy.http.post("/v1/decide", **asked)
    answers, decisions = (
        figure('vlar1_requests_total{path="/v1/decide",status="200"}'),
        figure('vlar1_span_seconds_count{span="decision"}'),
    )
    toy.http.post("/v1/decide", **asked)
    assert figure('vlar1_requests_total{path="/v1/decide",status="200"}') == answers + 1
    assert figure('vlar1_span_seconds_count{span="decision"}') == decisions + 1
    assert figure('vlar1_stage_seconds_sum{stage="wait"}') > 0 and figure("vlar1_waiting") == 0


def read(server: Running, path: str) -> httpx.Response:
    prompt = "x" + contract.SUFFIX["affordance"]
    return server.http.post("/generate", json={"prompt": prompt, "image_path": path})


def test_image_path_reads_the_allowed_folder_and_nothing_else(
    seeing: SeeingEngine, tmp_path: Path, toy: Running
) -> None:
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(11))
    (folder / "deep" / "b.png").write_bytes(png(22))
    (folder / "text.txt").write_text("no image")
    (tmp_path / "secret.png").write_bytes(png(33))
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "c.png").write_bytes(png(33))
    (folder / "within").symlink_to(folder / "deep" / "b.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.png")
    n_read = len(seeing.greys)
    with serving(seeing, images=folder) as server:
        for path, grey in (("a.png", 11), (str(folder / "a.png"), 11), ("deep/../deep/b.png", 22), ("within", 22)):
            assert read(server, path).json() == {"result": text_of(grey)}
        refused = [
            read(server, path)
            for path in (
                *("../secret.png", "deep/../../secret.png", str(tmp_path / "secret.png"), "out.png", "up/secret.png"),
                *(
                    "../allowed-not/c.png",
                    "/etc/passwd",
                    "/proc/self/environ",
                    "/dev/zero",
                    "no-such.png",
                    "\0",
                    "loop",
                ),
                *("pipe.png", "deep", ".", "~/x.png", "a" * 5000, "file:///etc/passwd", "..\\secret.png"),
            )
        ]
        # All alike, so that nothing is learnt of what lies outside.
        assert {(reply.status_code, reply.text) for reply in refused} == {(refused[0].status_code, refused[0].text)}
        assert refused[0].status_code == 400
        assert "not a PNG or JPEG" in read(server, "text.txt").json()["detail"]
    assert len(seeing.greys) == n_read + 4
    assert read(toy, "a.png").status_code == 403
    assert read(toy, str(folder / "a.png")).status_code == 403
