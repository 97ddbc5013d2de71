"""Recordings: what goes in comes out; a killed run, a cut file, a full disk and a slow one cost what they may."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import Writer

import drivers.recording
from drivers.camera.replay import ReplayCamera
from drivers.errors import DeviceError, UserError
from drivers.protocols import Camera, Frame, Intrinsics
from drivers.recording import DROPPED, MAX_WAITING_FRAMES, Recorder, Recording
from drivers.recording_messages import DECISION, DEPTH, EVENT, INTRINSICS, JOINTS, RGB, SETPOINT

INTRINSICS_1 = Intrinsics(64, 48, 60.0, 61.0, 31.5, 23.25, (0.1, -0.2, 0.001, 0.0, 0.03))
NAMES = ("shoulder_pan", "gripper")


def picture(k: int, *, depth: bool = True, t_s: float | None = None) -> Frame:
    rng = np.random.default_rng(k)
    rgb = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    depth_m = rng.uniform(0.2, 1.5, (48, 64)).astype(np.float32)
    depth_m[0, :5] = (0.0, np.nan, np.inf, -1.0, 7.0)
    return Frame(rgb, depth_m if depth else None, 100.0 + 0.1 * k if t_s is None else t_s, INTRINSICS_1, "CAM-1")


def record(path: Path, count: int = 5) -> list[Frame]:
    """Frames every 0.1 s, with joints, setpoints, a decision and an event after each."""
    frames = [picture(k) for k in range(count)]
    with Recorder(path, joint_names=NAMES) as recorder:
        for k, frame in enumerate(frames):
            recorder.frame(frame)
            recorder.joints(frame.t_s + 0.01, np.array([0.1 * k, -1.0]), temperature_c=[40.0, 41.0])
            recorder.setpoint(frame.t_s + 0.02, [0.1 * k + 0.01, -1.0])
            recorder.decision(frame.t_s + 0.05, {"task": "affordance", "text": f"answer {k}"})
            recorder.event(frame.t_s + 0.06, "say", "moving", step=k)
    assert recorder.problem is None and recorder.dropped_frames == 0
    return frames


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    frames = record(tmp_path / "run.mcap")
    recording = Recording(tmp_path / "run.mcap")
    assert recording.complete and recording.joint_names == NAMES and recording.image == "png"
    messages = list(recording)
    each = (RGB, DEPTH, JOINTS, SETPOINT, DECISION, EVENT)
    assert {topic: sum(m.topic == topic for m in messages) for topic in each} == dict.fromkeys(each, 5)
    assert sum(m.topic == INTRINSICS for m in messages) == 1  # said once, as it does not change
    for seen, shown in zip(recording.frames(), frames, strict=True):
        assert (seen.rgb == shown.rgb).all() and seen.rgb.flags.c_contiguous
        assert (seen.t_s, seen.intrinsics, seen.serial) == (shown.t_s, INTRINSICS_1, "CAM-1")
        assert seen.depth_m is not None and shown.depth_m is not None
        assert np.abs(seen.depth_m - shown.depth_m)[1:].max() <= 0.51e-4 and seen.depth_m.dtype == np.float32
        assert (seen.depth_m[0, :5] == 0.0).all()
    joints = [m.data for m in recording.messages(JOINTS)]
    assert joints[2] == {
        "t_s": frames[2].t_s + 0.01,
        "name": list(NAMES),
        "position_rad": [0.2, -1.0],
        "temperature_c": [40.0, 41.0],
    }
    assert [m.data["text"] for m in recording.messages(DECISION)] == [f"answer {k}" for k in range(5)]
    event = list(recording.messages(EVENT))[-1]
    assert event.data == {"t_s": frames[4].t_s + 0.06, "name": "say", "text": "moving", "data": {"step": 4}}
    assert event.t_s == pytest.approx(100.46, abs=1e-6)


def test_another_reader_finds_schemas_topics_and_wall_time(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        recorder.frame(picture(0, t_s=time.monotonic()))
    now_ns = time.time_ns()
    with open(path, "rb") as file:
        found = {channel.topic: (schema, message) for schema, channel, message in make_reader(file).iter_messages()}
    assert found[RGB][0].name == found[DEPTH][0].name == "foxglove.CompressedImage"
    assert found[INTRINSICS][0].name == "foxglove.CameraCalibration"
    for schema, message in found.values():
        assert schema.encoding == "jsonschema"
        assert abs(message.log_time - now_ns) < 60e9
        data = json.loads(message.data)
        assert set(json.loads(schema.data)["properties"]) == set(data)
        stamp = data["timestamp"]
        assert stamp["sec"] * 10**9 + stamp["nsec"] == message.log_time


def test_jpeg_is_near_and_small(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], (480, 640, 3))
    noisy = (ramp // 2 + np.random.default_rng(0).integers(0, 9, ramp.shape)).astype(np.uint8)
    frame = Frame(noisy, None, 1.0, Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5))
    sizes = {}
    for image in ("png", "jpeg"):
        path = tmp_path / f"{image}.mcap"
        with Recorder(path, image=image) as recorder:  # type: ignore[arg-type]
            recorder.frame(frame)
        (seen,) = Recording(path).frames()
        assert seen.depth_m is None
        assert np.abs(seen.rgb.astype(int) - noisy).mean() < 3.0
        sizes[image] = path.stat().st_size
    assert sizes["jpeg"] < sizes["png"] / 2


def test_what_json_has_no_word_for_is_recorded_all_the_same(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run.mcap") as recorder:
        recorder.joints(1.0, [float("nan"), np.float64(2.0)], load=np.array([np.inf, 1.0], np.float32))
        recorder.event(2.0, "odd", path=tmp_path, array=np.arange(2), pair=(1, float("nan")), lone="\udcff")
        recorder.frame(Frame(np.zeros((0, 0, 3), np.uint8), None, 3.0, INTRINSICS_1))
    joints, odd, bad = (m.data for m in Recording(tmp_path / "run.mcap"))
    assert joints["position_rad"] == [None, 2.0] and joints["load"] == [None, 1.0]
    assert odd["data"] == {"path": str(tmp_path), "array": [0, 1], "pair": [1, None], "lone": "\udcff"}
    assert bad["name"] == "bad frame"


def test_another_camera_and_one_that_nobody_calibrated_stay_what_they_are(tmp_path: Path) -> None:
    cameras = [INTRINSICS_1, Intrinsics.assumed(64, 48), INTRINSICS_1, INTRINSICS_1]
    with Recorder(tmp_path / "run.mcap") as recorder:
        for k, camera in enumerate(cameras):
            recorder.frame(replace(picture(k, depth=k == 0), intrinsics=camera, serial=f"CAM-{k // 3}"))
    recording = Recording(tmp_path / "run.mcap")
    frames = list(recording.frames())
    assert [f.intrinsics for f in frames] == cameras and [f.serial[-1] for f in frames] == list("0001")
    assert [f.depth_m is None for f in frames] == [False, True, True, True]


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"run\.mcap: exists already"):
        Recorder(path)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match=r"none/run\.mcap: cannot be made"):
        Recorder(tmp_path / "none" / "run.mcap")


def test_what_comes_after_the_end_is_not_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.mcap")
    recorder.event(1.0, "one")
    recorder.close()
    recorder.event(2.0, "two")
    recorder.frame(picture(0))
    recorder.close()
    assert [m.data["name"] for m in Recording(tmp_path / "run.mcap")] == ["one"]


def test_a_slow_disk_costs_frames_and_nothing_else_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    real = drivers.recording.rgb_message

    def slow(*args: object) -> bytes:
        go_on.wait(30.0)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(drivers.recording, "rgb_message", slow)
    count = MAX_WAITING_FRAMES + 11
    with Recorder(tmp_path / "run.mcap") as recorder:
        began_s = time.monotonic()
        for k in range(count):
            recorder.frame(picture(k, depth=False))
            recorder.joints(100.0 + 0.1 * k, [0.0])
        assert time.monotonic() - began_s < 5.0
        # One more may be in the writer's hands already.
        assert recorder.dropped_frames in (10, 11)
        go_on.set()
    recording = Recording(tmp_path / "run.mcap")
    assert len(list(recording.messages(JOINTS))) == count
    assert len(list(recording.messages(RGB))) == count - recorder.dropped_frames
    events = [m.data for m in recording.messages(EVENT)]
    assert {event["name"] for event in events} == {DROPPED}
    assert sum(event["data"]["count"] for event in events) == recorder.dropped_frames


RUN_UNTIL_KILLED = """
import sys, time
import numpy as np
from drivers.protocols import Frame, Intrinsics
from drivers.recording import Recorder
recorder = Recorder(sys.argv[1], joint_names=["a"])
camera = Intrinsics(64, 48, 60, 60, 31, 23)
k = 0
while True:
    t_s = time.monotonic()
    recorder.joints(t_s, [k])
    if k % 10 == 0:
        recorder.frame(Frame(np.full((48, 64, 3), k // 10 % 256, np.uint8), None, t_s, camera))
    k += 1
    print(t_s, flush=True)
    time.sleep(0.01)
"""


def test_a_killed_run_loses_at_most_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    process = subprocess.Popen([sys.executable, "-c", RUN_UNTIL_KILLED, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first_s = float(process.stdout.readline())
    last_s = first_s
    while last_s < first_s + 2.5:
        last_s = float(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    last_s = max([last_s, *(float(line) for line in process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    recording = Recording(path)
    assert not recording.complete
    joints = [m.data for m in recording.messages(JOINTS)]
    assert [m["position_rad"] for m in joints] == [[k] for k in range(len(joints))]
    # The second between two writes, and what a busy machine needs to begin and end one.
    assert last_s - joints[-1]["t_s"] < 1.5
    assert [int(f.rgb[0, 0, 0]) for f in recording.frames()] == list(range((len(joints) - 1) // 10 + 1))


OVER_THE_LIMIT = """
import resource, sys
import numpy as np
from drivers.protocols import Frame, Intrinsics
from drivers.recording import Recorder
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
rng = np.random.default_rng(0)
said = []
with Recorder(sys.argv[1], warn=said.append) as recorder:
    while recorder.problem is None:
        rgb = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        recorder.frame(Frame(rgb, None, 1.0, Intrinsics(160, 120, 60, 60, 31, 23)))
    recorder.joints(2.0, [0.0])
assert said == [recorder.problem], said
print(recorder.problem)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
def test_a_full_disk_stops_the_recording_with_one_line_and_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    done = subprocess.run(
        [sys.executable, "-c", OVER_THE_LIMIT, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path}: recording stopped (File too large); what was recorded before can be replayed\n"
    recording = Recording(path)
    assert not recording.complete
    list(recording.frames())


def test_a_disk_that_is_full_from_the_start_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drivers.recording.os, "fsync", full)
    with pytest.raises(UserError, match=r"run\.mcap: cannot be written \(No space left on device\)"):
        Recorder(tmp_path / "run.mcap")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A recording of some chunks."""
    path = tmp_path_factory.mktemp("whole") / "run.mcap"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drivers.recording, "CHUNK_BYTES", 20_000)
        record(path)
    return path.read_bytes()


def read_all(content: bytes, path: Path) -> tuple[list[bytes], list[Frame]]:
    path.write_bytes(content)
    recording = Recording(path)
    return [m.raw for m in recording], list(recording.frames())


def test_a_file_cut_anywhere_reads_up_to_there(whole: bytes, tmp_path: Path) -> None:
    messages, _ = read_all(whole, tmp_path / "whole.mcap")
    counts = []
    for size in range(8, len(whole), 100):
        left, frames = read_all(whole[:size], tmp_path / "cut.mcap")
        assert left == messages[: len(left)] and len(frames) <= 5
        assert not Recording(tmp_path / "cut.mcap").complete
        counts.append(len(left))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == len(messages)
    assert len(set(counts)) > 4


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_only_what_was_recorded(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.mcap"
    messages, _ = read_all(whole, path)
    damaged = bytearray(whole)
    at = data.draw(st.integers(8, len(whole) - 1))
    length = data.draw(st.integers(1, 200))
    damaged[at : at + length] = data.draw(st.binary(min_size=length, max_size=length))
    path.write_bytes(bytes(damaged[: data.draw(st.integers(8, len(whole)))]))
    try:
        left = [m.raw for m in Recording(path)]
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert set(left) <= set(messages)


@pytest.mark.parametrize("content", [b"", b"\x89MC", b"not a recording at all", b"\0" * 100])
def test_what_is_no_recording_is_said_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.mcap"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.mcap: is no recording; expected an MCAP file$"):
        Recording(path)
    for missing in (tmp_path / "none.mcap", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Recording(missing)


def write_foreign(path: Path, messages: list[tuple[str, str, bytes]], chunked: bool = True) -> None:
    with open(path, "wb") as file:
        writer = Writer(file, use_chunking=chunked)
        writer.start()
        for k, (topic, encoding, content) in enumerate(messages):
            writer.add_message(writer.register_channel(topic, encoding, 0), 10**9 * k, content, 0)
        writer.finish()


def test_a_file_of_another_program_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "other.mcap"
    write_foreign(path, [("/imu", "cdr", b"\0\1\2"), ("/list", "json", b"[1]"), ("/tell", "json", b'{"a": 1}')], False)
    recording = Recording(path)
    assert [(m.topic, m.t_s, m.data) for m in recording] == [
        ("/imu", 0.0, {}),
        ("/list", 1.0, {}),
        ("/tell", 2.0, {"a": 1}),
    ]
    assert not list(recording.frames())


@pytest.mark.parametrize("message", [b"{}", b'{"data": "AAAA"}', b'{"data": 5}', b'{"data": ""}'])
def test_images_that_are_none_are_named(tmp_path: Path, message: bytes) -> None:
    path = tmp_path / "other.mcap"
    camera = b'{"width": 4, "height": 4, "K": [1, 0, 1, 0, 1, 1, 0, 0, 1], "D": []}'
    for messages in ([(RGB, "json", message)], [(INTRINSICS, "json", camera), (RGB, "json", message)]):
        write_foreign(path, messages)
        with pytest.raises(UserError, match=r"other\.mcap: /camera/rgb at \d\.000 s: [^\n]+$"):
            list(Recording(path).frames())


def test_a_recording_takes_the_place_of_a_camera(tmp_path: Path) -> None:
    frames = record(tmp_path / "run.mcap")
    camera: Camera = ReplayCamera(tmp_path / "run.mcap")
    assert (camera.serial, camera.intrinsics) == ("CAM-1", INTRINSICS_1)
    seen = [camera.read() for _ in frames]
    assert [f.t_s for f in seen] == [f.t_s for f in frames]
    assert all((a.rgb == b.rgb).all() and a.depth_m is not None for a, b in zip(seen, frames, strict=True))
    with pytest.raises(DeviceError, match=r"camera .*run\.mcap: has no more frames"):
        camera.read()
    camera.close()
    camera.close()


def test_in_real_time_frames_come_as_they_came(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", count=3)
    camera = ReplayCamera(tmp_path / "run.mcap", realtime=True)
    began_s = time.monotonic()
    stamps = []
    for _ in range(3):
        called_s = time.monotonic()
        stamps.append(camera.read().t_s)
        assert called_s <= stamps[-1] <= time.monotonic()
    assert all(stamp - began_s >= 0.1 * k for k, stamp in enumerate(stamps))
    closed = ReplayCamera(tmp_path / "run.mcap")
    closed.close()
    with pytest.raises(DeviceError, match="no more frames"):
        closed.read()


def test_a_recording_without_frames_is_no_camera(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run.mcap") as recorder:
        recorder.event(1.0, "alone")
    with pytest.raises(DeviceError, match="holds no frames"):
        ReplayCamera(tmp_path / "run.mcap")


@pytest.mark.parametrize(
    "call", [lambda r: r.joints(1.0, [0.1] * 6), lambda r: r.event(1.0, "a"), lambda r: r.frame(BIG)]
)
def test_a_call_costs_its_caller_next_to_nothing(tmp_path: Path, call: Callable[[Recorder], None]) -> None:
    took_s = []
    with Recorder(tmp_path / "run.mcap") as recorder:
        for _ in range(MAX_WAITING_FRAMES):
            began_s = time.perf_counter()
            call(recorder)
            took_s.append(time.perf_counter() - began_s)
            time.sleep(0.001)
    assert np.median(took_s) < 2e-3


BIG = Frame(
    cv2.resize(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), (640, 480)),
    np.full((480, 640), 0.5, np.float32),
    1.0,
    Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5),
)
