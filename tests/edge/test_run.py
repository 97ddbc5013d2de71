"""``vlar1 run`` on the simulated table, as a person uses it: from the command line, and in a browser.

The browser is a real Chromium without a window; its pictures are kept in ``runs/tests/console``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from calib.board import Board
from calib.calibration import Calibration, CameraCalibration
from calib.file import save_calibration
from drivers.camera.sim import SimCamera
from drivers.robot import load_robot
from drivers.sim.process import SimulatedTable
from drivers.sim.render import CAMERA, camera_pose
from drivers.sim.scene import Item, Scene, draw_look
from edge.cli import main

ROBOT = load_robot()
CUBE = Item("cube", "red", 0.22, 0.02, 0.3, (0.015, 0.015, 0.015))
BOWL = Item("bowl", "blue", 0.19, -0.11, 0.0, (0.044, 0.028))
SCENE = Scene((CUBE, BOWL), draw_look(np.random.default_rng(0)))
ORDER = "pick up the red cube"
PICTURES = Path("runs/tests/console")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SOON_MS, MOTION_MS = 30_000, 90_000  # how long a test waits for what must come; it decides nothing
STATE = "#states li.now"


@dataclass(frozen=True)
class Desk:
    """A simulated arm and camera on their wires, and what calibration would have found."""

    table: SimulatedTable
    calibration: Path

    def arguments(self, *rest: str) -> list[str]:
        camera = f"sim:{self.table.camera_address}"
        return ["run", *rest, "--camera", camera, "--calibration", str(self.calibration), "--port", self.table.port]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with SimulatedTable(ROBOT, SCENE, 0) as table:
        path = tmp_path_factory.mktemp("run") / "desk.yaml"
        with closing(SimCamera(table.camera_address)) as camera:
            known = CameraCalibration("2026-01-01", camera.serial, camera.intrinsics, "factory")
        found = camera_pose(SCENE.look)
        save_calibration(
            Calibration("2026-01-01", ROBOT.name, known, Board(), "base", found, np.eye(4), 0.1, 0.5), path
        )
        yield Desk(table, path)


def command(arguments: list[str]) -> subprocess.Popen[str]:
    code = "import sys; from edge.cli import main; sys.exit(main())"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-u", "-c", code, *arguments], text=True, **pipes)  # type: ignore[call-overload]


def test_one_order_is_carried_out_judged_by_physics(desk: Desk, tmp_path: Path) -> None:
    desk.table.lay_out(SCENE)
    kept = ("--record", str(tmp_path / "run.mcap"), "--rerun", str(tmp_path / "run.rrd"))
    process = command(desk.arguments("put the red cube in the blue bowl", "--place", "--yes", *kept))
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert "✓ done" in printed and "decode" in printed  # the table of stages
    x, y, z = desk.table.position(0)
    assert np.hypot(x - BOWL.x_m, y - BOWL.y_m) < BOWL.size_m[0] and z < 0.05, printed
    assert all((tmp_path / f"run.{kind}").stat().st_size > 10_000 for kind in ("mcap", "rrd"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "names no order"),
        (["  "], "instruction: is empty"),
        ([ORDER, "--console", "nowhere"], "expected PORT or HOST:PORT"),
        ([ORDER, "--console", "70000"], "expected PORT or HOST:PORT"),
        ([ORDER, "--console", "192.0.2.1:80"], "cannot listen there"),
        ([ORDER, "--rerun", "run.txt"], "expected a file FILE.rrd"),
        ([ORDER, "--robot", "koch.yaml"], "koch.yaml"),
        ([ORDER, "--bundle", "nothing"], "nothing"),
        ([ORDER], "add --yes"),  # nobody is at a keyboard
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_moves(
    desk: Desk, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(desk.arguments(*arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlar1: error: ") and said in error and error.count("\n") == 1


def test_a_calibration_of_another_camera_gives_the_arm_no_torque(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(desk.calibration.read_text().replace("SIM-RGBD-0001", "SIM-RGBD-0002"))
    assert main([*desk.arguments(ORDER, "--yes"), "--calibration", str(other)]) == 2
    assert "SIM-RGBD-0002" in capsys.readouterr().err


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    installed = next((path for name in BROWSERS if (path := shutil.which(name))), None)  # else playwright's own
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=installed, args=[*quiet, "--disable-component-update"])


@dataclass
class Watched:
    """A run, and a person before its page."""

    process: subprocess.Popen[str]
    page: Page
    url: str

    def keep(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")

    def waiting(self) -> None:
        expect(self.page.locator("#start")).to_be_enabled(timeout=MOTION_MS)

    def start(self) -> None:
        self.page.locator("#start").click()
        expect(self.page.locator("#start")).to_be_disabled(timeout=SOON_MS)

    def picking(self) -> None:
        expect(self.page.locator("#said")).to_have_text("picking", timeout=SOON_MS)
        expect(self.page.locator(STATE)).to_have_text("moving", timeout=SOON_MS)

    def stopped(self) -> None:
        expect(self.page.locator(STATE)).to_have_text("stopped", timeout=SOON_MS)
        expect(self.page.locator("#stop-note")).to_have_text("stopped", timeout=SOON_MS)

    def go_on(self) -> None:
        self.page.locator("#restart").click(timeout=SOON_MS)
        self.waiting()

    def park(self) -> str:
        """To the end; what was printed."""
        self.page.locator("#park").click(timeout=SOON_MS)
        expect(self.page.locator("#link")).to_have_text("ended", timeout=MOTION_MS)
        return self.process.communicate(timeout=MOTION_MS / 1e3)[0]


@contextmanager
def run_in_browser(desk: Desk, browser: Browser, instruction: str = ORDER) -> Iterator[Watched]:
    process = command(desk.arguments(instruction, "--console", "0"))
    assert process.stdout is not None
    url = ""
    while not url:
        line = process.stdout.readline()
        assert line, "it ended before there was a page"
        url = line.strip().partition("the operator's page: ")[2]
    # The page allows no scripts from elsewhere; those of the test come in by the side door.
    context = browser.new_context(bypass_csp=True, viewport={"width": 1280, "height": 1100})
    troubles: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    try:
        page.goto(url, timeout=SOON_MS)
        yield Watched(process, page, url)
        assert not troubles
    finally:
        context.close()
        process.kill()
        process.communicate()


def test_a_run_is_started_watched_and_stopped_through_the_page(desk: Desk, browser: Browser) -> None:
    desk.table.lay_out(SCENE)
    with run_in_browser(desk, browser) as run:
        run.waiting()
        page = run.page
        expect(page.locator("#instruction")).to_have_value(ORDER)
        expect(page.locator("#joints tr")).to_have_count(len(ROBOT.joint_names))
        run.start()
        run.picking()
        expect(page.locator("#reasoning")).to_contain_text("cube", timeout=SOON_MS)
        assert "<think>" not in page.locator("#reasoning").inner_text()
        box = {name: float(page.locator("#box").get_attribute(name) or "nan") for name in ("x", "y", "width", "height")}
        u, v = pixel_share(CUBE.x_m, CUBE.y_m)
        assert box["x"] < u < box["x"] + box["width"] and box["y"] < v < box["y"] + box["height"]
        assert page.locator("#image").evaluate("image => image.naturalWidth") == 640
        expect(page.locator("#legend")).to_contain_text("decode")
        run.keep("picking")
        page.keyboard.press("Space")
        run.stopped()
        expect(page.locator("#outcome")).to_contain_text("stopped (the operator's page at 127.0.0.1)", timeout=SOON_MS)
        run.keep("stopped")
        run.go_on()

        # On a phone, and while the run hangs.
        page.set_viewport_size({"width": 360, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        expect(page.locator("#stop")).to_be_in_viewport(ratio=1)
        run.start()
        run.picking()
        os.kill(run.process.pid, signal.SIGSTOP)
        page.locator("#stop").click()
        run.stopped()
        run.keep("phone-stopped")
        os.kill(run.process.pid, signal.SIGCONT)
        run.go_on()  # the run is back, knows that it was stopped, and takes orders
        printed = run.park()
        run.keep("ended")
        assert run.process.returncode == 0, printed


def test_a_page_that_loses_its_run_says_that_it_cannot_stop_the_arm(desk: Desk, browser: Browser) -> None:
    with run_in_browser(desk, browser) as run:
        run.waiting()
        page_process = children(run.process.pid, "edge.console.process")
        os.kill(page_process, signal.SIGKILL)
        expect(run.page.locator("#banner")).to_contain_text("This page cannot stop the arm", timeout=SOON_MS)
        run.page.keyboard.press("Space")
        expect(run.page.locator("#stop-note")).to_contain_text("NOT CONFIRMED", timeout=SOON_MS)
        run.process.send_signal(signal.SIGINT)
        printed = run.process.communicate(timeout=MOTION_MS / 1e3)[0]
        assert run.process.returncode == 130 and "Traceback" not in printed


def children(pid: int, of: str) -> int:
    """The child process whose command line has that in it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and of in (folder / "cmdline").read_text():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"{pid} has no child {of}")


def pixel_share(x_m: float, y_m: float) -> tuple[float, float]:
    """Where a point just over the table is in the image, as fractions of it."""
    x, y, z, _ = np.linalg.inv(camera_pose(SCENE.look)) @ [x_m, y_m, 0.015, 1.0]
    return (CAMERA.fx * x / z + CAMERA.cx) / CAMERA.width, (CAMERA.fy * y / z + CAMERA.cy) / CAMERA.height
