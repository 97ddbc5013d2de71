"""A run as Rerun's own reader finds it in a file; viewers that are away, mute or dead are no trouble of the run's."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import mujoco
import numpy as np
import pytest
import rerun as rr
from rerun.chunk import RrdReader
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

import edge.loop
from drivers.errors import UserError
from drivers.protocols import Frame
from edge.contract import Affordance, Answer, Trajectory, format_answer
from edge.control.servo_loop import Cause, Cycles, ServoState, State
from edge.decode import Decision
from edge.decode.events import Events
from edge.geometry import Grasp
from edge.kinematics import Kinematics
from edge.loop import Order, Runtime
from edge.rays import deproject
from edge.rerun_view import destination, process
from edge.rerun_view.messages import Batch, Begin
from edge.rerun_view.view import RerunView
from edge.trace import STAGES, Tracer
from edge.watch import Watcher, Watchers
from edge.watched_camera import WatchedCamera
from tests.edge.test_controller import until
from tests.edge.test_loop import (
    BOWL,
    ROBOT,
    T_BASE_CAMERA,
    ObedientController,
    StillCamera,
    calibration,
    cube_box,
    pixel_of,
)

NAMES = list(ROBOT.joint_names)
IMAGE = "/base/camera/image"
ORDER = Order("put the red cube in the blue bowl", place=True)
THOUGHT = "The red cube lies left of the bowl. It can be taken from above."
PATIENCE_S = 30.0
STATES = [(State.ARMED, Cause.NONE, -1), (State.MOVING, Cause.NONE, -1), (State.HOLDING, Cause.CONTACT, 2)]

Rows = dict[str, list[dict[str, Any]]]


class ScriptedServos:
    """Goes through ``STATES``, one a look, then stays; every look finds seven cycles more."""

    def __init__(self) -> None:
        self.looks = 0
        self.through = threading.Event()
        self.cycles_told: list[tuple[float, np.ndarray, np.ndarray]] = []

    def state(self) -> ServoState:
        state, cause, joint = STATES[min(self.looks, len(STATES) - 1)]
        self.looks += 1
        if self.looks > len(STATES):
            self.through.set()
        ones, now_s = np.ones(len(NAMES)), time.monotonic()
        at_rad = ROBOT.ready_rad + 0.01 * min(self.looks, len(STATES))
        return ServoState(
            cycle=self.looks,
            t_s=now_s,
            state=state,
            cause=cause,
            cause_joint=joint,
            settled=True,
            plan=0,
            plan_elapsed_s=0.0,
            connected=True,
            setpoint_rad=at_rad,
            ahead_rad=at_rad,
            position_rad=at_rad,
            position_s=now_s * ones,
            velocity_rad_s=0 * ones,
            load=0.25 * ones,
            voltage_v=7.4 * ones,
            temperature_c=np.arange(31.0, 31.0 + len(NAMES)),
            torque=np.ones(len(NAMES), np.uint32),
            fault=np.zeros(len(NAMES), np.uint32),
            released=np.zeros(len(NAMES), bool),
            errors={},
            histogram=np.zeros(101, np.uint64),
            hold_began_s=0.0,
            port="/dev/ttyACM0",
        )

    def cycles(self, since: int = 0) -> tuple[int, Cycles]:
        number = np.arange(since, since + 7)
        positions = (0.001 * number[:, None] + np.arange(len(NAMES))).astype(np.float32)
        found = Cycles(5.0 + 0.005 * number, 0 * number, positions + 0.5, positions, 0 * number, number >= 0)
        if since:  # the first look only asks where they are
            self.cycles_told += list(zip(found.t_s, found.setpoint_rad, found.position_rad, strict=True))
        return since + 7, found


class Plans(Watcher):
    """What was planned, and decided on."""

    def __init__(self) -> None:
        self.grasp: Grasp | None = None
        self.waypoints_m: np.ndarray | None = None
        self.frames: list[Frame] = []

    def asked(self, task: str, frame: Frame) -> None:
        self.frames.append(frame)

    def planned(self, grasp: Grasp, waypoints_m: np.ndarray | None) -> None:
        self.grasp, self.waypoints_m = grasp, waypoints_m


@dataclass
class Seen:
    """A run, and what Rerun reads of it."""

    rows: Rows
    plans: Plans
    servos: ScriptedServos
    tracer: Tracer
    box: Affordance
    path: Trajectory
    complaints: list[str] = field(default_factory=list)

    def of(self, entity: str, component: str) -> list[Any]:
        """The values of a component in the order of time; a single one without its list."""
        found = [row[component] for row in self.rows[entity] if row.get(component) is not None]
        return [value[0] if len(value) == 1 else value for value in found]


def read(path: Path) -> Rows:
    """Rows of each entity, by time."""
    rows: Rows = defaultdict(list)
    for chunk in RrdReader(path).stream().to_chunks():
        rows[chunk.entity_path] += chunk.to_record_batch().to_pylist()
    for found in rows.values():
        found.sort(key=time_of)
    return rows


def time_of(row: dict[str, Any]) -> float:
    return row["time"].total_seconds() if row.get("time") is not None else -1.0


def think_aloud(monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Any]) -> None:
    """The model answers so, and its words come a few letters at a time, as ever."""

    def decide(
        engine: object, rgb: object, task: Any, instruction: str, *, on_event: Any, tracer: Tracer, **_: object
    ) -> Decision:
        answer = Answer(THOUGHT, outputs[task])
        text = format_answer(answer)
        events = Events(task, time.monotonic, on_event)
        with tracer.stage("decode"):
            for at in range(0, len(text), 5):
                events.write(text[at : at + 5])
        return Decision(answer, text, 10, 20, 0, confidence=0.9)

    monkeypatch.setattr(edge.loop, "decide", decide)
    monkeypatch.setattr(edge.loop, "is_holding", lambda *args: True)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """An order carried out by the real runtime, seen by a real view, read back from its file."""
    path = tmp_path_factory.mktemp("rerun") / "run.rrd"
    box = cube_box()
    bowl = pixel_of((BOWL.x_m, BOWL.y_m, 0.01))
    way = Trajectory(((round(box.x, 2), round(box.y, 2)), (0.4, 0.5), (round(bowl[0], 2), round(bowl[1], 2))))
    servos, plans, tracer, complaints = ScriptedServos(), Plans(), Tracer(), list[str]()
    scaled = replace(calibration(), depth_scale=1.005)
    with pytest.MonkeyPatch.context() as patched:
        think_aloud(patched, {"affordance": box, "trajectory": way})
        view = RerunView(str(path), ROBOT, scaled, servos, tracer)
        watchers = Watchers([view, plans], complaints.append)
        camera = WatchedCamera(StillCamera(), watchers.frame)
        runtime = Runtime(ROBOT, camera, ObedientController(), None, scaled, tracer, watchers)  # type: ignore[arg-type]
        outcome = runtime.carry_out(ORDER)
        camera.close()
        assert outcome.done, outcome.reason
        assert servos.through.wait(PATIENCE_S)
        view.close()
    yield Seen(read(path), plans, servos, tracer, box, way, complaints)


def test_nothing_is_complained_of_and_every_message_has_the_runs_time(seen: Seen) -> None:
    assert not seen.complaints
    now_s = time.monotonic()
    for entity in (IMAGE, f"{IMAGE}/box", "/reasoning", "/log", "/base/plan/grasp", "/servos/load"):
        times_s = [time_of(row) for row in seen.rows[entity] if row.get("time") is not None]
        assert times_s and all(now_s - 600 < t_s < now_s for t_s in times_s), entity


def test_the_picture_is_the_cameras_and_comes_ten_times_a_second_at_most(seen: Seen) -> None:
    rows = [row for row in seen.rows[IMAGE] if row.get("EncodedImage:blob") is not None]
    picture = cv2.imdecode(np.array(rows[0]["EncodedImage:blob"][0], dtype=np.uint8), cv2.IMREAD_COLOR)
    rgb = seen.plans.frames[0].rgb
    assert picture.shape == rgb.shape
    assert np.abs(picture[..., ::-1].astype(int) - rgb).mean() < 4  # what JPEG takes
    decided_s = {round(frame.t_s, 6) for frame in seen.plans.frames}
    times_s = [time_of(row) for row in rows]
    assert decided_s <= {round(t_s, 6) for t_s in times_s}
    early = [b for a, b in zip(times_s, times_s[1:], strict=False) if b - a < 0.0999]
    assert {round(t_s, 6) for t_s in early} <= decided_s


def test_the_box_and_the_path_are_drawn_where_the_model_sees_them(seen: Seen) -> None:
    size = np.array([640.0, 480.0])
    centre, half = seen.of(f"{IMAGE}/box", "Boxes2D:centers"), seen.of(f"{IMAGE}/box", "Boxes2D:half_sizes")
    assert len(centre) == 1
    assert centre[0] == pytest.approx(np.array([seen.box.x, seen.box.y]) * size, abs=0.01 * 640)
    assert half[0] == pytest.approx(np.array([seen.box.width, seen.box.height]) / 2 * size, abs=0.01 * 640)
    drawn = [row["Points2D:positions"] for row in seen.rows[f"{IMAGE}/path"] if row.get("Points2D:positions")]
    points = np.array(seen.path.points) * size
    assert [len(positions) for positions in drawn] == [1, 2, 3]  # each as it came
    np.testing.assert_allclose(drawn[-1], points, atol=0.5)
    np.testing.assert_allclose(seen.of(f"{IMAGE}/path/line", "LineStrips2D:strips")[-1], points, atol=0.5)


def test_the_reasoning_grows_and_what_happened_is_told_in_order(seen: Seen) -> None:
    texts = seen.of("/reasoning", "TextDocument:text")
    for before, after in zip(texts, texts[1:], strict=False):
        assert after.startswith(before)
    assert texts[-1].startswith(ORDER.instruction) and texts[-1].count(THOUGHT) == 2 and "<think>" not in texts[-1]
    lines = [text for text in seen.of("/log", "TextLog:text") if not text.startswith("arm ")]
    assert lines[:2] == [ORDER.instruction, "thinking"]
    assert lines[2] == "affordance: sure to 90%, 20 tokens in 0.00 s"
    assert lines[-3:] == ["picking", "placing", "done"]


def test_every_cycle_of_the_servos_is_there_once_with_its_joints_names(seen: Seen) -> None:
    for entity, which in (("/joints/setpoint_rad", 1), ("/joints/position_rad", 2)):
        rows = [row for row in seen.rows[entity] if row.get("Scalars:scalars") is not None]
        told = seen.servos.cycles_told
        assert len(told) > 0
        np.testing.assert_allclose([time_of(row) for row in rows], [cycle[0] for cycle in told], atol=1e-6)
        np.testing.assert_allclose([row["Scalars:scalars"] for row in rows], [cycle[which] for cycle in told])
    assert seen.of("/joints/position_rad", "SeriesLines:names") == [NAMES]


def test_temperature_load_and_voltage_are_the_servos(seen: Seen) -> None:
    state = ScriptedServos().state()
    for entity, values in (
        ("temperature_c", state.temperature_c),
        ("load", state.load),
        ("voltage_v", state.voltage_v),
    ):
        scalars = seen.of(f"/servos/{entity}", "Scalars:scalars")
        assert len(scalars) >= len(STATES)
        np.testing.assert_allclose(scalars, np.tile(values, (len(scalars), 1)))
        assert seen.of(f"/servos/{entity}", "SeriesLines:names") == [NAMES]


def test_the_state_of_the_safety_machine_is_said_when_it_changes(seen: Seen) -> None:
    words = ["armed", "moving", "holding: contact (elbow_flex)"]
    assert seen.of("/arm_state", "TextDocument:text") == words
    assert [t for t in seen.of("/log", "TextLog:text") if t.startswith("arm ")] == [f"arm {word}" for word in words]


def test_each_stage_has_its_latency(seen: Seen) -> None:
    spans = defaultdict(list)
    for span in seen.tracer.spans():
        if span.name in STAGES:
            spans[span.name].append((span.ended_ns * 1e-9, span.duration_s * 1e3))
    assert {"capture", "decode", "lift", "plan"} <= set(spans)
    assert {name for name in seen.rows if name.startswith("/latency_ms/")} == {f"/latency_ms/{name}" for name in spans}
    for name, passes in spans.items():
        rows = [row for row in seen.rows[f"/latency_ms/{name}"] if row.get("Scalars:scalars") is not None]
        found = [(time_of(row), row["Scalars:scalars"][0]) for row in rows]
        np.testing.assert_allclose(found, sorted(passes), rtol=1e-9, atol=1e-6)


def test_the_grasp_its_error_and_the_way_are_in_space(seen: Seen) -> None:
    grasp = seen.plans.grasp
    assert grasp is not None and seen.plans.waypoints_m is not None
    assert seen.of("/base/plan/grasp", "Points3D:positions")[-1] == pytest.approx(grasp.position_base_m, abs=1e-6)
    origins, vectors = (np.array(seen.of("/base/plan/jaws", f"Arrows3D:{name}")[-1]) for name in ("origins", "vectors"))
    np.testing.assert_allclose(origins + vectors, np.tile(grasp.position_base_m, (2, 1)), atol=1e-6)  # they meet there
    assert np.linalg.norm(origins[1] - origins[0]) == pytest.approx(grasp.opening_m, abs=1e-6)
    R = Rotation.from_quat(seen.of("/base/plan/error", "Ellipsoids3D:quaternions")[-1]).as_matrix()
    half = np.array(seen.of("/base/plan/error", "Ellipsoids3D:half_sizes")[-1])
    covariance_m2 = R @ np.diag(half**2) @ R.T / chi2.ppf(0.95, 3)
    np.testing.assert_allclose(covariance_m2, grasp.covariance_m2, rtol=1e-3, atol=1e-3 * grasp.covariance_m2.max())
    np.testing.assert_allclose(seen.of("/base/plan/way", "LineStrips3D:strips")[-1], seen.plans.waypoints_m, atol=1e-6)


def test_the_links_are_where_kinematics_puts_them(seen: Seen) -> None:
    kinematics = Kinematics(ROBOT)
    for body in ("shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "jaw"):
        positions = seen.of(f"/base/arm/{body}", "Transform3D:translation")
        turns = seen.of(f"/base/arm/{body}", "Transform3D:quaternion")
        assert len(positions) == len(STATES)  # it moved between the looks, then stood still
        for look, (position_m, xyzw) in enumerate(zip(positions, turns, strict=True), 1):
            T = kinematics.fk(ROBOT.ready_rad + 0.01 * look, body)
            np.testing.assert_allclose(position_m, T[:3, 3], atol=1e-6)
            np.testing.assert_allclose(Rotation.from_quat(xyzw).as_matrix(), T[:3, :3], atol=1e-5)


def test_the_shapes_of_the_arm_are_those_of_its_model(seen: Seen) -> None:
    """Corners and ends of every shape, against MuJoCo's own placing of the geom."""
    model = mujoco.MjModel.from_xml_path(str(ROBOT.model))
    drawn = [name for name in seen.rows if "/shape" in name]
    assert len(drawn) == model.ngeom
    kinds = {"Boxes3D": mujoco.mjtGeom.mjGEOM_BOX, "Capsules3D": mujoco.mjtGeom.mjGEOM_CAPSULE}
    kinds["Cylinders3D"] = mujoco.mjtGeom.mjGEOM_CYLINDER
    for name in drawn:
        body, number = name.split("/")[3], int(name.rpartition(" ")[2])
        geom = model.body(body).geomadr[0] + number
        (row,) = seen.rows[name]
        kind = next(key.partition(":")[0] for key in row if key.endswith(":quaternions"))
        assert model.geom_type[geom] == kinds[kind]
        R = Rotation.from_quat(row[f"{kind}:quaternions"][0])
        along = R.apply([0, 0, 1])
        expected = Rotation.from_quat(np.roll(model.geom_quat[geom], -1))
        assert (R.inv() * expected).magnitude() < 1e-5
        size = model.geom_size[geom]
        if kind == "Boxes3D":
            centre = row[f"{kind}:centers"][0]
            np.testing.assert_allclose(row[f"{kind}:half_sizes"][0], size, atol=1e-6)
        else:
            length = row[f"{kind}:lengths"][0]
            assert (row[f"{kind}:radii"][0], length) == pytest.approx((size[0], 2 * size[1]), abs=1e-6)
            placed = f"{kind}:{'translations' if kind == 'Capsules3D' else 'centers'}"
            centre = np.array(row[placed][0]) + (length / 2 * along if kind == "Capsules3D" else 0)
        np.testing.assert_allclose(centre, model.geom_pos[geom], atol=1e-6)


