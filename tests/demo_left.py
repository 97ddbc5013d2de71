"""``python -m tests.demo_left DIR``: is all there and whole that ``vlar1 demo`` left in DIR? Run by ``.ci/run``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np

from calib.file import load_calibration
from drivers.sim.render import camera_pose
from edge.demo import draw_plans

STAGES = {"capture", "preprocess", "vision", "prefill", "decode", "parse", "track", "lift", "plan", "actuate"}


def check(out: Path) -> None:
    """Raises AssertionError for what is not as it should be."""
    report = json.loads((out / "report.json").read_text())
    episodes = report["episodes"]
    plans = draw_plans(report["seed"], episodes)
    assert episodes >= 1 and report["success_rate"] == report["successes"] / episodes
    assert [one["instruction"] for one in report["episodes_detail"]] == [plan.task.instruction for plan in plans]
    # An order that could not be planned has no motion; whatever was decided was timed.
    assert {"capture", "preprocess", "vision", "prefill", "decode", "parse", "lift"} <= set(report["stages"]) <= STAGES
    assert all({"count", "p50_ms", "p90_ms", "max_ms"} == set(row) for row in report["stages"].values())

    calibration = load_calibration(out / "calibration.yaml")
    truth = camera_pose(plans[0].scene.look)
    # What matters is where points of the table land: corners of the work area, seen by the camera, placed by the file.
    corners = np.array([[x, y, 0.02, 1.0] for x in (0.16, 0.28) for y in (-0.14, 0.14)])
    placed = corners @ np.linalg.inv(truth).T @ calibration.T_base_camera().T
    assert np.linalg.norm(placed - corners, axis=1).max() < 0.004
    assert calibration.leave_one_out_mm < 5.0 and len(calibration.views) >= 8

    for k in range(1, episodes + 1):
        assert (out / f"episode-{k:02d}.png").stat().st_size > 10_000
        assert (out / "frames" / f"{k:02d}.png").stat().st_size > 10_000
    with av.open(str(out / "demo.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 10


if __name__ == "__main__":
    check(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: report, calibration, pictures and film are whole")
