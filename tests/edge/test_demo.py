"""The main job, interrupted while the arm calibrates. What a whole run leaves is looked at by `.ci/run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def test_ctrl_c_parks_the_arm_and_leaves_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge.cli", "demo", "--seed", "11", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline_s = time.monotonic() + 300
    while not (tmp_path / "frames").exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    time.sleep(12.0)  # the arm is up, and shows its board from here and there
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert "the arm is parked and its torque is off" in printed
    assert not (tmp_path / "report.json").exists()  # of no episode