def matrix_of(seen: Seen, entity: str) -> np.ndarray:
    return np.array(seen.of(entity, "Pinhole:image_from_camera")[-1]).reshape(3, 3).T


def test_the_camera_stands_where_it_was_calibrated_and_sees_the_bowl_at_its_pixel(seen: Seen) -> None:
    (T,) = seen.rows["/base/camera"]
    np.testing.assert_allclose(T["Transform3D:translation"][0], T_BASE_CAMERA[:3, 3], atol=1e-6)
    np.testing.assert_allclose(np.reshape(T["Transform3D:mat3x3"][0], (3, 3)).T, T_BASE_CAMERA[:3, :3], atol=1e-6)
    bowl_m = (BOWL.x_m, BOWL.y_m, 0.01)
    seen_at = matrix_of(seen, IMAGE) @ (np.linalg.inv(T_BASE_CAMERA) @ [*bowl_m, 1.0])[:3]
    np.testing.assert_allclose(seen_at[:2] / seen_at[2], np.array(pixel_of(bowl_m)) * [640, 480], atol=1e-3)


def test_the_depth_image_shows_the_same_points_with_the_calibrations_scale(seen: Seen) -> None:
    frame = seen.plans.frames[0]  # of the calibrated camera: its depth is scaled already
    assert frame.depth_m is not None
    rows = [row for row in seen.rows["/base/camera/depth"] if row.get("DepthImage:buffer") is not None]
    K = matrix_of(seen, "/base/camera/depth")
    for row in rows:
        buffer, meter = bytes(row["DepthImage:buffer"][0]), row["DepthImage:meter"][0]
        depth_m = np.frombuffer(buffer, np.uint16).reshape(240, 320) / meter
        for i, j in ((120, 160), (20, 300), (200, 31)):
            ray = np.linalg.solve(K, [j + 0.5, i + 0.5, 1.0])
            at_m = deproject([[2.0 * j, 2.0 * i]], frame.depth_m[2 * i, 2 * j], frame.intrinsics)[0]
            np.testing.assert_allclose(ray * depth_m[i, j], at_m, atol=1.2e-3)  # to the millimetre


