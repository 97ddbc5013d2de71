"""The main job as a user runs it: an episode through the real path, and an interruption after it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from calib.file import load_calibration
from drivers.sim.render import camera_pose
from edge.demo import draw_plans

SEED = 23  # its first order is a pick, which is soon over and soon filmed
STAGES = {"capture", "preprocess", "vision", "prefill", "decode", "parse", "track", "lift", "plan", "actuate"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that is interrupted after its first episode; `.ci/run` has one that comes to its end."""
    out = tmp_path_factory.mktemp("demo")
    code = "import sys; from edge import cli, demo; demo.CALIBRATION_VIEWS = 8; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "demo", "--episodes", "5", "--seed", str(SEED), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline_s = time.monotonic() + 300
    while not (out / "report.json").exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    time.sleep(4.0)  # the arm is on its way
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 130, printed
    (out / "printed.txt").write_text(printed)
    return out


def test_ctrl_c_parks_the_arm_and_leaves_without_a_traceback(out: Path) -> None:
    printed = (out / "printed.txt").read_text()
    assert "Traceback" not in printed
    assert "the arm is parked and its torque is off" in printed
    assert "judged by physics" in printed and "Latency" in printed  # of what there was


def test_the_report_tells_what_happened_and_how_long_each_stage_took(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert 1 <= report["episodes"] < 5 and report["success_rate"] == report["successes"] / report["episodes"]
    detail = report["episodes_detail"][0]
    assert detail["instruction"] == draw_plans(SEED, 5)[0].task.instruction
    # An order that could not be planned has no motion; whatever was decided was timed.
    assert {"capture", "preprocess", "vision", "prefill", "decode", "parse", "lift"} <= set(report["stages"]) <= STAGES
    assert all({"count", "p50_ms", "p90_ms", "max_ms"} == set(row) for row in report["stages"].values())


def test_the_calibration_found_the_camera_it_could_not_know(out: Path) -> None:
    calibration = load_calibration(out / "calibration.yaml")
    truth = camera_pose(draw_plans(SEED, 5)[0].scene.look)
    # What matters is where points of the table land: corners of the work area, seen by the camera, placed by the file.
    corners = np.array([[x, y, 0.02, 1.0] for x in (0.16, 0.28) for y in (-0.14, 0.14)])
    placed = corners @ np.linalg.inv(truth).T @ calibration.T_base_camera().T
    assert np.linalg.norm(placed - corners, axis=1).max() < 0.004
    assert calibration.leave_one_out_mm < 5.0 and len(calibration.views) >= 8


def test_pictures_frames_and_a_video_are_left(out: Path) -> None:
    assert (out / "episode-01.png").stat().st_size > 10_000
    assert (out / "frames" / "01.png").stat().st_size > 10_000
    with av.open(str(out / "demo.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10