def shown(begin: Begin, path: Path) -> Rows:
    """What the drawing process makes of a run that ends at once."""
    rr.set_strict_mode(True)
    try:
        process.show(io.BytesIO(pickle.dumps(begin) + pickle.dumps(Batch())), str(path))
    finally:
        rr.set_strict_mode(False)
    return read(path)


def test_a_camera_in_the_gripper_moves_with_it(tmp_path: Path) -> None:
    rows = shown(Begin(ROBOT, "gripper", T_BASE_CAMERA), tmp_path / "a.rrd")
    assert "/base/arm/gripper/camera" in rows and "/base/camera" not in rows


def test_an_arm_of_meshes_and_balls_is_drawn_as_well(tmp_path: Path) -> None:
    corners_m = np.array([[0.0, 0.0, 0.0], [0.03, 0.0, 0.0], [0.0, 0.02, 0.0], [0.01, 0.01, 0.05]])
    spec = mujoco.MjSpec.from_file(str(ROBOT.model))
    spec.add_mesh(name="hull", uservert=corners_m.ravel())
    gripper = spec.body("gripper")
    for geom in gripper.geoms:
        spec.delete(geom)
    gripper.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="hull", rgba=[1, 0, 0, 1])
    gripper.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.02, 0, 0], pos=[0.1, 0.2, 0.3])
    gripper.add_geom(type=mujoco.mjtGeom.mjGEOM_ELLIPSOID, size=[0.01, 0.02, 0.03], group=2)
    gripper.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.01, 0.02, 0.03], group=3)  # for collisions only
    spec.compile()
    model = tmp_path / "arm.xml"
    model.write_text(spec.to_xml())
    rows = shown(Begin(replace(ROBOT, model=model), "base", T_BASE_CAMERA), tmp_path / "a.rrd")
    shapes = {name.rpartition(" ")[2]: found[0] for name, found in rows.items() if "/gripper/shape" in name}
    assert set(shapes) == {"0", "1", "2"}
    vertices_m = np.array(shapes["0"]["Mesh3D:vertex_positions"])
    order = [int(np.linalg.norm(vertices_m - corner, axis=1).argmin()) for corner in corners_m]
    np.testing.assert_allclose(vertices_m[order], corners_m, atol=1e-5)  # MuJoCo moved them to their middle
    assert sorted(order) == [0, 1, 2, 3]
    assert shapes["1"]["Ellipsoids3D:half_sizes"][0] == pytest.approx([0.02, 0.02, 0.02])
    assert shapes["1"]["Ellipsoids3D:centers"][0] == pytest.approx([0.1, 0.2, 0.3])
    assert shapes["2"]["Ellipsoids3D:half_sizes"][0] == pytest.approx([0.01, 0.02, 0.03])


# What cannot work is refused


def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "find_spec", lambda name: None)


def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("where", "given", "said"),
    [
        ("{folder}/a.rrd", no_package, r"pip install 'vlar1-edge\[rerun\]'"),
        (None, no_display, r"no display here .*--rerun FILE.rrd.*rerun\+http://HOST:9876/proxy"),
        ("{folder}/there.rrd", None, "there.rrd: exists already"),
        ("{folder}/no/a.rrd", None, "a.rrd: cannot be made"),
        ("{folder}/a.mp4", None, "a.mp4: expected a file FILE.rrd"),
        ("http://robot:9876", None, "no viewer's address"),
        ("rerun+http://robot:9876", None, "no viewer's address"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line_and_nothing_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str | None,
    given: Callable[[pytest.MonkeyPatch], None] | None,
    said: str,
) -> None:
    (tmp_path / "there.rrd").write_bytes(b"somebody's")
    if given is not None:
        given(monkeypatch)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
    with pytest.raises(UserError, match=said) as refused:
        destination.check(where and where.format(folder=tmp_path))
    assert "\n" not in str(refused.value)
    assert (tmp_path / "there.rrd").read_bytes() == b"somebody's"


# Viewers


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


@pytest.mark.parametrize("mute", [False, True], ids=["nobody listens", "somebody accepts and says nothing"])
def test_a_viewer_that_does_not_answer_holds_up_nothing(listener: socket.socket, mute: bool) -> None:
    if mute:
        listener.listen()
    complaints: list[str] = []
    url = f"rerun+http://127.0.0.1:{listener.getsockname()[1]}/proxy"
    view = RerunView(url, ROBOT, calibration(), ScriptedServos(), Tracer())
    watchers = Watchers([view], complaints.append)
    camera = StillCamera()
    for _ in range(100):
        watchers.frame(camera.read())
        watchers.said("on it goes")
    began_s = time.monotonic()
    view.close()
    assert time.monotonic() - began_s < 8.0  # it has 1.5 s; Rerun's own way out takes ten or never ends
    assert view._process.poll() is not None and not view._thread.is_alive()


def test_of_a_viewer_that_is_gone_the_run_hears_once(tmp_path: Path) -> None:
    complaints: list[str] = []
    view = RerunView(str(tmp_path / "a.rrd"), ROBOT, calibration(), ScriptedServos(), Tracer())
    watchers = Watchers([view], complaints.append)
    view._process.kill()
    view._thread.join(PATIENCE_S)
    for _ in range(3):
        watchers.said("on it goes")
    assert len(complaints) == 1 and "ended with code -9" in complaints[0]
    view.close()


def test_a_process_that_cannot_go_on_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = io.BytesIO(pickle.dumps(Begin(replace(ROBOT, model=tmp_path / "none.xml"), "base", np.eye(4))))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.TextIOWrapper(broken))
        patched.setattr(os, "nice", lambda by: 0)
        assert process.main(str(tmp_path / "a.rrd")) == 1
    out = capsys.readouterr().out
    assert "none.xml" in out and out.count("\n") == 1


def logged(path: Path) -> list[str]:
    """The lines of the log in a file that is being written."""
    with suppress(OSError, RuntimeError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no end yet
        return [row["TextLog:text"][0] for row in read(path)["/log"]]
    return []


def test_a_viewer_elsewhere_is_sent_the_run(listener: socket.socket, tmp_path: Path) -> None:
    """Rerun's own program in the viewer's place, which needs no display to save what it is sent."""
    port = listener.getsockname()[1]
    listener.close()
    got = tmp_path / "got.rrd"
    binary = [sys.executable, "-m", "rerun_cli", "--bind", "127.0.0.1", "--port", str(port), "--save", str(got)]
    server = subprocess.Popen(
        binary, env={**os.environ, "CI": "1"}, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, start_new_session=True
    )
    assert server.stdout is not None
    try:
        while b"Listening" not in (line := server.stdout.readline()):
            assert line, "the server has ended"
        servos = ScriptedServos()
        view = RerunView(f"rerun+http://127.0.0.1:{port}/proxy", ROBOT, calibration(), servos, Tracer())
        view.said("hello from the robot")
        until(lambda: "hello from the robot" in logged(got), PATIENCE_S)
        assert servos.through.wait(PATIENCE_S)
        view.close()
    finally:
        os.killpg(server.pid, 15)
        server.wait(PATIENCE_S)
        server.stdout.close()
    assert "arm holding: contact (elbow_flex)" in logged(got)  # the last that was sent


def test_the_viewer_that_is_started_listens_here_only_and_reports_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr(
        destination.subprocess, "Popen", lambda command, **options: started.update(command=command, **options)
    )
    monkeypatch.delenv("CI", raising=False)
    destination._start_viewer()
    command = started["command"]
    assert command[command.index("--bind") + 1] == "127.0.0.1"
    # Rerun's own program, with a home of its own: what it would report lies there until it is sent.
    (tmp_path / "a.rrd").touch()
    reports = {}
    for name, env in (("as started", started["env"]), ("else", {**os.environ})):
        home = tmp_path / name
        home.mkdir()
        others = {key: value for key, value in env.items() if not key.startswith("XDG_")}
        verify = [*command[:3], "rrd", "stats", str(tmp_path / "a.rrd")]
        monkeypatch.undo()
        subprocess.run(verify, env={**others, "HOME": str(home)}, capture_output=True, timeout=60)
        reports[name] = [path for path in home.rglob("*") if path.is_file()]
    assert reports["else"] and not reports["as started"]
